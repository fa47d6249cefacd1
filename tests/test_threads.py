"""Threads for `def` handlers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from tidemill.threads import Threads


def test_results_and_errors_come_back() -> None:
    def fail() -> None:
        raise ValueError("no")

    def stop() -> None:
        raise StopIteration

    async def main() -> None:
        threads = Threads("t")
        assert await asyncio.gather(*(threads.run(lambda number=number: number) for number in range(50))) == [
            *range(50)
        ]
        with pytest.raises(ValueError, match="no"):
            await threads.run(fail)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.run(stop)

    asyncio.run(main())


def test_idle_threads_are_used_again_and_those_that_hang_are_in_nobodys_way() -> None:
    release = threading.Event()

    async def main() -> None:
        threads = Threads("t")
        names = {await threads.run(lambda: threading.current_thread().ident) for _ in range(20)}
        assert len(names) <= 2
        hanging = [threads.run(release.wait) for _ in range(30)]
        for future in hanging:
            future.cancel()
        assert await asyncio.wait_for(threads.run(lambda: "still here"), 5) == "still here"

    try:
        asyncio.run(main())
    finally:
        release.set()


def test_a_function_that_never_returns_does_not_keep_the_process() -> None:
    program = """
import asyncio, threading
from tidemill.threads import Threads
async def main():
    future = Threads("t").run(threading.Event().wait)
    await asyncio.sleep(0.05)
    future.cancel()
asyncio.run(main())
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    assert time.monotonic() - began < 10

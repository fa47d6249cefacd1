"""Starts processes by forking: one is ready in milliseconds, where a new Python takes a tenth of a second.

The nursery is a process of its own, without threads or an event loop that a fork could break. It reads a job a line
and answers `start PID`; of each process that ended it tells `end PID STATUS`. When its input ends, it kills the rest.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO

import msgspec

from .worker import Job, run

_PROGRAM = "from tidemill.testing.torture.nursery import main; main()"


class Nursery:
    """The nursery, as seen by who started it."""

    def __init__(self, errors: Path, ended: Callable[[int, int], object]) -> None:
        self._errors: IO[bytes] = errors.open("wb")
        self._ended = ended
        self._pids: asyncio.Queue[int] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._encode = msgspec.json.Encoder().encode

    async def open(self, mutant: str = "") -> None:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            mutant,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for who started it
        )
        self._listener = asyncio.create_task(self._listen())

    async def start(self, job: Job) -> int:
        """Start a process. Its id."""
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(self._encode(job) + b"\n")
            return await asyncio.wait_for(self._pids.get(), 20)

    async def close(self) -> None:
        """Kill everything in it, and the nursery with it."""
        assert self._process.stdin is not None
        with suppress(ProcessLookupError):
            self._process.stdin.close()
        await self._process.wait()
        await self._listener
        self._errors.close()

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match line.decode().split():
                case ["start", pid]:
                    self._pids.put_nowait(int(pid))
                case ["end", pid, status]:
                    self._ended(int(pid), int(status))
                case _:
                    pass


def main() -> None:
    """Be the nursery."""
    if mutant := sys.argv[1]:
        module, _, function = mutant.partition(":")
        getattr(import_module(module), function)()
    decode = msgspec.json.Decoder(Job).decode
    buffer = bytearray()
    alive: set[int] = set()
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        if readable:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                break
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                pid = _fork(decode(buffer[:end]))
                del buffer[: end + 1]
                alive.add(pid)
                _tell(f"start {pid}")
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            alive.remove(pid)
            _tell(f"end {pid} {os.waitstatus_to_exitcode(status)}")
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)


def _fork(job: Job) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        code = run(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell(line: str) -> None:
    with suppress(BrokenPipeError):  # who started it is gone: its input ends too
        os.write(1, f"{line}\n".encode())

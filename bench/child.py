# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""A second process: consumes, watches itself, and tells what it saw, one JSON document a line.

`python -m bench.child '{"do": "consume", …}'` is what `bench.processes` starts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from tidemill.broker import connect
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime, run_until_signal

from . import limits_sqlite
from .events import Tally
from .latency import percentiles
from .waiting import until


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def memory() -> float:
    """Resident MiB now (where the system does not say: at most so far)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def consume(url: str, count: int, **options: Any) -> None:
    """Work through a backlog of `count`; the seconds from opening the broker to the last settlement."""
    tally = Tally(**options)
    clock = SystemClock()
    began = time.perf_counter()
    runtime = Runtime([tally.service], connect(url, clock), clock)
    await runtime.start()
    opening = time.perf_counter() - began
    tell(ready=True)
    (consumer,) = runtime.consumers
    await until(lambda: consumer.handled >= count, 0.001)
    seconds = time.perf_counter() - began
    tell(seconds=seconds, opening=opening, ended=time.monotonic_ns(), seen=tally.seen)
    await runtime.close()
    tally.stop_listening()


async def measure_ages(url: str, count: int, **options: Any) -> None:
    """How old `count` events are when they are handled; those that fail on purpose are not among them."""
    ages: list[float] = []
    tally = Tally(ages=ages, **options)
    clock = SystemClock()
    runtime = Runtime([tally.service], connect(url, clock), clock)
    await runtime.start()
    tell(ready=True)
    await until(lambda: tally.seen >= count, 0.02)
    tell(**percentiles(ages), failed=tally.failed)
    await runtime.close()


async def idle(url: str, count: int, seconds: float) -> None:
    """Do nothing for `seconds`, then as `measure_ages`."""
    ages: list[float] = []
    tally = Tally(ages=ages)
    clock = SystemClock()
    began = time.perf_counter()
    runtime = Runtime([tally.service], connect(url, clock), clock)
    await runtime.start()
    opening = time.perf_counter() - began
    await asyncio.sleep(0.5)
    used = time.process_time()
    await asyncio.sleep(seconds)
    tell(cpu=(time.process_time() - used) / seconds, opening=opening)
    await until(lambda: tally.seen >= count, 0.5)
    tell(**percentiles(ages))
    await runtime.close()


async def postpone(url: str, count: int, seconds: float) -> None:
    """Have each event of a backlog of `count` ask to be retried after `seconds`."""
    tally = Tally(postpone=seconds)
    clock = SystemClock()
    runtime = Runtime([tally.service], connect(url, clock), clock)
    await runtime.start()
    (consumer,) = runtime.consumers
    await until(lambda: consumer.handled >= count, 0.01)
    await runtime.close()
    tell(handled=consumer.handled)


async def serve(url: str, nap: float) -> None:
    """Handle until SIGTERM. Tells when as many handlers run as may, and at the end what came of it."""
    tally = Tally(nap=nap)
    runtimes: list[Runtime] = []

    def ready(runtime: Runtime) -> None:
        runtimes.append(runtime)
        tell(ready=True)

    async def watch() -> None:
        await until(lambda: runtimes != [] and runtimes[0].running >= 16, 0.005)
        tell(full=True)

    watching = asyncio.create_task(watch())
    await run_until_signal([tally.service], url, ready=ready)
    watching.cancel()
    (consumer,) = runtimes[0].consumers
    tell(handled=tally.seen, released=consumer.released, last=tally.last)


async def watch_backlog(url: str, count: int, step: int) -> None:
    """Work through a backlog; time and CPU at every `step` events, and how much memory grew at most."""
    tally = Tally()
    clock = SystemClock()
    runtime = Runtime([tally.service], connect(url, clock), clock)
    before = largest = memory()
    await runtime.start()
    (consumer,) = runtime.consumers
    marks = [(0, time.perf_counter(), time.process_time())]
    while consumer.handled < count:
        await asyncio.sleep(0.01)
        largest = max(largest, memory())
        if consumer.handled >= marks[-1][0] + step or consumer.handled >= count:
            marks.append((consumer.handled, time.perf_counter(), time.process_time()))
    tell(growth=largest - before, marks=marks)
    await runtime.close()


def read(path: str, count: int, batch: int) -> None:
    """The hand-written reader."""
    tell(seconds=limits_sqlite.read(Path(path), count, batch))


def main() -> None:
    logging.getLogger("tidemill").setLevel(logging.CRITICAL)  # what fails does so on purpose, thousands of times
    job = json.loads(sys.argv[1])
    do = {
        "consume": consume,
        "measure_ages": measure_ages,
        "idle": idle,
        "postpone": postpone,
        "serve": serve,
        "watch_backlog": watch_backlog,
        "read": read,
    }[job.pop("do")]
    running = do(**job)
    if running is not None:
        asyncio.run(running)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The cases on SQLite, in one process and two, and the hand-written log beside them. Commits reach the disk in all."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tidemill.broker import connect
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime

from . import limits_sqlite
from .cases_memory import rate
from .events import OrderPlaced, Tally, batches, make, stamped
from .latency import publish_at_rate
from .measure import Case, Figures
from .places import folder
from .processes import child
from .waiting import until

APPEND_LIMIT = "sqlite limit: append, 1000 a commit"
APPEND_ONE_LIMIT = "sqlite limit: append, 1 a commit"
READ_LIMIT = "sqlite limit: read, 100 a commit"
READ_MORE_LIMIT = "sqlite limit: read, 1000 a commit"
PUBLISH_1000 = "sqlite publish, 1000 tasks"
PUBLISH_ONE = "sqlite publish, one after the other"
PUBLISH_MANY = "sqlite publish_many"
CONSUME_OTHER = "sqlite consume, other process"
CONSUME_SAME = "sqlite consume, same process"
CONSUME_KEYED = f"{CONSUME_OTHER}, keyed"
ALL_POLICIES = f"{CONSUME_OTHER}, all policies"
IDLE = "sqlite idle consumer"
MILLION = "sqlite backlog-million"

IDLE_SECONDS = 5.0
HOUR = 3600.0
EDGE = 100_000
"""How many events at either end of a long backlog are compared."""


@asynccontextmanager
async def running(path: Path, tally: Tally, consume: bool) -> AsyncIterator[Runtime]:
    clock = SystemClock()
    runtime = Runtime([tally.service], connect(url(path), clock), clock, consume=consume)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.close()


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def fill(path: Path, count: int, keyed: bool = False) -> None:
    """A backlog of `count` for the subscription that the other process consumes."""
    tally = Tally(keyed=keyed)
    async with running(path, tally, consume=False):
        for batch in batches(tally.cls, count, 10_000):
            await tally.service.publish_many(batch)


_prepared: dict[int, Path] = {}
_kept = ExitStack()
atexit.register(_kept.close)


async def prepare(path: Path, pending: int) -> None:
    """A file in which `pending` publishes and as many retries are due in an hour: made once, and copied."""
    if not pending:
        return
    if pending not in _prepared:
        made = _prepared[pending] = _kept.enter_context(folder()) / "log.db"
        await fill(made, pending)
        async with child("postpone", url=url(made), count=pending, seconds=HOUR) as other:
            await other.hear()
        tally = Tally()
        async with running(made, tally, consume=False):
            for batch in batches(OrderPlaced, pending, 10_000):
                await tally.service.publish_many(batch, delay=HOUR)
    # After the last process has closed it, all is in the one file.
    shutil.copy(_prepared[pending], path)
    with path.open("rb") as copied:
        os.fsync(copied.fileno())  # else the first checkpoint to be measured writes all of it to the disk


async def settled(runtime: Runtime, count: int) -> None:
    (consumer,) = runtime.consumers
    await until(lambda: consumer.handled >= count, 0.001)


# --------------------------------------------------------------------------------------------------- publish


async def _publish(count: int, publishers: int) -> Figures:
    tally = Tally()
    numbers = iter(range(count))

    async def publish() -> None:
        for number in numbers:
            await tally.service.publish(make(OrderPlaced, number))

    with folder() as place:
        async with running(place / "log.db", tally, consume=False):
            began = time.perf_counter()
            await asyncio.gather(*(publish() for _ in range(publishers)))
            return rate(count, time.perf_counter() - began)


async def publish_many(count: int, pending: int = 0) -> Figures:
    tally = Tally()
    with folder() as place:
        await prepare(place / "log.db", pending)
        async with running(place / "log.db", tally, consume=False):
            began = time.perf_counter()
            for batch in batches(OrderPlaced, count, 1000):
                await tally.service.publish_many(batch)
            return rate(count, time.perf_counter() - began)


def _append(count: int, batch: int) -> Figures:
    with folder() as place:
        connection = limits_sqlite.create(place / "log.db")
        seconds = limits_sqlite.append(connection, count, batch)
        connection.close()
        return rate(count, seconds)


# --------------------------------------------------------------------------------------------------- consume


async def _consume_here(count: int, **options: Any) -> Figures:
    tally = Tally(**options)
    with folder() as place:
        await fill(place / "log.db", count, keyed=options.get("keyed", False))
        began = time.perf_counter()
        async with running(place / "log.db", tally, consume=True) as runtime:
            await settled(runtime, count)
            return rate(count, time.perf_counter() - began)


async def consume_there(count: int, pending: int = 0, **options: Any) -> Figures:
    with folder() as place:
        await prepare(place / "log.db", pending)
        await fill(place / "log.db", count, keyed=options.get("keyed", False))
        async with child("consume", url=url(place / "log.db"), count=count, **options) as other:
            await other.hear()
            said = await other.hear()
            assert said["seen"] == count
            open_for = said["seconds"] - said["opening"]
            return rate(count, said["seconds"]) | {"µs/event": open_for / count * 1e6}


async def _read(count: int, batch: int) -> Figures:
    with folder() as place:
        path = place / "log.db"
        connection = limits_sqlite.create(path)
        limits_sqlite.append(connection, count, limits_sqlite.BATCH)
        connection.close()
        async with child("read", path=str(path), count=count, batch=batch) as other:
            return rate(count, (await other.hear())["seconds"])


# ------------------------------------------------------------------------------------------------ end to end


async def _end_to_end(count: int, **options: Any) -> Figures:
    """One process publishes in batches, the other handles; from the first publish to the last settlement."""
    tally = Tally(keyed=options.get("keyed", False))
    with folder() as place:
        path = place / "log.db"
        async with (
            running(path, tally, consume=False),
            child("consume", url=url(path), count=count, **options) as other,
        ):
            await other.hear()
            began = time.monotonic_ns()
            for batch in batches(tally.cls, count, 100):
                await tally.service.publish_many(batch)
            ended = (await other.hear())["ended"]
            return rate(count, (ended - began) / 1e9)


async def _latency(count: int, per_second: int) -> Figures:
    tally = Tally()
    with folder() as place:
        path = place / "log.db"
        async with (
            running(path, tally, consume=False),
            child("measure_ages", url=url(path), count=count) as other,
        ):
            await other.hear()
            late = await publish_at_rate(tally.service, OrderPlaced, count, per_second)
            return await other.hear() | {"late ms": late}


async def idle(count: int, pending: int = 0) -> Figures:
    """What a consumer with nothing to do uses, and how soon it notices single events of another process."""
    tally = Tally()
    with folder() as place:
        path = place / "log.db"
        await prepare(path, pending)
        async with (
            running(path, tally, consume=False),
            child("idle", url=url(path), count=count, seconds=IDLE_SECONDS) as other,
        ):
            said = await other.hear()
            used = said["cpu"]
            for number in range(count):
                await tally.service.publish(stamped(OrderPlaced, number))
                await asyncio.sleep(random.uniform(0.03, 0.07))  # no beat that the consumer could fall in step with
            return await other.hear() | {"% of a core": used * 100, "opening ms": said["opening"] * 1e3}


async def _backlog(count: int) -> Figures:
    with folder() as place:
        path = place / "log.db"
        await fill(path, count)
        edge = min(EDGE, count // 10)
        async with child("watch_backlog", url=url(path), count=count, step=edge) as other:
            said = await other.hear()
    marks: list[tuple[int, float, float]] = said["marks"]
    first, last = _cost(marks[0], marks[1]), _cost(marks[-2], marks[-1])
    if marks[-1][0] - marks[-2][0] < edge // 2 and len(marks) > 2:
        last = _cost(marks[-3], marks[-1])
    whole, cpu = marks[-1][1] - marks[0][1], marks[-1][2] - marks[0][2]
    return {
        "events/s": count / whole,
        "µs of CPU/event": cpu / count * 1e6,
        "RSS growth MiB": said["growth"],
        "last/first 100k": last / first,
    }


def _cost(start: tuple[int, float, float], end: tuple[int, float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])


def run(function: Callable[..., Coroutine[Any, Any, Figures]], **options: Any) -> Callable[[int], Figures]:
    return lambda count: asyncio.run(function(count, **options))


def cases() -> list[Case]:
    publish, consume, both, latency = (f"SQLite: {what}" for what in ("publish", "consume", "end to end", "latency"))
    return [
        Case(APPEND_ONE_LIMIT, publish, lambda count: _append(count, 1), 1000, "limit"),
        Case(PUBLISH_ONE, publish, run(_publish, publishers=1), 1000),
        Case("sqlite publish, 100 tasks", publish, run(_publish, publishers=100), 20_000),
        Case(APPEND_LIMIT, publish, lambda count: _append(count, limits_sqlite.BATCH), 50_000, "limit"),
        Case(PUBLISH_1000, publish, run(_publish, publishers=1000), 50_000),
        Case(PUBLISH_MANY, publish, run(publish_many), 50_000),
        Case(READ_LIMIT, consume, run(_read, batch=100), 50_000, "limit"),
        Case(READ_MORE_LIMIT, consume, run(_read, batch=1000), 50_000, "limit"),
        Case(CONSUME_OTHER, consume, run(consume_there), 50_000),
        Case(CONSUME_SAME, consume, run(_consume_here), 50_000),
        Case(f"{CONSUME_OTHER}, with Context", consume, run(consume_there, context=True), 50_000),
        Case(f"{CONSUME_OTHER}, concurrency 1", consume, run(consume_there, concurrency=1), 50_000),
        Case(CONSUME_KEYED, consume, run(consume_there, keyed=True), 50_000),
        Case(ALL_POLICIES, consume, run(consume_there, keyed=True, policies=True), 50_000),
        Case(f"{CONSUME_OTHER}, handler sleeps(0)", consume, run(consume_there, pause=True), 25_000),
        Case("sqlite end to end, 2 processes", both, run(_end_to_end), 20_000),
        Case("sqlite end to end, 2 processes, keyed", both, run(_end_to_end, keyed=True), 20_000),
        Case("sqlite latency at 1,000/s, 2 processes", latency, run(_latency, per_second=1000), 3000),
        Case(IDLE, latency, run(idle), 60, fixed=True),
        Case(MILLION, "SQLite: a long backlog", run(_backlog), 1_000_000, usual=False, once=True),
    ]

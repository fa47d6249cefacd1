# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The cases in memory, and the hand-written loop beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tidemill.broker import connect
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime

from .events import OrderPlaced, PlainOrder, Tally, batches, make
from .latency import percentiles, publish_at_rate
from .limits_memory import Attempt, Bus
from .measure import Case, Figures
from .waiting import until

LIMIT = "memory limit: end to end"
PUBLISH_LIMIT = "memory limit: publish"
CONSUME_LIMIT = "memory limit: consume"
END_TO_END = "memory end to end"
KEYED = f"{END_TO_END}, keyed"
ALL_POLICIES = f"{END_TO_END}, all policies"


def rate(count: int, seconds: float) -> Figures:
    return {"events/s": count / seconds}


def running(tally: Tally, consume: bool = True) -> Runtime:
    clock = SystemClock()
    return Runtime([tally.service], connect("memory:", clock), clock, consume=consume)


async def settled(runtime: Runtime, count: int) -> None:
    (consumer,) = runtime.consumers
    await until(lambda: consumer.handled >= count)


# --------------------------------------------------------------------------------------------------- publish


async def _publish(count: int, publishers: int) -> Figures:
    tally = Tally()
    runtime = running(tally, consume=False)
    await runtime.start()
    try:
        numbers = iter(range(count))

        async def publish() -> None:
            for number in numbers:
                await tally.service.publish(make(OrderPlaced, number))

        began = time.perf_counter()
        if publishers == 1:
            await publish()
        else:
            await asyncio.gather(*(publish() for _ in range(publishers)))
        return rate(count, time.perf_counter() - began)
    finally:
        await runtime.close()


async def _publish_many(count: int) -> Figures:
    tally = Tally()
    runtime = running(tally, consume=False)
    await runtime.start()
    try:
        began = time.perf_counter()
        for batch in batches(OrderPlaced, count, 1000):
            await tally.service.publish_many(batch)
        return rate(count, time.perf_counter() - began)
    finally:
        await runtime.close()


# --------------------------------------------------------------------------------------------------- consume


async def _consume(count: int, **options: Any) -> Figures:
    tally = Tally(**options)
    runtime = running(tally)
    await runtime.start()
    try:
        await tally.service.publish_many([make(tally.cls, number) for number in range(count)])
        assert tally.seen == 0  # in memory nothing gave the consumer a turn yet: this is a backlog
        began = time.perf_counter()
        await settled(runtime, count)
        return rate(count, time.perf_counter() - began)
    finally:
        await runtime.close()


# ------------------------------------------------------------------------------------------------ end to end


async def _end_to_end(count: int, **options: Any) -> Figures:
    tally = Tally(**options)
    runtime = running(tally)
    await runtime.start()
    try:
        publish, cls = tally.service.publish, tally.cls
        began = time.perf_counter()
        for number in range(count):
            await publish(make(cls, number))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await settled(runtime, count)
        elapsed = time.perf_counter() - began
        assert tally.seen == count
        return rate(count, elapsed)
    finally:
        tally.stop_listening()
        await runtime.close()


async def _latency(count: int, per_second: int) -> Figures:
    ages: list[float] = []
    tally = Tally(ages=ages)
    runtime = running(tally)
    await runtime.start()
    try:
        late = await publish_at_rate(tally.service, OrderPlaced, count, per_second)
        await settled(runtime, count)
        return percentiles(ages) | {"late ms": late}
    finally:
        await runtime.close()


# --------------------------------------------------------------------------------------------------- limits


async def _limit(count: int, what: str) -> Figures:
    seen = 0

    async def handler(event: PlainOrder, attempt: Attempt) -> None:
        nonlocal seen
        seen += 1

    bus = Bus(handler)

    async def publish() -> None:
        for number in range(count):
            await bus.publish(make(PlainOrder, number))
            if number % 100 == 0:
                await asyncio.sleep(0)

    began = time.perf_counter()
    if what != "end to end":
        await publish()
    if what == "publish":
        return rate(count, time.perf_counter() - began)
    worker = asyncio.create_task(bus.work())
    began = time.perf_counter()
    if what == "end to end":
        await publish()
    await until(lambda: bus.settled >= count)
    elapsed = time.perf_counter() - began
    assert seen == count
    worker.cancel()
    await asyncio.wait([worker])
    return rate(count, elapsed)


def _run(function: Callable[..., Coroutine[Any, Any, Figures]], **options: Any) -> Callable[[int], Figures]:
    return lambda count: asyncio.run(function(count, **options))


def cases() -> list[Case]:
    events = 50_000
    publish, consume, both, latency = (f"Memory: {what}" for what in ("publish", "consume", "end to end", "latency"))
    return [
        Case(PUBLISH_LIMIT, publish, _run(_limit, what="publish"), events, "limit"),
        Case("memory publish, one after the other", publish, _run(_publish, publishers=1), events),
        Case("memory publish, 100 tasks", publish, _run(_publish, publishers=100), events),
        Case("memory publish, 1000 tasks", publish, _run(_publish, publishers=1000), events),
        Case("memory publish_many", publish, _run(_publish_many), events),
        Case(CONSUME_LIMIT, consume, _run(_limit, what="consume"), events, "limit"),
        Case("memory consume", consume, _run(_consume), events),
        Case("memory consume, with Context", consume, _run(_consume, context=True), events),
        Case("memory consume, keyed", consume, _run(_consume, keyed=True), events),
        Case(LIMIT, both, _run(_limit, what="end to end"), events, "limit"),
        Case(END_TO_END, both, _run(_end_to_end), events),
        Case("memory end to end, concurrency 1", both, _run(_end_to_end, concurrency=1), events),
        Case("memory end to end, with Context", both, _run(_end_to_end, context=True), events),
        Case(KEYED, both, _run(_end_to_end, keyed=True), events),
        Case(
            "memory end to end, keyed, with Context",
            both,
            _run(_end_to_end, keyed=True, context=True),
            events,
        ),
        Case(ALL_POLICIES, both, _run(_end_to_end, keyed=True, policies=True), events),
        Case("memory end to end, handler sleeps(0)", both, _run(_end_to_end, pause=True), events // 2),
        Case(
            "memory end to end, handler sleeps(0), concurrency 1",
            both,
            _run(_end_to_end, pause=True, concurrency=1),
            events // 2,
        ),
        Case("memory latency at 1,000/s", latency, _run(_latency, per_second=1000), 2000),
        Case("memory latency at 10,000/s", latency, _run(_latency, per_second=10_000), 20_000),
    ]

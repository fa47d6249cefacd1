"""A loop that stands still is noticed, described, and ended where nothing else helps."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from waiting import wait_until

from tidemill import Service, Topic, event
from tidemill.broker import connect
from tidemill.clock import SystemClock
from tidemill.health import health_of
from tidemill.loop_watch import LEAST_STUCK, NOT_DRAINED, STUCK, LoopWatch
from tidemill.runtime import Runtime
from tidemill.telemetry import listen
from tidemill.testing import running

things = Topic("things")


@event("thing.happened", topic=things)
class ThingHappened:
    number: int


class Heard:
    """What telemetry said: to the log, and to a listener, with the thread it was called in."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any], int]] = []

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        self.told.append((name, fields, threading.get_ident()))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for told, fields, _ in self.told if told == name]


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard()
    stop = listen(found)
    yield found
    stop()


def block_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Block the loop, as a handler would, until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing was noticed"
        time.sleep(0.005)


def logged(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage().startswith(f"{name} ")]


def test_a_blockage_is_reported_once_at_once_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture, heard: Heard
) -> None:
    async def main() -> None:
        watch = LoopWatch(stuck_after=None, limit=0.1, tick=0.02)
        watch.start()
        try:
            for round_ in (1, 2):
                block_until(lambda at=round_: len(logged(caplog, "loop.blocked")) == at)
                assert watch.blocked_for >= 0.1
                time.sleep(0.2)  # longer, and not reported again
                assert len(heard.of("loop.blocked")) == round_ - 1, "listeners run on the loop, which is blocked"
                await wait_until(lambda at=round_: len(heard.of("loop.unblocked")) == at)
                await wait_until(lambda at=round_: len(heard.of("loop.blocked")) == at)
                assert watch.blocked_for == 0.0
        finally:
            watch.stop()

    asyncio.run(main())
    assert len(logged(caplog, "loop.blocked")) == 2
    assert {thread for _, _, thread in heard.told} == {threading.get_ident()}
    [fields, _] = heard.of("loop.blocked")
    assert "in block_until: time.sleep(0.005)" in fields["stack"] or "assert time.monotonic()" in fields["stack"]
    assert "asyncio" not in fields["stack"], "the frames of Python, and what runs the loop, are left out"
    assert all(fields["seconds"] >= 0.2 for fields in heard.of("loop.unblocked"))


def test_the_delivery_that_blocks_is_named(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    monkeypatch.setattr("tidemill.loop_watch.LIMIT", 0.1)
    monkeypatch.setattr("tidemill.loop_watch.TICK", 0.02)
    service = Service("shop")
    noticed = threading.Event()

    class Noticed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("loop.blocked"):
                noticed.set()

    handler = Noticed()
    logging.getLogger("tidemill").addHandler(handler)
    done: list[str] = []

    @service.on(ThingHappened)
    async def handle(event: ThingHappened) -> None:
        await asyncio.sleep(0.001)
        assert noticed.wait(10)
        done.append("handled")

    async def main() -> str:
        async with service.running("memory:"):
            message = await service.publish(ThingHappened(1))
            await wait_until(lambda: done and heard.of("loop.blocked"))
            return message.id

    try:
        message = asyncio.run(main())
    finally:
        logging.getLogger("tidemill").removeHandler(handler)
    [blocked] = heard.of("loop.blocked")
    assert (blocked["subscription"], blocked["message"]) == ("shop.handle", message)
    assert "handle: assert noticed.wait(10)" in blocked["stack"]
    assert "tidemill/consumer.py" not in blocked["stack"]


def test_a_loop_that_is_slow_but_alive_is_not_reported(heard: Heard) -> None:
    async def main() -> None:
        watch = LoopWatch(stuck_after=0.5, limit=0.2, tick=0.02, end=lambda code: pytest.fail("ended"))
        watch.start()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            time.sleep(0.03)
            await asyncio.sleep(0)
        watch.stop()

    asyncio.run(main())
    assert heard.told == []


def test_a_process_of_tidemills_own_ends_when_its_loop_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []

    async def main() -> None:
        watch = LoopWatch(stuck_after=0.3, owned=True, limit=0.1, tick=0.02, end=ended.append)
        watch.start()
        block_until(lambda: ended)
        watch.stop()

    asyncio.run(main())
    assert ended == [STUCK]
    [record] = logged(caplog, "loop.stuck")
    assert "block_until" in record.getMessage()
    assert record.levelno == logging.ERROR


def test_another_process_is_told_that_its_loop_is_stuck_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []

    async def main() -> None:
        watch = LoopWatch(stuck_after=0.3, limit=0.1, tick=0.02, end=ended.append)
        watch.start()
        block_until(lambda: watch.stuck)
        block_until(lambda: logged(caplog, "loop.stuck"))
        await wait_until(lambda: not watch.stuck)
        watch.stop()

    asyncio.run(main())
    assert ended == []


@pytest.mark.parametrize("owned", [True, False])
def test_what_was_told_to_end_and_does_not_is_ended_where_it_is_tidemills_own(owned: bool) -> None:
    ended: list[int] = []

    async def main() -> None:
        watch = LoopWatch(stuck_after=None, owned=owned, tick=0.02, end=ended.append)
        watch.start()
        watch.end_within(0.1)
        watch.end_within(60.0)
        looks = time.monotonic() + 0.3
        block_until(lambda: ended if owned else time.monotonic() > looks)
        watch.stop()

    asyncio.run(main())
    assert ended == ([NOT_DRAINED] if owned else [])


def test_a_log_that_takes_no_more_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.loop_watch.REPORT", 0.05)
    full = threading.Event()
    ended: list[int] = []

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            full.wait(10)

    async def main() -> None:
        watch = LoopWatch(stuck_after=0.3, owned=True, limit=0.1, tick=0.02, end=ended.append)
        watch.start()
        block_until(lambda: ended)
        watch.stop()

    handler = Full()
    logging.getLogger("tidemill").addHandler(handler)
    try:
        asyncio.run(main())
    finally:
        full.set()
        logging.getLogger("tidemill").removeHandler(handler)
    assert ended == [STUCK]


@pytest.mark.parametrize(
    ("timeouts", "after"), [((), LEAST_STUCK), ((5.0,), LEAST_STUCK), ((5.0, 90.0), 100.0), ((5.0, None), None)]
)
def test_stuck_is_what_no_timeout_can_end(timeouts: tuple[float | None, ...], after: float | None) -> None:
    service = Service("shop")
    for number, timeout in enumerate(timeouts):

        @service.on(ThingHappened, name=f"h{number}", timeout=timeout)
        async def handle(event: ThingHappened) -> None: ...

    async def main() -> None:
        clock = SystemClock()
        runtime = Runtime([service], connect("memory:", clock), clock)
        await runtime.start()
        assert runtime.watch is not None
        assert runtime.watch.stuck_after == after
        runtime.watch.stuck = True
        health = health_of(runtime)
        assert (health.live, health.ready, health.why) == (False, False, "the event loop stands still")
        await runtime.close()

    asyncio.run(main())


def test_who_owns_time_and_who_only_publishes_is_not_watched() -> None:
    service = Service("shop")

    def watches() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "tidemill-loop-watch"]

    async def main() -> None:
        await wait_until(lambda: not watches())  # those of earlier tests may be about to end
        async with running(service):
            assert watches() == []
        async with service.running("memory:", consume=False):
            assert watches() == []
        async with service.running("memory:"):
            assert len(watches()) == 1
        await wait_until(lambda: not watches())

    asyncio.run(main())


@pytest.mark.slow
def test_watching_an_idle_loop_costs_nothing_measurable() -> None:
    async def main() -> float:
        watch = LoopWatch(stuck_after=None)
        watch.start()
        process = psutil.Process(os.getpid())
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(3)
        used = sum(process.cpu_times()[:2]) - before
        watch.stop()
        return used / (time.monotonic() - began)

    assert asyncio.run(main()) < 0.01

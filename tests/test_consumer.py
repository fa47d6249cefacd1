"""The loop of a subscription against a feed that is told how to behave."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from waiting import wait_until

from tidemill import (
    Ack,
    BrokerError,
    Circuit,
    Context,
    DeadLetter,
    Delivery,
    Failure,
    Message,
    Outcome,
    Rate,
    Release,
    Retry,
    Service,
    Topic,
    event,
)
from tidemill import consumer as consumer_module
from tidemill.broker import FeedWatcher, Settlement
from tidemill.clock import SystemClock
from tidemill.consumer import MAX_WINDOW, Consumer
from tidemill.outcome import RetryPolicy
from tidemill.pipeline import Handle
from tidemill.telemetry import listen

things = Topic("things", key="key")
plain = Topic("plain")


@event("thing.happened", topic=things)
class ThingHappened:
    key: str
    number: int


@event("plain.thing", topic=plain)
class PlainThing:
    number: int


class FakeFeed:
    """Hands out what it is given, and keeps what is settled."""

    def __init__(self) -> None:
        self.waiting: deque[Delivery] = deque()
        self.settled: list[Settlement] = []
        self.limits: list[int] = []
        self.fetch_errors = 0
        self.settle_errors = 0
        self.late: set[int] = set()
        self.closed = False
        self.left = False
        self.let_go_of = False
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.expired: set[int] = set()
        self.watcher: FeedWatcher | None = None

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        self.limits.append(limit)
        if self.fetch_errors:
            self.fetch_errors -= 1
            raise BrokerError("away")
        taken = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        if not taken:
            await asyncio.sleep(0.002)
        return taken

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        await asyncio.sleep(0)
        if self.settle_errors:
            self.settle_errors -= 1
            raise BrokerError("away")
        self.settled += settlements
        return [delivery for delivery, _ in settlements if delivery.position in self.late]

    def watch(self, watcher: FeedWatcher) -> None:
        self.watcher = watcher

    def begin(self, delivery: Delivery) -> bool:
        self.begun.append(delivery.position)
        return delivery.position not in self.expired

    def end(self, delivery: Delivery) -> None:
        self.ended.append(delivery.position)

    def let_go(self) -> None:
        self.let_go_of = True

    async def leave(self) -> None:
        self.left = True

    async def close(self) -> None:
        self.closed = True

    def outcomes(self) -> dict[int, Outcome]:
        return {delivery.position: outcome for delivery, outcome in self.settled}


def keyed(position: int, key: str, attempt: int = 1) -> Delivery:
    body = b'{"key": "%s", "number": %d}' % (key.encode(), position)
    return Delivery(
        Message(f"id-{position}", "test", "thing.happened", "things", 1, body, 1, key),
        "s.h",
        attempt,
        position,
    )


def unkeyed(position: int, attempt: int = 1) -> Delivery:
    body = b'{"number": %d}' % position
    return Delivery(Message(f"id-{position}", "test", "plain.thing", "plain", 1, body), "s.h", attempt, position)


def consuming(
    cls: type, handler: Callable[..., Any], scenario: Callable[[Consumer, FakeFeed], Any], **options: Any
) -> FakeFeed:
    """Run `scenario` against a consumer of `handler`, then drain it."""
    feed = FakeFeed()

    async def main() -> None:
        service = Service("s")
        service.on(cls, name="h", **options)(handler)
        consumer = Consumer(service.handlers[0], feed, SystemClock())
        consumer.start()
        await asyncio.wait_for(scenario(consumer, feed), 20)
        await asyncio.wait_for(consumer.drain(1), 20)
        assert feed.closed

    asyncio.run(main())
    return feed


def test_outcomes_are_handed_over_until_the_broker_has_them() -> None:
    async def handler(event: PlainThing) -> None: ...

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.fetch_errors = 1
        feed.settle_errors = 2
        feed.waiting.extend(unkeyed(number) for number in range(10))
        await wait_until(lambda: len(feed.settled) == 10)

    heard: list[str] = []
    stop = listen(lambda name, fields: heard.append(name))
    try:
        feed = consuming(PlainThing, handler, scenario)
    finally:
        stop()
    assert set(feed.outcomes().values()) == {Ack()}
    assert heard.count("fetch.failed") == 1
    assert heard.count("settle.failed") == 2


def test_while_outcomes_cannot_be_recorded_fetching_stops() -> None:
    async def handler(event: PlainThing) -> None: ...

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.settle_errors = 4
        feed.waiting.extend(unkeyed(number) for number in range(5 * MAX_WINDOW))
        await wait_until(lambda: feed.settle_errors < 4)
        assert 5 * MAX_WINDOW - len(feed.waiting) <= MAX_WINDOW
        await wait_until(lambda: len(feed.settled) == 5 * MAX_WINDOW)

    consuming(PlainThing, handler, scenario)


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException]
)
@pytest.mark.parametrize("waits", [False, True])
def test_whatever_a_handler_raises_is_an_outcome_and_the_others_go_on(error: type[BaseException], waits: bool) -> None:
    async def handler(event: PlainThing) -> None:
        if waits:
            await asyncio.sleep(0)
        if event.number == 3:
            raise error("odd")

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(8))
        await wait_until(lambda: len(feed.settled) == 8)

    outcomes = consuming(PlainThing, handler, scenario).outcomes()
    assert isinstance(outcomes.pop(3), Retry)
    assert set(outcomes.values()) == {Ack()}


def test_a_middleware_that_returns_no_outcome_fails_the_delivery() -> None:
    async def broken(call_next: Handle, delivery: Delivery) -> Outcome:
        await call_next(delivery)
        return None  # type: ignore[return-value]

    async def handler(event: PlainThing) -> None: ...

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.append(unkeyed(1))
        await wait_until(lambda: bool(feed.settled))

    outcome = consuming(PlainThing, handler, scenario, use=[broken]).outcomes()[1]
    assert isinstance(outcome, Retry)
    assert "a middleware returned NoneType, which is no outcome" in outcome.reason


def test_middlewares_see_undecodable_messages_and_run_in_their_order() -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        async def middleware(call_next: Handle, delivery: Delivery) -> Outcome:
            seen.append(name)
            return await call_next(delivery)

        return middleware

    async def handler(event: PlainThing) -> None:
        raise AssertionError("never reached")

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        delivery = unkeyed(1)
        message = Message("id", "test", "plain.thing", "plain", 1, b"\xff not JSON")
        feed.waiting.append(Delivery(message, "s.h", 1, 1, token=delivery))
        await wait_until(lambda: bool(feed.settled))

    feed = consuming(PlainThing, handler, scenario, use=[named("outer"), named("inner")])
    assert seen == ["outer", "inner"]
    assert isinstance(feed.outcomes()[1], DeadLetter)


def test_a_handler_past_its_time_is_cancelled_and_tried_again() -> None:
    cancelled: list[int] = []

    async def handler(event: PlainThing) -> None:
        if event.number == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(event.number)
                raise

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(40))
        await wait_until(lambda: len(feed.settled) == 40)

    outcomes = consuming(PlainThing, handler, scenario, timeout=0.03, concurrency=2).outcomes()
    assert cancelled == [1]
    timed_out = outcomes.pop(1)
    assert isinstance(timed_out, Retry)
    assert "took longer than 0.03 s" in timed_out.reason
    assert set(outcomes.values()) == {Ack()}


def test_a_handler_that_will_not_end_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.watchdog.ABANDON_AFTER", 0.03)
    let_go = asyncio.Event()

    async def handler(event: PlainThing) -> None:
        while event.number == 1 and not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.append(unkeyed(1))
        await wait_until(lambda: len(feed.settled) == 1)
        feed.waiting.extend(unkeyed(number) for number in range(2, 10))  # its only worker was replaced
        await wait_until(lambda: len(feed.settled) == 9)
        let_go.set()
        await asyncio.sleep(0.01)
        assert len(feed.settled) == 9, "what an abandoned handler ends in must not count"

    heard: list[str] = []
    stop = listen(lambda name, fields: heard.append(name))
    try:
        outcomes = consuming(PlainThing, handler, scenario, timeout=0.03, concurrency=1).outcomes()
    finally:
        stop()
    assert isinstance(outcomes[1], Retry)
    assert "did not end within" in outcomes[1].reason
    assert "delivery.abandoned" in heard


def test_one_key_runs_one_at_a_time_in_order_while_others_go_on() -> None:
    running: set[str] = set()
    order: dict[str, list[int]] = {}
    most = 0

    async def handler(event: ThingHappened) -> None:
        nonlocal most
        assert event.key not in running
        running.add(event.key)
        most = max(most, len(running))
        await asyncio.sleep(0.001 * (event.number % 3))
        order.setdefault(event.key, []).append(event.number)
        running.discard(event.key)

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(keyed(number, f"k{number % 5}") for number in range(100))
        await wait_until(lambda: len(feed.settled) == 100)

    consuming(ThingHappened, handler, scenario, concurrency=16)
    assert most > 1
    assert order == {f"k{rest}": list(range(rest, 100, 5)) for rest in range(5)}


def test_a_key_that_is_to_be_retried_gives_back_what_follows() -> None:
    seen: list[int] = []

    async def handler(event: ThingHappened, ctx: Context) -> None:
        seen.append(event.number)
        if event.key == "bad":
            raise ValueError("not yet")

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(keyed(number, "bad" if number % 2 else "good") for number in range(10))
        await wait_until(lambda: len(feed.settled) == 10)

    outcomes = consuming(ThingHappened, handler, scenario).outcomes()
    assert isinstance(outcomes[1], Retry)
    assert [outcomes[number] for number in (3, 5, 7, 9)] == [Release()] * 4
    assert [outcomes[number] for number in (0, 2, 4, 6, 8)] == [Ack()] * 5
    assert sorted(seen) == [0, 1, 2, 4, 6, 8]


def test_late_settlements_are_told() -> None:
    async def handler(event: PlainThing) -> None: ...

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.late = {1}
        feed.waiting.extend(unkeyed(number) for number in range(3))
        await wait_until(lambda: len(feed.settled) == 3)

    heard: list[dict[str, Any]] = []
    stop = listen(lambda name, fields: heard.append(fields) if name == "delivery.late" else None)
    try:
        consuming(PlainThing, handler, scenario)
    finally:
        stop()
    assert [fields["message"] for fields in heard] == ["id-1"]


def test_fast_handlers_fetch_much_and_slow_ones_little() -> None:
    async def fast(event: PlainThing) -> None: ...

    async def slow(event: PlainThing) -> None:
        await asyncio.sleep(0.005)

    async def many(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(5000))
        await wait_until(lambda: len(feed.settled) == 5000)

    async def few(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(60))
        await wait_until(lambda: len(feed.settled) == 60)

    assert max(consuming(PlainThing, fast, many).limits) > 256
    assert max(consuming(PlainThing, slow, few, concurrency=2).limits) <= 60


def test_draining_finishes_what_runs_and_gives_back_the_rest() -> None:
    began: list[int] = []
    ended: list[int] = []

    async def handler(event: PlainThing) -> None:
        began.append(event.number)
        await asyncio.sleep(0.05)
        ended.append(event.number)

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(100))
        await wait_until(lambda: len(began) == 4)

    feed = consuming(PlainThing, handler, scenario, concurrency=4)
    outcomes = feed.outcomes()
    assert sorted(ended) == sorted(began)
    assert {number for number, outcome in outcomes.items() if outcome == Ack()} == set(ended)
    fetched = 100 - len(feed.waiting)
    assert len(outcomes) == fetched
    assert sum(outcome == Release() for outcome in outcomes.values()) == fetched - len(ended)


def test_policies_decide_what_is_tried_again() -> None:
    async def handler(event: PlainThing) -> None:
        raise ZeroDivisionError

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend([unkeyed(1, attempt=1), unkeyed(2, attempt=3)])
        await wait_until(lambda: len(feed.settled) == 2)

    feed = consuming(PlainThing, handler, scenario, retry=RetryPolicy(attempts=3))
    assert isinstance(feed.outcomes()[1], Retry)
    dead = feed.outcomes()[2]
    assert isinstance(dead, DeadLetter)
    assert "attempt 3 of 3" in dead.reason
    failure = feed.settled[0][0].history[-1]
    assert failure.error == "ZeroDivisionError"
    assert "in handler" in failure.traceback


def test_def_handlers_that_hang_charge_no_neighbour() -> None:
    # With a pool as wide as the concurrency the neighbours waited for a thread, and timed out without having run.
    release = threading.Event()

    def handler(event: PlainThing) -> None:
        if event.number < 4:
            release.wait(20)

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(20))
        await wait_until(lambda: len(feed.settled) == 20)

    try:
        outcomes = consuming(PlainThing, handler, scenario, concurrency=2, timeout=0.2).outcomes()
    finally:
        release.set()
    assert {number for number, outcome in outcomes.items() if isinstance(outcome, Retry)} == {0, 1, 2, 3}
    assert {outcomes[number] for number in range(4, 20)} == {Ack()}


def test_a_handler_that_turns_the_drain_s_cancellation_into_an_error_is_not_charged() -> None:
    async def handler(event: PlainThing) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("the driver says something of its own") from None

    feed = FakeFeed()

    async def main() -> None:
        service = Service("s")
        service.on(PlainThing, name="h")(handler)
        consumer = Consumer(service.handlers[0], feed, SystemClock())
        consumer.start()
        feed.waiting.append(unkeyed(1))
        await wait_until(lambda: consumer.running == 1)
        await consumer.drain(0.01)

    asyncio.run(main())
    assert feed.outcomes() == {1: Release()}


def test_a_drain_does_not_wait_for_a_handler_that_was_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.watchdog.ABANDON_AFTER", 0.03)
    let_go = asyncio.Event()
    feed = FakeFeed()

    async def handler(event: PlainThing) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        service = Service("s")
        service.on(PlainThing, name="h", timeout=0.05)(handler)
        consumer = Consumer(service.handlers[0], feed, SystemClock())
        consumer.start()
        feed.waiting.append(unkeyed(1))
        await wait_until(lambda: consumer.running == 1)
        try:
            await asyncio.wait_for(consumer.drain(30), 5)
        finally:
            let_go.set()

    asyncio.run(main())
    assert feed.outcomes() == {1: Release()}


def test_what_was_given_back_does_not_count_as_handled() -> None:
    blocked = asyncio.Event()

    async def handler(event: PlainThing) -> None:
        if event.number >= 5:
            await blocked.wait()

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(12))
        await wait_until(lambda: len(feed.settled) == 5 and not feed.waiting)
        consumer.force()

    heard: list[dict[str, Any]] = []
    stop = listen(lambda name, fields: heard.append(fields) if name == "consumer.stopped" else None)
    try:
        feed = consuming(PlainThing, handler, scenario, concurrency=6)
    finally:
        stop()
    assert len(feed.settled) == 12
    assert heard == [{"subscription": "s.h", "handled": 5, "released": 7}]


def died(position: int, attempt: int) -> Delivery:
    """A delivery whose process died at that attempt."""
    delivery = unkeyed(position, attempt)
    delivery.history = (Failure(attempt, 1, "ProcessDied: it ended", died=True),)
    delivery.died = True
    return delivery


def test_what_a_process_died_of_is_retried_without_being_run_and_given_up_in_the_end() -> None:
    ran: list[int] = []

    async def handler(event: PlainThing) -> None:
        ran.append(event.number)

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend([died(1, 1), died(2, 3), unkeyed(3)])
        await wait_until(lambda: len(feed.settled) == 3)

    feed = consuming(PlainThing, handler, scenario, retry=RetryPolicy(attempts=3))
    outcomes = feed.outcomes()
    assert ran == [3]
    assert feed.begun == [3], "what was not run again is not charged again"
    assert isinstance(outcomes[1], Retry)
    assert outcomes[2] == DeadLetter("ProcessDied: it ended (attempt 3 of 3)")


def test_neither_never_nor_only_gives_up_what_a_process_died_of() -> None:
    async def handler(event: PlainThing) -> None: ...

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.append(died(1, 1))
        await wait_until(lambda: len(feed.settled) == 1)

    for policy in (RetryPolicy(never=(Exception,)), RetryPolicy(only=(KeyError,))):
        assert isinstance(consuming(PlainThing, handler, scenario, retry=policy).outcomes()[1], Retry)


def test_what_may_have_killed_a_process_runs_alone() -> None:
    at_once: list[set[int]] = []
    running: set[int] = set()

    async def handler(event: PlainThing) -> None:
        running.add(event.number)
        await asyncio.sleep(0.005)
        at_once.append(set(running))
        running.discard(event.number)

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        suspects = [unkeyed(number, 3) for number in (3, 6)]
        for suspect in suspects:
            suspect.history = tuple(Failure(attempt, 1, "ProcessDied", died=True) for attempt in (1, 2))
        feed.waiting.extend([*(unkeyed(number) for number in (1, 2)), suspects[0], unkeyed(4), unkeyed(5), suspects[1]])
        feed.waiting.extend(unkeyed(number) for number in range(7, 12))
        (once := unkeyed(12, 2)).history = (Failure(1, 1, "ProcessDied", died=True),)
        feed.waiting.append(once)
        await wait_until(lambda: len(feed.settled) == 12)

    outcomes = consuming(PlainThing, handler, scenario, concurrency=4).outcomes()
    assert set(outcomes.values()) == {Ack()}
    assert all(together == {next(iter(together & {3, 6}))} for together in at_once if together & {3, 6})
    assert any(len(together) > 1 for together in at_once), "the others run beside each other"


def test_what_may_not_begin_goes_back_uncharged() -> None:
    ran: list[int] = []

    async def handler(event: PlainThing) -> None:
        ran.append(event.number)

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.expired = {2, 3}
        feed.waiting.extend(unkeyed(number) for number in range(1, 5))
        await wait_until(lambda: len(feed.settled) == 4)

    outcomes = consuming(PlainThing, handler, scenario).outcomes()
    assert ran == [1, 4]
    assert outcomes == {1: Ack(), 2: Release(), 3: Release(), 4: Ack()}


def test_only_an_outcome_that_charges_keeps_the_attempt_begun() -> None:
    async def handler(event: PlainThing) -> None:
        if event.number == 2:
            raise OSError

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(1, 4))
        await wait_until(lambda: len(feed.settled) == 3)

    feed = consuming(PlainThing, handler, scenario)
    assert feed.begun == [1, 2, 3]
    assert feed.ended == [1, 3]


def test_handlers_are_told_that_the_lease_is_gone_and_nothing_of_it_begins() -> None:
    told: list[tuple[int, bool]] = []
    ran: list[int] = []

    async def handler(event: PlainThing, ctx: Context) -> None:
        ran.append(event.number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append((event.number, ctx.lost))
            raise

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        waiting = [unkeyed(number) for number in range(1, 5)]
        feed.waiting.extend(waiting)
        await wait_until(lambda: consumer.running == 2 and not feed.waiting)
        feed.late = {1, 2, 3}
        assert feed.watcher is not None
        feed.watcher.lost([delivery for delivery in waiting if delivery.position < 4])
        await wait_until(lambda: len(feed.settled) == 3 and consumer.running == 1)
        assert ran == [1, 2, 4]
        consumer.force()

    heard: list[tuple[str, Any]] = []
    stop = listen(lambda name, fields: heard.append((name, fields.get("message"))))
    try:
        outcomes = consuming(PlainThing, handler, scenario, concurrency=2).outcomes()
    finally:
        stop()
    assert told[:2] == [(1, True), (2, True)]
    assert set(outcomes.values()) == {Release()}
    assert [each for each in heard if each[0] in ("delivery.lost", "delivery.late")] == [
        ("delivery.lost", "id-1"),
        ("delivery.lost", "id-2"),
    ]


def test_what_a_handler_comes_to_after_its_lease_is_gone_is_told_as_late() -> None:
    lost = asyncio.Event()

    async def handler(event: PlainThing) -> None:
        try:
            await lost.wait()
        except asyncio.CancelledError:
            pass  # it goes on all the same

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        delivery = unkeyed(1)
        feed.waiting.append(delivery)
        await wait_until(lambda: consumer.running == 1)
        feed.late = {1}
        assert feed.watcher is not None
        feed.watcher.lost([delivery])
        await wait_until(lambda: len(feed.settled) == 1)

    heard: list[str] = []
    stop = listen(lambda name, fields: heard.append(name))
    try:
        consuming(PlainThing, handler, scenario)
    finally:
        stop()
    assert "delivery.late" in heard


def test_a_pause_gives_back_what_waits_and_lets_finish_what_runs() -> None:
    go_on = asyncio.Event()

    async def handler(event: PlainThing) -> None:
        await go_on.wait()

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(1, 5))
        await wait_until(lambda: consumer.running == 2 and not feed.waiting)
        assert feed.watcher is not None
        feed.watcher.paused(True)
        assert consumer.is_paused
        await wait_until(lambda: len(feed.settled) == 2)
        go_on.set()
        await wait_until(lambda: len(feed.settled) == 4)
        feed.watcher.paused(False)
        assert not consumer.is_paused

    outcomes = consuming(PlainThing, handler, scenario, concurrency=2).outcomes()
    assert outcomes == {1: Ack(), 2: Ack(), 3: Release(), 4: Release()}


def test_a_drain_leaves_the_feed_before_its_handlers_have_ended() -> None:
    go_on = asyncio.Event()

    async def handler(event: PlainThing) -> None:
        await go_on.wait()

    feed = FakeFeed()

    async def main() -> None:
        service = Service("s")
        service.on(PlainThing, name="h")(handler)
        consumer = Consumer(service.handlers[0], feed, SystemClock())
        consumer.start()
        feed.waiting.append(unkeyed(1))
        await wait_until(lambda: consumer.running == 1)
        draining = asyncio.create_task(consumer.drain(10))
        await wait_until(lambda: feed.left)
        assert not feed.closed
        go_on.set()
        await draining

    asyncio.run(main())
    assert feed.outcomes() == {1: Ack()}


@pytest.mark.parametrize("options", [{"rate": Rate(1000)}, {"circuit": Circuit(failures=2, base=0.01, cap=0.01)}, {}])
def test_a_drain_waits_for_nobody_at_the_gate(options: dict[str, Any]) -> None:
    async def handler(event: PlainThing) -> None:
        raise OSError

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(1, 30))
        await wait_until(lambda: len(feed.settled) >= 3)

    feed = consuming(PlainThing, handler, scenario, **options)
    assert len(feed.outcomes()) + len(feed.waiting) == 29


def test_a_key_goes_on_after_a_pause_gave_its_events_back() -> None:
    """What had not begun went back, and nothing of its key is here any more that the next ones could wait for."""
    seen: list[int] = []
    go_on = asyncio.Event()

    async def handler(event: ThingHappened) -> None:
        seen.append(event.number)
        await go_on.wait()

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting += [keyed(0, "other"), keyed(1, "k")]
        await wait_until(lambda: seen and not feed.waiting)
        assert feed.watcher is not None
        feed.watcher.paused(True)
        feed.watcher.paused(False)
        go_on.set()
        await wait_until(lambda: len(feed.settled) == 2)
        assert feed.outcomes() == {0: Ack(), 1: Release()}
        feed.waiting += [keyed(1, "k"), keyed(2, "k")]
        await wait_until(lambda: len(feed.settled) == 4)

    consuming(ThingHappened, handler, scenario, concurrency=1)
    assert seen == [0, 1, 2]


def test_nothing_overtakes_what_a_pause_gives_back() -> None:
    """Resumed before the broker has recorded that the event goes back, and the one before it still runs."""
    seen: list[int] = []
    go_on = asyncio.Event()

    async def handler(event: ThingHappened) -> None:
        seen.append(event.number)
        await go_on.wait()

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting += [keyed(0, "k"), keyed(1, "k")]
        await wait_until(lambda: seen and not feed.waiting)
        assert feed.watcher is not None
        feed.settle_errors = 1
        feed.watcher.paused(True)
        feed.watcher.paused(False)
        feed.waiting.append(keyed(2, "k"))
        await wait_until(lambda: not feed.waiting)
        assert not feed.settled
        go_on.set()
        await wait_until(lambda: len(feed.settled) == 3)
        assert feed.outcomes() == {0: Ack(), 1: Release(), 2: Release()}
        feed.waiting += [keyed(1, "k"), keyed(2, "k")]
        await wait_until(lambda: len(feed.settled) == 5)

    consuming(ThingHappened, handler, scenario, concurrency=2)
    assert seen == [0, 1, 2]


def test_who_has_no_room_keeps_up_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that take long are no reason to keep slots from a consumer that has come, or not to see a pause."""
    monkeypatch.setattr(consumer_module, "FETCH_WAIT", 0.02)
    go_on = asyncio.Event()

    async def handler(event: PlainThing) -> None:
        await go_on.wait()

    async def scenario(consumer: Consumer, feed: FakeFeed) -> None:
        feed.waiting.extend(unkeyed(number) for number in range(5))
        await wait_until(lambda: feed.limits.count(0) > 2)
        assert len(feed.waiting) == 3
        assert max(feed.limits) == 2
        go_on.set()
        await wait_until(lambda: len(feed.settled) == 5)

    consuming(PlainThing, handler, scenario, concurrency=1)

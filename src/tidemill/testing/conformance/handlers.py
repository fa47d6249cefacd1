"""G3, G4, G5: what becomes of an event whose handler fails, hangs, raises the unusual or cannot read it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ... import Context, Reject, RetryAfter, RetryPolicy, Service
from ...broker import Broker, Feed, Settlement, Subscription
from ...message import Delivery
from ...outcome import Outcome
from ...pipeline import Handle
from ...stand_in import BrokerStandIn, FeedStandIn
from .events import NoteTaken, OrderPlaced, notes, soon
from .place import Place, message
from .scenario import promise


@promise("G3")
async def a_failed_handler_runs_again(place: Place) -> None:
    """It sees the attempt's number and the failures before; it ends when it returns, and is not run again."""
    service = Service("shop")
    seen: list[tuple[int, int, list[str]]] = []

    @service.on(NoteTaken, retry=soon(5))
    async def note(event: NoteTaken, ctx: Context) -> None:
        seen.append((event.number, ctx.attempt, [failure.error for failure in ctx.history]))
        if ctx.attempt < 3:
            raise ValueError(f"no {ctx.attempt}")

    async with place.running(service):
        await service.publish(NoteTaken(7))
        await place.handled("shop.note")
        status = await place.status("shop.note")
    errors = ["ValueError: no 1", "ValueError: no 2"]
    assert seen == [(7, 1, []), (7, 2, errors[:1]), (7, 3, errors)]
    assert (status.acked, status.retried, status.dead) == (1, 2, 0)


@promise("G4", "G10")
async def attempts_run_out(place: Place) -> None:
    """An event that always fails runs exactly as often as its policy says; then it is a dead letter with every
    failure, its traceback, and the event's own bytes."""
    service = Service("shop")
    runs = 0

    @service.on(NoteTaken, retry=soon(4))
    async def note(event: NoteTaken) -> None:
        nonlocal runs
        runs += 1
        raise ValueError(f"ünfit {runs}")

    async with place.running(service):
        sent = await service.publish(NoteTaken(7), headers={"tenant": "Ærø"})
        await place.handled("shop.note")
        await asyncio.sleep(0.1)
        (letter,) = await (await place.broker()).dead_letters("shop.note")
    assert runs == 4
    assert letter.message == sent
    assert letter.attempts == 4
    assert [failure.attempt for failure in letter.history] == [1, 2, 3, 4]
    assert [failure.error for failure in letter.history] == [f"ValueError: ünfit {n}" for n in range(1, 5)]
    assert all("raise ValueError" in failure.traceback for failure in letter.history)
    assert "ünfit 4" in letter.reason


@promise("G4", needs=("delay",))
async def retries_back_off(place: Place) -> None:
    """The first retry comes at once, the next ones after the policy's delays: never a hot loop."""
    service = Service("shop")
    began: list[float] = []

    @service.on(NoteTaken, retry=RetryPolicy(attempts=4, immediate=1, base=0.2, factor=2, cap=0.4))
    async def note(event: NoteTaken) -> None:
        began.append(time.monotonic())
        raise OSError("down")

    async with place.running(service):
        await service.publish(NoteTaken(1))
        await place.handled("shop.note")
    waits = [after - before for before, after in pairwise(began)]
    assert len(waits) == 3
    assert waits[0] < 0.09, f"the immediate retry came after {waits[0]:.3f} s"
    assert waits[1] >= 0.099, f"a delay of 0.1 to 0.2 s was {waits[1]:.3f} s"
    assert waits[2] >= 0.199, f"a delay of 0.2 to 0.4 s was {waits[2]:.3f} s"


@promise("G3", needs=("delay",))
async def a_handler_asks_for_a_delay(place: Place) -> None:
    """`RetryAfter` is respected, and counts as an attempt."""
    service = Service("shop")
    began: list[float] = []

    @service.on(NoteTaken, retry=RetryPolicy(attempts=3))
    async def note(event: NoteTaken) -> None:
        began.append(time.monotonic())
        raise RetryAfter(0.15, "the depot opens soon")

    async with place.running(service):
        await service.publish(NoteTaken(1))
        await place.handled("shop.note")
        (letter,) = await (await place.broker()).dead_letters()
    assert len(began) == 3
    assert all(after - before >= 0.149 for before, after in pairwise(began))
    assert letter.attempts == 3


@promise("G3", "G10")
async def a_rejected_event_is_not_retried(place: Place) -> None:
    """`Reject`, and an error the policy names permanent, end in a dead letter after one attempt."""
    service = Service("shop")
    runs: Counter[int] = Counter()

    @service.on(NoteTaken, retry=RetryPolicy(never=(LookupError,)))
    async def note(event: NoteTaken) -> None:
        runs[event.number] += 1
        if event.number == 1:
            raise Reject("no address")
        if event.number == 2:
            raise KeyError("gone for good")

    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(4))
        await place.handled("shop.note")
        letters = await (await place.broker()).dead_letters("shop.note")
    assert runs == Counter({0: 1, 1: 1, 2: 1, 3: 1})
    assert sorted(letter.reason.partition(" (")[0] for letter in letters) == [
        "KeyError: 'gone for good'",
        "no address",
    ]


@promise("G5", "G10")
async def what_cannot_be_read_blocks_nobody(place: Place) -> None:
    """Undecodable bytes, a wrong type, an unknown event: each is a dead letter with its raw bytes after one attempt,
    and its neighbours are handled, also those of its key."""
    service = Service("shop")
    handled: list[int] = []

    @service.on(notes)
    async def note(event: NoteTaken) -> None:
        handled.append(event.number)

    bodies = [b"\xff\x00not JSON", b"", b'{"number":"seven"}', b"[]", b"null", b'{"text":"no number"}']
    bad = [message(body=body, topic="notes", type="note.taken", key="a") for body in bodies]
    bad.append(message(body=b"{}", topic="notes", type="note.unheard.of", key="a"))
    good = [message(topic="notes", type="note.taken", key="a", body=b'{"number":%d}' % n) for n in range(8)]
    async with place.running(service):
        broker = await place.broker()
        for each in zip(good, [*bad, good[-1]], strict=True):
            await broker.publish(each)
        await place.handled("shop.note")
        letters = await broker.dead_letters("shop.note")
    assert sorted(handled) == list(range(8))
    assert {letter.message.id: letter.message for letter in letters} == {each.id: each for each in bad}
    assert {letter.attempts for letter in letters} == {1}
    assert "note.unheard.of" in next(letter.reason for letter in letters if letter.message == bad[-1])


@promise("G5")
async def a_handler_that_hangs_is_stopped(place: Place) -> None:
    """After its timeout: that is a failed attempt like any other, and meanwhile its neighbours are handled."""
    service = Service("shop")
    handled: list[int] = []
    attempts: list[int] = []

    @service.on(NoteTaken, timeout=0.15, concurrency=2, retry=soon(3))
    async def note(event: NoteTaken, ctx: Context) -> None:
        if event.number == 0:
            attempts.append(ctx.attempt)
            if ctx.attempt < 3:
                await asyncio.Event().wait()
        handled.append(event.number)

    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(20))
        await place.handled("shop.note")
        status = await place.status("shop.note")
    assert attempts == [1, 2, 3]
    assert handled[-1] == 0
    assert sorted(handled) == list(range(20))
    assert (status.acked, status.retried) == (20, 2)


class _Strange(BaseException):
    """No Exception at all."""


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even its text can be had")


@promise("G3")
async def whatever_a_handler_raises_is_settled(place: Place) -> None:
    """SystemExit, KeyboardInterrupt, CancelledError, GeneratorExit, groups, errors without text: each is a failed
    attempt and runs again; none ends the consumer, acknowledges anything or is lost."""
    errors: list[BaseException] = [
        SystemExit(1),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        StopIteration(1),
        StopAsyncIteration(),
        MemoryError(),
        RecursionError(),
        _Strange(),
        _Unprintable(),
        ExceptionGroup("several", [ValueError(), TypeError()]),
        BaseExceptionGroup("one", [KeyboardInterrupt()]),
        TimeoutError(),
        ValueError("lone surrogate \udcff, NUL \x00, newline \n, 世界"),
        ValueError("x" * 100_000),
    ]
    service = Service("shop")
    done: Counter[int] = Counter()

    @service.on(NoteTaken, retry=soon(3), circuit=None)
    async def note(event: NoteTaken, ctx: Context) -> None:
        number = event.number % len(errors)
        if ctx.attempt == 1:
            if event.number >= len(errors):
                await asyncio.sleep(0)
            raise errors[number]
        done[event.number] += 1

    count = 2 * len(errors)
    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(count))
        await place.handled("shop.note")
        status = await place.status("shop.note")
    assert done == Counter(range(count))
    assert (status.acked, status.retried, status.dead) == (count, count, 0)


@promise("G3")
async def a_middleware_can_do_no_harm(place: Place) -> None:
    """One that returns nonsense, raises before, raises after, or swallows the handler's error into an outcome: each
    delivery is settled once, a failure is a failure."""
    service = Service("shop")
    runs: Counter[int] = Counter()

    async def odd(call_next: Handle, delivery: Delivery) -> Outcome:
        number = int(delivery.message.extensions["n"])
        if number == 1 and delivery.attempt == 1:
            return None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
        if number == 2 and delivery.attempt == 1:
            raise OSError("before")
        outcome = await call_next(delivery)
        if number == 3 and delivery.attempt == 1:
            raise OSError("after")
        return outcome

    @service.on(NoteTaken, retry=soon(3), use=[odd])
    async def note(event: NoteTaken) -> None:
        runs[event.number] += 1

    async with place.running(service):
        for number in range(5):
            await service.publish(NoteTaken(number), headers={"n": str(number)})
        await place.handled("shop.note")
        status = await place.status("shop.note")
    assert runs == Counter({0: 1, 1: 1, 2: 1, 3: 2, 4: 1})
    assert (status.acked, status.retried, status.dead) == (5, 3, 0)


@promise("G4")
async def slow_handlers_bound_what_is_held(place: Place) -> None:
    """Five hundred events for handlers that do not return: no more than twice the concurrency is fetched and held,
    the rest stays with the broker."""
    broker = _Counting(await place.broker())
    service = Service("shop")
    running = 0
    go_on = asyncio.Event()

    @service.on(NoteTaken, concurrency=4, timeout=None)
    async def note(event: NoteTaken) -> None:
        nonlocal running
        running += 1
        await go_on.wait()

    async with place.running(service, broker):
        await service.publish_many(NoteTaken(number, "x" * 10_000) for number in range(500))
        await place.until(lambda: running == 4, "four handlers run")
        await asyncio.sleep(0.1)
        assert running == 4
        assert broker.held <= 8
        assert (await place.status("shop.note")).backlog == 500
        go_on.set()
        await place.handled("shop.note")
    assert running == 500


@promise("G4")
async def fetched_bytes_are_bounded(place: Place) -> None:
    """A consumer asks for no more bytes than it has room for, so that large bodies cannot fill the memory."""
    broker = _Counting(await place.broker())
    service = Service("shop")
    go_on = asyncio.Event()

    @service.on(NoteTaken, concurrency=64, timeout=None)
    async def note(event: NoteTaken) -> None:
        await go_on.wait()

    async with place.running(service, broker, grace=10.0):
        text = "x" * 1_000_000
        for number in range(0, 100, 20):
            await service.publish_many(NoteTaken(number + step, text) for step in range(20))
        await place.until(lambda: broker.held >= 60, "sixty large events are held")
        await asyncio.sleep(0.1)
        assert broker.bytes <= 64 * 1024 * 1024 + len(text) + 100
        go_on.set()
        await place.handled("shop.note")


@promise("G1")
async def handlers_of_one_event_do_not_disturb_each_other(place: Place) -> None:
    """Each subscription has its own copy: one that fails, or is slow, changes nothing for another."""
    service = Service("shop")
    good: list[int] = []

    @service.on(OrderPlaced)
    async def works(event: OrderPlaced) -> None:
        good.append(event.number)

    @service.on(OrderPlaced, retry=soon(2), circuit=None)
    async def fails(event: OrderPlaced) -> None:
        raise OSError("always")

    async with place.running(service):
        await service.publish_many(OrderPlaced("a", number) for number in range(20))
        await place.handled("shop.works")
        await place.handled("shop.fails")
        letters = await (await place.broker()).dead_letters()
    assert good == list(range(20))
    assert sorted(letter.message.time for letter in letters if letter.subscription == "shop.fails")
    assert len(letters) == 20


class _Counting(BrokerStandIn):
    """Counts what its feeds hold: fetched and not settled."""

    def __init__(self, real: Broker) -> None:
        super().__init__(real)
        self.held = 0
        self.bytes = 0

    async def subscribe(self, subscription: Subscription) -> Feed:
        return _CountingFeed(await self.real.subscribe(subscription), self)


class _CountingFeed(FeedStandIn):
    def __init__(self, real: Feed, counts: _Counting) -> None:
        super().__init__(real)
        self.counts = counts

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        deliveries = await self.real.fetch(limit, wait, max_bytes)
        self._count(deliveries, 1)
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = await self.real.settle(settlements)
        self._count([delivery for delivery, _ in settlements], -1)
        return late

    def _count(self, deliveries: list[Delivery], sign: int) -> None:
        self.counts.held += sign * len(deliveries)
        self.counts.bytes += sign * sum(len(delivery.message.body) for delivery in deliveries)

"""G7: a service that stops finishes what runs, gives the rest back uncharged, and handles nothing twice for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from ... import Context, Service
from ...broker import Feed, Settlement, Subscription
from ...errors import BrokerError
from ...message import Delivery
from ...stand_in import BrokerStandIn, FeedStandIn
from .events import NoteTaken, OrderPlaced, soon
from .place import Place
from .scenario import promise


@promise("G7")
async def running_handlers_finish_and_the_rest_is_given_back(place: Place) -> None:
    """What runs ends and counts; what was fetched and had not begun is not begun, and waits for the next consumer
    with its first attempt."""
    began: list[int] = []
    ended: list[int] = []
    go_on = asyncio.Event()

    def instance() -> Service[None]:
        service: Service[None] = Service("shop")

        @service.on(NoteTaken, concurrency=4)
        async def note(event: NoteTaken, ctx: Context) -> None:
            began.append(event.number)
            assert ctx.attempt == 1
            await go_on.wait()
            ended.append(event.number)

        return service

    service = instance()
    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(30))
        await place.until(lambda: len(began) == 4, "four handlers run")
        asyncio.get_running_loop().call_later(0.1, go_on.set)
    assert sorted(ended) == sorted(began)
    assert len(began) == 4
    status = await place.status("shop.note")
    assert (status.backlog, status.acked, status.retried) == (26, 4, 0)
    async with place.running(instance()):
        await place.handled("shop.note")
    assert Counter(ended) == Counter(range(30))
    assert (await place.status("shop.note")).retried == 0


@promise("G7")
async def a_handler_over_the_grace_is_given_back(place: Place) -> None:
    """It is cancelled, and its event comes again, uncharged; so is one that ignores the cancellation."""
    attempts: list[tuple[int, int]] = []
    stubborn = asyncio.Event()
    first, second = Service("shop"), Service("shop")

    @first.on(NoteTaken, name="note")
    async def slow(event: NoteTaken, ctx: Context) -> None:
        attempts.append((event.number, ctx.attempt))
        while True:
            try:
                await stubborn.wait()
                return
            except asyncio.CancelledError:
                if event.number == 1:
                    raise

    @second.on(NoteTaken)
    async def note(event: NoteTaken, ctx: Context) -> None:
        attempts.append((event.number, ctx.attempt))

    async with place.running(first, grace=0.1):
        await first.publish_many([NoteTaken(1), NoteTaken(2)])
        await place.until(lambda: len(attempts) == 2, "two handlers run")
        began = time.monotonic()
    assert time.monotonic() - began < 5.0
    async with place.running(second):
        await place.handled("shop.note")
    stubborn.set()
    await asyncio.sleep(0)
    assert sorted(attempts) == [(1, 1), (1, 1), (2, 1), (2, 1)]


@promise("G7", "G1")
async def stopping_and_starting_repeats_nothing(place: Place) -> None:
    """A service that is stopped again and again under load handles every event exactly once."""
    handled: Counter[int] = Counter()
    keyed: list[int] = []

    def instance() -> Service[None]:
        service: Service[None] = Service("shop")

        @service.on(NoteTaken, concurrency=8)
        async def note(event: NoteTaken) -> None:
            await asyncio.sleep(0.001 * (event.number % 5))
            handled[event.number] += 1

        @service.on(OrderPlaced)
        async def order(event: OrderPlaced) -> None:
            await asyncio.sleep(0.001)
            keyed.append(event.number)

        return service

    publisher: Service[None] = Service("publisher")
    count = 0
    async with place.running(publisher):
        for _ in range(8):
            async with place.running(instance()):
                events = range(count, count + 60)
                await publisher.publish_many(NoteTaken(number) for number in events)
                await publisher.publish_many(OrderPlaced("a", number) for number in events)
                count += 60
                await asyncio.sleep(0.02)
        async with place.running(instance()):
            await place.handled("shop.note")
            await place.handled("shop.order")
    assert handled == Counter(range(count))
    assert keyed == list(range(count))
    for name in ("shop.note", "shop.order"):
        status = await place.status(name)
        assert (status.acked, status.retried, status.dead) == (count, 0, 0)


@promise("G7", needs=("durable",))
async def nothing_is_repeated_after_a_restart(place: Place) -> None:
    """The same with the broker closed and opened in between: what a drain had settled stays settled."""
    handled: Counter[int] = Counter()
    count = 0
    for _ in range(4):
        service: Service[None] = Service("shop")

        @service.on(NoteTaken, start="beginning")
        async def note(event: NoteTaken) -> None:
            await asyncio.sleep(0.002)
            handled[event.number] += 1

        async with service.running(await place.reopened()):
            await service.publish_many(NoteTaken(number) for number in range(count, count + 50))
            count += 50
            await asyncio.sleep(0.01)
    await place.reopened()
    service = Service("shop")

    @service.on(NoteTaken, name="note")
    async def last(event: NoteTaken) -> None:
        handled[event.number] += 1

    async with place.running(service):
        await place.handled("shop.note")
    assert handled == Counter(range(count))


@promise("G3", "G7")
async def a_broker_that_fails_for_a_while_costs_nothing(place: Place) -> None:
    """Fetching and settling fail some times, before and after they were done: every event is handled; none is lost,
    and none is handled again as long as its consumer lives."""
    broker = _Failing(await place.broker())
    service = Service("shop")
    handled: Counter[int] = Counter()

    @service.on(NoteTaken, retry=soon(3))
    async def note(event: NoteTaken, ctx: Context) -> None:
        handled[event.number] += 1
        if event.number % 10 == 3 and ctx.attempt == 1:
            raise OSError("once")

    async with place.running(service, broker):
        await service.publish_many(NoteTaken(number) for number in range(100))
        await place.handled("shop.note")
    assert broker.faults == 0
    assert handled == Counter(list(range(100)) + list(range(3, 100, 10)))
    status = await place.status("shop.note")
    assert (status.acked, status.retried, status.dead) == (100, 10, 0)


class _Failing(BrokerStandIn):
    faults = 4

    async def subscribe(self, subscription: Subscription) -> Feed:
        return _FailingFeed(await self.real.subscribe(subscription), self)


class _FailingFeed(FeedStandIn):
    """Fails two fetches, and two settlements: one before anything was recorded, one after everything was."""

    def __init__(self, real: Feed, broker: _Failing) -> None:
        super().__init__(real)
        self.broker = broker

    def _fails(self, at: int) -> bool:
        if self.broker.faults != at:
            return False
        self.broker.faults -= 1
        return True

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        if self._fails(4) or self._fails(2):
            raise BrokerError("fetching fails on purpose; nothing was fetched")
        return await self.real.fetch(limit, wait, max_bytes)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        if self._fails(3):
            raise BrokerError("settling fails on purpose; nothing was recorded")
        late = await self.real.settle(settlements)
        if self._fails(1):
            raise OSError("the connection was lost on purpose; everything was recorded")
        return late

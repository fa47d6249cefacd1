"""G6: one key's events one at a time, in publish order, across consumers and through retries; other keys go on."""

from __future__ import annotations

import asyncio
import random

from ... import Context, Service
from ...broker import Feed
from ...outcome import ACK, RELEASE, DeadLetter, Retry
from .events import OrderPaid, OrderPlaced, soon
from .place import MAX_BYTES, Place, ack, failed, message, nothing, numbers, reader, settle, store
from .scenario import promise


@promise("G6", needs=("order",))
async def a_key_waits_for_its_retry(place: Place) -> None:
    """While an event waits for its retry no later event of its key is delivered, old or new, and other keys go on.
    Then they come in their order."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    await store(broker, message(1, key="a"), message(2, key="a"), message(3, key="b"))
    first, second, other = await place.take(feed, 3)
    await settle(feed, [(failed(first, "no"), Retry(0.3, "no")), (second, RELEASE), (other, ACK)])
    await store(broker, message(4, key="a"), message(5, key="b"))
    (other,) = await place.take(feed, 1)
    assert numbers([other]) == [5]
    await ack(feed, [other])
    await nothing(feed, 0.1)
    assert await _drained(place, feed, 3) == [(1, 2), (2, 1), (4, 1)]


@promise("G6", needs=("order",))
async def a_released_event_stays_behind_an_earlier_one(place: Place) -> None:
    """In whatever order, and in whatever calls, the events of a key are given back, they come in publish order."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    await store(broker, *(message(number, key="a") for number in range(12)))
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    taken = await place.take(feed, 12)
    first, rest = taken[0], taken[1:]
    draw.shuffle(rest)
    cut = draw.randrange(12)
    await settle(feed, [(delivery, RELEASE) for delivery in rest[:cut]])
    after = draw.choice((0, 0.02))
    await settle(feed, [(failed(first, "no"), Retry(after, "no")), *((each, RELEASE) for each in rest[cut:])])
    expected = [(0, 2), *((number, 1) for number in range(1, 12))]
    assert await _drained(place, feed, 12) == expected, f"seed {seed}"


@promise("G6", needs=("order",))
async def every_attempt_of_a_key_keeps_its_place(place: Place) -> None:
    """Whichever event of a key fails, how often, alone or with its followers in hand: the next to come is always the
    first one that is not settled, or one that follows those in hand."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    total = 60
    next_one = published = 0
    attempts = [1] * total
    while next_one < total:
        if published < total:
            count = draw.randint(1, min(10, total - published))
            await store(broker, *(message(number, key="a") for number in range(published, published + count)))
            published += count
        held = await place.take(feed, 1)
        held += await feed.fetch(draw.randint(1, 8), 0.0, MAX_BYTES)
        expected = list(range(next_one, next_one + len(held)))
        assert numbers(held) == expected, f"{numbers(held)}, not {expected}, seed {seed}"
        assert [delivery.attempt for delivery in held] == attempts[next_one : next_one + len(held)], f"seed {seed}"
        good = draw.randint(0, len(held))
        await ack(feed, held[:good])
        next_one += good
        if held[good:]:
            attempts[next_one] += 1
            retry = (failed(held[good], "no"), Retry(draw.choice((0, 0, 0.01)), "no"))
            await settle(feed, [retry, *((delivery, RELEASE) for delivery in held[good + 1 :])])


@promise("G6", needs=("order",))
async def a_key_is_one_consumers_at_a_time(place: Place) -> None:
    """While one feed holds an event of a key, another gets none of that key, and events of other keys are to be had;
    what the first gives back when it closes is delivered in order."""
    broker = await place.broker()
    first = await place.feed(reader(ordered=True))
    await store(broker, *(message(number, key="a") for number in range(3)))
    held = await place.take(first, 3)
    second = await place.feed(reader(ordered=True))
    await store(broker, message(3, key="a"))
    await nothing(second)
    await ack(first, held[:1])
    await first.close()
    await store(broker, message(4, key="a"))
    assert await _drained(place, second, 4) == [(1, 1), (2, 1), (3, 1), (4, 1)]


@promise("G6", needs=("order",))
async def a_key_goes_on_after_a_dead_letter(place: Place) -> None:
    """One event of a key given up: the next ones are delivered, in order."""
    feed = await place.feed(reader(ordered=True))
    await store(await place.broker(), *(message(number, key="a") for number in range(4)))
    taken = await place.take(feed, 4)
    await settle(feed, [(failed(taken[0], "no"), Retry(0.02, "no")), *((each, RELEASE) for each in taken[1:])])
    (first,) = await place.take(feed, 1)
    assert (int(first.message.body), first.attempt) == (0, 2)
    await settle(feed, [(failed(first, "no"), DeadLetter("no"))])
    assert await _drained(place, feed, 3) == [(1, 1), (2, 1), (3, 1)]


@promise("G6", needs=("order",))
async def events_without_a_key_wait_for_nobody(place: Place) -> None:
    """On an ordered subscription too."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    await store(broker, message(1), message(2), message(3, key="a"))
    taken = await place.take(feed, 3)
    await settle(feed, [(failed(taken[0], "no"), Retry(0.2, "no")), (taken[1], ACK), (taken[2], ACK)])
    await store(broker, message(4))
    assert numbers(await place.take(feed, 1)) == [4]
    assert numbers(await place.take(feed, 1)) == [1]


@promise("G6", needs=("order", "durable", "delay"))
async def order_survives_a_restart(place: Place) -> None:
    """A key that waits for a retry still waits after closing and opening again, its followers behind it."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    await store(broker, message(1, key="a"), message(2, key="a"), message(3, key="b"))
    first, *rest = await place.take(feed, 3)
    await settle(feed, [(failed(first, "no"), Retry(0.7, "no")), *((each, RELEASE) for each in rest)])
    await feed.close()
    broker = await place.reopened()
    await store(broker, message(4, key="a"))
    feed = await place.feed(reader(ordered=True))
    taken = await place.take(feed, 1)
    assert numbers(taken) == [3]
    await ack(feed, taken)
    assert await _drained(place, feed, 3) == [(1, 2), (2, 1), (4, 1)]


@promise("G6", needs=("order",))
async def handlers_see_a_key_in_order(place: Place) -> None:
    """Twenty keys, handlers that take random times, sixteen at once: each key one at a time and in order, and several
    keys at the same time."""
    keys, each = 20, 12
    service = Service("shop")
    log = _Log()

    @service.on(OrderPlaced, OrderPaid, concurrency=16)
    async def handle(event: OrderPlaced | OrderPaid) -> None:
        async with log.handling(event.customer, event.number):
            await asyncio.sleep(random.uniform(0, 0.004))

    async with place.running(service):
        kinds = (OrderPlaced, OrderPaid)
        await service.publish_many(kinds[n % 2](str(key), n) for n in range(each) for key in range(keys))
        await place.handled("shop.handle")
    log.check({str(key): list(range(each)) for key in range(keys)})
    assert log.most > 1, "never two keys at the same time"


@promise("G6", needs=("order",))
async def order_holds_through_retries(place: Place) -> None:
    """Handlers that fail at random, with delays: a failed event holds back its key's later events until it is handled
    or given up, and other keys go on."""
    keys, each = 12, 15
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    fails = {(str(key), number): draw.choice((0, 0, 0, 1, 2, 9)) for key in range(keys) for number in range(each)}
    service = Service("shop")
    log = _Log()

    @service.on(OrderPlaced, concurrency=8, retry=soon(4))
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        async with log.handling(event.customer, event.number):
            await asyncio.sleep(random.choice((0, 0, 0.002)))
            if ctx.attempt <= fails[event.customer, event.number]:
                raise OSError("not yet")

    async with place.running(service):
        await service.publish_many(OrderPlaced(str(key), n) for n in range(each) for key in range(keys))
        await place.handled("shop.handle")
        dead = await (await place.broker()).dead_letters()
    expected = {
        str(key): [n for n in range(each) for _ in range(min(fails[str(key), n], 3) + 1)] for key in range(keys)
    }
    log.check(expected, f"seed {seed}")
    assert len(dead) == sum(1 for count in fails.values() if count == 9)


@promise("G6", needs=("order",))
async def a_failing_key_holds_back_no_other(place: Place) -> None:
    """An event of key A waits for its retry: A's later events wait behind it, all of B's are handled meanwhile."""
    service = Service("shop")
    order: list[str] = []
    broken = True

    @service.on(OrderPlaced, retry=soon(1000))
    async def handle(event: OrderPlaced) -> None:
        if event.customer == "A" and event.number == 0 and broken:
            raise OSError("A's depot is closed")
        order.append(f"{event.customer}{event.number}")

    async with place.running(service):
        await service.publish_many(OrderPlaced(customer, n) for n in range(5) for customer in "AB")
        await place.until(lambda: len(order) >= 5, "B's events are handled")
        assert order == [f"B{n}" for n in range(5)]
        broken = False
        await place.handled("shop.handle")
    assert order[5:] == [f"A{n}" for n in range(5)]


@promise("G6", needs=("order",))
async def order_holds_across_consumers(place: Place) -> None:
    """Three instances of a service share the keys, fail at random, stop and start at random: each key in order, one
    at a time, nothing lost."""
    keys, each = 30, 12
    log = _Log()
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)

    def instance() -> Service[None]:
        service: Service[None] = Service("shop")

        @service.on(OrderPlaced, concurrency=4, retry=soon(50))
        async def handle(event: OrderPlaced) -> None:
            async with log.handling(event.customer, event.number):
                await asyncio.sleep(draw.uniform(0, 0.003))
                if draw.random() < 0.1:
                    raise OSError("try again")
                log.done(event.customer, event.number)

        return service

    async def comes_and_goes() -> None:
        while not enough.is_set():
            async with place.running(instance()):
                await asyncio.sleep(draw.uniform(0.02, 0.2))

    enough = asyncio.Event()
    publisher = instance()
    async with place.running(publisher), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(comes_and_goes())
        for number in range(each):
            await publisher.publish_many(OrderPlaced(str(key), number) for key in range(keys))
            await asyncio.sleep(0.01)
        await place.handled("shop.handle")
        enough.set()
    for key in range(keys):
        began, ended = log.began[str(key)], log.ended[str(key)]
        assert ended == list(range(each)), f"key {key}: {ended}, begun {began}, seed {seed}"
        assert began == sorted(began), f"key {key}: {began}, seed {seed}"
    assert not log.overlaps, f"{log.overlaps}, seed {seed}"


async def _drained(place: Place, feed: Feed, count: int) -> list[tuple[int, int]]:
    """The next deliveries as (number, attempt), each acknowledged as it comes: a broker may wait for that."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        deliveries = await place.take(feed, 1)
        found += [(int(delivery.message.body), delivery.attempt) for delivery in deliveries]
        await ack(feed, deliveries)
    return found


class _Log:
    """What handlers did: the numbers of each key as they began, and as they ended."""

    def __init__(self) -> None:
        self.began: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}
        self.running: set[str] = set()
        self.overlaps: list[str] = []
        self.most = 0

    def handling(self, key: str, number: int) -> _Handling:
        return _Handling(self, key, number)

    def done(self, key: str, number: int) -> None:
        self.ended.setdefault(key, []).append(number)

    def check(self, expected: dict[str, list[int]], note: str = "") -> None:
        """Fail unless each key's events began as expected, and never two of one key at once."""
        assert not self.overlaps, f"two events of one key at once: {self.overlaps[:3]} {note}"
        for key, wanted in expected.items():
            assert self.began.get(key) == wanted, f"key {key}: {self.began.get(key)}, not {wanted} {note}"
        assert self.began.keys() == expected.keys()


class _Handling:
    def __init__(self, log: _Log, key: str, number: int) -> None:
        self.log, self.key, self.number = log, key, number

    async def __aenter__(self) -> None:
        log = self.log
        log.began.setdefault(self.key, []).append(self.number)
        if self.key in log.running:
            log.overlaps.append(f"{self.key}:{self.number}")
        log.running.add(self.key)
        log.most = max(log.most, len(log.running))

    async def __aexit__(self, *_: object) -> None:
        self.log.running.discard(self.key)

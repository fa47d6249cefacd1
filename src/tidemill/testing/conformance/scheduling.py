"""G1: what is published with a delay appears on its topic when it is due, not before, whoever is alive then."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from ... import Service
from ...broker import Inspection
from .events import NoteTaken
from .place import Place, collect, message, nothing, numbers, reader, store
from .scenario import promise


@promise("G1", needs=("delay",))
async def a_delayed_message_appears_when_it_is_due(place: Place) -> None:
    """Before, nobody sees it (no consumer, no reader, no backlog) but it is counted as scheduled; after, everybody
    does."""
    broker = await place.broker()
    feed = await place.feed(reader())
    due = time.time_ns() + 500_000_000
    (sent,) = await store(broker, message(1), due=due)
    inspection = await broker.inspect()
    assert _scheduled(inspection) == 1
    assert (await place.status("reader.all")).backlog == 0
    assert await collect(broker.read("numbers")) == []
    await nothing(feed)
    (delivery,) = await place.take(feed, 1)
    assert time.time_ns() >= due
    assert delivery.message == sent
    assert _scheduled(await broker.inspect()) == 0
    assert await collect(broker.read("numbers")) == [sent]


@promise("G1", needs=("delay",))
async def delayed_messages_appear_in_the_order_they_are_due(place: Place) -> None:
    """Not in the order they were published; those due at the same time in the order they were published."""
    broker = await place.broker()
    feed = await place.feed(reader())
    now = time.time_ns()
    for number, after in ((5, 0.5), (1, 0.2), (3, 0.35), (4, 0.35), (2, 0.25)):
        await store(broker, message(number), due=now + round(after * 1e9))
    await store(broker, message(0))
    assert numbers(await place.take(feed, 6)) == [0, 1, 2, 3, 4, 5]


@promise("G1", needs=("delay",))
async def what_is_due_in_the_past_appears_at_once(place: Place) -> None:
    """A delay of nothing is no delay."""
    feed = await place.feed(reader())
    await store(await place.broker(), message(1), due=time.time_ns() - 10_000_000_000)
    await store(await place.broker(), message(2), due=1)
    assert numbers(await place.take(feed, 2)) == [1, 2]


@promise("G1", needs=("delay", "durable"))
async def a_schedule_survives_a_restart(place: Place) -> None:
    """What became due while nobody was there appears at the next start, what is due later when it is due."""
    broker = await place.broker()
    await broker.declare([], [])
    await place.feed(reader())
    now = time.time_ns()
    await store(broker, message(1), due=now + 150_000_000)
    await store(broker, message(2), due=now + 900_000_000)
    await broker.close()
    await place.until(lambda: time.time_ns() > now + 200_000_000, "a fifth of a second passes")
    await place.reopened()
    feed = await place.feed(reader())
    first = await place.take(feed, 1)
    assert numbers(first) == [1]
    assert numbers(await place.take(feed, 1)) == [2]
    assert time.time_ns() >= now + 900_000_000


@promise("G2", needs=("delay", "deduplication"))
async def a_delayed_message_is_stored_once(place: Place) -> None:
    """Repeating a delayed publish, before or after it is due, delivers nothing twice."""
    broker = await place.broker()
    feed = await place.feed(reader())
    again = message(1)
    due = time.time_ns() + 200_000_000
    await broker.publish([again], due=due)
    await broker.publish([again], due=due)
    assert numbers(await place.take(feed, 1)) == [1]
    await broker.publish([again], due=time.time_ns() + 1)
    await broker.publish([again])
    await nothing(feed)


@promise("G1", needs=("delay",))
async def a_service_delays_what_it_publishes(place: Place) -> None:
    """`publish(delay=...)` and `publish(at=...)` in a service, single and many, reach handlers when they are due."""
    service = Service("shop")
    handled: dict[int, int] = {}

    @service.on(NoteTaken)
    async def note(event: NoteTaken) -> None:
        handled[event.number] = time.time_ns()

    async with place.running(service):
        began = time.time_ns()
        await service.publish(NoteTaken(1), delay=0.2)
        await service.publish(NoteTaken(2), at=datetime.now(UTC) + timedelta(seconds=0.3))
        await service.publish_many([NoteTaken(3), NoteTaken(4)], delay=timedelta(milliseconds=100))
        await service.publish(NoteTaken(5))
        await place.until(lambda: len(handled) == 5, "five notes handled")
    assert list(handled) == [5, 3, 4, 1, 2]
    assert handled[3] - began >= 99_000_000
    assert handled[1] - began >= 199_000_000
    assert handled[2] - began >= 299_000_000


def _scheduled(inspection: Inspection) -> int:
    return sum(topic.scheduled for topic in inspection.topics)

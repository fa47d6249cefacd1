"""G1, G4: every subscription gets its own copy of a topic, its consumers share it, and a fetch takes what fits."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from ...broker import Feed, Subscription, TopicSpec
from ...errors import ConfigurationError
from ...outcome import DeadLetter
from .place import MAX_BYTES, Place, ack, message, moment, nothing, numbers, reader, settle, store
from .scenario import promise


@promise("G1")
async def every_subscription_gets_its_own_copy(place: Place) -> None:
    """What one subscription does with a message is of no consequence to another."""
    broker = await place.broker()
    feeds = [await place.feed(reader(f"reader.{name}")) for name in "abc"]
    await store(broker, *(message(number) for number in range(10)))
    for feed in feeds[:2]:
        delivered = await place.take(feed, 10)
        assert numbers(delivered) == list(range(10))
        await ack(feed, delivered)
        await nothing(feed, 0.02)
    assert (await place.status("reader.c")).backlog == 10
    assert numbers(await place.take(feeds[2], 10)) == list(range(10))


@promise("G1")
async def consumers_of_one_subscription_share_its_messages(place: Place) -> None:
    """Each message goes to one of two feeds, and while both are open each of them gets some."""
    broker = await place.broker()
    feeds = [await place.feed(reader()), await place.feed(reader())]
    got: list[list[int]] = [[], []]
    published = 0

    async def consume(feed: Feed, into: list[int]) -> None:
        while True:
            deliveries = await feed.fetch(5, 0.1, MAX_BYTES)
            into += numbers(deliveries)
            await ack(feed, deliveries)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(consume(feed, into)) for feed, into in zip(feeds, got, strict=True)]
    try:
        end = time.monotonic() + place.patience
        while not (len(got[0]) >= 20 and len(got[1]) >= 20):
            assert time.monotonic() < end, f"not shared: {len(got[0])} and {len(got[1])} of {published}"
            await store(broker, *(message(number, key=str(number)) for number in range(published, published + 40)))
            published += 40
            await asyncio.sleep(0.01)
        await place.until(lambda: len(got[0]) + len(got[1]) >= published, "everything is delivered")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert sorted(got[0] + got[1]) == list(range(published))


@promise("G1")
async def topics_stay_apart(place: Place) -> None:
    """Twenty topics with the same ids: each subscription gets its own topic's messages."""
    broker = await place.broker()
    feeds = {name: await place.feed(reader(f"reader.{name}", f"topic-{name}")) for name in range(20)}
    await asyncio.gather(
        *(
            store(broker, *(message(100 * name + n, topic=f"topic-{name}", id=f"m{n}") for n in range(10)))
            for name in range(20)
        )
    )
    for name, feed in feeds.items():
        delivered = await place.take(feed, 10)
        assert numbers(delivered) == list(range(100 * name, 100 * name + 10))
        assert {delivery.message.topic for delivery in delivered} == {f"topic-{name}"}
        assert {delivery.subscription for delivery in delivered} == {f"reader.{name}"}


@promise("G1")
async def types_that_are_not_wanted_pass_by(place: Place) -> None:
    """A subscription with a filter gets its types alone, and the others are no backlog."""
    broker = await place.broker()
    feed = await place.feed(reader(types=("number.said", "number.sung")))
    kinds = ("number.said", "number.shouted", "number.sung", "number.said.twice")
    await store(broker, *(message(number, type=kinds[number % 4]) for number in range(40)))
    assert (await place.status("reader.all")).backlog == 20
    delivered = await place.take(feed, 20)
    assert numbers(delivered) == [number for number in range(40) if number % 2 == 0]
    await ack(feed, delivered)
    await nothing(feed)
    assert (await place.status("reader.all")).backlog == 0


@promise("G1")
async def a_filter_can_change(place: Place) -> None:
    """Declaring a subscription with other types counts for what is published from then on; what passed by before may
    come too, where the broker has not recorded that it did."""
    broker = await place.broker()
    feed = await place.feed(reader(types=("number.said",)))
    await store(broker, message(1), message(2, type="number.sung"))
    await ack(feed, await place.take(feed, 1))
    await feed.close()
    feed = await place.feed(reader(types=("number.said", "number.sung")))
    await store(broker, message(3, type="number.sung"))
    came: list[int] = []
    while 3 not in came:
        came += numbers(await place.take(feed, 1))
    assert came in ([3], [2, 3])


@promise("G1")
async def a_new_subscription_starts_now(place: Place) -> None:
    """The past is not delivered to a subscription that did not exist then."""
    broker = await place.broker()
    await place.feed(reader("reader.old"))
    await store(broker, message(1), message(2))
    feed = await place.feed(reader())
    assert (await place.status("reader.all")).backlog == 0
    await nothing(feed, 0.05)
    await store(broker, message(3))
    assert numbers(await place.take(feed, 1)) == [3]


@promise("G1", needs=("history",))
async def a_new_subscription_can_start_in_the_past(place: Place) -> None:
    """At the beginning, or with what was published at a point in time or later, whatever time the events themselves
    name; and it goes on into the present."""
    broker = await place.broker()
    await broker.declare([TopicSpec("numbers")], [])
    await store(broker, *(message(number, time=2**62) for number in range(6)))
    at = await moment(place)
    await store(broker, *(message(number, time=1) for number in range(6, 10)))
    beginning = await place.feed(reader("reader.beginning", start="beginning"))
    middle = await place.feed(reader("reader.middle", start=at))
    future = await place.feed(reader("reader.future", start=at + 10**15))
    await store(broker, message(10))
    assert numbers(await place.take(beginning, 11)) == list(range(11))
    assert numbers(await place.take(middle, 5)) == [6, 7, 8, 9, 10]
    assert numbers(await place.take(future, 1)) == [10]


@promise("G1")
async def declaring_again_changes_nothing(place: Place) -> None:
    """Not the position, not the backlog, not what is in flight; `start` counts for new subscriptions only."""
    broker = await place.broker()
    topics = [TopicSpec("numbers", "name", 3600.0)]
    feed = await place.feed(reader())
    await store(broker, *(message(number) for number in range(4)))
    held = await place.take(feed, 2)
    await ack(feed, held[:1])
    before = await place.status("reader.all")
    for start in ("now", "beginning", 1):
        await broker.declare(topics, [reader(start=start)])
    after = await place.status("reader.all")
    assert (before.backlog, before.acked) == (after.backlog, after.acked) == (3, 1)
    await ack(feed, held[1:])
    assert numbers(await place.take(feed, 2)) == [2, 3]
    await nothing(feed, 0.05)


@promise("G1")
async def a_renamed_subscription_keeps_its_backlog(place: Place) -> None:
    """`renamed_from` moves everything; declared again, with the old name long gone, it does nothing."""
    broker = await place.broker()
    old = await place.feed(reader("reader.old"))
    await store(broker, *(message(number) for number in range(5)))
    await ack(old, await place.take(old, 2))
    await settle(old, [(each, DeadLetter("no")) for each in await place.take(old, 1)])
    await old.close()
    subscription = reader("reader.new", renamed_from="reader.old")
    await broker.declare([], [subscription])
    await broker.declare([], [subscription])
    assert [status.name for status in (await broker.inspect()).subscriptions] == ["reader.new"]
    feed = await place.feed(subscription)
    delivered = await place.take(feed, 2)
    assert numbers(delivered) == [3, 4]
    assert {delivery.subscription for delivery in delivered} == {"reader.new"}
    assert [letter.subscription for letter in await broker.dead_letters("reader.new")] == ["reader.new"]
    await store(broker, message(5))
    assert numbers(await place.take(feed, 1)) == [5]


@promise("G1")
async def a_subscription_stays_on_its_topic(place: Place) -> None:
    """Declaring it on another topic is an error that changes nothing."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, message(1))
    with pytest.raises(ConfigurationError, match=r"reader\.all"):
        await broker.declare([TopicSpec("letters")], [Subscription(name="reader.all", topic="letters")])
    assert numbers(await place.take(feed, 1)) == [1]


@promise("G4")
async def a_fetch_takes_no_more_than_asked_for(place: Place) -> None:
    """At most `limit` deliveries, at most `max_bytes` of bodies unless a single one is larger."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, *(message(body=b"x" * 1000, id=f"a{number}") for number in range(20)))
    taken: list[str] = []
    deliveries = await place.take(feed, 1, limit=1)
    assert len(deliveries) == 1
    taken += [delivery.message.id for delivery in deliveries]
    while len(taken) < 20:
        deliveries = await feed.fetch(7, 1.0, 3500)
        assert 1 <= len(deliveries) <= 3
        taken += [delivery.message.id for delivery in deliveries]
    assert taken == [f"a{number}" for number in range(20)]
    await store(broker, message(body=b"x" * 5000), message(body=b"x"))
    assert [len(delivery.message.body) for delivery in await feed.fetch(10, 1.0, 100)] == [5000]
    assert [len(delivery.message.body) for delivery in await feed.fetch(10, 1.0, 100)] == [1]


@promise("G4")
async def a_fetch_waits_as_long_as_it_is_told(place: Place) -> None:
    """With nothing there it returns nothing, after `wait`; with `wait=0` at once; a message ends the wait."""
    feed = await place.feed(reader())
    began = time.monotonic()
    assert await feed.fetch(10, 0.0, MAX_BYTES) == []
    assert time.monotonic() - began < 0.5
    assert await feed.fetch(10, 0.2, MAX_BYTES) == []
    assert 0.19 <= time.monotonic() - began < 2.0
    waiting = asyncio.create_task(feed.fetch(10, 30.0, MAX_BYTES))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await store(await place.broker(), message(1))
    assert numbers(await asyncio.wait_for(waiting, place.patience)) == [1]
    assert time.monotonic() - began < 2.0


@promise("G1")
async def what_is_held_is_not_delivered_again(place: Place) -> None:
    """A delivery is one feed's alone: not to be had by that feed again, nor by another."""
    feed = await place.feed(reader())
    await store(await place.broker(), *(message(number, key=str(number)) for number in range(30)))
    held = await place.take(feed, 30)
    other = await place.feed(reader())
    await nothing(feed)
    await nothing(other)
    await ack(feed, held)
    assert (await place.status("reader.all")).backlog == 0


@promise("G3")
async def a_cancelled_fetch_loses_nothing(place: Place) -> None:
    """Cancelled at any moment, also while messages arrive: what it had taken comes again, at the latest when the
    feed is closed."""
    broker = await place.broker()
    await place.feed(reader("reader.other"))
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    got: set[int] = set()
    count = 0
    for _ in range(15):
        feed = await place.feed(reader())
        for _ in range(4):
            fetching = asyncio.create_task(feed.fetch(5, 1.0, MAX_BYTES))
            publishing = asyncio.create_task(store(broker, message(count), message(count + 1)))
            count += 2
            await asyncio.sleep(draw.choice((0, 0, 0.0005, 0.001, 0.002)))
            fetching.cancel()
            try:
                deliveries = await fetching
            except asyncio.CancelledError:
                deliveries = []
            await publishing
            got.update(numbers(deliveries))
            await ack(feed, deliveries)
        await feed.close()
    feed = await place.feed(reader())
    while len(got) < count:
        deliveries = await place.take(feed, 1)
        repeated = got.intersection(numbers(deliveries))
        assert not repeated, f"delivered again after it was acknowledged: {repeated} (seed {seed})"
        got.update(numbers(deliveries))
        await ack(feed, deliveries)
    await nothing(feed, 0.05)


@promise("G4")
async def closing_leaves_nothing_behind(place: Place) -> None:
    """A closed broker has no task and no thread left, and its feeds can be closed after it."""
    threads = set(threading.enumerate())
    tasks = asyncio.all_tasks()
    broker = place.connect()
    await broker.open()
    await broker.declare([TopicSpec("numbers")], [reader()])
    feed = await broker.subscribe(reader())
    await store(broker, message(1), message(2))
    await place.take(feed, 1)
    await feed.close()
    await feed.close()
    await broker.close()
    await place.until(lambda: not _new_threads(threads), f"its threads end: {_new_threads(threads)}")
    await place.until(lambda: asyncio.all_tasks() <= tasks, "its tasks end")


def _new_threads(known: set[threading.Thread]) -> list[str]:
    # The event loop's own pool, which anyone may use, ends with the loop.
    return [each.name for each in threading.enumerate() if each not in known and not each.name.startswith("asyncio_")]

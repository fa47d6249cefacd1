"""G1, G10: what can be seen of a broker without consuming: figures, messages, flows; and how its URL is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from ... import Context, Service
from ...broker import Support, TopicSpec, TopicStatus
from ...errors import BrokerError, BrokerUrlError, ConfigurationError, Unsupported
from ...outcome import ACK, RELEASE, DeadLetter, Retry
from .events import NoteTaken, OrderPaid, OrderPlaced, soon
from .place import Place, ack, collect, failed, message, moment, nothing, numbers, reader, settle, store
from .scenario import promise


@promise("G4")
async def inspect_tells_the_truth(place: Place) -> None:
    """Backlog, in flight, retrying, dead, oldest, consumers, acknowledged and failed: at every step."""
    broker = await place.broker()

    async def figures() -> tuple[object, ...]:
        found = await place.status("reader.all")
        return (found.backlog, found.retrying, found.dead, found.acked, found.retried, found.consumers)

    feed = await place.feed(reader(types=("number.said",)))
    await broker.declare([TopicSpec("numbers", "name", 3600.0), TopicSpec("empty")], [])
    assert await figures() == (0, 0, 0, 0, 0, 1)
    assert (await place.status("reader.all")).oldest is None
    began = time.time_ns()
    await store(broker, *(message(number, time=1) for number in range(2)))
    at = await moment(place)
    await store(broker, *(message(number, time=1) for number in range(2, 10)))
    await store(broker, message(type="number.sung"))
    assert await figures() == (10, 0, 0, 0, 0, 1)
    oldest = (await place.status("reader.all")).oldest
    assert oldest is not None
    assert began <= oldest < at
    held = await place.take(feed, 6)
    assert await figures() == (10, 0, 0, 0, 0, 1)
    await ack(feed, held[:2])
    assert await figures() == (8, 0, 0, 2, 0, 1)
    oldest = (await place.status("reader.all")).oldest
    assert oldest is not None
    assert at < oldest <= time.time_ns()
    await settle(feed, [(failed(held[2], "no"), Retry(60, "no")), (failed(held[3], "no"), DeadLetter("no"))])
    assert await figures() == (7, 1, 1, 2, 1, 1)
    await settle(feed, [(held[4], RELEASE), (held[5], ACK)])
    assert await figures() == (6, 1, 1, 3, 1, 1)
    await feed.close()
    assert await figures() == (6, 1, 1, 3, 1, 0)
    status = await place.status("reader.all")
    assert (status.topic, status.types) == ("numbers", ("number.said",))
    topics = {topic.name: topic for topic in (await broker.inspect()).topics}
    assert topics["numbers"] == TopicStatus(name="numbers", key="name", messages=11, scheduled=0)
    assert topics["empty"] == TopicStatus(name="empty", key=None, messages=0, scheduled=0)


@promise("G1", needs=("history",))
async def reading_consumes_nothing(place: Place) -> None:
    """`read` gives a topic's messages as published, from the oldest or from those published at a point in time, to
    anyone, as often as they like, and no subscription notices."""
    broker = await place.broker()
    feed = await place.feed(reader())
    sent = await store(broker, *(message(number, key=str(number), time=2**62) for number in range(15)))
    at = await moment(place)
    sent += await store(broker, *(message(number, time=1) for number in range(15, 20)))
    await store(broker, message(99, topic="letters"))
    assert await collect(broker.read("numbers")) == sent
    assert await collect(broker.read("numbers", since=at)) == sent[15:]
    assert await collect(broker.read("numbers", since=await moment(place))) == []
    assert await collect(broker.read("nothing-was-ever-published-here")) == []
    await ack(feed, await place.take(feed, 20))
    assert await collect(broker.read("numbers")) == sent


@promise("G1", needs=("history",))
async def following_a_topic_sees_what_comes(place: Place) -> None:
    """With `follow` the reader goes on with new messages, in order, nothing left out between old and new."""
    broker = await place.broker()
    await store(broker, message(0))
    seen: list[int] = []

    async def follow() -> None:
        async for each in broker.read("numbers", follow=True):
            seen.append(int(each.body))

    following = asyncio.create_task(follow())
    try:
        for number in range(1, 50):
            await store(broker, message(number))
        await place.until(lambda: len(seen) >= 50, "fifty messages are read")
        began = time.monotonic()
        await store(broker, message(50))
        await place.until(lambda: len(seen) > 50, "the last message is read")
        assert time.monotonic() - began < 2.0
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert seen == list(range(51))


@promise("G10", needs=("history",))
async def a_flow_can_be_traced(place: Place) -> None:
    """What a handler publishes joins the flow and names its cause; `trace` gives the flow's messages in order, and
    what every subscription did with each."""
    service = Service("shop")
    broker = await place.broker()

    @service.on(OrderPlaced, retry=soon(5))
    async def pay(event: OrderPlaced, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise OSError(f"no {ctx.attempt}")
        await service.publish(OrderPaid(event.customer, event.number))

    @service.on(OrderPaid, retry=soon(1))
    async def note(event: OrderPaid) -> None:
        raise ValueError("no paper")

    @service.on(NoteTaken, timeout=None)
    async def idle(event: NoteTaken) -> None: ...

    async with place.running(service):
        first = await service.publish(OrderPlaced("a", 1))
        await service.publish(OrderPlaced("b", 2))
        await place.handled("shop.pay")
        await place.handled("shop.note")
        trace = await broker.trace(first.id)
    paid = [each for each in trace.messages if each.id != first.id]
    assert trace.messages == [first, *paid]
    assert [(each.type, each.correlation_id, each.causation_id) for each in paid] == [
        ("order.paid", first.id, first.id)
    ]
    fates = {(fate.subscription, fate.message_id): fate for fate in trace.fates}
    assert fates.keys() == {("shop.pay", first.id), ("shop.note", paid[0].id)}
    pay_fate, note_fate = fates["shop.pay", first.id], fates["shop.note", paid[0].id]
    assert (pay_fate.state, pay_fate.attempts) == ("acked", 3)
    assert [failure.error for failure in pay_fate.history] == ["OSError: no 1", "OSError: no 2"]
    assert (note_fate.state, note_fate.attempts) == ("dead", 1)
    assert "no paper" in note_fate.reason


@promise("G10", needs=("history",))
async def the_fate_of_what_is_open_is_known(place: Place) -> None:
    """Pending before it is handled and while it runs, retrying after a failure, acknowledged at the end; a
    subscription that is younger than a message has nothing to say about it."""
    broker = await place.broker()
    feed = await place.feed(reader())
    (sent,) = await store(broker, message(1, id="flow", correlation_id="flow"))

    async def fates() -> dict[str, tuple[str, int]]:
        return {fate.subscription: (fate.state, fate.attempts) for fate in (await broker.trace("flow")).fates}

    assert await fates() == {"reader.all": ("pending", 1)}
    await place.feed(reader("reader.young"))
    (held,) = await place.take(feed, 1)
    assert await fates() == {"reader.all": ("pending", 1)}
    await settle(feed, [(failed(held, "no"), Retry(0.05, "no"))])
    state, attempts = (await fates())["reader.all"]
    assert state == "retrying"
    assert attempts in (1, 2)
    (held,) = await place.take(feed, 1)
    await ack(feed, [held])
    assert await fates() == {"reader.all": ("acked", 2)}
    nobody = await broker.trace("no such flow")
    assert (nobody.messages, nobody.fates) == ([], [])
    assert (await broker.trace("flow")).messages == [sent]


@promise("G1", needs=("durable",))
async def age_removes_nothing_that_is_not_settled(place: Place) -> None:
    """On a topic that keeps nothing, a subscription gets what it has not settled, however old, also after a restart."""
    broker = await place.broker()
    await broker.declare([TopicSpec("numbers", retain=0.0)], [reader(), reader("reader.other")])
    long_ago = time.time_ns() - 30 * 86400 * 10**9
    await store(broker, *(message(number, time=long_ago) for number in range(20)))
    first = await broker.subscribe(reader())
    await ack(first, await place.take(first, 20))
    await first.close()
    broker = await place.reopened()
    await broker.declare([TopicSpec("numbers", retain=0.0)], [reader("reader.other")])
    await store(broker, message(20))
    feed = await broker.subscribe(reader("reader.other"))
    assert numbers(await place.take(feed, 21)) == list(range(21))
    await feed.close()


@promise("G1")
async def a_url_is_taken_at_its_word(place: Place) -> None:
    """An unknown parameter, scheme or namespace is an error that names it, before anything is opened."""
    joined = place.url + ("&" if "?" in place.url else "?")
    for url, named in (
        (joined + "flavour=vanilla", "flavour"),
        (joined + "namespace=a/b", "a/b"),
        ("nosuchbroker://localhost", "nosuchbroker"),
        ("not a url", "not a url"),
    ):
        with pytest.raises(BrokerUrlError, match=named):
            place.connect(url)


@promise("G2")
async def a_broker_that_cannot_be_reached_says_so(place: Place) -> None:
    """Opening fails with `BrokerError` or `ConfigurationError`, naming where, within seconds."""
    if place.unreachable is None:
        return
    broker = place.connect(place.unreachable)
    with pytest.raises((BrokerError, ConfigurationError)) as refusal:
        await asyncio.wait_for(broker.open(), 30)
    assert len(str(refusal.value)) > 20


@promise("G1", needs=("durable",))
async def namespaces_stay_apart(place: Place) -> None:
    """The same topics and subscriptions on one broker in two namespaces know nothing of each other."""
    joined = place.url + ("&" if "?" in place.url else "?")
    first, second = (
        await place.another(joined + "namespace=one"),
        await place.another(joined + "namespace=two"),
    )
    feeds = [await place.feed(reader(), broker) for broker in (first, second)]
    await store(first, message(1, id="same"))
    await store(second, message(2, id="same"))
    for broker, feed, number in ((first, feeds[0], 1), (second, feeds[1], 2)):
        delivered = await place.take(feed, 1)
        assert numbers(delivered) == [number]
        await settle(feed, [(failed(delivered[0], "no"), DeadLetter("no"))])
        await nothing(feed, 0.05)
        inspection = await broker.inspect()
        assert [topic.name for topic in inspection.topics] == ["numbers"]
        assert [status.name for status in inspection.subscriptions] == ["reader.all"]
        assert [int(letter.message.body) for letter in await broker.dead_letters()] == [number]
        assert [letter.message.topic for letter in await broker.dead_letters()] == ["numbers"]
        assert [int(each.body) for each in await collect(broker.read("numbers"))] == [number]


@promise("G2")
async def what_a_broker_lacks_is_refused(place: Place) -> None:
    """A feature that its capabilities call missing raises `Unsupported`, and is never passed over in silence."""
    broker = await place.broker()
    can = broker.capabilities
    await broker.declare([TopicSpec("numbers")], [reader("reader.plain")])

    async def history() -> None:
        await collect(broker.read("numbers"))

    attempts: list[tuple[Support, str, Callable[[], Awaitable[object]]]] = [
        (can.delay, "delay", lambda: broker.publish([message()], due=time.time_ns() + 10**9)),
        (can.order, "order", lambda: broker.declare([], [reader("reader.ordered", ordered=True)])),
        (can.history, "history", history),
        (can.history, "history", lambda: broker.trace("flow")),
        (can.history, "history", lambda: broker.declare([], [reader("reader.past", start="beginning")])),
    ]
    for support, name, attempt in attempts:
        if support == Support.NONE:
            with pytest.raises(Unsupported, match=name):
                await attempt()

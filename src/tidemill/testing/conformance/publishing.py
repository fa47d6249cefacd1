"""G1, G2: what `publish` confirms is stored, unchanged, once, in order, and it says so per message."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from ... import PublishError, Service
from ...broker import Broker, Receipt, Status, TopicSpec
from ...errors import BrokerError
from ...message import MAX_BODY, Message
from .events import NoteTaken
from .place import Place, ack, collect, message, nothing, numbers, reader, store
from .scenario import promise


@promise("G1")
async def what_is_published_arrives_unchanged(place: Place) -> None:
    """A message arrives equal in every field: empty, binary and non-UTF-8 bodies, non-ASCII keys and headers, odd
    times and versions."""
    feed = await place.feed(reader())
    sent = [
        message(body=b""),
        message(body=b"\x00\xff\xfe\x80" * 5, content_type="application/octet-stream"),
        message(body=bytes(range(256)) * 16, content_type="application/octet-stream"),
        message(body='{"text":"Grüße, 世界 🌊"}'.encode()),
        message(body=b'"not JSON', version=2_000_000),
        message(key="Zoë/ключ 🔑", extensions={"tenant": "Ærøskøbing", "note": "a: b; c=d, \"e\" 'f' %20 \\"}),
        message(key=" blanks around ", extensions={"empty": ""}),
        message(key="k" * 300, extensions={f"x{number}": str(number) for number in range(50)}),
        message(id="id with 'quotes' and ünïcode", source="//other/source?x=1#y", type="a.very-odd_type.V2"),
        message(time=0),
        message(time=1_700_000_000_123_456_789),
        message(time=-1),
        message(correlation_id=None, causation_id=None),
        message(correlation_id="flow-1", causation_id="cause-1"),
        message(id="same", correlation_id="same"),
    ]
    await store(await place.broker(), *sent)
    arrived = [delivery.message for delivery in await place.take(feed, len(sent))]
    for before, after in zip(sent, arrived, strict=True):
        assert after == before
        assert type(after.body) is bytes


@promise("G1")
async def large_messages_arrive_unchanged(place: Place) -> None:
    """A body of 1 MiB and attributes of almost 16 KiB are within every broker's limits."""
    feed = await place.feed(reader())
    headers = {f"header{number}": chr(0x4E00 + number) * 340 for number in range(15)}
    sent = [message(body=bytes(range(256)) * (MAX_BODY // 256)), message(extensions=headers)]
    await store(await place.broker(), *sent)
    assert [delivery.message for delivery in await place.take(feed, 2)] == sent


@promise("G2", needs=("deduplication",))
async def a_repeated_publish_is_reported_and_delivered_once(place: Place) -> None:
    """`(source, id)` identifies a message: publishing it again is a duplicate, also within one batch, also when it
    was handled before; the same id from another source, or on another topic, is not."""
    broker = await place.broker()
    feed = await place.feed(reader())
    first = message(1, id="a", source="shop")
    same = msgspec.structs.replace(first, body=b"2")
    other_source = message(3, id="a", source="depot")
    receipts = await broker.publish([first, same, other_source])
    assert _statuses(receipts) == ["stored", "duplicate", "stored"]
    assert all(receipt.ok for receipt in receipts)
    delivered = await place.take(feed, 2)
    assert numbers(delivered) == [1, 3]
    await ack(feed, delivered)
    other_topic = message(4, id="a", source="shop", topic="letters")
    receipts = await broker.publish([same, other_topic, message(5)])
    assert _statuses(receipts) == ["duplicate", "stored", "stored"]
    assert numbers(await place.take(feed, 1)) == [5]
    await nothing(feed)


@promise("G1", needs=("deduplication", "durable"))
async def duplicates_are_known_after_a_restart(place: Place) -> None:
    """A publisher that died before it saw the confirmation repeats, and stores nothing twice."""
    sent = await store(await place.broker(), message(1), message(2))
    receipts = await (await place.reopened()).publish([*sent, message(3)])
    assert _statuses(receipts) == ["duplicate", "duplicate", "stored"]


@promise("G1", needs=("history",))
async def a_batch_keeps_its_order(place: Place) -> None:
    """The messages of one call, and of calls that follow each other, are stored in their order."""
    broker = await place.broker()
    feed = await place.feed(reader())
    for start in range(0, 600, 200):
        await store(broker, *(message(number) for number in range(start, start + 200)))
    stored = [int(each.body) for each in await collect(broker.read("numbers"))]
    assert stored == list(range(600))
    assert numbers(await place.take(feed, 600)) == list(range(600))


@promise("G1")
async def concurrent_publishers_lose_nothing(place: Place) -> None:
    """Twenty tasks publish at once: everything is stored, and each task's messages in its order."""
    broker = await place.broker()
    feed = await place.feed(reader())

    async def publisher(name: int) -> None:
        for number in range(0, 25, 5):
            await store(broker, *(message(number + step, key=str(name)) for step in range(5)))

    await asyncio.gather(*(publisher(name) for name in range(20)))
    arrived = await place.take(feed, 500)
    for name in range(20):
        assert numbers(each for each in arrived if each.message.key == str(name)) == list(range(25))


@promise("G1", needs=("durable",))
async def what_was_confirmed_survives_a_restart(place: Place) -> None:
    """Closing right after the confirmation, without waiting for anything, loses nothing."""
    broker = await place.broker()
    await broker.declare([TopicSpec("numbers")], [reader()])
    sent = await store(broker, *(message(number, extensions={"n": str(number)}) for number in range(100)))
    await place.reopened()
    feed = await place.feed(reader())
    assert [delivery.message for delivery in await place.take(feed, 100)] == sent


@promise("G1")
async def closing_finishes_what_is_being_published(place: Place) -> None:
    """A publish that was under way when `close` was called ends in receipts or an error, and what it confirmed is
    there."""
    broker = place.connect()
    await broker.open()
    await broker.declare([TopicSpec("numbers")], [reader()])
    batches = [[message(number + step) for step in range(10)] for number in range(0, 200, 10)]
    under_way = [asyncio.create_task(broker.publish(batch)) for batch in batches]
    await asyncio.sleep(0)
    await broker.close()
    confirmed: list[Message] = []
    for batch, task in zip(batches, under_way, strict=True):
        try:
            receipts = await asyncio.wait_for(task, place.patience)
        except BrokerError:
            continue
        confirmed += [each for each, receipt in zip(batch, receipts, strict=True) if receipt.ok]
    if broker.capabilities.durability != "memory":
        feed = await place.feed(reader())
        arrived = {each.message.id for each in await place.take(feed, len(confirmed))}
        assert {each.id for each in confirmed} <= arrived


@promise("G2")
async def publishing_after_close_is_refused(place: Place) -> None:
    """A closed broker raises `BrokerError` and stores nothing; closing it twice does nothing."""
    broker = await place.another()
    await broker.close()
    await broker.close()
    with pytest.raises(BrokerError):
        await broker.publish([message()])


@promise("G2")
async def a_refused_publish_is_an_error_for_the_caller(place: Place) -> None:
    """`service.publish` raises `PublishError` that names what is not stored, for one and for many."""
    service = Service("shop")
    broker = await place.another()
    async with place.running(service, broker):
        await service.publish(NoteTaken(1))
        await broker.close()
        for attempt in (service.publish(NoteTaken(2)), service.publish_many([NoteTaken(3), NoteTaken(4)])):
            with pytest.raises(PublishError) as refusal:
                await attempt
            assert {receipt.status for _, receipt in refusal.value.failed} == {Status.NOT_STORED}


@promise("G2")
async def an_abandoned_publish_harms_nobody(place: Place) -> None:
    """A caller that is cancelled while it publishes leaves its messages stored whole or not at all, and other
    callers' messages alone."""
    broker = await place.broker()
    feed = await place.feed(reader())
    service = Service("shop")
    async with place.running(service):
        tasks = [asyncio.create_task(service.publish_many([NoteTaken(n), NoteTaken(n + 1)])) for n in range(0, 40, 2)]
        others = [asyncio.create_task(_publish(broker, number)) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*others)
    assert sorted(numbers(await place.take(feed, 20))) == list(range(20))


async def _publish(broker: Broker, number: int) -> None:
    await store(broker, message(number))


def _statuses(receipts: list[Receipt]) -> list[str]:
    return [receipt.status.value for receipt in receipts]

"""Dead letters in memory: what is forgotten, and what is not."""

from __future__ import annotations

import asyncio

import pytest

from tidemill.broker import Status, Subscription, TopicSpec
from tidemill.brokers.memory import MemoryBroker, backlog
from tidemill.clock import SystemClock
from tidemill.message import Message
from tidemill.outcome import ACK, DeadLetter


def message(number: int, key: str | None = None) -> Message:
    return Message(f"m{number}", "tests", "order.placed", "orders", 0, b"{}", key=key)


def test_what_was_given_up_is_known_when_the_topic_has_forgotten_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "KEPT_MESSAGES", 5)

    async def main() -> None:
        broker = MemoryBroker(SystemClock())
        spec = Subscription(name="shop.handle", topic="orders")
        await broker.declare([TopicSpec("orders")], [spec])
        feed = await broker.subscribe(spec)
        await broker.publish([message(0)])
        await feed.settle([(each, DeadLetter("no")) for each in await feed.fetch(1, 1, 1000)])
        await broker.publish([message(number) for number in range(1, 10)])
        await feed.settle([(each, ACK) for each in await feed.fetch(100, 1, 1000)])
        assert [receipt.status for receipt in await broker.publish([message(0), message(1)])] == [
            Status.DUPLICATE,
            Status.STORED,
        ]
        await broker.resolve("discard", [1], by="zoe")
        assert [receipt.status for receipt in await broker.publish([message(0)])] == [Status.STORED]

    asyncio.run(main())


def test_a_key_that_was_parked_leaves_nothing_behind() -> None:
    async def main() -> None:
        broker = MemoryBroker(SystemClock())
        spec = Subscription(name="shop.handle", topic="orders", ordered=True, parks=True)
        await broker.declare([TopicSpec("orders", "key")], [spec])
        feed = await broker.subscribe(spec)
        await broker.publish([message(number, "a") for number in range(3)])
        (first, *_) = await feed.fetch(1, 1, 1000)
        await feed.settle([(first, DeadLetter("no"))])
        assert await feed.fetch(10, 0, 1000) == []
        await broker.resolve("replay", [1], by="zoe")
        taken = await feed.fetch(10, 0, 1000)
        assert [each.message.id for each in taken] == ["m0", "m1", "m2"]
        await feed.settle([(each, ACK) for each in taken])
        held = broker._subscriptions["shop.handle"]
        assert (held.keys, held.dead, dict(held._stream.dead)) == ({}, {}, {})

    asyncio.run(main())

"""Brokers and feeds that pass everything on to another: to change one thing about it, subclass and override that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from .broker import (
    Broker,
    Capabilities,
    DeadLettered,
    Feed,
    FeedWatcher,
    Inspection,
    Receipt,
    Resolution,
    Resolve,
    Settlement,
    Subscription,
    TopicSpec,
    Trace,
)
from .message import Delivery, Message


class BrokerStandIn:
    """Does what `real` does."""

    def __init__(self, real: Broker) -> None:
        self.real = real

    @property
    def url(self) -> str:
        return self.real.url

    @property
    def capabilities(self) -> Capabilities:
        return self.real.capabilities

    async def open(self) -> None:
        await self.real.open()

    async def close(self) -> None:
        await self.real.close()

    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        await self.real.declare(topics, subscriptions)

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        return await self.real.publish(messages, due=due)

    async def subscribe(self, subscription: Subscription) -> Feed:
        return await self.real.subscribe(subscription)

    async def pause(self, subscription: str, paused: bool) -> None:
        await self.real.pause(subscription, paused)

    async def inspect(self) -> Inspection:
        return await self.real.inspect()

    async def dead_letters(
        self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[DeadLettered]:
        return await self.real.dead_letters(subscription, after=after, limit=limit)

    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        return await self.real.resolve(action, numbers, by=by)

    async def resolutions(self, *, before: int | None = None, limit: int = 1000) -> list[Resolution]:
        return await self.real.resolutions(before=before, limit=limit)

    def read(self, topic: str, *, since: int | None = None, follow: bool = False) -> AsyncIterator[Message]:
        return self.real.read(topic, since=since, follow=follow)

    async def trace(self, correlation_id: str) -> Trace:
        return await self.real.trace(correlation_id)


class FeedStandIn:
    """Does what `real` does."""

    def __init__(self, real: Feed) -> None:
        self.real = real

    def watch(self, watcher: FeedWatcher) -> None:
        self.real.watch(watcher)

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        return await self.real.fetch(limit, wait, max_bytes)

    def begin(self, delivery: Delivery) -> bool:
        return self.real.begin(delivery)

    def end(self, delivery: Delivery) -> None:
        self.real.end(delivery)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        return await self.real.settle(settlements)

    def let_go(self) -> None:
        self.real.let_go()

    async def leave(self) -> None:
        await self.real.leave()

    async def close(self) -> None:
        await self.real.close()


class KeptOpen(BrokerStandIn):
    """A broker that whoever runs on it neither opens nor closes: several services share it, one after the other."""

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

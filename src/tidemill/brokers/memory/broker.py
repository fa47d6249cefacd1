"""The memory broker and its feeds: see `tidemill.broker` for what they promise."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count, islice

from ...broker import (
    STORED,
    Capabilities,
    DeadLettered,
    FeedWatcher,
    Inspection,
    Receipt,
    Resolution,
    Resolve,
    Settlement,
    Subscription,
    SubscriptionStatus,
    TopicSpec,
    TopicStatus,
    Trace,
)
from ...clock import Clock
from ...errors import BrokerError, ConfigurationError
from ...message import Delivery, Message
from ...outcome import Release
from .backlog import KEPT_MESSAGES, Backlog, Stream


class MemoryFeed:
    """One consumer of one subscription. See `tidemill.broker.Feed`."""

    def __init__(self, backlog: Backlog, number: int) -> None:
        self.number = number
        self._backlog = backlog
        self._closed = False
        self._watcher: FeedWatcher | None = None

    def watch(self, watcher: FeedWatcher) -> None:
        self._watcher = watcher
        if self._backlog.paused:
            watcher.paused(True)

    def pause(self, paused: bool) -> None:
        if self._watcher is not None:
            self._watcher.paused(paused)

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        backlog = self._backlog
        taken = backlog.take(self.number, limit, max_bytes)
        if taken or wait <= 0:
            return taken
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        backlog.waiters.append(waiter)
        timer = loop.call_later(wait, lambda: None if waiter.done() else waiter.set_result(None))
        try:
            await waiter
        except asyncio.CancelledError:
            backlog.wake()  # who was woken and will not look must pass it on
            raise
        finally:
            timer.cancel()
        return backlog.take(self.number, limit, max_bytes)

    def begin(self, delivery: Delivery) -> bool:
        return True  # whoever could lose it ends together with it

    def end(self, delivery: Delivery) -> None: ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = self._backlog.settle(settlements)
        self._backlog.progressed()
        return late

    def let_go(self) -> None: ...

    async def leave(self) -> None:
        self._backlog.leaving.add(self.number)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        backlog = self._backlog
        backlog.leaving.discard(self.number)
        del backlog.feeds[self.number]
        held = [delivery for delivery in backlog.in_flight.values() if delivery.token == self.number]
        backlog.settle([(delivery, Release()) for delivery in reversed(held)])
        backlog.wake()


class MemoryBroker:
    """The broker inside this process. See `tidemill.broker.Broker`."""

    url = "memory:"
    capabilities = Capabilities(durability="memory", processes=False, publish_batch=1)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._topics: dict[str, Stream] = {}
        self._subscriptions: dict[str, Backlog] = {}
        self._scheduled: list[tuple[int, int, Message]] = []
        self._serial = count()
        self._numbers = count(1)
        self._resolutions: deque[Resolution] = deque(maxlen=KEPT_MESSAGES)
        self._closed = False
        self._progress: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        if self._closed:
            raise BrokerError("this memory: broker was closed, and what it held is gone. Connect a new one.")

    async def close(self) -> None:
        self._closed = True

    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        for topic in topics:
            self._topic(topic.name).spec = topic
        for spec in subscriptions:
            known = self._subscriptions.get(spec.name)
            if known is None and spec.renamed_from in self._subscriptions:
                known = self._subscriptions[spec.name] = self._subscriptions.pop(spec.renamed_from)
                known.rename(spec.name)
            if known is not None:
                if known.spec.topic != spec.topic:
                    raise ConfigurationError(
                        f"subscription {spec.name!r} exists on topic {known.spec.topic!r}, not {spec.topic!r}. "
                        "Give the handler another name."
                    )
                known.spec = spec
                known.types = None if spec.types is None else frozenset(spec.types)
                continue
            self._create(spec)

    def _create(self, spec: Subscription) -> None:
        topic = self._topic(spec.topic)
        backlog = self._subscriptions[spec.name] = Backlog(spec, topic, self.clock, self.progressed, self._numbers)
        backlog.first = topic.position
        topic.subscriptions.append(backlog)
        if spec.start == "now":
            return
        since = 0 if spec.start == "beginning" else spec.start
        past = [(position, message) for position, stored, message in topic.kept.values() if stored >= since]
        if past:
            backlog.first = past[0][0] - 1
        for position, message in past:
            if backlog.wants(message):
                backlog.add(Delivery(message, spec.name, 1, position))

    def _topic(self, name: str) -> Stream:
        found = self._topics.get(name)
        if found is None:
            found = self._topics[name] = Stream(TopicSpec(name), self.clock.now)
        return found

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        if self._closed:
            raise BrokerError("this memory: broker is closed; nothing was stored")
        if due is not None and due > (now := self.clock.now()):
            for message in messages:
                self._topic(message.topic).scheduled += 1
                heappush(self._scheduled, (due, next(self._serial), message))
            self.clock.call_later((due - now) / 1e9, partial(self._appear, due))
            return [STORED] * len(messages)
        topics = self._topics
        if len(messages) == 1:
            message = messages[0]
            return [(topics.get(message.topic) or self._topic(message.topic)).append(message)]
        return [(topics.get(message.topic) or self._topic(message.topic)).append(message) for message in messages]

    def _appear(self, due: int) -> None:
        # From one heap, not from a timer each: timers are not exact, and events due at once keep their order.
        while self._scheduled and self._scheduled[0][0] <= due:
            message = heappop(self._scheduled)[2]
            topic = self._topic(message.topic)
            topic.scheduled -= 1
            topic.append(message)
        self.progressed()

    async def subscribe(self, subscription: Subscription) -> MemoryFeed:
        backlog = self._subscriptions[subscription.name]
        feed = MemoryFeed(backlog, next(self._serial))
        backlog.feeds[feed.number] = feed.pause
        return feed

    async def pause(self, subscription: str, paused: bool) -> None:
        backlog = self._subscriptions.get(subscription)
        if backlog is None:
            raise ConfigurationError(f"there is no subscription {subscription!r} in memory:. Nothing changed.")
        backlog.pause(paused)

    async def inspect(self) -> Inspection:
        topics = [
            TopicStatus(name=name, key=topic.spec.key, messages=len(topic.kept), scheduled=topic.scheduled)
            for name, topic in sorted(self._topics.items())
        ]
        subscriptions: list[SubscriptionStatus] = []
        for name, backlog in sorted(self._subscriptions.items()):
            waiting = backlog.open()
            subscriptions.append(
                SubscriptionStatus(
                    name=name,
                    topic=backlog.spec.topic,
                    types=backlog.spec.types,
                    backlog=len(waiting),
                    retrying=sum(1 for delivery in waiting if delivery.attempt > 1),
                    dead=len(backlog.dead),
                    oldest=min((self._stored(delivery.message) for delivery in waiting), default=None),
                    consumers=len(backlog.feeds),
                    acked=backlog.acked,
                    retried=backlog.retried,
                    paused=backlog.paused,
                )
            )
        return Inspection(topics, subscriptions)

    def _stored(self, message: Message) -> int:
        kept = self._topics[message.topic].kept.get((message.source, message.id))
        return message.time if kept is None else kept[1]

    async def dead_letters(
        self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[DeadLettered]:
        found = [letter for letter in self.letters() if letter.number > after]
        return [letter for letter in found if subscription in (None, letter.subscription)][:limit]

    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        resolved: list[int] = []
        for number in numbers:
            backlog = next((each for each in self._subscriptions.values() if number in each.dead), None)
            if backlog is None:
                continue
            letter = backlog.resolve(action, number)
            self._resolutions.append(
                Resolution(
                    number=self._resolutions[-1].number + 1 if self._resolutions else 1,
                    at=self.clock.now(),
                    action=action,
                    by=by,
                    letter=number,
                    subscription=letter.subscription,
                    message_id=letter.message.id,
                    source=letter.message.source,
                    type=letter.message.type,
                    key=letter.message.key,
                    reason=letter.reason,
                    attempts=letter.attempts,
                )
            )
            resolved.append(number)
        self.progressed()
        return resolved

    async def resolutions(self, *, before: int | None = None, limit: int = 1000) -> list[Resolution]:
        newest = (each for each in reversed(self._resolutions) if before is None or each.number < before)
        return list(islice(newest, limit))[::-1]

    async def read(self, topic: str, *, since: int | None = None, follow: bool = False) -> AsyncIterator[Message]:
        found = self._topic(topic)
        news = asyncio.Event()
        found.readers.add(news)
        seen = 0
        try:
            while True:
                news.clear()
                for position, stored, message in tuple(found.kept.values()):
                    if position > seen:
                        seen = position
                        if since is None or stored >= since:
                            yield message
                if not follow:
                    return
                await news.wait()
        finally:
            found.readers.discard(news)

    async def trace(self, correlation_id: str) -> Trace:
        flow = [
            (topic, position, message)
            for topic in self._topics.values()
            for position, _, message in topic.kept.values()
            if correlation_id in (message.correlation_id, message.id)
        ]
        flow.sort(key=lambda found: (found[2].time, found[2].id))
        fates = [
            fate
            for topic, position, message in flow
            for subscription in topic.subscriptions
            if (fate := subscription.fate(message, position)) is not None
        ]
        return Trace([message for _, _, message in flow], fates)

    # ---------------------------------------------------- for component tests

    def letters(self) -> list[DeadLettered]:
        """The dead letters there are, in order."""
        found = [letter for backlog in self._subscriptions.values() for letter, _ in backlog.dead.values()]
        return sorted(found, key=lambda letter: letter.number)

    def active(self) -> int:
        """Deliveries that are ready or in flight: what will progress without time passing."""
        return sum(len(backlog.ready) + len(backlog.in_flight) for backlog in self._subscriptions.values())

    def delayed(self) -> int:
        """Deliveries and messages that wait for time to pass."""
        return sum(len(backlog.delayed) for backlog in self._subscriptions.values()) + sum(
            topic.scheduled for topic in self._topics.values()
        )

    def progress(self) -> asyncio.Future[None]:
        """Done when next something is settled or becomes due."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._progress.append(future)
        return future

    def progressed(self) -> None:
        if self._progress:
            for future in self._progress:
                if not future.done():
                    future.set_result(None)
            self._progress.clear()

"""`memory:` — the whole semantics inside one process: for component tests, and services that may forget.

Nothing outlives the process. Per topic the last 20,000 messages, at most 64 MiB of bodies, stay readable, and
duplicates are recognised among them; what a subscription has not settled is never dropped.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count

import msgspec

from ..broker import (
    DUPLICATE,
    STORED,
    BrokerUrl,
    Capabilities,
    DeadLettered,
    Fate,
    Inspection,
    Receipt,
    Settlement,
    Subscription,
    SubscriptionStatus,
    TopicSpec,
    TopicStatus,
    Trace,
)
from ..clock import Clock
from ..errors import BrokerError, ConfigurationError
from ..message import Delivery, Message
from ..outcome import ACK, Ack, DeadLetter, Release, Retry

KEPT_MESSAGES = 20_000
KEPT_BYTES = 64 * 1024 * 1024


def connect(url: BrokerUrl, clock: Clock) -> MemoryBroker:
    """The entry point for `memory:`."""
    url.refuse_options()
    return MemoryBroker(clock)


class _Topic:
    """What was published to one topic, as far as it is kept."""

    def __init__(self, spec: TopicSpec, now: Callable[[], int]) -> None:
        self.spec = spec
        self.now = now
        self.position = 0
        # (source, id) -> position, when it was published, message
        self.kept: OrderedDict[tuple[str, str], tuple[int, int, Message]] = OrderedDict()
        self.bytes = 0
        self.scheduled = 0
        self.subscriptions: list[_Backlog] = []
        self.readers: set[asyncio.Event] = set()

    def append(self, message: Message) -> Receipt:
        identity = (message.source, message.id)
        kept = self.kept
        if identity in kept:
            return DUPLICATE
        self.position = position = self.position + 1
        kept[identity] = (position, self.now(), message)
        self.bytes += len(message.body)
        while len(kept) > KEPT_MESSAGES or self.bytes > KEPT_BYTES:
            self.bytes -= len(kept.popitem(last=False)[1][2].body)
        for subscription in self.subscriptions:
            if subscription.types is None or message.type in subscription.types:
                subscription.ready.append(Delivery(message, subscription.name, 1, position))
                if subscription.waiters:
                    subscription.wake()
        for reader in self.readers:
            reader.set()
        return STORED


class _Key:
    """Where the events of one key are, on an ordered subscription."""

    __slots__ = ("holder", "in_flight", "retrying", "waiting")

    def __init__(self, holder: MemoryFeed) -> None:
        self.holder = holder
        self.in_flight = 0
        self.retrying = False
        self.waiting: list[Delivery] = []


class _Backlog:
    """The state of one subscription: what is ready, in flight, or waiting, and what became of the rest."""

    def __init__(self, spec: Subscription, broker: MemoryBroker) -> None:
        self.spec = spec
        self.name = spec.name
        self.broker = broker
        self.types = None if spec.types is None else frozenset(spec.types)
        self.first = 0
        self.ready: deque[Delivery] = deque()
        self.in_flight: dict[int, Delivery] = {}
        self.delayed: dict[int, Delivery] = {}
        self.keys: dict[str, _Key] = {}
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.feeds: set[MemoryFeed] = set()
        self.dead: list[DeadLettered] = []
        self.fates: OrderedDict[str, Fate] = OrderedDict()
        self.acked = 0
        self.retried = 0

    def wants(self, message: Message) -> bool:
        return self.types is None or message.type in self.types

    def add(self, delivery: Delivery) -> None:
        self.ready.append(delivery)
        if self.waiters:
            self.wake()

    def rename(self, name: str) -> None:
        self.name = name
        for delivery in self.open():
            delivery.subscription = name
        self.dead = [msgspec.structs.replace(letter, subscription=name) for letter in self.dead]
        for identity, fate in self.fates.items():
            self.fates[identity] = msgspec.structs.replace(fate, subscription=name)

    def wake(self) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def take(self, feed: MemoryFeed, limit: int, max_bytes: int) -> list[Delivery]:
        taken: list[Delivery] = []
        ready, in_flight, ordered = self.ready, self.in_flight, self.spec.ordered
        while ready and len(taken) < limit:
            delivery = ready[0]
            max_bytes -= len(delivery.message.body)
            if max_bytes < 0 and taken:
                break
            ready.popleft()
            if ordered and (key := delivery.message.key) is not None:
                state = self.keys.get(key)
                if state is None:
                    state = self.keys[key] = _Key(feed)
                elif state.retrying or state.waiting or state.holder is not feed:
                    state.waiting.append(delivery)
                    continue
                state.in_flight += 1
            delivery.token = feed.number
            in_flight[delivery.position] = delivery
            taken.append(delivery)
        return taken

    def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late: list[Delivery] = []
        in_flight, ordered = self.in_flight, self.spec.ordered
        for delivery, outcome in settlements:
            if in_flight.get(delivery.position) is not delivery:
                late.append(delivery)
                continue
            del in_flight[delivery.position]
            if outcome is ACK and delivery.attempt == 1:
                self.acked += 1
            else:
                self._settle_other(delivery, outcome)
            if ordered and (key := delivery.message.key) is not None:
                state = self.keys[key]
                state.in_flight -= 1
                self._let_go(key, state)
        if self.waiters and self.ready:
            self.wake()
        return late

    def _settle_other(self, delivery: Delivery, outcome: Ack | Retry | DeadLetter | Release) -> None:
        key = delivery.message.key if self.spec.ordered else None
        match outcome:
            case Ack():
                self.acked += 1
                self._remember(delivery, "acked")
            case Retry():
                self.retried += 1
                again = _again(delivery, delivery.attempt + 1)
                self.delayed[again.position] = again
                if key is not None:
                    self.keys[key].retrying = True
                self.broker.clock.call_later(outcome.after, partial(self._due, again))
            case DeadLetter():
                self.dead.append(
                    DeadLettered(
                        subscription=self.name,
                        message=delivery.message,
                        reason=outcome.reason,
                        attempts=delivery.attempt,
                        at=self.broker.clock.now(),
                        history=delivery.history,
                    )
                )
                self._remember(delivery, "dead", outcome.reason)
            case Release():
                again = _again(delivery, delivery.attempt)
                if key is not None:
                    self.keys[key].waiting.append(again)
                else:
                    self.ready.appendleft(again)

    def _due(self, delivery: Delivery) -> None:
        if self.delayed.pop(delivery.position, None) is None:
            return
        key = delivery.message.key if self.spec.ordered else None
        if key is None:
            self.ready.append(delivery)
        else:
            state = self.keys[key]
            state.retrying = False
            state.waiting.append(delivery)
            self._let_go(key, state)
        self.wake()
        self.broker.progressed()

    def _let_go(self, key: str, state: _Key) -> None:
        """Once nothing of a key is in flight or to be retried, what waited is ready: first in, first out."""
        if state.in_flight or state.retrying:
            return
        del self.keys[key]
        state.waiting.sort(key=lambda delivery: delivery.position)
        self.ready.extendleft(reversed(state.waiting))

    def _remember(self, delivery: Delivery, state: str, reason: str = "") -> None:
        self.fates[delivery.message.id] = Fate(
            subscription=self.name,
            message_id=delivery.message.id,
            state="dead" if state == "dead" else "acked",
            attempts=delivery.attempt,
            history=delivery.history,
            reason=reason,
        )
        if len(self.fates) > KEPT_MESSAGES:
            self.fates.popitem(last=False)

    def open(self) -> list[Delivery]:
        """Everything that is not settled."""
        waiting = [delivery for state in self.keys.values() for delivery in state.waiting]
        return [*self.ready, *self.in_flight.values(), *self.delayed.values(), *waiting]

    def fate(self, message: Message, position: int) -> Fate | None:
        if position <= self.first or not self.wants(message):
            return None
        known = self.fates.get(message.id)
        if known is not None:
            return known
        for delivery in self.open():
            if delivery.position == position:
                return Fate(
                    subscription=self.name,
                    message_id=message.id,
                    state="retrying" if delivery.history else "pending",
                    attempts=delivery.attempt,
                    history=delivery.history,
                )
        return Fate(subscription=self.name, message_id=message.id, state="acked")


def _again(delivery: Delivery, attempt: int) -> Delivery:
    return Delivery(delivery.message, delivery.subscription, attempt, delivery.position, delivery.history)


class MemoryFeed:
    """One consumer of one subscription. See `tidemill.broker.Feed`."""

    def __init__(self, backlog: _Backlog, number: int) -> None:
        self.number = number
        self._backlog = backlog
        self._closed = False

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        backlog = self._backlog
        taken = backlog.take(self, limit, max_bytes)
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
        return backlog.take(self, limit, max_bytes)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = self._backlog.settle(settlements)
        self._backlog.broker.progressed()
        return late

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        backlog = self._backlog
        backlog.feeds.discard(self)
        held = [delivery for delivery in backlog.in_flight.values() if delivery.token == self.number]
        backlog.settle([(delivery, Release()) for delivery in reversed(held)])
        backlog.wake()


class MemoryBroker:
    """The broker inside this process. See `tidemill.broker.Broker`."""

    url = "memory:"
    capabilities = Capabilities(durability="memory", processes=False, publish_batch=1)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._topics: dict[str, _Topic] = {}
        self._subscriptions: dict[str, _Backlog] = {}
        self._scheduled: list[tuple[int, int, Message]] = []
        self._serial = count()
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
        backlog = self._subscriptions[spec.name] = _Backlog(spec, self)
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

    def _topic(self, name: str) -> _Topic:
        found = self._topics.get(name)
        if found is None:
            found = self._topics[name] = _Topic(TopicSpec(name), self.clock.now)
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
        return [
            (topics.get(message.topic) or self._topic(message.topic)).append(message) for message in messages
        ]

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
        backlog.feeds.add(feed)
        return feed

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
                    retrying=sum(1 for delivery in waiting if delivery.history),
                    dead=len(backlog.dead),
                    oldest=min((self._stored(delivery.message) for delivery in waiting), default=None),
                    consumers=len(backlog.feeds),
                    acked=backlog.acked,
                    retried=backlog.retried,
                )
            )
        return Inspection(topics, subscriptions)

    def _stored(self, message: Message) -> int:
        kept = self._topics[message.topic].kept.get((message.source, message.id))
        return message.time if kept is None else kept[1]

    async def dead_letters(self, subscription: str | None = None) -> list[DeadLettered]:
        found = [
            letter
            for name, backlog in self._subscriptions.items()
            if subscription in (None, name)
            for letter in backlog.dead
        ]
        return sorted(found, key=lambda letter: letter.at)

    async def read(
        self, topic: str, *, since: int | None = None, follow: bool = False
    ) -> AsyncIterator[Message]:
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

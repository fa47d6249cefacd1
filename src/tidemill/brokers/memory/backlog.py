"""What the memory broker keeps: the messages of a topic, and where each subscription is with them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from ...broker import DUPLICATE, STORED, DeadLettered, Fate, Receipt, Settlement, Subscription, TopicSpec
from ...clock import Clock
from ...message import Delivery, Message
from ...outcome import ACK, Ack, DeadLetter, Release, Retry

KEPT_MESSAGES = 20_000
KEPT_BYTES = 64 * 1024 * 1024


class Stream:
    """What was published to one topic, as far as it is kept."""

    def __init__(self, spec: TopicSpec, now: Callable[[], int]) -> None:
        self.spec = spec
        self.now = now
        self.position = 0
        # (source, id) -> position, when it was published, message
        self.kept: OrderedDict[tuple[str, str], tuple[int, int, Message]] = OrderedDict()
        self.bytes = 0
        self.scheduled = 0
        self.subscriptions: list[Backlog] = []
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


class Key:
    """Where the events of one key are, on an ordered subscription."""

    __slots__ = ("delayed", "holder", "in_flight", "waiting")

    def __init__(self, holder: int) -> None:
        self.holder = holder
        self.in_flight = 0
        self.delayed = 0
        self.waiting: list[Delivery] = []


class Backlog:
    """The state of one subscription: what is ready, in flight, or waiting, and what became of the rest."""

    def __init__(self, spec: Subscription, clock: Clock, progressed: Callable[[], None]) -> None:
        self.spec = spec
        self.name = spec.name
        self._clock = clock
        self.progressed = progressed
        self.types = None if spec.types is None else frozenset(spec.types)
        self.first = 0
        self.ready: deque[Delivery] = deque()
        self.in_flight: dict[int, Delivery] = {}
        self.delayed: dict[int, Delivery] = {}
        self.keys: dict[str, Key] = {}
        self.waiters: deque[asyncio.Future[None]] = deque()
        # Each with what tells it that the subscription is paused.
        self.feeds: dict[int, Callable[[], None]] = {}
        self.leaving: set[int] = set()
        self.paused = False
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

    def pause(self, paused: bool) -> None:
        self.paused = paused
        if paused:
            for told in tuple(self.feeds.values()):
                told()
        while not paused and self.waiters:
            self.wake()

    def wake(self) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def take(self, feed: int, limit: int, max_bytes: int) -> list[Delivery]:
        taken: list[Delivery] = []
        if self.paused or feed in self.leaving:
            return taken
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
                    state = self.keys[key] = Key(feed)
                elif state.delayed or state.waiting or state.holder != feed:
                    state.waiting.append(delivery)
                    continue
                state.in_flight += 1
            delivery.token = feed
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
                self._delay(_again(delivery, delivery.attempt + 1), outcome.after, key)
            case DeadLetter():
                self.dead.append(
                    DeadLettered(
                        subscription=self.name,
                        message=delivery.message,
                        reason=outcome.reason,
                        attempts=delivery.attempt,
                        at=self._clock.now(),
                        history=delivery.history,
                    )
                )
                self._remember(delivery, "dead", outcome.reason)
            case Release():
                again = _again(delivery, delivery.attempt)
                if outcome.after > 0 and (key is None or not self.keys[key].delayed):
                    self._delay(again, outcome.after, key)
                elif key is not None:
                    self.keys[key].waiting.append(again)
                else:
                    self.ready.appendleft(again)

    def _delay(self, delivery: Delivery, seconds: float, key: str | None) -> None:
        self.delayed[delivery.position] = delivery
        if key is not None:
            self.keys[key].delayed += 1
        self._clock.call_later(seconds, partial(self._due, delivery))

    def _due(self, delivery: Delivery) -> None:
        if self.delayed.pop(delivery.position, None) is None:
            return
        key = delivery.message.key if self.spec.ordered else None
        if key is None:
            self.ready.append(delivery)
        else:
            state = self.keys[key]
            state.delayed -= 1
            state.waiting.append(delivery)
            self._let_go(key, state)
        self.wake()
        self.progressed()

    def _let_go(self, key: str, state: Key) -> None:
        """Once nothing of a key is in flight or waits for a time, what waited is ready: first in, first out."""
        if state.in_flight or state.delayed:
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

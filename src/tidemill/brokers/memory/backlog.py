"""What the memory broker keeps: the messages of a topic, and where each subscription is with them."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from ...broker import DUPLICATE, STORED, DeadLettered, Fate, Receipt, Resolve, Settlement, Subscription, TopicSpec
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
        # What subscriptions gave up is known for as long as it is a dead letter, also when it is kept no longer.
        self.dead: Counter[tuple[str, str]] = Counter()
        self.scheduled = 0
        self.subscriptions: list[Backlog] = []
        self.readers: set[asyncio.Event] = set()

    def append(self, message: Message) -> Receipt:
        identity = (message.source, message.id)
        kept = self.kept
        if identity in kept or (self.dead and identity in self.dead):
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

    __slots__ = ("delayed", "first", "holder", "in_flight", "parked", "waiting")

    def __init__(self) -> None:
        self.holder = 0
        self.in_flight = 0
        self.delayed = 0
        # Positions of dead letters that what comes after them waits for.
        self.parked: set[int] = set()
        self.waiting: list[Delivery] = []
        self.first = math.inf

    def wait(self, delivery: Delivery) -> None:
        self.waiting.append(delivery)
        self.first = min(self.first, delivery.position)

    def holds_up(self, position: int, feed: int) -> bool:
        if self.delayed or (self.in_flight and self.holder != feed):
            return True
        return position > self.first or any(position > parked for parked in self.parked)

    def let_go(self) -> list[Delivery]:
        """Take out what waits no more, in order."""
        until = min(self.parked, default=math.inf)
        going = sorted((each for each in self.waiting if each.position < until), key=lambda each: each.position)
        self.waiting = [each for each in self.waiting if each.position > until]
        self.first = min((each.position for each in self.waiting), default=math.inf)
        return going


class Backlog:
    """The state of one subscription: what is ready, in flight, or waiting, and what became of the rest."""

    def __init__(
        self,
        spec: Subscription,
        stream: Stream,
        clock: Clock,
        progressed: Callable[[], None],
        numbers: Iterator[int],
    ) -> None:
        self._stream = stream
        self._numbers = numbers
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
        # Each with what tells it that the subscription is paused, or goes on.
        self.feeds: dict[int, Callable[[bool], None]] = {}
        self.leaving: set[int] = set()
        self.paused = False
        # Number -> dead letter, and what it was delivered as.
        self.dead: dict[int, tuple[DeadLettered, Delivery]] = {}
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
        for number, (letter, delivery) in self.dead.items():
            self.dead[number] = (msgspec.structs.replace(letter, subscription=name), delivery)
        for identity, fate in self.fates.items():
            self.fates[identity] = msgspec.structs.replace(fate, subscription=name)

    def pause(self, paused: bool) -> None:
        self.paused = paused
        for told in tuple(self.feeds.values()):
            told(paused)
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
                    state = self.keys[key] = Key()
                elif state.holds_up(delivery.position, feed):
                    state.wait(delivery)
                    continue
                state.holder = feed
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
                self._bury(delivery, outcome.reason, key)
                self._remember(delivery, "dead", outcome.reason)
            case Release():
                again = _again(delivery, delivery.attempt)
                if outcome.after > 0 and (key is None or not self.keys[key].delayed):
                    self._delay(again, outcome.after, key)
                elif key is not None:
                    self.keys[key].wait(again)
                else:
                    self.ready.appendleft(again)

    def _delay(self, delivery: Delivery, seconds: float, key: str | None) -> None:
        self.delayed[delivery.position] = delivery
        if key is not None:
            self.keys[key].delayed += 1
        self._clock.call_later(seconds, partial(self._due, delivery))

    def _bury(self, delivery: Delivery, reason: str, key: str | None) -> None:
        message, number = delivery.message, next(self._numbers)
        parked = key is not None and self.spec.parks
        letter = DeadLettered(
            number=number,
            subscription=self.name,
            message=message,
            reason=reason,
            attempts=delivery.attempt,
            at=self._clock.now(),
            history=delivery.history,
            parked=parked,
        )
        self.dead[number] = (letter, delivery)
        self._stream.dead[message.source, message.id] += 1
        if key is not None and parked:
            self.keys[key].parked.add(delivery.position)

    def resolve(self, action: Resolve, number: int) -> DeadLettered:
        """Replay or discard a dead letter that is there."""
        letter, delivery = self.dead.pop(number)
        message = delivery.message
        identity = (message.source, message.id)
        self._stream.dead[identity] -= 1
        if not self._stream.dead[identity]:
            del self._stream.dead[identity]
        key = message.key if self.spec.ordered else None
        state = None if key is None else self.keys.get(key)
        if state is not None:
            state.parked.discard(delivery.position)
        if action == "replay":
            self.fates.pop(message.id, None)
            again = Delivery(message, self.name, 1, delivery.position, delivery.history)
            if state is not None:
                state.wait(again)
            else:
                self.ready.appendleft(again)
        if key is not None and state is not None:
            self._let_go(key, state)
        self.wake()
        return letter

    def _due(self, delivery: Delivery) -> None:
        if self.delayed.pop(delivery.position, None) is None:
            return
        key = delivery.message.key if self.spec.ordered else None
        if key is None:
            self.ready.append(delivery)
        else:
            state = self.keys[key]
            state.delayed -= 1
            state.wait(delivery)
            self._let_go(key, state)
        self.wake()
        self.progressed()

    def _let_go(self, key: str, state: Key) -> None:
        """Once nothing of a key is in flight or delayed, what waited is ready, in order, up to what is parked."""
        if state.in_flight or state.delayed:
            return
        self.ready.extendleft(reversed(state.let_go()))
        if not state.parked:
            del self.keys[key]

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
                    state="retrying" if delivery.attempt > 1 else "pending",
                    attempts=delivery.attempt,
                    history=delivery.history,
                )
        return Fate(subscription=self.name, message_id=message.id, state="acked")


def _again(delivery: Delivery, attempt: int) -> Delivery:
    return Delivery(delivery.message, delivery.subscription, attempt, delivery.position, delivery.history)

"""What happened while a mill ran: every publish and every settled delivery, in order, with the time by its clock."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..broker import Broker, Feed, Receipt, Settlement, Status, Subscription
from ..clock import Clock
from ..context import current
from ..message import Delivery, Message
from ..outcome import Outcome, Release
from ..stand_in import BrokerStandIn, FeedStandIn


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One message that somebody published."""

    at: int
    message: Message
    due: int | None
    """When it appears on its topic, where that is later."""
    duplicate: bool
    """It was there already, so nobody gets it again."""
    cause: Delivery | None
    """The attempt that published it; None where none did."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery that was settled."""

    at: int
    delivery: Delivery
    """The very object that was delivered: another delivery of the message is another attempt."""
    outcome: Outcome
    late: bool
    """The lease was lost before, so the outcome did not count."""


class Record:
    """Everything published and settled so far."""

    def __init__(self) -> None:
        self.published: list[Published] = []
        self.attempts: list[Attempt] = []
        self.steps = 0
        """Grows with everything that services do: whoever sees it stand still knows that they do."""
        self.ended = False
        self._known: set[tuple[str, str, str]] = set()
        self._delayed: set[tuple[str, str, str]] = set()

    def add_published(self, messages: Sequence[Message], due: int | None, receipts: list[Receipt], at: int) -> None:
        self.steps += 1
        cause = current.get()
        for message, receipt in zip(messages, receipts, strict=True):
            if not receipt.ok:
                continue
            identity = (message.topic, message.source, message.id)
            duplicate = receipt.status is Status.DUPLICATE
            # A delayed message is compared with the others only when it appears: its receipt does not tell.
            duplicate |= identity in (self._known if due is not None else self._delayed)
            self._known.add(identity)
            if due is not None:
                self._delayed.add(identity)
            self.published.append(Published(at=at, message=message, due=due, duplicate=duplicate, cause=cause))

    def add_settled(self, settlements: Sequence[Settlement], late: list[Delivery], at: int) -> None:
        self.steps += 1
        for delivery, outcome in settlements:
            if self.ended and isinstance(outcome, Release):
                continue  # given back because the test is over, which says nothing about the services
            self.attempts.append(
                Attempt(
                    at=at,
                    delivery=delivery,
                    outcome=outcome,
                    late=any(delivery is one for one in late),
                )
            )


class RecordingBroker(BrokerStandIn):
    """A broker that keeps a record. See `tidemill.broker.Broker`."""

    def __init__(self, broker: Broker, record: Record, clock: Clock) -> None:
        super().__init__(broker)
        self._record = record
        self._clock = clock

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        at = self._clock.now()
        receipts = await self.real.publish(messages, due=due)
        self._record.add_published(messages, due if due is not None and due > at else None, receipts, at)
        return receipts

    async def subscribe(self, subscription: Subscription) -> Feed:
        return _RecordingFeed(await self.real.subscribe(subscription), self._record, self._clock)


class _RecordingFeed(FeedStandIn):
    def __init__(self, feed: Feed, record: Record, clock: Clock) -> None:
        super().__init__(feed)
        self._record = record
        self._clock = clock

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        deliveries = await self.real.fetch(limit, wait, max_bytes)
        if deliveries:
            self._record.steps += 1
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = await self.real.settle(settlements)
        self._record.add_settled(settlements, late, self._clock.now())
        return late

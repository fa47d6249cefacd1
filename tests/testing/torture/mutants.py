"""Known-wrong variants of Tidemill's critical steps.

Each is called in the processes of a torture run before they begin, and the run must find it.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Sequence
from typing import Any

from tidemill.attempt import Attempts
from tidemill.broker import STORED, Receipt, Settlement
from tidemill.brokers.sqlite import lease as leases
from tidemill.brokers.sqlite import sharing
from tidemill.brokers.sqlite.feed import SqliteFeed
from tidemill.brokers.sqlite.settling import Plan
from tidemill.consumer import Consumer
from tidemill.errors import BrokerError
from tidemill.lanes import Lanes
from tidemill.message import Delivery, Message
from tidemill.outcome import ACK, DeadLetter, Outcome
from tidemill.publisher import Publisher


def ack_before_handling() -> None:
    """What is fetched counts as handled."""
    fetch = SqliteFeed.fetch

    async def eager(self: SqliteFeed, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        taken = await fetch(self, limit, wait, max_bytes)
        await self._record([(delivery, ACK) for delivery in taken])
        return taken

    SqliteFeed.fetch = eager  # type: ignore[method-assign]
    SqliteFeed.begin = lambda *_: True  # type: ignore[method-assign]


def ack_before_the_end() -> None:
    """A handler counts as having succeeded when it is cancelled."""
    raised = Attempts._raised

    def takes_it_for_success(self: Attempts, delivery: Delivery, error: BaseException) -> Outcome:
        return ACK if isinstance(error, asyncio.CancelledError) else raised(self, delivery, error)

    Attempts._raised = takes_it_for_success  # type: ignore[method-assign]


def failed_settle_forgotten() -> None:
    """A settlement that fails is not repeated. Here one in twenty does, which alone would harm nobody."""
    settle = SqliteFeed.settle

    async def shaky(self: SqliteFeed, settlements: Sequence[Settlement]) -> list[Delivery]:
        if random.random() < 0.05:
            raise BrokerError("on purpose")
        return await settle(self, settlements)

    async def once(self: Consumer, batch: list[Settlement]) -> list[Delivery]:
        try:
            return await self._feed.settle(batch)
        except BrokerError:
            return []

    SqliteFeed.settle = shaky  # type: ignore[method-assign]
    Consumer._record = once  # type: ignore[method-assign]


def cursor_past_what_is_in_flight() -> None:
    """Settling a later event forgets the earlier ones that still run."""
    plan = SqliteFeed._plan

    def without_gaps(self: SqliteFeed, settlements: Sequence[Settlement]) -> Plan:
        made = plan(self, settlements)
        made.gaps.clear()
        return made

    SqliteFeed._plan = without_gaps  # type: ignore[method-assign]


def no_fencing() -> None:
    """Who has lost the lease does not learn it, and its settlements count."""
    run = Plan.run

    def unfenced(self: Plan, connection: sqlite3.Connection) -> set[int]:
        held = connection.execute(
            "select slot, epoch, owner from tidemill_slot where subscription = ?", (self.subscription,)
        ).fetchall()
        for slot, epoch, owner in held:
            if slot in self.slots and owner is not None:
                self.slots[slot] = epoch
                self.owner = owner
        self.slots = {slot: epoch for slot, epoch, owner in held if owner == self.owner}
        return run(self, connection)

    def begin(self: SqliteFeed, delivery: Delivery) -> bool:
        return self._begun.begin(delivery)

    Plan.run = unfenced  # type: ignore[method-assign]
    SqliteFeed.begin = begin  # type: ignore[method-assign]
    SqliteFeed._thought_dead = lambda self: None  # type: ignore[method-assign]


def lanes_off() -> None:
    """Events of one key run at the same time."""

    def sort(self: Lanes, deliveries: list[Delivery], ready: Any) -> list[Settlement]:
        ready.extend(deliveries)
        return []

    Lanes.sort = sort  # type: ignore[method-assign]
    Lanes.finish = lambda *_: []  # type: ignore[method-assign, assign]
    Lanes.recorded = lambda *_: None  # type: ignore[method-assign]


def dead_letter_dropped() -> None:
    """What is given up is acknowledged."""
    settle = SqliteFeed.settle

    async def forgetful(self: SqliteFeed, settlements: Sequence[Settlement]) -> list[Delivery]:
        return await settle(
            self, [(each, ACK if isinstance(outcome, DeadLetter) else outcome) for each, outcome in settlements]
        )

    SqliteFeed.settle = forgetful  # type: ignore[method-assign]


def attempts_forgotten() -> None:
    """Who takes over begins to count anew."""
    _after_sharing(
        "update tidemill_exception set attempts = 0, history = null where subscription = ? and slot in ({slots})"
    )


def exceptions_forgotten() -> None:
    """Who takes over knows how far its slots were, and not what was out of line there."""
    _after_sharing("delete from tidemill_exception where subscription = ? and slot in ({slots})")


def _after_sharing(statement: str) -> None:
    share_out = sharing.share_out

    def shared(member: sharing.Member, known: dict[int, int], connection: sqlite3.Connection) -> sharing.Shared:
        made = share_out(member, known, connection)
        taken = [slot for slot in made.held if slot not in known]
        if taken:
            connection.execute(statement.format(slots=", ".join(map(str, taken))), (member.subscription,))
        return made

    leases.share_out = shared


def neighbours_charged() -> None:
    """What was merely fetched is charged for a crash too."""
    fetch, begin = SqliteFeed.fetch, SqliteFeed.begin

    async def marks(self: SqliteFeed, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        taken = await fetch(self, limit, wait, max_bytes)
        for delivery in taken:
            begin(self, delivery)
        return taken

    def already(self: SqliteFeed, delivery: Delivery) -> bool:
        return True

    SqliteFeed.fetch = marks  # type: ignore[method-assign]
    SqliteFeed.begin = already  # type: ignore[method-assign]


def crash_not_charged() -> None:
    """An event that ends its process is tried for ever."""
    sharing.charge = lambda *_: None


def drain_acks() -> None:
    """What a drain gives back is acknowledged."""
    release = Consumer._release

    def acks(self: Consumer, settlements: list[Settlement]) -> None:
        if self._stopping:
            settlements = [(delivery, ACK) for delivery, _ in settlements]
        release(self, settlements)

    Consumer._release = acks  # type: ignore[method-assign]


def confirmed_before_the_commit() -> None:
    """A publish returns when it has been handed on."""
    publish = Publisher.publish
    under_way: set[asyncio.Task[Receipt]] = set()

    async def hasty(self: Publisher, message: Message, due: int | None = None) -> Receipt:
        async def later() -> Receipt:
            await asyncio.sleep(0.05)
            return await publish(self, message, due)

        under_way.add(asyncio.create_task(later()))
        return STORED

    Publisher.publish = hasty  # type: ignore[method-assign]


def released_is_charged() -> None:
    """What a drain gives back has cost an attempt."""
    plan = SqliteFeed._plan

    def charges(self: SqliteFeed, settlements: Sequence[Settlement]) -> Plan:
        made = plan(self, settlements)
        for row in made.exceptional:
            row.attempts += row.released
        return made

    SqliteFeed._plan = charges  # type: ignore[method-assign]


def raw_bytes_lost() -> None:
    """The dead letter of what could not be read is empty."""
    settle = SqliteFeed.settle

    async def tidies(self: SqliteFeed, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = await settle(self, settlements)
        dead = [delivery.position for delivery, outcome in settlements if isinstance(outcome, DeadLetter)]

        def empty(connection: sqlite3.Connection) -> None:
            connection.executemany("update tidemill_log set body = x'' where seq = ?", [(seq,) for seq in dead])

        if dead:
            await self._broker.write(empty)
        return late

    SqliteFeed.settle = tidies  # type: ignore[method-assign]

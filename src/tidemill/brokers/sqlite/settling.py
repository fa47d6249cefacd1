"""Settling a batch: what it means for the tables, planned first, then run in one transaction.

In order it is one update: the slots' position moves to the last event settled. An event that still runs before that
position becomes an exception (a gap), and so does one that is to be retried or is given back.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from ...broker import Settlement
from ...message import Delivery
from ...outcome import Ack, DeadLetter, Outcome, Release, Retry
from .rows import NEVER, pack_history, slot_of
from .sql import SQL


class Exceptional(msgspec.Struct):
    """A row of the exceptions to be written."""

    seq: int
    slot: int
    key: str | None
    attempts: int
    due: int
    history: bytes | None
    released: bool
    died: bool


class Given(msgspec.Struct):
    """A dead letter to be written."""

    seq: int
    slot: int
    reason: str
    attempts: int
    history: bytes | None


class Plan(msgspec.Struct):
    """What one batch of settlements changes."""

    subscription: int
    owner: str
    now: int
    slots: dict[int, int]
    """The slots held, with their epochs: what another consumer has taken since is left alone."""
    settled: list[Settlement] = []
    late: list[Delivery] = []
    gaps: list[tuple[int, int, str | None, int]] = []
    """(seq, slot, key, attempts) of what still runs."""
    dropped: list[tuple[int, int]] = []
    """(seq, slot) of exceptions that are settled."""
    recovered: list[tuple[int, int, int, bytes | None]] = []
    """(seq, slot, attempts, history) of what took more than one attempt."""
    exceptional: list[Exceptional] = []
    dead: list[Given] = []
    advance: list[tuple[int, int]] = []
    """(position, mask of slots)."""
    finished: set[str] = set()
    """Keys of what was acknowledged or given up."""
    freed: set[str] = set()
    """Those of them whose waiting events may go on."""
    touched: int = 0
    """Up to which decision about dead letters the consumer knows what waits."""
    acked: int = 0
    retried: int = 0

    def add(self, delivery: Delivery, outcome: Outcome, key: str | None, *, has_row: bool, parks: bool) -> None:
        """Plan what an outcome means that is more than to move on.

        key      what the subscription orders it by, if it does.
        has_row  whether it is an exception already.
        parks    whether its key waits after a dead letter.
        """
        seq, slot = delivery.position, delivery.token
        match outcome:
            case Ack():
                self.acked += 1
                self.dropped.append((seq, slot))
                if delivery.attempt > 1 or delivery.history:
                    self.recovered.append((seq, slot, delivery.attempt, pack_history(delivery.history)))
            case DeadLetter():
                history = pack_history(delivery.history)
                self.dead.append(Given(seq, slot, outcome.reason, delivery.attempt, history))
                if key is not None and parks:
                    self.exceptional.append(Exceptional(seq, slot, key, 0, NEVER, history, False, False))
                    return
                if has_row:
                    self.dropped.append((seq, slot))
            case Retry():
                self.retried += 1
                due = self.now + round(outcome.after * 1e9)
                history = pack_history(delivery.history)
                self.exceptional.append(Exceptional(seq, slot, key, delivery.attempt, due, history, False, False))
            case Release():
                history = pack_history(delivery.history)
                due = self.now + round(outcome.after * 1e9) if outcome.after else 0
                failed = delivery.attempt - 1
                self.exceptional.append(Exceptional(seq, slot, key, failed, due, history, True, delivery.died))
        if key is not None and isinstance(outcome, Ack | DeadLetter):
            self.finished.add(key)

    def run(self, connection: sqlite3.Connection) -> set[int]:
        """Write it all. Returns the slots that are held no longer; nothing of those is written."""
        execute = connection.execute
        subscription, owner = self.subscription, self.owner
        held: dict[int, int] = dict(execute(SQL["my_slots"], {"subscription": subscription, "owner": owner}).fetchall())
        lost: set[int] = {slot for slot, epoch in self.slots.items() if held.get(slot) != epoch}
        for seq, slot, key, attempts in self.gaps:
            if slot not in lost:
                execute(SQL["put_gap"], (subscription, seq, slot, key, attempts))
        for letter in self.dead:
            if letter.slot not in lost:
                execute(
                    SQL["put_dead_letter"],
                    {
                        "subscription": subscription,
                        "seq": letter.seq,
                        "reason": letter.reason,
                        "attempts": letter.attempts,
                        "at": self.now,
                        "history": letter.history,
                    },
                )
        for seq, slot, attempts, history in self.recovered:
            if slot not in lost:
                execute(SQL["put_recovered"], (subscription, seq, attempts, history))
        for seq, slot in self.dropped:
            if slot not in lost:
                execute(SQL["drop_exception"], (subscription, seq))
        held_back: set[str] = set()
        # In order of position: a released event must find the earlier ones of its key.
        for row in sorted(self.exceptional, key=_position):
            if row.slot not in lost:
                values: dict[str, Any] = {
                    "subscription": subscription,
                    "seq": row.seq,
                    "slot": row.slot,
                    "key": row.key,
                    "attempts": row.attempts,
                    "due": row.due,
                    "history": row.history,
                    "died": row.died,
                }
                execute(SQL["put_released"] if row.released else SQL["put_exception"], values)
                if row.key is not None and row.key not in held_back:
                    held_back.add(row.key)
                    execute(SQL["hold_back"], {"subscription": subscription, "key": row.key, "seq": row.seq})
        for position, mask in self.advance:
            kept = mask & ~sum(1 << slot for slot in lost)
            execute(
                SQL["advance"],
                {"position": position, "subscription": subscription, "owner": owner, "slots": kept},
            )
        freed = self.freed
        if self.finished and execute(SQL["touched"], (subscription,)).fetchone()[0] != self.touched:
            freed = self.finished  # a replayed event may wait behind any of these, and the consumer not know it yet
        for key in freed:
            if slot_of(key) not in lost:
                execute(SQL["let_go"], {"subscription": subscription, "key": key, "now": self.now})
        acked, retried = self.acked, self.retried
        if lost:
            late = [outcome for delivery, outcome in self.settled if delivery.token in lost]
            acked -= sum(isinstance(outcome, Ack) for outcome in late)
            retried -= sum(isinstance(outcome, Retry) for outcome in late)
        if acked or retried:
            execute(SQL["count_settled"], (acked, retried, subscription))
        return lost


def _position(row: Exceptional) -> int:
    return row.seq

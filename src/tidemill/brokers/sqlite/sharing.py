"""Sharing the slots of a subscription out among its consumers: one transaction, the same for whoever runs it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from .charging import charge
from .journal import Run
from .rows import SLOTS
from .sql import SQL


class Others(Protocol):
    """What is known of the other consumers of a file."""

    def is_alive(self, owner: str) -> bool:
        """Whether the process of another consumer runs."""
        ...

    def is_calm(self, lease: float) -> bool:
        """Whether everybody could have renewed a lease of so many seconds lately: nobody held up the file's writers."""
        ...

    def running(self, owner: str) -> dict[int, Run]:
        """seq -> run of the handlers that another consumer runs, or ran when it died."""
        ...


class Member(msgspec.Struct, frozen=True):
    """A consumer of a subscription."""

    subscription: int
    owner: str
    lease: int
    """In nanoseconds."""
    types: str | None
    """What its code takes, as stored."""
    others: Others
    now: Callable[[], int]
    """The time of day."""

    def is_gone(self, owner: str, lease: int, now: int) -> bool:
        """Whether another consumer's slots may be taken.

        Its lease being over says nothing where its process may just have been waiting, like this one, for somebody
        who stood still in the middle of writing.
        """
        if owner == self.owner:
            return False
        return not self.others.is_alive(owner) or (lease < now and self.others.is_calm(self.lease / 1e9))

    def sees_a_loss(self, reader: sqlite3.Connection) -> bool:
        """Whether any other consumer is gone."""
        now = time.monotonic_ns()
        owners = reader.execute(SQL["owners"], (self.subscription,)).fetchall()
        return any(self.is_gone(owner, lease, now) for owner, lease, _ in owners)

    def renew(self, connection: sqlite3.Connection) -> int:
        """Say that this consumer lives. The lease's new end by the monotonic clock; 0 if it was thought dead."""
        until = time.monotonic_ns() + self.lease
        renewed = connection.execute(SQL["renew"], (until, self.subscription, self.owner)).rowcount > 0
        return until if renewed else 0

    def give_up(self, idle: dict[int, int], connection: sqlite3.Connection) -> None:
        """Let go of slots of which nothing is in flight: slot -> position up to which it was fetched."""
        mine = {"subscription": self.subscription, "owner": self.owner}
        for slot, position in idle.items():
            connection.execute(SQL["free_slots"], {**mine, "slot": slot, "position": position})
        connection.execute(SQL["changed"], (self.subscription,))

    def begin_to_leave(self, known: dict[int, int], connection: sqlite3.Connection) -> None:
        """Have the others take what this one gives up, at once.

        `known` are the slots it holds as far as it knows. What it took besides, in a sharing out whose answer never
        arrived, as its fetch was cancelled, it has never read.
        """
        mine = {"subscription": self.subscription, "owner": self.owner}
        for slot, epoch in connection.execute(SQL["my_slots"], mine).fetchall():
            if known.get(slot) != epoch:
                connection.execute(SQL["free_slots"], {**mine, "slot": slot, "position": 0})
        connection.execute(SQL["leaving"], (self.subscription, self.owner))
        connection.execute(SQL["changed"], (self.subscription,))

    def leave(self, connection: sqlite3.Connection) -> None:
        """Give all slots back: what was in flight of them is due at once, for whoever takes them."""
        connection.execute(SQL["free_slots_of"], (self.subscription, self.owner))
        connection.execute(SQL["leave"], (self.subscription, self.owner))
        connection.execute(SQL["changed"], (self.subscription,))


class Shared(msgspec.Struct, frozen=True):
    """What sharing out the slots came to."""

    share: int
    """How many slots one is to have."""
    until: int
    """When the lease ends, by the monotonic clock."""
    joined: bool
    """Whether it was no consumer before: it is new, or had been thought dead, and then its slots were another's."""
    gone: list[str]
    """The consumers that were removed."""
    held: dict[int, tuple[int, int]]
    """slot -> (epoch, position)."""
    keys: dict[str, int]
    """Of the slots that were not known to be held: keys with exceptions, and how many."""


def share_out(member: Member, known: dict[int, int], connection: sqlite3.Connection) -> Shared:
    """Remove the consumers that are gone, and take free slots up to one's share.

    `known` are the slots held as far as the member knows, with their epochs.
    """
    execute = connection.execute
    subscription, me = member.subscription, member.owner
    now = time.monotonic_ns()
    leases: dict[str, int] = {}
    leaving: set[str] = set()
    for owner, lease, leaves in execute(SQL["owners"], (subscription,)).fetchall():
        leases[owner] = lease
        if leaves:
            leaving.add(owner)
    changed = joined = me not in leases
    gone = [other for other, lease in leases.items() if member.is_gone(other, lease, now)]
    for owner in gone:
        charge(connection, subscription, owner, member.others.running(owner), member.now())
        execute(SQL["leave"], (subscription, owner))
        execute(SQL["free_slots_of"], (subscription, owner))
        del leases[owner]
        changed = True
    until = leases[me] = now + member.lease
    execute(SQL["join"], (subscription, me, until, member.types))
    staying = sorted(leases.keys() - leaving)
    share = 0
    if me in staying:
        share = SLOTS // len(staying) + (staying.index(me) < SLOTS % len(staying))
    member_of = {"subscription": subscription, "owner": me}
    mine = len(execute(SQL["my_slots"], member_of).fetchall())
    free = execute(SQL["unowned_slots"], {"subscription": subscription}).fetchall()[: max(0, share - mine)]
    for (slot,) in free:
        execute(SQL["take_slot"], {"subscription": subscription, "slot": slot, "owner": me})
        execute(SQL["revive_unordered"], {"subscription": subscription, "slot": slot})
        execute(SQL["revive_ordered"], {"subscription": subscription, "slot": slot})
    if changed or free:
        execute(SQL["changed"], (subscription,))
    held = {slot: (epoch, at) for slot, epoch, at in execute(SQL["slots_taken"], member_of)}
    # Also of what an earlier sharing out took whose answer never arrived.
    mask = sum(1 << slot for slot, (epoch, _) in held.items() if known.get(slot) != epoch)
    keys = dict(execute(SQL["waiting_keys"], {"subscription": subscription, "slots": mask}).fetchall()) if mask else {}
    return Shared(share, until, joined, gone, held, keys)

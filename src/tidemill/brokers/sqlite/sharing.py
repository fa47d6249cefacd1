"""Sharing the slots of a subscription out among its consumers: one transaction, the same for whoever runs it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import msgspec

from .rows import SLOTS
from .sql import SQL


class Member(msgspec.Struct, frozen=True):
    """A consumer of a subscription."""

    subscription: int
    owner: str
    lease: int
    """In nanoseconds."""
    is_alive: Callable[[str], bool]
    """Whether the process of another consumer runs."""

    def is_gone(self, owner: str, lease: int, now: int) -> bool:
        """Whether another consumer's slots may be taken."""
        return owner != self.owner and (lease < now or not self.is_alive(owner))

    def sees_a_loss(self, reader: sqlite3.Connection) -> bool:
        """Whether any other consumer is gone."""
        now = time.monotonic_ns()
        owners = reader.execute(SQL["owners"], (self.subscription,)).fetchall()
        return any(self.is_gone(owner, lease, now) for owner, lease in owners)

    def renew(self, connection: sqlite3.Connection) -> bool:
        """Say that this consumer lives. Whether nobody thought it dead meanwhile."""
        until = time.monotonic_ns() + self.lease
        return connection.execute(SQL["renew"], (until, self.subscription, self.owner)).rowcount > 0

    def leave(self, connection: sqlite3.Connection) -> None:
        """Give all slots back: what was in flight of them is due at once, for whoever takes them."""
        connection.execute(SQL["free_slots_of"], (self.subscription, self.owner))
        connection.execute(SQL["leave"], (self.subscription, self.owner))
        connection.execute(SQL["changed"], (self.subscription,))


class Shared(msgspec.Struct, frozen=True):
    """What sharing out the slots came to."""

    share: int
    """How many slots one is to have."""
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
    owners: dict[str, int] = dict(execute(SQL["owners"], (subscription,)).fetchall())
    changed = me not in owners
    for owner in [other for other, lease in owners.items() if member.is_gone(other, lease, now)]:
        execute(SQL["leave"], (subscription, owner))
        execute(SQL["free_slots_of"], (subscription, owner))
        del owners[owner]
        changed = True
    owners[me] = now + member.lease
    execute(SQL["join"], (subscription, me, now + member.lease))
    rank = sorted(owners).index(me)
    share = SLOTS // len(owners) + (rank < SLOTS % len(owners))
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
    return Shared(share, held, keys)

"""Resolving dead letters: what a replay or a discard means for the tables, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ...broker import Resolve
from .inspection import is_in
from .rows import encode
from .sql import SQL


def resolve(
    action: Resolve, numbers: Sequence[int], by: str, prefix: str, now: int, connection: sqlite3.Connection
) -> list[int]:
    """Replay or discard the dead letters of a namespace that have these numbers; returns those that were there."""
    execute = connection.execute
    resolved: list[int] = []
    touched: set[int] = set()
    for number in numbers:
        found = execute(SQL["find_dead_letter"], (number,)).fetchone()
        if found is None or not is_in(found[6], prefix):
            continue
        subscription, seq, slot, key, history, position, _, parked, *facts = found
        execute(SQL["drop_dead_letter"], (number,))
        execute(SQL["put_resolution"], (now, action, by, number, subscription, seq, *facts))
        event = {"subscription": subscription, "seq": seq, "slot": slot, "key": key}
        if action == "replay":
            # Where it was published again and is still to be handled, in a file of schema 1, it is pending already.
            if seq <= position:
                execute(SQL["put_released"], {**event, "attempts": 0, "due": 0, "history": history, "died": 0})
                execute(SQL["hold_back"], event)
        elif parked:
            execute(SQL["drop_exception"], (subscription, seq))
            execute(SQL["let_go"], {**event, "now": now})
        resolved.append(number)
        touched.add(subscription)
    for subscription in touched:
        execute(SQL["touch"], (subscription,))
    return resolved


def resolved_since(
    reader: sqlite3.Connection, subscription: int, since: int, held: Sequence[int]
) -> tuple[int, list[tuple[str, int]]]:
    """What decisions after number `since` have changed: the last one's number, and of each key that they were about how
    many of its events are exceptions now, those with the positions in `held` left out.
    """
    parameters = {"subscription": subscription, "since": since, "held": encode(held)}
    last: int = reader.execute(SQL["touched"], (subscription,)).fetchone()[0]
    return last, reader.execute(SQL["touched_keys"], parameters).fetchall()

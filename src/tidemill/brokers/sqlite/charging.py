"""What was running when its consumer died, or lost its lease, is charged an attempt (G5): exactly that, and nothing of
what the consumer had merely fetched.

Runs in the transaction that takes the consumer's slots away, so that it happens once, whoever comes first.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from ...message import Failure
from .journal import Run
from .rows import NEVER, encode, pack_history, unpack_history
from .sql import SQL
from .wanted import Everything, wanted

REASON = "ProcessDied: the process that ran the handler ended, or stood still until its lease was over"


def charge(connection: sqlite3.Connection, subscription: int, owner: str, running: dict[int, Run], now: int) -> None:
    """Charge the events that a consumer's handlers were running: seq -> run, as its journal says.

    `now` is what their failure is dated: nanoseconds since 1970.
    """
    if not running:
        return
    execute = connection.execute
    slots = {
        slot: position
        for slot, _, position in execute(SQL["slots_taken"], {"subscription": subscription, "owner": owner})
    }
    ahead: dict[int, int] = {}
    mine: list[tuple[int, Run]] = []
    for seq, run in running.items():
        found = execute(SQL["slot_of_event"], (seq,)).fetchone()
        if found is None or found[0] not in slots:
            continue  # settled and aged, or another consumer's by now
        mine.append((seq, run))
        if seq > slots[found[0]]:
            ahead[found[0]] = max(seq, ahead.get(found[0], 0))
    types = wanted(connection, subscription) if ahead else Everything()
    for slot, last in ahead.items():
        # An exception has to lie behind its slot's position. So it moves, and what lies between is open, uncharged.
        between: dict[str, Any] = {"subscription": subscription, "slot": slot, "position": slots[slot], "last": last}
        between["types"] = None if isinstance(types, Everything) else encode(sorted(types)).decode()
        execute(SQL["open_up_to"], between)
        execute(SQL["move_position"], {"subscription": subscription, "slot": slot, "position": last})
    for seq, (attempt, failures) in mine:
        row = execute(SQL["exception_of"], (subscription, seq)).fetchone()
        known = () if row is None else unpack_history(row[1])
        if row is None or (row[0] + 1, len(known)) != (attempt, failures) or row[2] == NEVER:
            continue  # it was settled: as handled, as given up (and replayed since), or with this attempt as failed
        history = (*known, Failure(attempt, now, REASON, died=True))
        execute(
            SQL["charge"],
            {"attempts": attempt - 1, "history": pack_history(history), "subscription": subscription, "seq": seq},
        )

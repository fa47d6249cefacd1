"""Publishing a batch: what it means for the tables. `rows` are as `rows.to_row` makes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ...broker import DUPLICATE, STORED, Receipt
from .sql import CHUNK, SQL, insert_events


def append(rows: Sequence[tuple[Any, ...]], connection: sqlite3.Connection) -> list[Receipt]:
    """Add events to the log, in order; a receipt each."""
    execute = connection.execute
    before = execute(SQL["last_seq"]).fetchone()[0]
    inserted = 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        inserted += execute(insert_events(len(chunk)), tuple(chain.from_iterable(chunk))).rowcount
    if inserted == len(rows):
        return [STORED] * len(rows)
    return _tell_duplicates(rows, before, connection)


def _tell_duplicates(rows: Sequence[tuple[Any, ...]], before: int, connection: sqlite3.Connection) -> list[Receipt]:
    receipts: list[Receipt] = []
    seen: set[int] = set()
    for row in rows:
        seq = connection.execute(SQL["seq_of"], (row[2], row[3], row[0])).fetchone()[0]
        receipts.append(DUPLICATE if seq <= before or seq in seen else STORED)
        seen.add(seq)
    return receipts


def schedule(rows: Sequence[tuple[Any, ...]], due: int, connection: sqlite3.Connection) -> list[Receipt]:
    """Keep events until they are due; a receipt each."""
    receipts: list[Receipt] = []
    for row in rows:
        known = connection.execute(SQL["seq_of"], (row[2], row[3], row[0])).fetchone()
        stored = known is None and connection.execute(SQL["schedule"], (due, *row)).rowcount
        receipts.append(STORED if stored else DUPLICATE)
    return receipts

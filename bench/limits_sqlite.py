# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The hand-written limits on SQLite: batched append to a log, and a reader that moves a cursor.

WAL and synchronous=FULL, as Tidemill ships: a commit has reached the disk when it returns. One thread, no asyncio,
no duplicates found (no unique index), one reader, no leases, no attempts, no order per key, no retries.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from .events import PlainOrder, make
from .limits_memory import decode, encode, new_id

BATCH = 1000

_SCHEMA = """
create table log (
    position integer primary key, topic text not null, id text not null, source text not null, type text not null,
    time integer not null, version integer not null, key text, correlation_id text, body blob not null
);
create table cursor (subscription text primary key, position integer not null) without rowid;
insert into cursor values ('count', 0);
"""
_APPEND = """insert into log (topic, id, source, type, time, version, key, correlation_id, body)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_FETCH = """select position, id, source, type, time, version, key, correlation_id, body
from log where position > ? order by position limit ?"""


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute("pragma busy_timeout=5000")
    connection.execute("pragma wal_autocheckpoint=4000")
    connection.execute("pragma cache_size=-65536")
    return connection


def create(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.executescript(_SCHEMA)
    return connection


def append(connection: sqlite3.Connection, count: int, batch: int) -> float:
    """Append `count` events, `batch` of them in each transaction; the seconds it took, encoding included."""
    began = time.perf_counter()
    for start in range(0, count, batch):
        rows: list[tuple[object, ...]] = []
        for number in range(start, min(start + batch, count)):
            id = new_id()
            body = encode(make(PlainOrder, number))
            rows.append(("orders", id, "bench", "order.placed", time.time_ns(), 1, None, id, body))
        connection.execute("begin immediate")
        connection.executemany(_APPEND, rows)
        connection.execute("commit")
    return time.perf_counter() - began


def read(path: Path, count: int, batch: int) -> float:
    """Decode `count` events, and move the cursor after each `batch` of them; the seconds, opening included."""
    began = time.perf_counter()
    connection = connect(path)
    (position,) = connection.execute("select position from cursor where subscription = 'count'").fetchone()
    seen = 0
    while seen < count:
        rows = connection.execute(_FETCH, (position, batch)).fetchall()
        for row in rows:
            decode(row[8])
        position = rows[-1][0]
        connection.execute("begin immediate")
        connection.execute("update cursor set position = ? where subscription = 'count'", (position,))
        connection.execute("commit")
        seen += len(rows)
    elapsed = time.perf_counter() - began
    connection.close()
    return elapsed

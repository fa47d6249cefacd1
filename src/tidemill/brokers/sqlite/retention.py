"""Removing what was settled by everyone and is past its topic's retention, a little at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from .sql import SQL

EVERY = 30.0
"""Seconds between two looks."""


class Retention:
    """Goes round the topics, at most 500 events of each at a time, so that no purge holds up a publish."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._position: dict[int, int] = {}

    def purge(self, connection: sqlite3.Connection) -> int:
        """Remove what may go; returns how many events went. Runs in the writer's thread."""
        removed = 0
        now = self._now()
        for topic, _name, _key, retain in connection.execute(SQL["topics"]).fetchall():
            limit = now - round(retain * 1e9)
            since = self._position.get(topic, 0)
            rows = connection.execute(SQL["old_events"], (topic, since)).fetchall()
            self._position[topic] = 0 if len(rows) < 500 else rows[-1][0]
            for seq, at, settled in rows:
                if at >= limit:
                    self._position[topic] = 0  # the rest is younger: begin again next time
                    break
                if settled:
                    removed += connection.execute(SQL["purge"], (seq,)).rowcount
                    connection.execute(SQL["purge_recovered"], (seq,))
        return removed

"""Removing what was settled by everyone and is past its topic's retention, a little at a time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final

from .sql import SQL

EVERY: Final = 30.0
"""Seconds between two rounds."""

AT_ONCE: Final = 0.02
"""Seconds of one purge, so that it holds up no publish. As long as there is more, it goes on with the next beat, and
removes many times what one machine publishes."""


class Retention:
    """Goes round the topics, 500 events of each at a time."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._position: dict[int, int] = {}
        self._next = time.monotonic() + EVERY

    def due(self) -> bool:
        """Whether it is time for a purge."""
        return time.monotonic() >= self._next

    def purge(self, connection: sqlite3.Connection) -> int:
        """Remove what may go; returns how many events went. Runs in the writer's thread."""
        until = time.monotonic() + AT_ONCE
        removed = 0
        topics = connection.execute(SQL["topics"]).fetchall()
        while topics and time.monotonic() < until:
            more: list[tuple[int, str, str | None, float]] = []
            for topic in topics:
                gone = self._purge(connection, topic[0], self._now() - round(topic[3] * 1e9))
                removed += gone
                if self._position[topic[0]]:
                    more.append(topic)
            topics = more
        self._next = 0.0 if topics else time.monotonic() + EVERY
        return removed

    def _purge(self, connection: sqlite3.Connection, topic: int, limit: int) -> int:
        removed = 0
        rows = connection.execute(SQL["old_events"], {"topic": topic, "after": self._position.get(topic, 0)}).fetchall()
        self._position[topic] = 0 if len(rows) < 500 else rows[-1][0]
        for seq, at, settled in rows:
            if at >= limit:
                self._position[topic] = 0  # the rest is younger: begin again next time
                break
            if settled and connection.execute(SQL["purge"], (seq,)).rowcount:
                removed += 1
                connection.execute(SQL["purge_recovered"], (seq,))
        return removed

"""A clock that stands still until a test moves it: a day of retries then takes no time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count

START = datetime(2030, 1, 1, tzinfo=UTC)
"""When every virtual clock begins: the same for every run, and plainly no real time."""


class VirtualTimer:
    """A call scheduled on a `VirtualClock`."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Drop the call if it has not been made."""
        self.callback = None


class VirtualClock:
    """A `tidemill.clock.Clock` whose time passes only in `move_to`.

    Calls are made in the order in which they are due; those due at once are made by the event loop, without time
    passing.
    """

    def __init__(self) -> None:
        self._now = self.start = round(START.timestamp()) * 1_000_000_000
        self._timers: list[tuple[int, int, VirtualTimer]] = []
        self._number = count().__next__
        self.sleeping = 0
        """How many wait in `sleep`."""

    def now(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        return self._now

    def call_later(self, seconds: float, callback: Callable[[], object]) -> VirtualTimer:
        timer = VirtualTimer(callback)
        due = self._now + max(0, round(seconds * 1e9))
        heapq.heappush(self._timers, (due, self._number(), timer))
        if due == self._now:
            asyncio.get_running_loop().call_soon(self._call_due)
        return timer

    async def sleep(self, seconds: float) -> None:
        """Return when time has passed by `seconds`."""
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: None if woken.done() else woken.set_result(None))
        self.sleeping += 1
        try:
            await woken
        finally:
            self.sleeping -= 1
            timer.cancel()

    def next_due(self) -> int | None:
        """When the next call is due; None if none is scheduled."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def move_to(self, when: int) -> None:
        """Let time pass until `when`, making every call that is due by then at its own time."""
        while (due := self.next_due()) is not None and due <= when:
            self._now = max(self._now, due)
            self._call_due()
        self._now = max(self._now, when)

    def _call_due(self) -> None:
        while (due := self.next_due()) is not None and due <= self._now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

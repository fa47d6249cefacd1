"""Handlers that are waiting for something: how long they may, and what happens to those that do not end.

One timer a subscription, set for the earliest deadline. A handler that returns without waiting costs it nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

from .clock import Clock, Timer
from .message import Delivery

ABANDON_AFTER: Final = 10.0
"""Seconds a cancelled handler has to end before it is left to itself."""


Why: TypeAlias = Literal["timeout", "drain", "lost"]
"""What a handler is cancelled for: its time is up, the drain's grace is, or its lease is gone."""


class Running:
    """A handler that is waiting for something."""

    __slots__ = ("abandoned", "cancelled_for", "deadline", "delivery", "task", "turn")

    def __init__(self, delivery: Delivery, task: asyncio.Task[Any], deadline: int | None) -> None:
        self.delivery = delivery
        self.task = task
        self.deadline = deadline
        self.cancelled_for: Why | None = None
        self.abandoned = False
        self.turn = 0
        """The gate's, in which it began."""

    def cancel(self, reason: Why) -> None:
        """Cancel it, once."""
        if self.cancelled_for is None:
            self.cancelled_for = reason
            self.task.cancel(reason)  # which middlewares can read


class Watchdog:
    """Keeps the handlers of one subscription to their time.

    One that takes longer than `timeout` seconds is cancelled; one that has not ended ten seconds after that is given
    to `abandon`, and forgotten.
    """

    def __init__(self, clock: Clock, timeout: float | None, abandon: Callable[[Running], None]) -> None:
        self.running: dict[int, Running] = {}
        self._clock = clock
        self._timeout = None if timeout is None else round(timeout * 1e9)
        self._abandon = abandon
        self._timer: Timer | None = None
        self._watched = 0
        self._quiet: asyncio.Future[None] | None = None

    def enter(self, delivery: Delivery) -> Running:
        """The current task's handler has begun to wait."""
        task = asyncio.current_task()
        assert task is not None
        deadline = None if self._timeout is None else self._clock.now() + self._timeout
        running = self.running[id(delivery)] = Running(delivery, task, deadline)
        # While a cancelled handler is given time to end, the timer is set for later than a new one may take.
        if deadline is not None and (self._timer is None or deadline < self._watched):
            self._watch(deadline)
        return running

    def leave(self, running: Running) -> None:
        """It has ended."""
        self._forget(running)
        if running.cancelled_for is not None:
            running.task.uncancel()

    def why_cancelled(self, delivery: Delivery) -> Why | None:
        """What a running handler was cancelled for, if it was."""
        running = self.running.get(id(delivery))
        return None if running is None else running.cancelled_for

    def give_up(self, running: Running) -> None:
        """Leave a handler to itself: what it ends in does not count."""
        running.abandoned = True
        self._forget(running)
        self._abandon(running)

    async def quiet(self, seconds: float, unless: asyncio.Event | None = None) -> bool:
        """Wait until no handler runs, at most `seconds`, and no longer once `unless` is set. Whether none runs."""
        if self.running:
            self._quiet = asyncio.get_running_loop().create_future()
            waiting: list[asyncio.Future[Any]] = [self._quiet]
            if unless is not None:
                waiting.append(asyncio.ensure_future(unless.wait()))
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for future in waiting[1:]:
                future.cancel()
        return not self.running

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _forget(self, running: Running) -> None:
        if self.running.get(id(running.delivery)) is running:
            del self.running[id(running.delivery)]
        if not self.running and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _watch(self, deadline: int) -> None:
        self.stop()
        self._watched = deadline
        self._timer = self._clock.call_later(max(0, deadline - self._clock.now()) / 1e9, self._check)

    def _check(self) -> None:
        self._timer = None
        now = self._clock.now()
        earliest: int | None = None
        for running in tuple(self.running.values()):
            if running.deadline is None:
                continue
            if running.deadline <= now:
                if running.cancelled_for is not None:
                    self.give_up(running)
                    continue
                running.cancel("timeout")
                running.deadline = now + round(ABANDON_AFTER * 1e9)
            earliest = running.deadline if earliest is None else min(earliest, running.deadline)
        if earliest is not None:
            self._watch(earliest)

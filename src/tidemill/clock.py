"""Time, as a value that can be handed in, so that tests own it: retries and delays then cost a test no time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol


class Timer(Protocol):
    """A call that has been scheduled."""

    def cancel(self) -> None:
        """Drop the call if it has not been made."""
        ...


class Clock(Protocol):
    """What Tidemill asks of time."""

    def now(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the running event loop after `seconds`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """The machine's clock and the event loop's timers."""

    now = staticmethod(time.time_ns)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_MACHINE = SystemClock()

ticking: ContextVar[Clock] = ContextVar("tidemill_clock", default=_MACHINE)
"""The clock of the services that run here: what a middleware asks for the time, so that tests own its time too."""

"""How often something may start, at most: a value, and the pace that keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from .errors import MAX_DELAY

MAX_RATE: Final = 1_000_000
"""Most a second: above this there is nothing to limit, as no handler starts so often."""

SECOND: Final = 1_000_000_000


class Rate(msgspec.Struct, frozen=True):
    """So many in so many seconds, evenly: `Rate(100)` is a hundred a second, `Rate(30, per=60)` thirty a minute.

    count  how many, in every `per` seconds; a fraction is fine.
    per    seconds (default 1).
    burst  how many may start at once after a pause (default: what a tenth of a second brings, and at least 1:
           enough that timers, which are a few milliseconds late, do not lower the rate). In no span of `per` seconds
           do more than `count + burst` start. Whoever limits you, and counts by the minute, wants it small.

    Raises `ValueError` where a value makes no sense.
    """

    count: float
    per: float = 1.0
    burst: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("per", self.per)):
            # Written so that NaN fails too.
            if isinstance(value, bool) or not (_is_number(value) and 0 < value < math.inf):
                raise ValueError(f"Rate({name}={value!r}): give a number above 0, as in Rate(30, per=60): 30 a minute")
        if not 1 / MAX_DELAY <= self.count / self.per <= MAX_RATE:
            raise ValueError(
                f"Rate({self.count:g}, per={self.per:g}): give at least one a year and at most a million a second"
            )
        if self.burst is not None and not (type(self.burst) is int and self.burst >= 1):
            raise ValueError(
                f"Rate(burst={self.burst!r}): give a whole number, at least 1, as nothing would ever start otherwise"
            )

    @property
    def at_once(self) -> int:
        """How many may start at once: `burst`, or what it is by default."""
        return self.burst if self.burst is not None else max(1, int(self.count / self.per / 10))

    def __str__(self) -> str:
        return f"{self.count:g} per {self.per:g} s"


class Pace:
    """Keeps a rate: a bucket of `rate.at_once` tokens that is full at first. No lock, no task, no list of waiters.

    rate  what to keep.
    now   the time in nanoseconds, as a `Clock` tells it. One that is set back neither stops the pace nor hurries it:
          no time passed then.
    """

    __slots__ = ("_free_at", "_interval", "_now", "_seen", "_slack", "rate")

    def __init__(self, rate: Rate, now: Callable[[], int]) -> None:
        self.rate = rate
        self._now = now
        # Rounded up: the rate is kept a billionth below rather than above.
        self._interval = math.ceil(rate.per * SECOND / rate.count)
        self._slack = (rate.at_once - 1) * self._interval
        self._seen = self._free_at = now()

    @property
    def interval(self) -> float:
        """Seconds between two, where they start evenly."""
        return self._interval / SECOND

    def take(self) -> float:
        """Seconds until the next may start. 0.0: it may now, and is counted; otherwise nothing is: ask again then."""
        wait = self.wait()
        if not wait:
            self._free_at = max(self._free_at, self._seen) + self._interval
        return wait

    def wait(self, behind: int = 0) -> float:
        """Seconds until one may start that has `behind` others before it. Counts nothing."""
        now = self._now()
        if now < self._seen:
            self._free_at -= self._seen - now
        self._seen = now
        free_at = max(self._free_at, now) + behind * self._interval
        return max(0, free_at - self._slack - now) / SECOND


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)

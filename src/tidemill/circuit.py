"""A circuit: when everything fails, ask one at a time instead of all at once, until something succeeds.

    closed ── `failures` in a row ──► open ── the delay is over ──► half-open: one probe
       ▲                               ▲                              │         │
       │                               └────────── it fails ──────────┘         │
       └───────────────────────────── it succeeds ──────────────────────────────┘

It is a budget for retries. Without it, an outage of what the handlers call sends every event of the backlog into its
retries, and the retries into dead letters. What counts as a failure is the caller's; there is no clock and no task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, cast

import msgspec

from .errors import MAX_DELAY

State: TypeAlias = Literal["closed", "open", "half-open"]

SECOND: Final = 1_000_000_000


class Circuit(msgspec.Struct, frozen=True, kw_only=True):
    """When a circuit opens, and how long it stays so. A value: no state, no clock.

    failures  how many failures in a row, without a success in between, open it (default 20). That is more than two
              events that always fail bring about in all their 8 attempts, so that poison opens no circuit; and few
              enough that an outage costs the events of a backlog next to none of theirs.
    base      upper end of the first delay before a probe, in seconds (default 1).
    factor    what it is multiplied by with each probe that fails (default 2).
    cap       longest delay, in seconds (default 30: after a long outage, work goes on within half a minute).

    Each delay is drawn from the upper half of its window, so that many processes do not probe in step.
    Raises `ValueError` where a value makes no sense.
    """

    failures: int = 20
    base: float = 1.0
    factor: float = 2.0
    cap: float = 30.0

    def __post_init__(self) -> None:
        if not (type(self.failures) is int and self.failures >= 1):
            raise ValueError(f"Circuit(failures={self.failures!r}): give a whole number, at least 1")
        for name, value in (("base", self.base), ("factor", self.factor), ("cap", self.cap)):
            if isinstance(value, bool) or not isinstance(cast(object, value), int | float):
                raise ValueError(f"Circuit({name}={value!r}): give a number")
        # Written so that NaN fails too.
        if not (0 < self.base <= self.cap <= MAX_DELAY and 1 <= self.factor < math.inf):
            raise ValueError(
                f"Circuit(base={self.base}, factor={self.factor}, cap={self.cap}): base must be above 0, factor 1 or "
                "more, cap no less than base and no more than a year"
            )

    def delay(self, opened: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds to stay open, the `opened`th time in a row (1 is the first)."""
        try:
            high = min(self.cap, self.base * self.factor ** (opened - 1))
        except OverflowError:
            high = self.cap
        return uniform(high / 2, high)


class CircuitBreaker:
    """The state of one circuit. For one event loop: it is not to be shared between threads.

    policy   when it opens, and for how long.
    now      the time in nanoseconds, as a `Clock` tells it. One that is set back makes no delay longer.
    uniform  what draws the delays.

    Whoever is admitted says how it ended, once: `succeeded`, `failed`, or `release` if it ended without an answer.
    It may hand back the `turn` it was admitted in: then an answer to something that began before the circuit opened
    or closed says nothing about it now, and does not count. Without one it counts as an answer of now.
    """

    __slots__ = ("_delay", "_now", "_opened", "_uniform", "_until", "in_a_row", "opened_at", "policy", "state", "turn")

    def __init__(
        self,
        policy: Circuit,
        now: Callable[[], int],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.policy = policy
        self.state: State = "closed"
        self.turn = 0
        """Changes whenever the state does."""
        self.in_a_row = 0
        """Failures since the last success, while closed. Where it is 0, `succeeded` has nothing to do."""
        self.opened_at: int | None = None
        """Since when it has not been closed, in nanoseconds; None while it is."""
        self._now = now
        self._uniform = uniform
        self._opened = 0
        self._until = 0
        self._delay = 0

    @property
    def delay(self) -> float:
        """The delay before the latest probe, in seconds; 0.0 where there has been none."""
        return self._delay / SECOND

    def admit(self) -> float:
        """Seconds to wait before asking again. 0.0: go; and if the state is half-open now, this is the one probe.

        While a probe runs, others are told to ask again after `policy.base`: when it ends is not known.
        """
        if self.state == "closed":
            return 0.0
        if self.state == "half-open":
            return self.policy.base
        now = self._now()
        left = self._until - now
        if left > self._delay:  # the clock was set back
            left = self._delay
            self._until = now + left
        if left > 0:
            return left / SECOND
        self._become("half-open")
        return 0.0

    def succeeded(self, turn: int | None = None) -> None:
        """It works: the circuit closes, and failures are counted anew."""
        if turn is None or turn == self.turn:
            self.in_a_row = 0
            if self.state != "closed":
                self._opened = 0
                self.opened_at = None
                self._become("closed")

    def failed(self, turn: int | None = None) -> None:
        """It does not: one failure more; a probe's opens the circuit again, for longer."""
        if turn is not None and turn != self.turn:
            return
        if self.state == "half-open":
            self._open()
        elif self.state == "closed":
            self.in_a_row += 1
            if self.in_a_row >= self.policy.failures:
                self._open()

    def release(self, turn: int | None = None) -> None:
        """It ended without an answer, as what is cancelled does: if it was the probe, the next to ask is."""
        if self.state == "half-open" and (turn is None or turn == self.turn):
            self._until = self._now()
            self._become("open")

    def _open(self) -> None:
        now = self._now()
        if self.opened_at is None:
            self.opened_at = now
        self.in_a_row = 0
        self._opened += 1
        self._delay = max(1, round(self.policy.delay(self._opened, self._uniform) * SECOND))
        self._until = now + self._delay
        self._become("open")

    def _become(self, state: State) -> None:
        self.state = state
        self.turn += 1

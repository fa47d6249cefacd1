"""Whether a handler may begin now: not while the circuit is open, faster than the rate, or beside a suspect."""

from __future__ import annotations

import asyncio

from .circuit import Circuit, CircuitBreaker
from .clock import Clock, Timer
from .isolation import Isolation
from .outcome import Ack, Outcome
from .rate import Pace, Rate
from .telemetry import emit


class Gate:
    """What the workers of one consumer pass before a handler begins. Open it costs them a look at two booleans."""

    def __init__(
        self, subscription: str, rate: Rate | None, circuit: Circuit | None, isolation: Isolation, clock: Clock
    ) -> None:
        self.shut = rate is not None
        """Whether `enter` is to be awaited first; it may let one through at once."""
        self.troubled = False
        """Whether an `Ack` is news: something has failed since the last success."""
        self.turn = 0
        """What a handler that begins now is to hand back when it ends."""
        self.waiting = False
        """Whether somebody waits for time to pass."""
        self._subscription = subscription
        self._pace = None if rate is None else Pace(rate, clock.now)
        self._breaker = None if circuit is None else CircuitBreaker(circuit, clock.now)
        self._isolation = isolation
        self._clock = clock
        self._told = False
        self._changed: asyncio.Future[None] | None = None
        self._timer: Timer | None = None

    @property
    def open_since(self) -> int | None:
        """Since when the circuit is not closed, in nanoseconds since 1970."""
        return None if self._breaker is None else self._breaker.opened_at

    async def enter(self) -> None:
        """Wait until a handler may begin. Whoever then has nothing to begin calls `unused`."""
        while True:
            if self._isolation.active:
                await self._isolation.over()
            # In this order: whoever is admitted may be the probe, which is not to wait for anything else.
            elif (self._pace is not None and (wait := self._pace.wait())) or (wait := self._admit()):
                await self._wait(wait)
            else:
                break
        if self._pace is not None:
            self._pace.take()

    def unused(self) -> None:
        """Nothing began after all."""
        if self._breaker is not None:
            self._breaker.release(self.turn)
            self._look("")

    def ended(self, outcome: Outcome, error: str | None, turn: int) -> None:
        """A handler that began in `turn` has ended; `error` where that was a failure, and nothing it decided."""
        breaker = self._breaker
        if breaker is None:
            return
        if isinstance(outcome, Ack):
            breaker.succeeded(turn)
        elif error is None:
            breaker.release(turn)
        else:
            breaker.failed(turn)
        self._look(error or "")

    def wake(self) -> None:
        """Have everybody who waits look again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.waiting = False
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    def _admit(self) -> float:
        if self._breaker is None:
            return 0.0
        wait = self._breaker.admit()
        self.turn = self._breaker.turn
        return wait

    async def _wait(self, seconds: float) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
            self._timer = self._clock.call_later(seconds, self.wake)
            self.waiting = True
        await asyncio.shield(self._changed)

    def _look(self, error: str) -> None:
        """See what has become of the circuit."""
        breaker = self._breaker
        if breaker is None:
            return
        closed = breaker.state == "closed"
        self.troubled = not closed or breaker.in_a_row > 0
        if self.turn == breaker.turn:
            return
        self.turn = breaker.turn
        self.shut = self._pace is not None or not closed
        if closed and self._told:
            self._told = False
            emit("circuit.closed", subscription=self._subscription)
        elif not closed and not self._told:
            self._told = True
            failures = breaker.policy.failures
            emit("circuit.opened", subscription=self._subscription, failures=failures, error=error)
        self.wake()

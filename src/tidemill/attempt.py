"""One attempt: the pipeline run once, and the outcome of whatever came of it. Total (G3)."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Final

from .clock import Clock
from .context import current
from .errors import FutureVersion, ProcessDied
from .handler import HandlerSpec
from .message import Delivery, Failure
from .outcome import ACK, RELEASE, Ack, DeadLetter, Outcome, Release, Retry, describe
from .pipeline import compose
from .telemetry import emit
from .watchdog import Watchdog

_TRACEBACK: Final = 4096
_FUTURE: Final = FutureVersion.__name__
_SOON, _RARELY = 1.0, 30.0
"""Seconds between two looks whether an event from the future can be read: at first, and after some minutes."""


class Attempts:
    """Runs deliveries of one subscription. What a handler or a middleware does never leaves one without an outcome."""

    def __init__(self, spec: HandlerSpec, watchdog: Watchdog, clock: Clock, is_stopping: Callable[[], bool]) -> None:
        self._spec = spec
        # What a user's middleware returns may be anything.
        self._handle: Callable[[Delivery], Awaitable[object]] = compose(spec.use, spec.handle())
        self._watchdog = watchdog
        self._clock = clock
        self._is_stopping = is_stopping

    async def run(self, delivery: Delivery) -> Outcome:
        """Run the pipeline once. Whatever it returns or raises becomes an outcome."""
        current.set(delivery)
        try:
            outcome = await self._handle(delivery)
        except BaseException as error:
            return self._raised(delivery, error)
        if outcome is ACK:
            return ACK
        if isinstance(outcome, Ack | Retry | DeadLetter | Release):
            return outcome
        return self.failed(delivery, TypeError(f"a middleware returned {type(outcome).__name__}, which is no outcome"))

    def died(self, delivery: Delivery) -> Outcome:
        """The outcome of an attempt whose process died: its handler is not run, as it has been."""
        failure = delivery.history[-1] if delivery.history else None
        reason = failure.error.partition(": ")[2] if failure else "the process that ran the handler ended"
        return self._spec.retry.outcome_of(ProcessDied(reason), delivery.attempt)

    def failed(self, delivery: Delivery, error: BaseException) -> Outcome:
        """The outcome of an attempt that failed, which its history remembers."""
        if isinstance(error, FutureVersion):
            return self._from_the_future(delivery, error)
        trace = "".join(traceback.format_exception(error))[-_TRACEBACK:]
        failure = Failure(delivery.attempt, self._clock.now(), describe(error), trace)
        delivery.history = (*delivery.history, failure)
        return self._spec.retry.outcome_of(error, delivery.attempt)

    def _from_the_future(self, delivery: Delivery, error: FutureVersion) -> Outcome:
        """It waits, uncharged, for newer code: a deployment is under way. The history remembers since when."""
        now, patience = self._clock.now(), self._spec.retry.future
        last = delivery.history[-1] if delivery.history else None
        known = last if last is not None and last.error.startswith(_FUTURE) else None
        if known is None:
            emit("delivery.future", subscription=delivery.subscription, message=delivery.message.id, reason=str(error))
            delivery.history = (*delivery.history, Failure(delivery.attempt, now, describe(error)))
        waited = 0.0 if known is None else (now - known.at) / 1e9
        if waited >= patience:
            # Of its own, so that the waiting begins anew where somebody replays it.
            gave_up = Failure(delivery.attempt, now, f"no newer code came within {patience:g} s")
            delivery.history = (*delivery.history, gave_up)
            return DeadLetter(f"{describe(error)} (no newer code came within {patience:g} s)")
        return Release(min(max(_SOON, waited / 4), _RARELY, patience - waited), describe(error))

    def _raised(self, delivery: Delivery, error: BaseException) -> Outcome:
        reason = self._watchdog.why_cancelled(delivery)
        cancelled = isinstance(error, asyncio.CancelledError)
        if reason in ("drain", "lost") or (cancelled and self._is_stopping() and reason is None):
            return RELEASE  # whatever a handler makes of being cancelled: no attempt that was cut short is charged
        if reason == "timeout" and cancelled:
            error = TimeoutError(f"the handler took longer than {self._spec.timeout:g} s")
        # A cancellation from nowhere here is the handler's failure: it awaited something that was cancelled.
        return self.failed(delivery, error)

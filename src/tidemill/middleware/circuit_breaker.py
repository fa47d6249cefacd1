"""Handlers that depend on one thing leave it alone together while it is down, and let one ask whether it is back."""

from __future__ import annotations

import asyncio
import random
from typing import cast

from ..circuit import Circuit, CircuitBreaker
from ..clock import ticking
from ..message import Delivery
from ..outcome import Ack, Outcome, Release, describe, is_exception, is_one_of
from ..pipeline import Handle, Middleware
from ..telemetry import emit

_DEFAULT = Circuit()


def circuit_breaker(
    policy: Circuit = _DEFAULT,
    on: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError),
) -> Middleware:
    """While what handlers depend on is down, give their events back uncharged instead of running them.

        mail_server = circuit_breaker(Circuit(failures=5), on=(SMTPServerDisconnected, TimeoutError))

        @service.on(OrderPlaced, use=[mail_server])
        ...
        @service.on(OrderShipped, use=[mail_server])
        ...

    Every handler of this process that uses this one middleware shares its circuit. An `Ack` is a success; whatever is
    neither that nor in `on` says nothing about the thing. A subscription has a circuit of its own anyway
    (`@service.on(circuit=...)`), which opens whatever the error is: this one is for several handlers, or for a
    handler that meets other errors as well.

    policy  when it opens, and for how long (default: after 20 failures in a row).
    on      the exceptions that mean that the thing is down (default `ConnectionError` and `TimeoutError`; a handler's
            own timeout is one). Raises `TypeError` where it is no tuple of exception classes.
    """
    if not (isinstance(cast(object, on), tuple) and on and all(map(is_exception, on))):
        raise TypeError(f"circuit_breaker(on={on!r}): give a tuple of exception classes")
    breaker = CircuitBreaker(policy, lambda: ticking.get().now())
    last = ""

    async def middleware(call_next: Handle, delivery: Delivery) -> Outcome:
        nonlocal last
        wait = breaker.admit()
        if wait > 0:
            # Spread, or all would be back at one time, again and again.
            return Release(random.uniform(wait, wait + breaker.delay), f"what it depends on is down: {last}")
        turn = breaker.turn
        try:
            outcome = await call_next(delivery)
        except BaseException as error:
            if _means_down(error, on):
                was, last = breaker.state, describe(error)
                breaker.failed(turn)
                if was == "closed" and breaker.state == "open":
                    emit("circuit.opened", subscription=delivery.subscription, failures=policy.failures, error=last)
            else:
                breaker.release(turn)
            raise
        if not isinstance(outcome, Ack):
            breaker.release(turn)
        else:
            was = breaker.state
            breaker.succeeded(turn)
            if was != "closed" and breaker.state == "closed":
                emit("circuit.closed", subscription=delivery.subscription)
        return outcome

    return middleware


def _means_down(error: BaseException, on: tuple[type[BaseException], ...]) -> bool:
    # A handler is cancelled at its timeout; that this was a TimeoutError is said further out.
    timed_out = isinstance(error, asyncio.CancelledError) and error.args == ("timeout",)
    return issubclass(TimeoutError, on) if timed_out else is_one_of(error, on)

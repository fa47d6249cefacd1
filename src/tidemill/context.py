"""What a handler may know about the delivery it runs, and the delivery that is running now."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

from .message import Delivery, Failure, Message

T = TypeVar("T")

current: ContextVar[Delivery | None] = ContextVar("tidemill_delivery", default=None)
"""The delivery being handled. Every delivery runs in its own copy of the context, so it follows into tasks,
`asyncio.gather` and `asyncio.to_thread`, and what is published there joins the flow."""


class Context:
    """A handler's optional second parameter: the facts of this delivery."""

    __slots__ = ("_delivery", "_loop")

    def __init__(self, delivery: Delivery, loop: asyncio.AbstractEventLoop) -> None:
        self._delivery = delivery
        self._loop = loop

    @property
    def message(self) -> Message:
        """The message as it came. `ctx.message.id` is the same at every attempt: use it as an idempotency key."""
        return self._delivery.message

    @property
    def attempt(self) -> int:
        """1 for the first run of this event on this subscription; failed attempts count, across restarts."""
        return self._delivery.attempt

    @property
    def history(self) -> tuple[Failure, ...]:
        """The failed attempts so far, oldest first."""
        return self._delivery.history

    @property
    def subscription(self) -> str:
        """The subscription's name: `<service>.<handler>`."""
        return self._delivery.subscription

    @property
    def lost(self) -> bool:
        """Whether the lease is gone (G12): another process may be handling this event, and what this run comes to does
        not count. An `async def` handler is cancelled as well; a `def` handler that runs for long looks here."""
        return self._delivery.lost

    @property
    def correlation_id(self) -> str:
        """The flow this event belongs to. What the handler publishes joins it by itself."""
        return self._delivery.message.correlation_id or self._delivery.message.id

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """For `def` handlers, which run in a thread: run `coroutine` on the service's loop and wait for its result.

        `ctx.run(service.publish(...))`. Raises `RuntimeError` where it would block the event loop itself.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            coroutine.close()
            raise RuntimeError("ctx.run() is for `def` handlers; in an `async def` handler await the call instead")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

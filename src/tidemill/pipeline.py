"""What a delivery passes through on its way to the handler: one shape, composed once at start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

from .message import Delivery
from .outcome import Outcome

Handle: TypeAlias = Callable[[Delivery], Awaitable[Outcome]]
"""Everything that handles: a delivery in, an outcome out, or an exception that stands for one."""

Middleware: TypeAlias = Callable[[Handle, Delivery], Awaitable[Outcome]]
"""An async function around a handler: `(call_next, delivery) -> Outcome`."""


def compose(middlewares: Sequence[Middleware], handle: Handle) -> Handle:
    """`handle` inside `middlewares`; the first one is outermost."""
    for middleware in reversed(middlewares):
        handle = partial(middleware, handle)
    return handle

"""One limit for several handlers: each waits its turn before it begins."""

from __future__ import annotations

from collections import deque

from ..clock import ticking
from ..message import Delivery
from ..outcome import Outcome
from ..pipeline import Handle, Middleware
from ..rate import Pace, Rate


def throttle(rate: Rate) -> Middleware:
    """Let handlers begin at most as often as `rate` says: all handlers of this process that use this one middleware.

        gateway = throttle(Rate(50))

        @service.on(OrderPlaced, use=[gateway])
        ...
        @service.on(OrderCancelled, use=[gateway])
        ...

    For one handler alone take `@service.on(rate=...)`: there events wait before they are anybody's. Here a delivery
    that waits holds one of its handler's workers (`concurrency`), and the wait counts against the handler's `timeout`:
    choose that so that it covers the work and `concurrency` turns of all handlers that share the limit.
    """
    pace = Pace(rate, lambda: ticking.get().now())
    queue: deque[object] = deque()

    async def turn() -> None:
        if not queue and not pace.take():
            return
        me = object()
        queue.append(me)
        try:
            # Each sleeps until about its own turn: nobody is woken for another's, and nobody is passed by.
            while place := queue.index(me):
                await ticking.get().sleep(max(pace.interval, pace.wait(place)))
            while wait := pace.take():
                await ticking.get().sleep(wait)
        finally:
            queue.remove(me)

    async def middleware(call_next: Handle, delivery: Delivery) -> Outcome:
        await turn()
        return await call_next(delivery)

    return middleware

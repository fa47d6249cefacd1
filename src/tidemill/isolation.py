"""An event that was running when two processes died may be what killed them. It runs alone, so that it takes no other
along.

One at a time in this process, whatever subscription it is of: no handler begins meanwhile, and those that run have a
moment to end, and to have that recorded. Only a moment, either way: the suspect must not hold up the innocent for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from .message import Delivery

QUIET: Final = 1.0
"""Seconds that running handlers have to end before a suspect begins all the same. Most take less; those that take
longer may be charged a third attempt of their eight."""

ALONE: Final = 1.0
"""Seconds a suspect runs alone: what kills a process, as a rule, does so at once."""

_LOOK: Final = 0.005


def is_suspect(delivery: Delivery) -> bool:
    """Whether the last two attempts ended in the death of their process.

    One death says nothing: many events run when somebody kills a process. Few run when the next one dies, too.
    """
    last = delivery.history[-2:]
    return len(last) == 2 and last[0].died and last[1].died


class Isolation:
    """Shared by the consumers of a process."""

    def __init__(self) -> None:
        self.active = False
        """Whether no handler may begin."""
        self._running: list[Callable[[], int]] = []
        self._turn = asyncio.Lock()
        self._over: asyncio.Future[None] | None = None

    def join(self, running: Callable[[], int]) -> None:
        """Count what a consumer has at work: handlers that are waiting for something, outcomes not recorded yet."""
        self._running.append(running)

    async def over(self) -> None:
        """Wait until handlers may begin again."""
        while self._over is not None:
            await asyncio.shield(self._over)

    async def enter(self) -> Callable[[], None]:
        """Wait for one's turn, and for the quiet. Returns what ends it, to be called once the suspect has run."""
        await self._turn.acquire()
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        self.active = True

        def end() -> None:
            timer.cancel()
            if not over.done():
                over.set_result(None)
                self._over = None
                self.active = False
                self._turn.release()

        timer = loop.call_later(QUIET + ALONE, end)
        until = time.monotonic() + QUIET
        try:
            # Looked at now and then: this happens after crashes only, and for a second at most.
            while any(running() for running in self._running) and time.monotonic() < until:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK)
        except BaseException:
            end()
            raise
        return end

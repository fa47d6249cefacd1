"""Threads for `def` handlers. A function that never returns costs its own thread and nobody else's: whenever no
thread is idle there is a new one, and none of them keeps the process from ending. The standard pool does neither.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

IDLE: Final = 10.0
"""Seconds after which a thread that had nothing to do ends."""


class Threads:
    """Runs functions outside the event loop, each at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[tuple[Callable[[], object], asyncio.Future[Any]]] = SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()

    def run(self, function: Callable[[], object]) -> asyncio.Future[Any]:
        """Start `function`; the future has its result. Cancelling the future does not stop the function."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._lock:
            taken = self._idle > 0
            if taken:
                self._idle -= 1
        self._jobs.put((function, future))
        if not taken:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            try:
                function, future = self._jobs.get(timeout=IDLE)
            except Empty:
                with self._lock:
                    if self._idle:
                        self._idle -= 1
                        return
                continue  # a job was meant for this thread in the very moment
            try:
                answer: tuple[object, BaseException | None] = (function(), None)
            except StopIteration as error:  # the one exception that no future can hold
                answer = (None, RuntimeError(f"the handler raised {error!r}"))
            except BaseException as error:
                answer = (None, error)
            with self._lock:
                self._idle += 1
            try:
                future.get_loop().call_soon_threadsafe(_answer, future, *answer)
            except RuntimeError:
                return  # the loop has ended, and with it whoever waited
            del function, future, answer


def _answer(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)

"""A thread that notices when the event loop stands still, says what stands in its way, and ends what cannot go on.

While a handler blocks the loop (`time.sleep`, a long computation) nothing else of the process runs: no other handler,
no timeout, no drain. Only another thread can tell, and only another thread can end it. Idle it costs one timer of the
loop and one wake-up of the thread every half second.

It cannot see what C code does that keeps Python's lock, as a regular expression on a long text: the thread stands
still too, and reports afterwards.
"""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from .message import Delivery
from .telemetry import emit, emit_from_thread

TICK: Final = 0.5
"""Seconds between two looks: a hundredth of a percent of a core, and a second's blockage is seen in time."""

LIMIT: Final = 1.0
"""Seconds the loop may stand still before that is reported. Everything else of the process waits as long: a second is
what people notice, and is far beyond what decoding, a collection of garbage or a busy machine takes."""

LEAST_STUCK: Final = 60.0
"""Seconds that no blockage is called hopeless before, however short the handlers' timeouts are: a report that takes a
minute to compute is slow, and not stuck."""

REPORT: Final = 2.0
"""Seconds a report may take. A log that takes no more lines (a full pipe, say) may be what blocks the loop."""

STUCK: Final = 70
"""Exit code of a process whose loop was stuck: EX_SOFTWARE, "internal software error"."""

NOT_DRAINED: Final = 1
"""Exit code of a process that was told to end, and did not in time."""


class LoopWatch:
    """Watches one event loop from a thread of its own, from `start` to `stop`.

    stuck_after  seconds after which a loop that stands still is stuck: by then every timeout of every handler would
                 have come and gone. None: never.
    owned        whether the process is Tidemill's own: it is then ended where nothing else helps. Another one is not;
                 `stuck` says so, and telemetry.
    let_go       called from the thread where a process that is not ended is stuck.
    limit, tick  `LIMIT` and `TICK` by default.
    """

    def __init__(
        self,
        *,
        stuck_after: float | None,
        owned: bool = False,
        let_go: Callable[[], object] = lambda: None,
        limit: float | None = None,
        tick: float | None = None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.blocked_for = 0.0
        """Seconds the loop has stood still beyond its turn; 0 while it lives."""
        self.stuck = False
        """Whether the loop has stood still for so long that nothing in this process can be relied on."""
        self.stuck_after = stuck_after
        self._owned = owned
        self._let_go = let_go
        self._limit = LIMIT if limit is None else limit
        self._tick = TICK if tick is None else tick
        self._end = end
        self._end_by: float | None = None
        self._beats = 0
        self._due = 0.0
        self._reported = False
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch the running event loop, which must be this thread's."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wait_for_turn()
        threading.Thread(target=self._watch, name="tidemill-loop-watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def end_within(self, seconds: float) -> None:
        """End the process, where it is Tidemill's own and has not stopped the watch by then. The soonest call counts.

        May be called by a signal's handler, also while the loop stands still.
        """
        until = time.monotonic() + seconds
        if self._owned and (self._end_by is None or until < self._end_by):
            self._end_by = until

    # -------------------------------------------------------------- the loop

    def _wait_for_turn(self) -> None:
        self._due = time.monotonic() + self._tick
        self._timer = self._loop.call_later(self._tick, self._beat)

    def _beat(self) -> None:
        late = time.monotonic() - self._due
        self._beats += 1
        self.stuck = False
        self.blocked_for = 0.0
        self._wait_for_turn()
        if late > self._limit:
            emit("loop.unblocked", seconds=round(late, 1))

    # ------------------------------------------------------------ the thread

    def _watch(self) -> None:
        beats, late, looked = -1, 0.0, time.monotonic()
        while not self._stopped.wait(self._tick):
            now = time.monotonic()
            # What the thread did not see itself does not count: a process that is stopped (SIGSTOP) is not blocked.
            passed, looked = min(now - looked, 1.5 * self._tick), now
            if self._beats != beats:
                beats, late, self._reported = self._beats, 0.0, False
            if now > self._due:
                late += min(passed, now - self._due)
                self._look(late)
            if self._end_by is not None and now >= self._end_by:
                self._report("drain.overdue", max(0.0, now - self._due))
                self._end(NOT_DRAINED)
                return

    def _look(self, late: float) -> None:
        self.blocked_for = late
        if late >= self._limit and not self._reported:
            self._reported = True
            self._report("loop.blocked", late)
        if self.stuck_after is not None and late >= self.stuck_after and not self.stuck:
            self.stuck = True
            self._report("loop.stuck", late)
            if self._owned:
                self._end(STUCK)
            else:
                self._let_go()

    def _report(self, name: str, late: float) -> None:
        frames = _frames(self._thread)
        delivery = _delivery(frames)
        fields = {
            "seconds": round(late, 1),
            "subscription": None if delivery is None else delivery.subscription,
            "message": None if delivery is None else delivery.message.id,
            "stack": describe_stack(frames),
        }
        # In yet another thread: the log's own lock may be what the loop waits for.
        report = threading.Thread(target=_tell, args=(self._loop, name, fields), name="tidemill-report", daemon=True)
        report.start()
        report.join(REPORT)


def _tell(loop: asyncio.AbstractEventLoop, name: str, fields: dict[str, Any]) -> None:
    emit_from_thread(loop, name, **fields)
    for handler in (*logging.getLogger("tidemill").handlers, *logging.getLogger().handlers):
        handler.flush()
    sys.stderr.flush()


# ------------------------------------------------------------------ the stack


def describe_stack(frames: list[FrameType]) -> str:
    """Where a thread is, outermost first, in one line: the user's own frames, and the innermost whosever it is."""
    kept = [frame for frame in frames if not _foreign(frame.f_code.co_filename)]
    if not kept or kept[-1] is not frames[-1]:
        kept += frames[-1:]
    return " > ".join(_describe(frame) for frame in kept)


def _describe(frame: FrameType) -> str:
    code = frame.f_code
    line = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}{f': {line}' if line else ''}"


def _frames(thread: int) -> list[FrameType]:
    """The frames a thread is in, outermost first, from what the event loop runs: whatever runs the loop is no news."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]  documented, for this purpose
    found: list[FrameType] = []
    while frame is not None and frame.f_code is not _RUN:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]


def _delivery(frames: list[FrameType]) -> Delivery | None:
    """The delivery that a stack works on: of Tidemill's own functions, the innermost one's `delivery`."""
    for frame in reversed(frames):
        if frame.f_code.co_filename.startswith(_TIDEMILL):
            delivery = frame.f_locals.get("delivery")
            if isinstance(delivery, Delivery):
                return delivery
    return None


_RUN = asyncio.Handle._run.__code__  # pyright: ignore[reportPrivateUsage]  what calls every callback and task
_TIDEMILL = f"{Path(__file__).parent}{os.sep}"

_FOREIGN = (
    "<frozen",
    *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    _TIDEMILL,
)


def _foreign(file: str) -> bool:
    return file.startswith(_FOREIGN)

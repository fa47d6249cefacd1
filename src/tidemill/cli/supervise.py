"""Several workers, or one that starts again when its code changes: started, restarted, drained and ended together."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ..runtime import MARGIN as OWN_MARGIN
from .log import Say
from .probes import Answers
from .reports import SILENT, Reports

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
STEADY: Final = 60.0
"""Seconds after which a worker that dies counts as having worked: its next start is soon again."""

MARGIN: Final = OWN_MARGIN + 5.0
"""Seconds beyond the grace before a worker is killed: a little more than it gives itself."""

LOOK: Final = 0.5
"""Seconds between two looks at what the workers report."""

SPREAD: Final = 0.1
"""Workers that began together and share the work would all be replaced at once: each gets its own number of events,
this much more or less."""

DRAINED: Final = (0, -signal.SIGTERM, -signal.SIGINT)
"""How a worker ends that was told to: a signal ends it where it had not begun to consume."""

_CONFIGURATION: Final = 2


def delay(failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before the start after so many failures in a row: 0.1 to 30, drawn from the upper half of a window."""
    high = min(LONGEST_DELAY, 2 * FIRST_DELAY * 2.0 ** min(failures - 1, 30))
    return uniform(high / 2, high)


class _Worker:
    """A process that runs, and what is known of it."""

    def __init__(self, process: asyncio.subprocess.Process, asking: int, reading: int, most: float) -> None:
        self.process = process
        self.asking = asking
        """The pipe whose end asks it to drain; -1 once it was asked."""
        self.most = most
        """Events after which it is replaced."""
        self.reports = Reports()
        self.hearing = asyncio.create_task(self.reports.read(reading))

    @property
    def hangs(self) -> bool:
        """Whether it has begun to report, and does no more."""
        return self.reports.last is not None and self.reports.silent > SILENT

    def kill(self) -> None:
        """kill -9."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()


class Supervisor:
    """Keeps `count` processes of one command running until a signal comes.

    Every worker gets `--worker <number>` and a pipe as standard input; the end of that pipe asks it to drain, and
    comes too when this process dies. `--report-to <number>` names another one, on which it says how it is. Workers are
    process groups of their own, so that Ctrl-C reaches only this one.

    recycle_after  events after which a worker is replaced, give or take a tenth. One at a time: the next one's turn is
                   when the last one's successor is ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        count: int,
        grace: float,
        say: Say,
        recycle_after: int | None = None,
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._count = count
        self._grace = grace
        self._say = say
        self._recycle_after = recycle_after
        self._recycling: int | None = None
        self._running: dict[int, _Worker] = {}
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._reloading = False
        self._code = 0

    async def run(self, changes: AsyncIterator[str] | None = None) -> int:
        """Run until a signal came and every worker ended. With `changes`, each of them starts the workers again.

        Returns 0 if all drained, 2 if a worker could not start as it is configured, otherwise 1.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._reloading = changes is not None
        aside = [asyncio.create_task(self._look_after())]
        if changes is not None:
            aside.append(asyncio.create_task(self._reload(changes)))
        try:
            await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        finally:
            for task in aside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return self._code

    def answers(self) -> Answers:
        """What probes are told. Live while one worker does not hang, ready while one consumes every subscription: the
        others share the same subscriptions, and one that starts again is no reason to take the work from all.
        """
        workers = [self._answer(number) for number in range(1, self._count + 1)]
        live = any(worker["live"] for worker in workers)
        ready = not self._stopping.is_set() and any(worker["ready"] for worker in workers)
        return live, ready, {"live": live, "ready": ready, "workers": workers}

    def _answer(self, number: int) -> dict[str, Any]:
        worker = self._running.get(number)
        found: dict[str, Any] = {"worker": number, "live": True, "ready": False}
        if worker is None:
            return found | {"why": "ended" if self._stopping.is_set() else "not running; it is started again soon"}
        found |= {"process": worker.process.pid}
        report = worker.reports.last
        if report is None:
            return found | {"why": "starting"}
        health = report.health
        found |= {"handled": report.handled, "subscriptions": health.subscriptions}
        if worker.hangs:
            return found | {"live": False, "why": f"nothing was heard of it for {worker.reports.silent:.0f} s"}
        return found | {"live": health.live, "ready": health.ready, "why": health.why}

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._say("killing the workers; what they were handling is delivered again")
            for worker in self._running.values():
                worker.kill()
        else:
            if self._running:
                self._say(f"draining {self._workers(len(self._running))}, press again to kill")
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        for number in tuple(self._running):
            self._drain(number)

    async def _keep(self, number: int) -> None:
        """One worker, started again whenever it ends before its time."""
        failures = 0
        first = True
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                worker = await self._start(number)
            except OSError as error:  # no memory or no process to be had: others may need this one's patience
                failures += 1
                await self._pause(f"worker {number} cannot be started ({error})", failures)
                continue
            if self._stopping.is_set():
                self._drain(number)
            code = await worker.process.wait()
            asked = self._close(number)
            stopping = self._stopping.is_set()
            if (asked or stopping) and code not in DRAINED and code != self._code:
                self._say(f"worker {number} did not drain: {_how(code)}")
                self._code = self._code or int(stopping)
            if stopping:
                return
            if asked:  # because a file changed, or it has handled enough
                failures, first = 0, False
                continue
            if code == _CONFIGURATION and first and not self._reloading:
                self._code = _CONFIGURATION
                self._stop()
                return
            first = False
            failures = 1 if time.monotonic() - started > STEADY else failures + 1
            what = f"worker {number} (process {worker.process.pid}) {_how(code)}"
            await self._pause(what, None if self._reloading and code == _CONFIGURATION else failures)

    async def _pause(self, what: str, failures: int | None) -> None:
        """Wait for the next start: after so many failures, or with None until a file changes."""
        if failures is None:
            self._say("waiting for a change")
            timeout = None
        else:
            timeout = delay(failures)
            self._say(f"{what}; starting another in {timeout:.1f} s")
        waits = [asyncio.create_task(event.wait()) for event in (self._stopping, self._changed)]
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _start(self, number: int) -> _Worker:
        # Of these four ends each child inherits the two that are its own.
        told, asking = os.pipe()
        try:
            reading, report_to = os.pipe()
        except BaseException:
            os.close(told)
            os.close(asking)
            raise
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                "--worker",
                str(number),
                "--report-to",
                str(report_to),
                stdin=told,
                pass_fds=(report_to,),
                env=self._environment,
                process_group=0,
            )
        except BaseException:
            os.close(asking)
            os.close(reading)
            raise
        finally:
            os.close(told)
            os.close(report_to)
        most = float("inf") if self._recycle_after is None else self._recycle_after
        worker = _Worker(process, asking, reading, most * random.uniform(1 - SPREAD, 1 + SPREAD))
        self._running[number] = worker
        return worker

    def _drain(self, number: int) -> None:
        """Ask a worker to drain, and kill it if it takes much longer than it may."""
        worker = self._running[number]
        if worker.asking < 0:
            return
        os.close(worker.asking)
        worker.asking = -1
        asyncio.get_running_loop().call_later(self._grace + MARGIN, worker.kill)

    def _close(self, number: int) -> bool:
        """Forget a worker that ended. Returns whether it was asked to."""
        worker = self._running.pop(number)
        worker.hearing.cancel()
        if worker.asking < 0:
            return True
        os.close(worker.asking)
        return False

    async def _look_after(self) -> None:
        """Replace workers that have handled enough, and kill those of which nothing is heard any more."""
        while True:
            await asyncio.sleep(LOOK)
            for number, worker in tuple(self._running.items()):
                report = worker.reports.last
                if report is None or worker.asking < 0:
                    continue
                if number == self._recycling and report.health.ready:
                    self._recycling = None
                if report.stuck_after is not None and worker.reports.silent > report.stuck_after + MARGIN:
                    # It ends itself before that, unless not even its threads run.
                    self._say(f"nothing was heard of worker {number} for {worker.reports.silent:.0f} s: killing it")
                    worker.kill()
                elif report.handled >= worker.most and self._recycling is None:
                    self._recycling = number
                    self._say(f"worker {number} has handled {report.handled:,} events: replacing it")
                    self._drain(number)

    async def _reload(self, changes: AsyncIterator[str]) -> None:
        async for file in changes:
            if self._stopping.is_set():
                return
            self._say(f"{file} changed: starting again")
            self._changed.set()
            self._changed = asyncio.Event()
            for number in tuple(self._running):
                self._drain(number)

    @staticmethod
    def _workers(count: int) -> str:
        return f"{count} workers" if count > 1 else "1 worker"


def _how(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"


async def watch(directory: str, files: Any) -> AsyncIterator[str]:
    """The Python files that change below `directory`, relative to it; `files` is the module watchfiles."""
    below = len(directory.rstrip(os.sep)) + 1
    async for found in files.awatch(directory, watch_filter=files.PythonFilter()):
        yield min(file for _, file in found)[below:]

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

from .log import Say

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
STEADY: Final = 60.0
"""Seconds after which a worker that dies counts as having worked: its next start is soon again."""

MARGIN: Final = 20.0
"""Seconds beyond the grace before a worker is killed: a little more than it gives itself."""

DRAINED: Final = (0, -signal.SIGTERM, -signal.SIGINT)
"""How a worker ends that was told to: a signal ends it where it had not begun to consume."""

_CONFIGURATION: Final = 2


def delay(failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before the start after so many failures in a row: 0.1 to 30, drawn from the upper half of a window."""
    high = min(LONGEST_DELAY, 2 * FIRST_DELAY * 2.0 ** min(failures - 1, 30))
    return uniform(high / 2, high)


class Supervisor:
    """Keeps `count` processes of one command running until a signal comes.

    Every worker gets `--worker <number>` and a pipe as standard input; the end of that pipe asks it to drain, and
    comes too when this process dies. Workers are process groups of their own, so that Ctrl-C reaches only this one.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, count: int, grace: float, say: Say
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._count = count
        self._grace = grace
        self._say = say
        self._running: dict[int, tuple[asyncio.subprocess.Process, int]] = {}
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
        watching = asyncio.create_task(self._reload(changes)) if changes is not None else None
        try:
            await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        finally:
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return self._code

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._say("killing the workers; what they were handling is delivered again")
            for process, _ in self._running.values():
                self._kill(process)
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
                process = await self._start(number)
            except OSError as error:  # no memory or no process to be had: others may need this one's patience
                failures += 1
                await self._pause(f"worker {number} cannot be started ({error})", failures)
                continue
            if self._stopping.is_set():
                self._drain(number)
            code = await process.wait()
            asked = self._close(number)
            if self._stopping.is_set():
                if code not in DRAINED and code != self._code:
                    self._code = self._code or 1
                    self._say(f"worker {number} did not drain: {_how(code)}")
                return
            if asked:  # because a file changed
                failures = 0
                continue
            if code == _CONFIGURATION and first and not self._reloading:
                self._code = _CONFIGURATION
                self._stop()
                return
            first = False
            failures = 1 if time.monotonic() - started > STEADY else failures + 1
            what = f"worker {number} (process {process.pid}) {_how(code)}"
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

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        reading, writing = os.pipe()  # neither end is inherited by other children
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                "--worker",
                str(number),
                stdin=reading,
                env=self._environment,
                process_group=0,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._running[number] = (process, writing)
        return process

    def _drain(self, number: int) -> None:
        """Ask a worker to drain, and kill it if it takes much longer than it may."""
        process, writing = self._running[number]
        if writing < 0:
            return
        self._running[number] = (process, -1)
        os.close(writing)
        asyncio.get_running_loop().call_later(self._grace + MARGIN, self._kill, process)

    def _close(self, number: int) -> bool:
        """Forget a worker that ended. Returns whether it was asked to."""
        _, writing = self._running.pop(number)
        if writing < 0:
            return True
        os.close(writing)
        return False

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()

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

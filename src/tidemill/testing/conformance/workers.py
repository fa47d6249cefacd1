"""Child processes for scenarios: started, watched, killed, and gone when the scenario ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from ..history import Fact, History
from ..worker import StepTaken
from .place import Place


class Workers(AbstractAsyncContextManager["Workers"]):
    """The processes of one scenario, all writing to one history."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.log = place.folder / "history.jsonl"
        self.history = History(self.log)
        self._started: list[subprocess.Popen[bytes]] = []

    async def __aexit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def spawn(self, command: str, *options: object) -> subprocess.Popen[bytes]:
        """Start a worker."""
        arguments = [sys.executable, "-m", "tidemill.testing.worker", command, self.place.url, str(self.log)]
        with self._errors(len(self._started)).open("wb") as output:
            process = subprocess.Popen([*arguments, *map(str, options)], stdout=output, stderr=output)
        self._started.append(process)
        return process

    async def start(self, command: str, *options: object) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is ready: a consumer that consumes, a publisher that publishes."""
        number = len(self._started)
        process = self.spawn(command, *options)

        def is_ready() -> bool:
            if process.poll() is not None:
                text = self._errors(number).read_text(errors="replace")[-2000:]
                raise AssertionError(f"a worker ended before it was ready:\n{text}")
            return any(fact.pid == process.pid for fact in self.history.of("ready"))

        await self.place.until(is_ready, f"a process started with {command} is ready")
        return process

    def _errors(self, number: int) -> Path:
        return self.place.folder / f"worker-{number}.txt"

    async def wait_for(self, what: str, count: int, *, by: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until the history has that many facts of a kind, all in all or by one process."""

        def has() -> bool:
            return sum(1 for fact in self.history.of(what) if by is None or fact.pid == by.pid) >= count

        await self.place.until(has, f"{count} times {what}")

    async def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a process to stop, and fail unless it ends with exit code 0."""
        process.send_signal(signal.SIGTERM)
        await self.place.until(lambda: process.poll() is not None, "a process that got SIGTERM ends")
        assert process.returncode == 0, f"exit code {process.returncode} after SIGTERM"

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9."""
        process.kill()
        process.wait()

    def ended(self) -> list[Fact]:
        """Every handler run that ended well."""
        return self.history.of("ended")

    def ended_by(self, process: subprocess.Popen[bytes]) -> int:
        """How many handler runs ended well in one process."""
        return sum(1 for fact in self.ended() if fact.pid == process.pid)


def steps(keys: int, first: int, last: int) -> list[StepTaken]:
    """Steps `first` to `last` (not included) of so many keys, all keys in turn."""
    return [StepTaken(str(key), number) for number in range(first, last) for key in range(keys)]

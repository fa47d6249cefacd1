"""One thread that writes: whatever is waiting when the last commit is done goes into the next, so that many
publishes and settlements share one fsync, and a slow disk never stops the event loop.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from ...errors import BrokerError, ConfigurationError, TidemillError
from .file import BUSY, WriteLock, connect, translate

T = TypeVar("T")
Job: TypeAlias = Callable[[sqlite3.Connection], Any]
Done: TypeAlias = Callable[[Any], object]
"""What is called with a job's result, in the writer's thread, after the commit; not where it failed."""

BEAT = 0.5
"""Most seconds between two beats: when the thread, on its own, renews leases and looks after the file."""

MOST_JOBS = 256
"""Jobs in one transaction, so that no commit makes the others wait for long."""


CALM = 1.5
"""Seconds after writing was held up for all until leases say again who is dead: the living have been waiting in line,
or try anew with every beat, and renew as soon as they may."""

END_WITHIN = 5.0
"""Seconds to wait for the thread to end. It takes longer only where another process keeps the write lock."""


class Unconfirmed(TidemillError):
    """The commit itself failed: whether it took effect is not known."""


class Writer:
    """Runs jobs in transactions, in the order they were submitted. A job that fails takes no other one along."""

    def __init__(
        self, path: str, lock: WriteLock, synchronous: str, beat: Callable[[], Sequence[tuple[Job, Done]]]
    ) -> None:
        self._path = path
        self._lock = lock
        self._synchronous = synchronous
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[tuple[Job, asyncio.Future[Any] | Done]] = deque()
        self._every = BEAT
        self._held_up = (time.monotonic(), math.inf)  # nothing is known of what was before
        self._wanted = threading.Event()
        self._closing = False
        self._refusal = f"{path} is closed; nothing was stored. Connect again."
        self._thread = threading.Thread(target=self._run, name="tidemill-sqlite-writer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, job: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Have `job` run in a transaction; the future is done after the commit.

        It fails with `BrokerError` if nothing was stored, with `Unconfirmed` if that is not known.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closing:
            future.set_exception(BrokerError(self._refusal))
            return future
        self._jobs.append((job, future))
        if not self._wanted.is_set():
            self._wanted.set()
        return future

    async def close(self) -> bool:
        """Finish what was submitted, then end the thread. Whether that is done: see `END_WITHIN`."""
        self._closing = True
        self._wanted.set()
        await self._loop.run_in_executor(None, self._thread.join, END_WITHIN)
        return not self._thread.is_alive()

    def keep(self, lease: float) -> None:
        """Beat often enough for a lease of so many seconds: a twelfth of it must not matter."""
        self._every = min(self._every, lease / 12)

    def is_calm(self, lease: float) -> bool:
        """Whether no writer had to wait lately for so long that it may have missed to renew a lease of `lease` seconds.

        Leases are renewed at each third, so it takes two thirds for one to end, of which this one has noticed a sixth.
        """
        at, waited = self._held_up
        return waited < lease / 8 or time.monotonic() - at > CALM

    def _note(self, waited: float) -> None:
        at, longest = self._held_up
        now = time.monotonic()
        self._held_up = (now, waited if now - at > CALM else max(waited, longest))

    def refuse(self, why: str) -> None:
        """Take nothing more, without waiting for anything: in a forked process the thread does not exist."""
        self._closing = True
        self._refusal = why

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        beaten = 0.0
        while True:
            self._wanted.wait(self._every)
            self._wanted.clear()
            now = time.monotonic()
            if now - beaten >= self._every and not self._closing:
                if beaten and now - beaten > 2 * self._every:
                    self._note(now - beaten)  # it stood still itself
                beaten = now
                self._jobs.extend(self._beat())
            while self._jobs:
                batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), MOST_JOBS))]
                try:
                    if connection is None:
                        connection = connect(self._path, synchronous=self._synchronous)
                except (sqlite3.Error, OSError) as error:
                    answers: list[Any] = [translate(self._path, error)] * len(batch)
                else:
                    answers = self._commit(connection, [job for job, _ in batch])
                waiting: list[tuple[asyncio.Future[Any], Any]] = []
                for (_, whom), answer in zip(batch, answers, strict=True):
                    if not callable(whom):
                        waiting.append((whom, answer))
                    elif not isinstance(answer, BaseException):
                        whom(answer)
                if waiting:
                    try:
                        self._loop.call_soon_threadsafe(_answer, waiting)
                    except RuntimeError:
                        pass  # the loop is gone, and with it whoever waited
            if self._closing and not self._jobs:
                break
        if connection is not None:
            with self._lock.held():  # the last connection to close checkpoints
                connection.close()

    def _commit(self, connection: sqlite3.Connection, jobs: list[Job], *, again: bool = True) -> list[Any]:
        """Run jobs in one transaction; where one fails, each in its own. An answer each, or an exception."""
        begun = full = False
        began = time.monotonic()
        try:
            with self._lock.held():
                waited = time.monotonic() - began
                if waited > 0.1:
                    self._note(waited)
                connection.execute("begin immediate")
                begun = True
                try:
                    answers = [job(connection) for job in jobs]
                    _end(connection, self._path)
                except BaseException as error:
                    if connection.in_transaction:  # else SQLite has rolled back by itself
                        connection.execute("rollback")
                    full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
                    if full and again:
                        _make_room(connection)
                    raise
            return answers
        except BaseException as error:
            if not isinstance(error, ConfigurationError):
                self._note(math.inf)  # a full disk, say: the others cannot write either
            # Where not even a transaction could begin, no job is to blame, and each alone would wait as long.
            if begun and (len(jobs) > 1 or (full and again)) and not isinstance(error, Unconfirmed):
                again = again and not full
                return [answer for job in jobs for answer in self._commit(connection, [job], again=again)]
            if isinstance(error, sqlite3.Error | OSError):
                error = translate(self._path, error)
            elif not isinstance(error, TidemillError):
                error = BrokerError(f"{self._path}: {type(error).__name__}: {error}")
            return [error] * len(jobs)


def _make_room(connection: sqlite3.Connection) -> None:
    # It may be the write-ahead log that has filled the disk, and what is in it may have its place in the file already.
    try:
        connection.execute("pragma busy_timeout = 0")  # other processes wait for the lock that is held here
        connection.execute("pragma wal_checkpoint(truncate)")
    except sqlite3.Error:
        pass  # then not
    finally:
        connection.execute(f"pragma busy_timeout = {BUSY}")


def _end(connection: sqlite3.Connection, path: str) -> None:
    try:
        connection.execute("commit")
    except sqlite3.Error as error:
        # Without room the last frame, the one that commits, was not written. Where it was written and not synced,
        # say, the transaction is gone from here, and may be back after a crash.
        if connection.in_transaction or error.sqlite_errorname == "SQLITE_FULL":
            raise
        raise Unconfirmed(
            f"{path}: the commit failed ({error}) and may have taken effect. It is safe to repeat it."
        ) from error


def _answer(waiting: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in waiting:
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

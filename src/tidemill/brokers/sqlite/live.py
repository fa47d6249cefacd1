"""Which processes are alive, known at once: each holds a lock on a file of its own, and the kernel lets go of it when
the process ends, however it ends. A process that is only paused keeps its lock; its lease ends instead.

The file holds the process's journal: which handlers it ran. It is kept until those have been charged.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...ids import new_id
from .bell import SUFFIX
from .journal import Journal, Run, running


class Life:
    """This process's sign of life beside one database file. `token` names it."""

    def __init__(self, database: str, is_known: Callable[[str], bool] = lambda token: False) -> None:
        self._folder = Path(f"{database}-live")
        self._is_known = is_known
        self.token, self._file = self._begin()
        self.journal = Journal(self._file)
        # What processes left behind that died while nobody was looking.
        for name in os.listdir(self._folder):
            if not name.endswith(SUFFIX):
                self.bury(name)

    def _begin(self) -> tuple[str, int]:
        while True:
            token = new_id()
            self._folder.mkdir(exist_ok=True)
            try:
                file = os.open(self._folder / token, os.O_CREAT | os.O_RDWR, 0o644)
            except FileNotFoundError:
                continue  # the last of the others left just now, and took the folder along
            # Before the token appears in any table, so that nobody finds it there without its lock.
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                return token, file
            # Somebody found it before it was locked, and took it away. Others may be about to: never that name again.
            os.close(file)

    def is_alive(self, token: str) -> bool:
        """Whether the process of that token still runs (or is paused). Where that cannot be seen: yes."""
        return token == self.token or not self._when_dead(token, lambda: None)

    def running(self, token: str, consumer: int) -> dict[int, Run]:
        """seq -> run of the handlers that a consumer of that process runs, or ran when it died."""
        try:
            file = os.open(self._folder / token, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            return {}  # it ended well, and took its journal along; or it is none that this process may read
        try:
            return running(file, consumer)
        finally:
            os.close(file)

    def bury(self, token: str) -> None:
        """Take away what a dead process left, unless something of its journal is still to be charged."""
        if token != self.token:
            self._when_dead(token, lambda: None if self._is_known(token) else self._remove(token))

    def _remove(self, token: str) -> None:
        for name in (token, token + SUFFIX):
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()

    def _when_dead(self, token: str, then: Callable[[], None]) -> bool:
        """Whether a process is dead. `then` is called while nobody else can come to the same end."""
        try:
            file = os.open(self._folder / token, os.O_RDWR)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # no permission, too many open files: then its lease decides
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            then()
            return True
        finally:
            os.close(file)

    def end(self) -> None:
        """Take the sign away."""
        with suppress(FileNotFoundError):
            (self._folder / self.token).unlink()
        self.forked()
        with suppress(OSError):
            self._folder.rmdir()  # only where this was the last

    def forked(self) -> None:
        """Leave the sign to the process that forked this one: only it lives by it."""
        self.journal.close()
        os.close(self._file)

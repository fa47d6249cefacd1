"""Which processes are alive, known at once: each holds a lock on a file of its own, and the kernel lets go of it when
the process ends, however it ends. A process that is only paused keeps its lock; its lease ends instead.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from ...ids import new_id


class Life:
    """This process's sign of life beside one database file. `token` names it."""

    def __init__(self, database: str) -> None:
        self._folder = Path(f"{database}-live")
        self._folder.mkdir(exist_ok=True)
        self.token = new_id()
        self._file = os.open(self._folder / self.token, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        # Before the token appears in any table, so that nobody finds it there without its lock.
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def is_alive(self, token: str) -> bool:
        """Whether the process of that token still runs (or is paused)."""
        if token == self.token:
            return True
        try:
            file = os.open(self._folder / token, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            with suppress(FileNotFoundError):
                (self._folder / token).unlink()
            return False
        finally:
            os.close(file)

    def end(self) -> None:
        """Take the sign away."""
        with suppress(FileNotFoundError):
            (self._folder / self.token).unlink()
        os.close(self._file)
        with suppress(OSError):
            self._folder.rmdir()  # only where this was the last

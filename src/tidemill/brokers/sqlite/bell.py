"""A bell per process, so that none has to keep looking whether another has published: a named pipe beside its sign of
life. Ringing is a hint and never waits; who misses it looks by itself soon enough.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

SUFFIX: Final = ".bell"
FRESH: Final = 1.0
"""Seconds for which the folder is listed anew at each ring after it changed: file systems keep times coarsely."""


class Bell:
    """This process's bell, if it has hung one up, and those of the others."""

    def __init__(self, database: str) -> None:
        self._folder = f"{database}-live"
        self._mine = ""
        self._file: int | None = None
        self._others: dict[str, int] = {}
        self._changed = 0

    def hang_up(self, token: str, rung: Callable[[], object]) -> bool:
        """Have `rung` called whenever another process rings. False where the file system has no pipes."""
        self._mine = token + SUFFIX
        path = Path(self._folder) / self._mine
        try:
            os.mkfifo(path, 0o644)
            # Both ends, so that it does not read as ended whenever the last of the others closes.
            self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return False
        asyncio.get_running_loop().add_reader(self._file, self._heard, rung)
        return True

    def _heard(self, rung: Callable[[], object]) -> None:
        if self._file is not None:
            with suppress(BlockingIOError):
                os.read(self._file, 4096)
            rung()

    def ring(self) -> None:
        """Ring every other process's bell."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
        except FileNotFoundError:
            return
        if changed != self._changed or time.time_ns() - changed < FRESH * 1e9:
            self._changed = changed
            self._list()
        for name, file in tuple(self._others.items()):
            try:
                os.write(file, b"\0")
            except BlockingIOError:
                pass  # its pipe is full: it has been rung often enough
            except OSError:
                os.close(self._others.pop(name))

    def _list(self) -> None:
        try:
            names = {name for name in os.listdir(self._folder) if name.endswith(SUFFIX)} - {self._mine}
        except FileNotFoundError:
            names = set[str]()
        for name in self._others.keys() - names:
            os.close(self._others.pop(name))
        for name in names - self._others.keys():
            with suppress(OSError):  # nobody listens any more, or it has just gone
                self._others[name] = os.open(Path(self._folder) / name, os.O_WRONLY | os.O_NONBLOCK)

    def take_down(self) -> None:
        """Listen no more, and forget the others."""
        if self._file is not None:
            asyncio.get_running_loop().remove_reader(self._file)
            with suppress(FileNotFoundError):
                os.unlink(Path(self._folder) / self._mine)
        self.forked()

    def forked(self) -> None:
        """In a process that was forked from this one: the bell stays with the parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for file in self._others.values():
            os.close(file)
        self._others.clear()

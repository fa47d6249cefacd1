"""Which handlers run in this process, written where its death cannot take it away: into a memory-mapped file.

The pages of such a file belong to the kernel, so what was written is there for others however the process ends
(`os._exit`, a segmentation fault, the out-of-memory killer), and writing costs no system call. Only the machine's own
death loses it, and then nobody is to blame. A cell is one handler: whose consumer, which event, which run of it.
"""

from __future__ import annotations

import errno
import mmap
import os
from struct import Struct
from typing import Final, TypeAlias

from ...message import Delivery

Run: TypeAlias = tuple[int, int]
"""A run of a handler: which attempt, after how many failures in the event's history. A replay begins again at 1, and
keeps the history: so no run is ever taken for one before the replay."""

# consumer, attempt, failures, seq: in native order, as each number is then written in one go
_CELL: Final = Struct("@qqqq")
_SEQ: Final = Struct("@q")
_SEQ_AT: Final = 24
CELLS: Final = 1024
"""Cells to begin with: more than the handlers of a process that run at once, as a rule. More are added when needed."""


class Journal:
    """The cells of this process, in the file of its sign of life."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._size = 0
        self._free: list[int] = []
        self._map = self._grow()

    def put(self, consumer: int, run: Run, seq: int) -> int:
        """A handler begins: the cell it has. Raises `OSError` where a further one was needed, and there is no room."""
        if not self._free:
            self._map = self._grow()
        cell = self._free.pop()
        # The seq last: a cell without one is empty, so that none is ever read half written.
        _CELL.pack_into(self._map, cell, consumer, *run, seq)
        return cell

    def clear(self, cell: int) -> None:
        """It has ended."""
        _SEQ.pack_into(self._map, cell + _SEQ_AT, 0)
        self._free.append(cell)

    def close(self) -> None:
        """Let go of the file, not of what is in it."""
        self._map.close()

    def _grow(self) -> mmap.mmap:
        before, size = self._size, self._size + CELLS * _CELL.size
        # Written, not only made longer: a page that a full disk has no room for would end the process at its first use.
        if os.pwrite(self._file, bytes(size - before), before) < size - before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # The old map stays as it is until the new one shows the same pages.
        grown = mmap.mmap(self._file, size)
        self._size = size
        self._free = list(range(size - _CELL.size, before - 1, -_CELL.size))
        return grown


class Begun:
    """What the handlers of one consumer run, or have failed to run while that is not recorded yet.

    consumer  its number in this process.
    """

    def __init__(self, journal: Journal, consumer: int) -> None:
        self._journal = journal
        self._consumer = consumer
        self._cells: dict[int, tuple[Delivery, int]] = {}

    def begin(self, delivery: Delivery) -> bool:
        """A handler begins: from here on the attempt counts. False where that cannot be written down."""
        seq, run = delivery.position, (delivery.attempt, len(delivery.history))
        try:
            self._cells[seq] = delivery, self._journal.put(self._consumer, run, seq)
        except OSError:
            return False
        return True

    def end(self, delivery: Delivery) -> None:
        """It counts no more, or is recorded. Where it had not begun, nothing changes."""
        begun = self._cells.get(delivery.position)
        # Another delivery of the same event may run, where the slot of this one was lost and is held again.
        if begun is not None and begun[0] is delivery:
            del self._cells[delivery.position]
            self._journal.clear(begun[1])


def running(file: int, consumer: int) -> dict[int, Run]:
    """seq -> run of every handler of a consumer that was running when its process died, or is."""
    found: dict[int, Run] = {}
    content = os.pread(file, os.fstat(file).st_size, 0)
    for whose, attempt, failures, seq in _CELL.iter_unpack(content[: len(content) // _CELL.size * _CELL.size]):
        if seq and whose == consumer:
            found[seq] = attempt, failures
    return found

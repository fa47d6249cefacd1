"""Which handlers run in this process, written where its death cannot take it away: into a memory-mapped file.

The pages of such a file belong to the kernel, so what was written is there for others however the process ends
(`os._exit`, a segmentation fault, the out-of-memory killer), and writing costs no system call. Only the machine's own
death loses it, and then nobody is to blame. A cell is one handler: whose consumer, which event, which attempt.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct
from typing import Final

from ...message import Delivery

_CELL: Final = Struct("@qqq")  # consumer, attempt, seq: native order, as each number is then written in one go
_SEQ: Final = Struct("@q")
_SEQ_AT: Final = 16
CELLS: Final = 1024
"""Cells to begin with: more than the handlers of a process that run at once, as a rule. More are added when needed."""


class Journal:
    """The cells of this process, in the file of its sign of life."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._size = 0
        self._free: list[int] = []
        self._map = self._grow()

    def put(self, consumer: int, attempt: int, seq: int) -> int:
        """A handler begins: the cell it has."""
        if not self._free:
            self._map = self._grow()
        cell = self._free.pop()
        # The seq last: a cell without one is empty, so that none is ever read half written.
        _CELL.pack_into(self._map, cell, consumer, attempt, seq)
        return cell

    def clear(self, cell: int) -> None:
        """It has ended."""
        _SEQ.pack_into(self._map, cell + _SEQ_AT, 0)
        self._free.append(cell)

    def close(self) -> None:
        """Let go of the file, not of what is in it."""
        self._map.close()

    def _grow(self) -> mmap.mmap:
        before = self._size
        self._size += CELLS * _CELL.size
        # Written, not only made longer: a page that a full disk has no room for would end the process at its first use.
        os.pwrite(self._file, bytes(self._size - before), before)
        # The old map stays as it is until the new one shows the same pages.
        grown = mmap.mmap(self._file, self._size)
        self._free = list(range(self._size - _CELL.size, before - 1, -_CELL.size))
        return grown


class Begun:
    """What the handlers of one consumer run, or have failed to run while that is not recorded yet.

    consumer  its number in this process.
    """

    def __init__(self, journal: Journal, consumer: int) -> None:
        self._journal = journal
        self._consumer = consumer
        self._cells: dict[int, int] = {}

    def begin(self, delivery: Delivery) -> None:
        """A handler begins: from here on the attempt counts."""
        self._cells[delivery.position] = self._journal.put(self._consumer, delivery.attempt, delivery.position)

    def end(self, delivery: Delivery) -> None:
        """It counts no more, or is recorded. Where it had not begun, nothing changes."""
        cell = self._cells.pop(delivery.position, None)
        if cell is not None:
            self._journal.clear(cell)


def running(file: int, consumer: int) -> dict[int, int]:
    """seq -> attempt of every handler of a consumer that was running when its process died, or is."""
    found: dict[int, int] = {}
    content = os.pread(file, os.fstat(file).st_size, 0)
    for whose, attempt, seq in _CELL.iter_unpack(content[: len(content) // _CELL.size * _CELL.size]):
        if seq and whose == consumer:
            found[seq] = attempt
    return found

"""Reading JSON Lines from a file or a pipe in constant memory, as fast as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Final, Protocol

MAX_LINE: Final = 4 * 1024 * 1024
"""Longest line, in bytes: 4 MiB. A body has at most 1 MiB; escapes, base64 and attributes fit into the rest."""

CHUNK: Final = 1024 * 1024
"""Most bytes read at once, and so about the largest batch of lines."""


class Reads(Protocol):
    """An unbuffered binary stream: `read` returns what there is, at most `size` bytes, and b"" at the end."""

    def read(self, size: int, /) -> bytes | None:
        """Up to `size` bytes, waiting only while there are none."""
        ...


class TooLong:
    """Stands for a line that was longer than `MAX_LINE` and was thrown away as it came in."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class LineSplitter:
    """Cuts chunks of bytes into numbered lines. Holds at most `MAX_LINE` bytes, however long a line is."""

    def __init__(self) -> None:
        self._number = 0
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | TooLong]]:
        """The lines that end in `chunk`, each with its number from 1; empty ones are counted and left out."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._add(chunk[start:end])
            yield from self._take()
            start = end + 1
        self._add(chunk[start:])

    def end(self) -> Iterator[tuple[int, bytes | TooLong]]:
        """The last line, where no line end followed it."""
        if self._size:
            yield from self._take()

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_LINE:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> Iterator[tuple[int, bytes | TooLong]]:
        self._number += 1
        line = b"".join(self._parts)
        size = self._size
        self._parts.clear()
        self._size = 0
        if size > MAX_LINE:
            yield self._number, TooLong(size)
            return
        if self._number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line := line.strip():
            yield self._number, line


async def read_chunks(stream: Reads) -> AsyncIterator[bytes]:
    """What `stream` has, as it comes, without blocking the event loop; at most three chunks ahead.

    The reading thread is a daemon, as a read from a pipe that stays silent cannot be cancelled: Ctrl-C must not
    wait for it.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    room = threading.Semaphore(2)
    wanted = True

    def read() -> None:
        found: bytes | OSError = b"-"
        while wanted and found and not isinstance(found, OSError):
            try:
                found = stream.read(CHUNK) or b""
            except ValueError:  # it was closed, as nothing of it is wanted any more
                return
            except OSError as error:
                found = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.put_nowait, found)
            room.acquire()

    threading.Thread(target=read, name="tidemill-read", daemon=True).start()
    try:
        while found := await arrived.get():
            if isinstance(found, OSError):
                raise found
            room.release()
            yield found
    finally:
        wanted = False
        room.release()

"""What workers tell their supervisor, through a pipe each: how they are and how much they have handled, a line of JSON
a second, and sooner where it changes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec

from ..health import Health

EVERY: Final = 1.0
"""Seconds between two reports of a worker whose state does not change."""

LOOK: Final = 0.2
"""Seconds between two looks whether it has changed."""

SILENT: Final = 5.0
"""Seconds without a report after which a worker counts as hanging: five missed ones are no busy machine."""

MOST: Final = 1 << 20
"""Longest report. Some thousand subscriptions are within it."""


class Report(msgspec.Struct, frozen=True):
    """How one worker is."""

    health: Health
    handled: int
    """Events handled since it started."""
    stuck_after: float | None = None
    """Seconds without a sign of life after which nothing helps any more. None: never."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Report).decode


@asynccontextmanager
async def reporting(file: int | None, ask: Callable[[], Report]) -> AsyncGenerator[None]:
    """Report to the supervisor through the pipe `file` while the block runs. Without one, to nobody."""
    if file is None:
        yield
        return
    pipe = os.fdopen(file, "wb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, pipe)

    async def report() -> None:
        last: Health | None = None
        told = 0.0
        while True:
            found, now = ask(), time.monotonic()
            # A supervisor that does not read need not get each one.
            if (found.health != last or now - told >= EVERY) and not transport.get_write_buffer_size():
                last, told = found.health, now
                transport.write(_encode(found) + b"\n")
            await asyncio.sleep(LOOK)

    task = asyncio.create_task(report(), name="report")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        transport.close()


class Reports:
    """What one worker has reported, at the supervisor's end."""

    def __init__(self) -> None:
        self.last: Report | None = None
        self.heard = time.monotonic()
        """When it was heard last, or when its start was."""

    @property
    def silent(self) -> float:
        """Seconds since it was heard last."""
        return time.monotonic() - self.heard

    async def read(self, file: int) -> None:
        """Read from the pipe `file`, which is closed in the end, until the worker has ended."""
        reader = asyncio.StreamReader(limit=MOST)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                self.heard = time.monotonic()
                with suppress(msgspec.MsgspecError):  # the last one may be cut
                    self.last = _decode(line)
        finally:
            transport.close()

# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Starting the second process, and hearing from it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

PATIENCE = 300.0
"""Seconds to wait for one line: a child that says nothing for longer is broken."""


class Child:
    """A process that runs one of the jobs in `bench.child`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hear(self) -> dict[str, Any]:
        """The next thing it tells."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        if not line:
            raise RuntimeError(f"the second process ended with exit code {await self._process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """Have it drain: SIGTERM."""
        self._process.terminate()


@asynccontextmanager
async def child(do: str, **job: Any) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.child",
        json.dumps({"do": do, **job}),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(process)
        await asyncio.wait_for(process.wait(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

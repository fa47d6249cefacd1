"""The processes of the demo: started, watched, and all ended, however the demo ends. No part of the shop."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

SHOP = Path(__file__).parents[1]
START_WITHIN = 30.0


class Failed(Exception):
    """The demo cannot go on; the text says why."""


class Process:
    """A child, and the file its output goes to."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._child = child

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._child.returncode

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def check_alive(self) -> None:
        if self.code is not None:
            raise self.failed("ended early")

    def failed(self, what: str) -> Failed:
        tail = "\n".join(f"    {line}" for line in self.output().splitlines()[-15:])
        return Failed(f"{self.name} {what} (exit code {self.code}). The end of its log:\n{tail}")

    async def wait(self) -> int:
        return await self._child.wait()

    async def stop(self, within: float) -> int:
        """SIGTERM, and SIGKILL for one that does not mind it. The exit code."""
        if self.code is None:
            self._child.terminate()
        try:
            return await asyncio.wait_for(self.wait(), within)
        except TimeoutError:
            self._child.kill()
            return await self.wait()


class Processes:
    """Starts children in the shop's folder. Their logs are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Process] = []

    async def start(
        self,
        name: str,
        *arguments: str,
        stdin: IO[bytes] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Process:
        """`python <arguments>`, with these environment variables besides the demo's own."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=SHOP,
                env={**os.environ, **(variables or {})},
                stdin=stdin or asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its children in order
            )
        process = Process(name, child, log)
        self.all.append(process)
        return process

    async def start_server(self, name: str, script: str) -> tuple[Process, str]:
        """A server of the outside world on a free port: it and its address."""
        process = await self.start(name, script, "--port", "0")
        async with within(START_WITHIN, f"starting {name}"):
            while not (said := process.output()).endswith("\n"):
                process.check_alive()
                await asyncio.sleep(0.02)
        return process, said.splitlines()[0].removeprefix("listening on ")


@asynccontextmanager
async def processes_in(folder: Path) -> AsyncIterator[Processes]:
    """Processes that end with the block."""
    processes = Processes(folder)
    try:
        yield processes
    finally:
        await asyncio.gather(*(process.stop(within=5) for process in processes.all))


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Fail if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Failed(f"{what} took more than {seconds:.0f} s") from None

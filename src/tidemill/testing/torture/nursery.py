"""Starts processes by forking: one is ready in milliseconds, where a new Python takes a tenth of a second.

The nursery is a process of its own, without threads or an event loop that a fork could break. It reads a job a line
and answers `start PID`; of each process that ended it tells `end PID STATUS`. When its input ends, it kills the rest.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO

import msgspec

from .worker import Job, run

_NONE = 0
"""What there is in place of a process id when no more will come."""

_PROGRAM = "from tidemill.testing.torture.nursery import main; main()"


class Nursery:
    """The nursery, as seen by who started it.

    Not by asyncio's subprocesses: to be cancelled while one of those starts can hang for ever (CPython 3.11).
    """

    def __init__(self, errors: Path, ended: Callable[[int, int], object]) -> None:
        self._errors: IO[bytes] = errors.open("wb")
        self._ended = ended
        self._pids: asyncio.Queue[int] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._encode = msgspec.json.Encoder().encode
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = bytearray()

    def open(self, mutant: str = "") -> None:
        """Start it."""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        process = self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, mutant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for who started it
        )
        assert process.stdout is not None
        asyncio.get_running_loop().add_reader(process.stdout, self._listen, process.stdout.fileno())

    async def start(self, job: Job) -> int:
        """Start a process. Its id. Raises `RuntimeError` where the nursery is no more."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._turn:
            with suppress(BrokenPipeError):
                self._process.stdin.write(self._encode(job) + b"\n")
            pid = await self._pids.get()
            if pid == _NONE:
                self._pids.put_nowait(_NONE)
                raise RuntimeError(f"the process that starts the others has ended. It said:\n{self._said()}")
            return pid

    def _said(self) -> str:
        return Path(self._errors.name).read_text(errors="replace")[-2000:]

    async def close(self) -> None:
        """Kill everything in it, and the nursery with it."""
        process = self._process
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            await asyncio.shield(self._over)
            process.stdout.close()
            process.wait()
        self._errors.close()

    def _listen(self, file: int) -> None:
        chunk = os.read(file, 1 << 16)
        if not chunk:
            asyncio.get_running_loop().remove_reader(file)
            self._over.set_result(None)
            self._pids.put_nowait(_NONE)
        self._heard += chunk
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["start", pid]:
                    self._pids.put_nowait(int(pid))
                case ["end", pid, status]:
                    self._ended(int(pid), int(status))
                case _:
                    pass


def main() -> None:
    """Be the nursery."""
    if mutant := sys.argv[1]:
        module, _, function = mutant.partition(":")
        getattr(import_module(module), function)()
    decode = msgspec.json.Decoder(Job).decode
    buffer = bytearray()
    alive: set[int] = set()
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        if readable:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                break
            buffer += chunk
            while (end := buffer.find(b"\n")) >= 0:
                pid = _fork(decode(buffer[:end]))
                del buffer[: end + 1]
                alive.add(pid)
                _tell(f"start {pid}")
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            alive.remove(pid)
            _tell(f"end {pid} {os.waitstatus_to_exitcode(status)}")
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)


def _fork(job: Job) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        code = run(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell(line: str) -> None:
    with suppress(BrokenPipeError):  # who started it is gone: its input ends too
        os.write(1, f"{line}\n".encode())

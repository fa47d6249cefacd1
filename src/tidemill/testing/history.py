"""What processes did, written down by themselves: one file, a JSON object a line, each written by one append.

What several processes write at once stays whole, and what was written is there however a process ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


class Fact(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Something that happened in, or to, a process."""

    what: str
    """Such as `ready`, `began`, `ended`, `failed`, `draining`; of publishers `confirmed`, `done`."""
    pid: int
    at: int
    """Nanoseconds since 1970."""
    id: str = ""
    key: str = ""
    number: int = -1
    attempt: int = 0
    published: int = 0
    """When the event was published, as the event says."""
    subscription: str = ""
    run: int = 0
    """Which of its process's handler runs, counted from 1; 0 where no handler ran."""
    text: str = ""
    """What else there is to say, for people."""


class Log:
    """Where this process writes its facts."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._encode = msgspec.json.Encoder().encode
        self._pid = os.getpid()

    def fact(self, what: str, **values: Any) -> Fact:
        """A fact of this process, now."""
        return Fact(what, self._pid, time.time_ns(), **values)

    def tell(self, what: str, **values: Any) -> None:
        """Write a fact of this process."""
        os.write(self._file, self._encode(self.fact(what, **values)) + b"\n")

    def write(self, facts: Iterable[Fact]) -> None:
        """Write several, all or none of which survive whatever comes next."""
        if text := b"".join([self._encode(fact) + b"\n" for fact in facts]):
            os.write(self._file, text)

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


class History:
    """The facts in a log, and those that were added since it was last looked at."""

    def __init__(self, log: Path) -> None:
        self.facts: list[Fact] = []
        self._log = log
        self._offset = 0
        self._decode = msgspec.json.Decoder(Fact).decode

    def look(self) -> list[Fact]:
        """Read what is new, and return it."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        new = [self._decode(line) for line in whole.splitlines()]
        self.facts += new
        return new

    def of(self, what: str) -> list[Fact]:
        """All facts of a kind so far."""
        self.look()
        return [fact for fact in self.facts if fact.what == what]

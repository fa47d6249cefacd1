"""What is known after a torture run: the handler runs there were, the processes they were in, and what is left."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ...broker import DeadLettered, SubscriptionStatus
from ...message import Message
from ..history import Fact

NEVER: Final = 2**63
SECOND: Final = 10**9

SETTLED_SOON: Final = 2 * SECOND
"""After a run ended its outcome may have been on its way for so long when its process was paused."""

NOTICED: Final = 5 * SECOND
"""A process that goes on after a pause may run what it had fetched for so long, before it has seen that its lease is
gone."""


class Remains(msgspec.Struct):
    """What there is once everything has ended."""

    stored: list[Message] = []
    """The topic, as it is read from the beginning."""
    dead: list[DeadLettered] = []
    statuses: list[SubscriptionStatus] = []
    integrity: str = ""
    """What the storage's own check says; empty where there is none."""
    drained: float | None = None
    """Seconds from the last fault until everything was settled; None where that never came."""
    complaints: list[str] = []
    """Processes that ended when nobody had told them to, or did not end when told."""


class Process(msgspec.Struct):
    """What is known of a process."""

    pid: int
    ended: int = NEVER
    how: str = ""
    """`killed`, `exits` (an event ended it), `stopped` (by SIGTERM, after it had drained)."""
    pauses: list[tuple[int, int]] = []


class Run(msgspec.Struct):
    """One run of a handler."""

    subscription: str
    id: str
    key: str
    number: int
    attempt: int
    process: Process
    began: int
    ended: int = 0
    """0: it never did, by itself."""
    how: str = ""
    """`ended`, `failed` or `cut` (cancelled); empty where it never ended by itself."""
    settled: str = ""
    """What the broker accepted for it (`acked`, `retried`, `dead`, `released`), or `late`; empty: nobody knows."""
    void: bool = False
    """Its process had lost the lease: it does not count, and proves nothing."""

    @property
    def over(self) -> int:
        """When it was over: it ended, or its process did."""
        return self.ended or self.process.ended

    @property
    def died(self) -> bool:
        """Whether its process ended before anything became of it."""
        return not self.settled and self.process.how in ("killed", "exits")

    @property
    def final(self) -> bool:
        """Whether the broker took it for the last."""
        return self.settled in ("acked", "dead")


class Evidence:
    """A history, read."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.facts = sorted(facts, key=lambda fact: fact.at)
        self.processes = _processes(self.facts)
        self.runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        """By subscription and event, in the order they began."""
        self.without_run: list[Fact] = []
        """Settlements of what no handler ran."""
        self.begun: set[tuple[str, str, int]] = set()
        """Subscription, event and attempt of what was about to run when its process died, and maybe did."""
        self._read()

    def of(self, what: str) -> list[Fact]:
        """All facts of a kind."""
        return [fact for fact in self.facts if fact.what == what]

    def _read(self) -> None:
        by_number: dict[tuple[int, int], Run] = {}
        settled: list[Fact] = []
        begins: list[Fact] = []
        for fact in self.facts:
            match fact.what:
                case "began":
                    process = self.processes[fact.pid]
                    run = Run(fact.subscription, fact.id, fact.key, fact.number, fact.attempt, process, fact.at)
                    by_number[fact.pid, fact.run] = run
                    self.runs[fact.subscription, fact.id].append(run)
                case "ended" | "failed" | "cut":
                    run = by_number[fact.pid, fact.run]
                    run.ended, run.how = fact.at, fact.what
                case "begins":
                    begins.append(fact)
                case "acked" | "retried" | "dead" | "released" | "late":
                    settled.append(fact)
                case _:
                    pass
        for fact in settled:
            found = by_number.get((fact.pid, fact.run))
            if found is None:
                self.without_run.append(fact)
            else:
                found.settled = fact.what
        for fact in begins:
            if (fact.pid, fact.run) not in by_number and self.processes[fact.pid].how in ("killed", "exits"):
                self.begun.add((fact.subscription, fact.id, fact.attempt))
        for runs in self.runs.values():
            for run in runs:
                run.void = _is_void(run)


def _processes(facts: Iterable[Fact]) -> dict[int, Process]:
    found: dict[int, Process] = {}
    for fact in facts:
        process = found.setdefault(fact.pid, Process(fact.pid))
        match fact.what:
            case "killed" | "exits" | "stopped":
                process.ended, process.how = min(process.ended, fact.at), process.how or fact.what
            case "paused":
                process.pauses.append((fact.at, NEVER))
            case "resumed":
                process.pauses[-1] = process.pauses[-1][0], fact.at
            case _:
                pass
    return found


def _is_void(run: Run) -> bool:
    if run.settled:
        return run.settled == "late"
    end = run.ended or math.inf
    return any(began <= end + SETTLED_SOON and run.began <= until + NOTICED for began, until in run.process.pauses)

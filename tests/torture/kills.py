"""Kill -9 consumers and publishers of one SQLite file at random moments, hundreds of times; then look what is left.

    python -m tests.torture.kills --seed 7 --kills 1000 --seconds 300

Three consumers and a publisher are alive at any time; whoever is killed is replaced. Every process writes what it
did to one append-only log. What has to hold in the end, `check` says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tidemill.broker import DeadLettered, SubscriptionStatus, connect
from tidemill.clock import SystemClock
from tidemill.message import Message
from tidemill.testing.worker import Fact, History, fails_of

KEYS = [f"k{number}" for number in range(24)]
ATTEMPTS = 4
CONSUMERS = 3
DRAIN = 60.0
"""Seconds within which everything has to be handled once the killing is over."""


@dataclass
class Run:
    """What happened in one run."""

    seed: int
    kills: dict[int, int] = field(default_factory=dict)
    """Process id -> when it was killed."""
    publishers: int = 0
    """Of the kills: publishers."""
    stopped: int = 0
    """Processes that were asked to end, by SIGTERM."""
    history: list[Fact] = field(default_factory=list)
    stored: list[Message] = field(default_factory=list)
    dead: list[DeadLettered] = field(default_factory=list)
    status: SubscriptionStatus | None = None
    integrity: str = ""
    seconds: float = 0.0


class Nursery:
    """The children: started by a process that forks, killed by this one."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.log = folder / "history.jsonl"
        self.alive: dict[int, str] = {}
        self.expected: set[int] = set()
        self._errors = (folder / "errors.txt").open("wb")
        self._pids: asyncio.Queue[int] = asyncio.Queue()
        self._failure: str | None = None

    async def open(self) -> None:
        program = Path(__file__).with_name("nursery.py")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
        )
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            match line.decode().split():
                case ["start", pid]:
                    self._pids.put_nowait(int(pid))
                case ["end", pid, status]:
                    kind = self.alive.pop(int(pid), "?")
                    if int(pid) not in self.expected or int(status) not in (0, -signal.SIGKILL):
                        self._failure = f"a {kind} ended by itself with status {status}"

    async def start(self, kind: str, *options: object) -> int:
        assert self._process.stdin is not None
        arguments = [kind, self.url, str(self.log), *map(str, options)]
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        pid = await asyncio.wait_for(self._pids.get(), 10)
        self.alive[pid] = kind
        return pid

    async def end(self, pid: int, number: signal.Signals) -> None:
        """Send a signal that ends a process, and wait until it has."""
        self.expected.add(pid)
        os.kill(pid, number)
        end = time.monotonic() + 15
        while pid in self.alive:
            assert time.monotonic() < end, f"a process got {number.name} and still runs"
            await asyncio.sleep(0.002)

    def check(self) -> None:
        """Fail if a process ended that nobody killed."""
        if self._failure is not None:
            self._errors.flush()
            text = Path(self._errors.name).read_text(errors="replace")
            raise AssertionError(f"{self._failure}:\n{text[-3000:]}")

    async def close(self) -> None:
        for pid in list(self.alive):
            self.expected.add(pid)
            os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._listener
        self._errors.close()


async def torture(
    folder: Path, *, seed: int, kills: int, seconds: float, report: Callable[[str], object] = lambda _: None
) -> Run:
    """Kill until `kills` or `seconds` are reached, let everything be handled, and collect what is there."""
    run = Run(seed)
    draw = random.Random(seed)
    url = f"sqlite:///{folder}/torture.db"
    nursery = Nursery(url, folder)
    history = History(nursery.log)
    confirmed = dict.fromkeys(KEYS, -1)
    began = told = time.monotonic()

    def look() -> None:
        for fact in history.look():
            if fact.what == "confirmed":
                confirmed[fact.key] = max(fact.number, confirmed[fact.key])

    def ready() -> set[int]:
        look()
        return {fact.pid for fact in history.facts if fact.what == "ready"}

    async def start(kind: str) -> None:
        if kind == "consume":
            options = [
                "--slow",
                0,
                0.008,
                "--attempts",
                ATTEMPTS,
                "--grace",
                5,
                "--concurrency",
                draw.choice((1, 8)),
            ]
        else:
            look()
            keys = [f"{key}={number + 1}" for key, number in confirmed.items()]
            options = [
                "--pace",
                0.015,
                "--batch",
                draw.choice((1, 8, 16)),
                "--failing",
                "--seed",
                draw.random(),
            ]
            options = ["--keys", *keys, *options[:-1], draw.randrange(1000)]
        await nursery.start(kind, *options)

    await nursery.open()
    try:
        for kind in ["consume"] * CONSUMERS + ["publish"]:
            await start(kind)
        while len(run.kills) < kills and time.monotonic() - began < seconds:
            await asyncio.sleep(draw.choice((0.0, draw.uniform(0, 0.1), draw.uniform(0.05, 0.45))))
            nursery.check()
            pid = draw.choice(sorted(nursery.alive))
            kind = nursery.alive[pid]
            if kind == "consume" and draw.random() < 0.1 and pid in ready():
                run.stopped += 1
                await nursery.end(pid, signal.SIGTERM)
                await start(kind)
                continue
            run.kills[pid] = time.time_ns()
            run.publishers += kind == "publish"
            await nursery.end(pid, signal.SIGKILL)
            await start(kind)
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                look()
                report(_progress(run, history, told - began))
        for pid in [pid for pid, kind in nursery.alive.items() if kind == "publish"]:
            run.kills[pid] = time.time_ns()
            await nursery.end(pid, signal.SIGKILL)
        report("no more kills; what is left is handled now")
        await _collect(run, url, nursery)
        for pid in list(nursery.alive):
            while pid not in ready():  # noqa: ASYNC110  before, it has no handler for the signal
                await asyncio.sleep(0.01)
            await nursery.end(pid, signal.SIGTERM)
        nursery.check()
    finally:
        await nursery.close()
    look()
    run.history = history.facts
    with sqlite3.connect(folder / "torture.db") as connection:
        run.integrity = connection.execute("pragma integrity_check").fetchone()[0]
    connection.close()
    run.seconds = time.monotonic() - began
    return run


async def _collect(run: Run, url: str, nursery: Nursery) -> None:
    broker = connect(url, SystemClock())
    await broker.open()
    try:
        end = time.monotonic() + DRAIN
        while True:
            nursery.check()
            (run.status,) = (await broker.inspect()).subscriptions
            if run.status.backlog == 0:
                break
            assert time.monotonic() < end, f"not handled {DRAIN:g} s after the last kill: {run.status}"
            await asyncio.sleep(0.05)
        run.stored = [message async for message in broker.read("steps")]
        run.dead = await broker.dead_letters()
    finally:
        await broker.close()


def check(run: Run) -> list[str]:
    """Everything that is wrong with a run: nothing, one hopes."""
    wrong: list[str] = []
    stored = {message.id for message in run.stored}
    dead = {letter.message.id: letter for letter in run.dead}
    ended: dict[str, list[Fact]] = defaultdict(list)
    for fact in sorted(run.history, key=lambda fact: fact.at):
        if fact.what == "ended":
            ended[fact.id].append(fact)

    # What was confirmed is there, once; what is there was handled or given up, and not both.
    lost = {fact.id for fact in run.history if fact.what == "confirmed"} - stored
    if lost:
        wrong.append(f"{len(lost)} confirmed events are lost: {sorted(lost)[:5]}")
    if len(stored) != len(run.stored):
        wrong.append(f"{len(run.stored) - len(stored)} events are stored twice")
    unhandled = stored - ended.keys() - dead.keys()
    if unhandled:
        wrong.append(f"{len(unhandled)} events were neither handled nor given up: {sorted(unhandled)[:5]}")
    if invented := ended.keys() - stored:
        wrong.append(f"{len(invented)} events were handled that nobody stored: {sorted(invented)[:5]}")
    for identity, letter in dead.items():
        key, _, number = identity.partition("-")
        if fails_of(key, int(number)) < ATTEMPTS:
            wrong.append(f"{identity} was given up, but its handler fails fewer times than it has attempts")
        if [failure.attempt for failure in letter.history] != list(range(1, ATTEMPTS + 1)):
            wrong.append(f"{identity}: the dead letter's history is {[f.attempt for f in letter.history]}")
    if poison := [i for i in stored if fails_of(*_parts(i)) >= ATTEMPTS and i not in dead]:
        wrong.append(f"{len(poison)} events that always fail are no dead letters: {poison[:5]}")
    if over := [fact for fact in run.history if fact.attempt > ATTEMPTS]:
        wrong.append(f"more attempts than {ATTEMPTS}: {over[:3]}")
    assert run.status is not None
    if (run.status.acked, run.status.dead) != (len(stored) - len(dead), len(dead)):
        wrong.append(f"{len(stored)} stored, {len(dead)} dead, but inspect says {run.status}")

    # A run that ended well is repeated only where its process was killed.
    for identity, facts in ended.items():
        for fact in facts[:-1]:
            if fact.pid not in run.kills:
                wrong.append(f"{identity} was handled again, though the process that had handled it was not killed")
        if len({fact.pid for fact in facts}) != len(facts):
            wrong.append(f"{identity} was handled twice by one process")

    wrong += _order(run, dead)
    if run.integrity != "ok":
        wrong.append(f"pragma integrity_check: {run.integrity}")
    return wrong


def _order(run: Run, dead: dict[str, DeadLettered]) -> list[str]:
    """Each key: no event begins before the one ahead of it ended (or was given up), and never two at once."""
    wrong: list[str] = []
    next_number: dict[str, int] = Counter()
    running: dict[str, Fact] = {}
    latest: dict[tuple[int, str], int] = {}
    given_up = {_parts(identity): letter.history[-1].at for identity, letter in dead.items() if letter.history}
    for fact in sorted(run.history, key=lambda fact: fact.at):
        key = fact.key
        if fact.what == "began":
            while given_up.get((key, next_number[key]), fact.at) < fact.at:
                next_number[key] += 1
            if fact.number > next_number[key]:
                wrong.append(f"{fact.id} began before {key}-{next_number[key]} had ended")
            if fact.number < latest.get((fact.pid, key), 0):
                wrong.append(f"{fact.id} began after a later event of its key in the same process")
            latest[fact.pid, key] = fact.number
            other = running.get(key)
            if other is not None and run.kills.get(other.pid, sys.maxsize) > fact.at:
                wrong.append(f"{fact.id} began while {other.id} of its key ran")
            running[key] = fact
        elif fact.what in ("ended", "failed"):
            if running.get(key) is not None and running[key].pid == fact.pid:
                del running[key]
            # After its last attempt a key goes on too: that it was given up may be lost with its process, and repeated.
            if fact.what == "ended" or fact.attempt >= ATTEMPTS:
                next_number[key] = max(next_number[key], fact.number + 1)
    return wrong


def coverage(run: Run) -> dict[str, int]:
    """How often what the run is for did happen."""
    runs = Counter(fact.id for fact in run.history if fact.what == "ended")
    open_runs: dict[int, int] = Counter()
    for fact in run.history:
        open_runs[fact.pid] += {"began": 1, "ended": -1, "failed": -1}.get(fact.what, 0)
    return {
        "kills": len(run.kills),
        "publishers killed": run.publishers,
        "stopped": run.stopped,
        "killed while handlers ran": sum(1 for pid in run.kills if open_runs[pid] > 0),
        "events": len(run.stored),
        "repeated": sum(count - 1 for count in runs.values()),
        "dead letters": len(run.dead),
        "retries": run.status.retried if run.status else 0,
    }


def _parts(identity: str) -> tuple[str, int]:
    key, _, number = identity.partition("-")
    return key, int(number)


def _progress(run: Run, history: History, seconds: float) -> str:
    count = Counter(fact.what for fact in history.facts)
    return (
        f"{seconds:5.0f} s   {len(run.kills):5} kills   {count['confirmed']:7} confirmed   "
        f"{count['ended']:7} handled   {count['failed']:6} failed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--folder", type=Path, default=None, help="where to keep the database and the log")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = asyncio.run(
            torture(folder, seed=options.seed, kills=options.kills, seconds=options.seconds, report=print)
        )
    wrong = check(run)
    print(f"{run.seconds:.0f} s: " + ", ".join(f"{count} {name}" for name, count in coverage(run).items()))
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    if len(wrong) > 20:
        print(f"… and {len(wrong) - 20} more")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""A whole torture run: processes, faults, what is left, and the verdict."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from ...broker import Broker, connect, parse_url
from ...clock import SystemClock
from .checker import Checked, check
from .crew import Crew
from .disk import SmallDisk
from .evidence import Remains
from .plan import FaultKind, Plan

TICK: Final = 0.2
"""Seconds between two looks at what the processes have written."""

FIGURES: Final = ("confirmed", "refused", "began", "acked", "retried", "dead", "released", "late", "exits", "future")


class Result(msgspec.Struct, kw_only=True):
    """What a run came to."""

    plan: Plan
    broker: str
    """Its URL, without secrets."""
    folder: str
    """Where the evidence is."""
    hits: dict[FaultKind, int]
    """How often each fault was injected."""
    skipped: dict[FaultKind, str]
    """Faults that could not be injected here, and why."""
    figures: dict[str, int]
    """How often each thing happened, as the processes wrote it down."""
    stored: int
    seconds: float
    drained: float | None
    checked: Checked

    @property
    def failed(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.checked.findings)

    @property
    def missed(self) -> list[str]:
        """Faults that hit too seldom for the run to prove anything."""
        missed = [
            f"{kind}: {self.hits.get(kind, 0)} of at least {self.plan.needed(kind)}"
            for kind in FaultKind
            if self.hits.get(kind, 0) < self.plan.needed(kind) and kind not in self.skipped
        ]
        if self.stored < self.plan.events:
            missed.append(f"events: {self.stored:,} of {self.plan.events:,}")
        return missed


class Progress(msgspec.Struct):
    """How far a run is."""

    seconds: float
    phase: str
    confirmed: int
    handled: int
    kills: int
    pauses: int
    dead: int
    backlog: int


async def torture(
    plan: Plan, folder: Path, url: str | None = None, report: Callable[[Progress], object] = lambda _: None
) -> Result:
    """Run a plan on the broker at `url`, or on a file in `folder`, where the evidence is left. Changes nothing else.

    Raises `BrokerError` where the broker cannot be used to begin with.
    """
    began = time.monotonic()
    disk: SmallDisk | None = None
    if url is None:
        place = folder / "disk"
        place.mkdir()
        if plan.planned(FaultKind.DISK_FULL):
            disk = SmallDisk(place, plan.events)
        url = f"sqlite:///{quote(str(place))}/torture.db"
    try:
        return await _torture(plan, folder, url, disk, began, report)
    finally:
        if disk is not None:
            if not disk.why_not:
                shutil.copytree(disk.folder, folder / "storage", ignore=shutil.ignore_patterns("ballast", "*-live"))
            disk.close()


async def _torture(
    plan: Plan,
    folder: Path,
    url: str,
    disk: SmallDisk | None,
    began: float,
    report: Callable[[Progress], object],
) -> Result:
    broker = connect(url, SystemClock())
    await broker.open()
    (folder / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    crew = Crew(plan, url, folder, disk)
    phase = "faults"

    def tell() -> None:
        counts = crew.counts
        settled = counts["acked"] + counts["dead"]
        report(
            Progress(
                time.monotonic() - began,
                phase,
                crew.confirmed,
                counts["acked"],
                crew.hits[FaultKind.KILL_CONSUMER] + crew.hits[FaultKind.KILL_PUBLISHER],
                crew.hits[FaultKind.PAUSE],
                counts["dead"],
                max(0, crew.confirmed * len(plan.subscriptions) - settled),
            )
        )

    async def watch() -> None:
        while True:
            crew.look()
            tell()
            await asyncio.sleep(TICK)

    watching = asyncio.create_task(watch())
    remains = Remains()
    try:
        await crew.open()
        await _faults(plan, crew)
        phase = "draining"
        await _published(plan, crew)
        await crew.deploy(2)  # what waits for newer code gets it
        calm = time.monotonic()
        if await _drained(plan, broker):
            remains.drained = time.monotonic() - calm
        await crew.stop()
        phase = "checking"
        await _collect(plan, broker, remains)
    finally:
        watching.cancel()
        await crew.close()
        await broker.close()
    crew.look()
    remains.complaints = crew.complaints
    remains.integrity = _integrity(url)
    tell()
    skipped: dict[FaultKind, str] = {}
    if disk is None:
        skipped[FaultKind.DISK_FULL] = "only on a file that this run makes itself"
    elif disk.why_not:
        skipped[FaultKind.DISK_FULL] = f"a small disk cannot be mounted: {disk.why_not}"
    return Result(
        plan=plan,
        broker=broker.url,
        folder=str(folder),
        hits={kind: crew.hits[kind] for kind in FaultKind},
        skipped={kind: why for kind, why in skipped.items() if plan.planned(kind)},
        figures={name: crew.counts[name] for name in FIGURES},
        stored=len({message.id for message in remains.stored}),
        seconds=time.monotonic() - began,
        drained=remains.drained,
        checked=check(plan, crew.history.facts, remains),
    )


async def _faults(plan: Plan, crew: Crew) -> None:
    """Inject every fault at its time, several at once where their times say so."""
    start = time.monotonic()
    limit = plan.minutes * 60
    under_way: set[asyncio.Task[None]] = set()
    for fault in plan.timeline():
        await asyncio.sleep(max(0.0, start + fault.at - time.monotonic()))
        if time.monotonic() - start > limit:
            break
        task = asyncio.create_task(crew.fault(fault))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.gather(*under_way)
    await asyncio.sleep(max(0.0, start + plan.duration - time.monotonic()))


async def _published(plan: Plan, crew: Crew) -> None:
    """Wait until all events are confirmed, as long as a drain may take."""
    end = time.monotonic() + plan.drain
    while crew.confirmed < plan.events and time.monotonic() < end:  # noqa: ASYNC110  it is in a file
        await asyncio.sleep(TICK)


async def _drained(plan: Plan, broker: Broker) -> bool:
    end = time.monotonic() + plan.drain
    while time.monotonic() < end:
        statuses = [status for status in (await broker.inspect()).subscriptions if status.name in plan.subscriptions]
        if statuses and not any(status.backlog for status in statuses):
            return True
        await asyncio.sleep(0.1)
    return False


async def _collect(plan: Plan, broker: Broker, remains: Remains) -> None:
    remains.stored = [message async for message in broker.read(plan.topic)]
    remains.dead = [letter for letter in await broker.dead_letters() if letter.subscription in plan.subscriptions]
    remains.statuses = [
        status for status in (await broker.inspect()).subscriptions if status.name in plan.subscriptions
    ]


def _integrity(url: str) -> str:
    parsed = parse_url(url)
    if parsed.scheme != "sqlite":
        return ""
    from ...brokers.sqlite.file import path_of

    connection = sqlite3.connect(path_of(parsed))
    try:
        found: str = connection.execute("pragma integrity_check").fetchone()[0]
        return found
    finally:
        connection.close()

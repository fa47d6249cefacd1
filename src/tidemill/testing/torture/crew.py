"""The processes that are alive in a torture run: who is gone is replaced, and what is done to them is written down."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from ..history import Fact, History
from .disk import SmallDisk
from .nursery import Nursery
from .plan import Fault, FaultKind, Plan
from .worker import DIED, NO_START, Job

PATIENCE: Final = 30.0
"""Seconds a process may take to become ready, or to end when it was told to: more than any drain and any fault."""

FULL_FOR: Final = 15.0
"""Most seconds that a disk is kept full until somebody feels it: a storage writes where it has room, at first."""

AFTERMATH: Final = 5.0
"""Seconds after a disk was full in which a process may still fail to start for want of room."""


class Place:
    """One of the processes there always are: whoever has it is replaced when gone."""

    def __init__(self, consumes: bool, number: int) -> None:
        self.consumes = consumes
        self.number = number
        self.pid: int | None = None
        self.version = 1
        self.busy = True
        """Whether something is being done to its process, so that nothing else may be."""


class Crew:
    """Starts the processes, keeps them, and injects faults."""

    def __init__(self, plan: Plan, url: str, folder: Path, disk: SmallDisk | None) -> None:
        self.plan = plan
        self.url = url
        self.log = folder / "history.jsonl"
        self.history = History(self.log)
        self.nursery = Nursery(folder / "errors.txt", self._ended)
        self.disk = disk
        self.places = [Place(True, number) for number in range(plan.consumers)]
        self.places += [Place(False, number) for number in range(plan.publishers)]
        self.complaints: list[str] = []
        self.counts: Counter[str] = Counter()
        """Facts so far, by what they say."""
        self.hits: Counter[FaultKind] = Counter()
        """Faults so far, those that hit nothing left out."""
        self.done = {plan.key(number): -1 for number in range(plan.keys)}
        """Key -> the last number confirmed."""
        self.began = 0
        self._ready: set[int] = set()
        self._gone: dict[int, asyncio.Future[int]] = {}
        self._serial = 0
        self._restarts: set[asyncio.Task[None]] = set()
        self._disk_full = 0.0
        self._closing = False
        self._encode = msgspec.json.Encoder().encode
        self._file = self.log.open("ab", buffering=0)

    # ------------------------------------------------------------------- life

    async def open(self) -> None:
        """Start everybody."""
        self.nursery.open(self.plan.mutant)
        self.began = time.time_ns()
        for place in self.places:
            await self._fill(place)

    async def close(self) -> None:
        """Kill everybody."""
        self._closing = True
        for task in self._restarts:
            task.cancel()
        await self.nursery.close()
        self._file.close()

    def tell(self, what: str, pid: int, at: int = 0, text: str = "") -> None:
        """Write down what was done to a process."""
        self._file.write(self._encode(Fact(what, pid, at or time.time_ns(), text=text)) + b"\n")

    def look(self) -> None:
        """Read what the processes have written."""
        for fact in self.history.look():
            self.counts[fact.what] += 1
            if fact.what == "confirmed":
                self.done[fact.key] = max(fact.number, self.done[fact.key])
            elif fact.what == "ready":
                self._ready.add(fact.pid)

    @property
    def confirmed(self) -> int:
        """How many events are confirmed."""
        return sum(self.done.values()) + len(self.done)

    async def stop(self) -> None:
        """Tell everybody to end, and wait until they have."""
        self._closing = True
        await asyncio.gather(*(self._end(place) for place in self.places))

    async def _end(self, place: Place) -> None:
        await self._at_rest(place)  # it may be being started again
        place.busy = True
        if place.pid is not None:
            await self._stop(place.pid)

    async def _at_rest(self, place: Place) -> None:
        """Wait until nothing is being done to a process, for as long as anything may take."""
        end = time.monotonic() + PATIENCE
        while place.busy and time.monotonic() < end:  # noqa: ASYNC110  whoever is first gets it
            await asyncio.sleep(0.02)

    # -------------------------------------------------------------- processes

    async def _spawn(self, place: Place, version: int) -> int:
        self._serial += 1
        left: dict[str, tuple[int, int]] = {}
        if not place.consumes:
            self.look()
            for number in range(place.number, self.plan.keys, self.plan.publishers):
                key, last = self.plan.key(number), self.plan.last(number)
                if self.done[key] + 1 < last:
                    left[key] = self.done[key] + 1, last
        job = Job(
            plan=self.plan,
            url=self.url,
            log=str(self.log),
            consumes=place.consumes,
            version=version,
            serial=self._serial,
            began=self.began,
            left=left,
        )
        pid = await self.nursery.start(job)
        self._gone.setdefault(pid, asyncio.get_running_loop().create_future())
        return pid

    async def _fill(self, place: Place) -> None:
        place.busy = True
        place.pid = await self._spawn(place, place.version)
        place.busy = False
        if self._gone[place.pid].done():  # it ended before this was known
            self._replace(place, self._gone[place.pid].result())

    def _ended(self, pid: int, status: int) -> None:
        gone = self._gone.setdefault(pid, asyncio.get_running_loop().create_future())
        if not gone.done():
            gone.set_result(status)
        for place in self.places:
            if place.pid == pid and not place.busy:
                self._replace(place, status)

    def _replace(self, place: Place, status: int) -> None:
        """Somebody ended by itself: nobody is doing anything to it."""
        assert place.pid is not None
        delay = 0.0
        if status == NO_START and time.monotonic() - self._disk_full < AFTERMATH:
            delay = 0.1
        elif not place.consumes and status == 0:
            place.pid = None  # all is published
            return
        elif status != DIED or not place.consumes:
            self.complaints.append(f"{_name(place)} {place.pid} ended by itself with status {status}")
            delay = 0.1
        if self._closing:
            place.pid = None
            return
        place.busy = True
        task = asyncio.create_task(self._fill_again(place, delay))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _fill_again(self, place: Place, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._fill(place)

    async def _wait_ready(self, pid: int) -> bool:
        """Wait until a process is ready. False where it has ended, or is not."""
        end = time.monotonic() + PATIENCE
        while pid not in self._ready:
            if self._gone[pid].done() or time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
            self.look()
        return not self._gone[pid].done()

    async def _stop(self, pid: int) -> None:
        """SIGTERM, and exit code 0."""
        if not await self._wait_ready(pid):
            if not self._gone[pid].done():
                self.complaints.append(f"process {pid} was not ready within {PATIENCE:g} s")
                await self._kill(pid, "who was not ready")
            return
        with suppress(ProcessLookupError):  # an event may have ended it just now
            os.kill(pid, signal.SIGTERM)
        try:
            status = await asyncio.wait_for(asyncio.shield(self._gone[pid]), PATIENCE)
        except TimeoutError:
            self.complaints.append(f"process {pid} did not end within {PATIENCE:g} s of SIGTERM")
            await self._kill(pid, "who did not end")
            return
        if status == 0:
            self.tell("stopped", pid)
        elif status != DIED:
            self.complaints.append(f"process {pid} ended with status {status} after SIGTERM")

    async def _kill(self, pid: int, text: str) -> bool:
        at = time.time_ns()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        await asyncio.shield(self._gone[pid])
        if self._gone[pid].result() != -signal.SIGKILL:
            return False  # it had ended by itself just then
        self.tell("killed", pid, at, text)
        return True

    # ----------------------------------------------------------------- faults

    async def fault(self, fault: Fault) -> None:
        """Inject a fault; returns when it is over."""
        match fault.kind:
            case FaultKind.KILL_CONSUMER | FaultKind.KILL_PUBLISHER:
                await self._kill_one(fault.kind is FaultKind.KILL_CONSUMER, fault.roll)
            case FaultKind.PAUSE:
                await self._pause_one(fault.roll)
            case FaultKind.DEPLOY:
                if all(place.version == 1 for place in self.places):
                    await self.deploy(2)
                else:
                    await self.deploy(1)
                    await self.deploy(2)
                self.hits[FaultKind.DEPLOY] += 1
            case FaultKind.BURST:
                await self._burst()
            case FaultKind.DISK_FULL:
                await self._fill_disk(fault.roll)

    async def _victim(self, consumes: bool, roll: float, most: int, *, ready: bool = False) -> Place | None:
        """A process to which nothing is being done, as soon as there is one, and not more than `most` at once."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            kind = [place for place in self.places if place.consumes == consumes]
            free = [place for place in kind if not place.busy and place.pid in (self._ready if ready else self._gone)]
            if all(place.pid is None for place in kind):
                return None
            if free and sum(place.busy for place in kind) < most:
                chosen = free[int(roll * len(free))]
                chosen.busy = True
                return chosen
            await asyncio.sleep(0.02)
        return None

    async def _kill_one(self, consumes: bool, roll: float) -> None:
        count = self.plan.consumers if consumes else self.plan.publishers
        place = await self._victim(consumes, roll, count)
        if place is None or place.pid is None:
            return
        hit = await self._kill(place.pid, _name(place))
        if hit:
            self.hits[FaultKind.KILL_CONSUMER if consumes else FaultKind.KILL_PUBLISHER] += 1
        await self._fill(place)

    async def _pause_one(self, roll: float) -> None:
        place = await self._victim(True, roll, max(1, self.plan.consumers // 2), ready=True)
        if place is None or place.pid is None:
            return
        pid, at = place.pid, time.time_ns()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.tell("paused", pid, at)
            await asyncio.sleep(self.plan.lease * (1.1 + 1.9 * (roll * 7 % 1)))
            os.kill(pid, signal.SIGCONT)
            self.tell("resumed", pid)
            self.hits[FaultKind.PAUSE] += 1
        self._unlock(place)

    def _unlock(self, place: Place) -> None:
        """Nothing is done to it any more; what happened to it meanwhile is seen to."""
        place.busy = False
        if place.pid is not None and self._gone[place.pid].done():
            self._replace(place, self._gone[place.pid].result())

    async def deploy(self, version: int) -> None:
        """Replace all processes by such of another version of the code, one after the other.

        In the order in which older code meets newer events: they are published before all consumers know them, and
        some are left when consumers no longer do.
        """
        for place in self.places if version == 1 else reversed(self.places):
            await self._at_rest(place)
            if place.busy or place.pid is None:
                place.version = version
                continue
            place.busy = True
            old, place.version = place.pid, version
            if place.consumes:
                while not await self._wait_ready(new := await self._spawn(place, version)):
                    status = self._gone[new].result() if self._gone[new].done() else None
                    if status not in (DIED, NO_START):
                        self.complaints.append(f"{_name(place)} {new} did not start: {status}")
                        break
                await self._stop(old)
                place.pid = new
            else:  # two publishers of the same keys would publish them twice over
                await self._stop(old)
                place.pid = await self._spawn(place, version)
            self._unlock(place)
        self.tell("deployed", os.getpid(), text=f"version {version}")

    async def _burst(self) -> None:
        ready = await self._victim(False, 0.0, self.plan.publishers + 1, ready=True)
        if ready is None:
            return
        self._unlock(ready)
        for place in self.places:
            if not place.consumes and place.pid is not None and place.pid in self._ready:
                with suppress(ProcessLookupError):
                    os.kill(place.pid, signal.SIGUSR1)
        self.tell("burst", os.getpid())
        self.hits[FaultKind.BURST] += 1

    async def _fill_disk(self, roll: float) -> None:
        if self.disk is None or self.disk.why_not:
            return
        before = self.counts["refused"], self.counts["no start"]
        self.tell("disk full", os.getpid())
        end = time.monotonic() + FULL_FOR
        hit = False
        while time.monotonic() < end:
            self.disk.fill()  # again and again, as a storage may make room for itself
            self._disk_full = time.monotonic()
            await asyncio.sleep(0.05)
            self.look()
            felt = (self.counts["refused"], self.counts["no start"]) != before
            if felt and not hit:
                hit = True
                end = time.monotonic() + 0.2 + 1.8 * roll
        self.disk.free()
        self._disk_full = time.monotonic()
        self.tell("disk free", os.getpid())
        self.hits[FaultKind.DISK_FULL] += hit


def _name(place: Place) -> str:
    return "consumer" if place.consumes else "publisher"

"""A torture run must find what is wrong: known-wrong variants of the code, each in a run of seconds.

The same runs without a mutant pass, or they would prove nothing. They wait more than they work, so a few go on at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from tidemill.testing.torture.plan import FaultKind, Kind, Plan
from tidemill.testing.torture.runner import Result, torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

AT_ONCE = (os.cpu_count() or 1) + 1

BASE = Plan(
    seed=11,
    events=400,
    keys=12,
    consumers=2,
    publishers=1,
    seconds=2.0,
    lease=0.9,
    timeout=0.4,
    attempts=3,
    drain=20.0,
    shares={Kind.FLAKY: 0.05, Kind.RAISES: 0.03, Kind.UNDECODABLE: 0.03, Kind.HANGS: 0.01, Kind.EXITS: 0.005},
)

RUNS = {
    "kills": {FaultKind.KILL_CONSUMER: 10, FaultKind.KILL_PUBLISHER: 4, FaultKind.BURST: 2},
    "pauses": {FaultKind.PAUSE: 9, FaultKind.BURST: 2},
    "deploys": {FaultKind.DEPLOY: 4, FaultKind.BURST: 2},
}

MUTANTS = {
    "ack_before_handling": ("kills", {"not handled", "lease lost"}),
    "ack_before_the_end": ("deploys", {"acknowledged unhandled"}),
    "failed_settle_forgotten": ("kills", {"not drained"}),
    "cursor_past_what_is_in_flight": ("kills", {"not handled", "poison"}),
    "no_fencing": ("pauses", {"settled twice", "repeated", "two at once", "order"}),
    "lanes_off": ("kills", {"two at once", "order"}),
    "dead_letter_dropped": ("deploys", {"poison"}),
    "attempts_forgotten": ("kills", {"attempts forgotten"}),
    "exceptions_forgotten": ("kills", {"not handled", "poison"}),
    "neighbours_charged": ("kills", {"innocent charged"}),
    "crash_not_charged": ("kills", {"not drained"}),
    "drain_acks": ("deploys", {"acknowledged unhandled"}),
    "released_is_charged": ("deploys", {"innocent charged"}),
    "confirmed_before_the_commit": ("kills", {"lost"}),
    "raw_bytes_lost": ("deploys", {"bytes"}),
}
"""Each mutant: the faults that bring it to light, and rules of which it must break one."""


def plan_of(name: str) -> Plan:
    if name in MUTANTS:
        right = plan_of(MUTANTS[name][0])
        return msgspec.structs.replace(right, mutant=f"{__package__}.mutants:{name}", drain=2.5)
    if name == "deploys":  # slow enough that something waits to be given back
        return msgspec.structs.replace(BASE, faults=RUNS[name], keys=5, longest=0.06)
    if name == "pauses":
        # Slow enough that something runs when a process is stopped, and long enough that others have been there for a
        # while: who has just come takes nobody for dead by its lease.
        return msgspec.structs.replace(BASE, faults=RUNS[name], longest=0.1, seconds=6.0, events=800)
    return msgspec.structs.replace(BASE, faults=RUNS[name])


async def perform(names: Iterable[str], folder: Path) -> dict[str, Result]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> tuple[str, Result]:
        async with turn:
            place = folder / name
            place.mkdir()
            return name, await torture(plan_of(name), place)

    return dict(await asyncio.gather(*map(one, names)))


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The runs of all tests that are to be run."""
    chosen = [item.callspec.params for item in request.session.items if item.path == request.path]  # type: ignore[attr-defined]
    names = [next(iter(params.values())) for params in chosen]
    return asyncio.run(perform(names, tmp_path_factory.mktemp("torture")))


@pytest.mark.parametrize("name", RUNS)
def test_what_is_right_passes(name: str, results: dict[str, Result]) -> None:
    result = results[name]
    assert result.checked.findings == []
    # A burst may find no publisher ready, in two seconds in which those are killed as well. Nothing rests on it.
    assert [missed for missed in result.missed if not missed.startswith(FaultKind.BURST)] == []


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_wrong_is_found(mutant: str, results: dict[str, Result]) -> None:
    findings = results[mutant].checked.findings
    assert results[mutant].figures["began"] >= 100, "the mutant is broken, rather than wrong"
    assert {finding.rule for finding in findings} & MUTANTS[mutant][1], f"found: {list(map(str, findings))}"

"""A short run of all that `tidemill torture` does; see docs/torture.md."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tidemill.testing.torture.plan import FaultKind, Plan
from tidemill.testing.torture.report import command_line, happenings, verdict
from tidemill.testing.torture.runner import torture


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_whatever_is_done(tmp_path: Path) -> None:
    plan = Plan(seed=random.randrange(1_000_000), events=6000)
    result = asyncio.run(torture(plan, tmp_path))
    print(command_line(result), *happenings(result), sep="\n")
    assert result.checked.findings == []
    assert verdict(result)[0] == "PASSED", verdict(result)[1]
    assert result.hits[FaultKind.KILL_CONSUMER] + result.hits[FaultKind.KILL_PUBLISHER] >= 60
    assert result.hits[FaultKind.PAUSE] >= 8
    assert result.checked.repeated.get("paused", 0) >= 1  # or no pause cost anybody a lease
    assert result.figures["future"] >= 1  # or no older code met a newer event
    assert sum(result.checked.repeated.values()) >= 20  # or no kill met a handler

"""200 kill -9 of consumers and publishers at random moments: nothing is lost, each key stays in order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from kills import check, coverage, torture


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}: repeat with `python -m tests.torture.kills --seed {seed}`")
    run = asyncio.run(torture(tmp_path, seed=seed, kills=200, seconds=75.0))
    happened = coverage(run)
    print(happened)
    assert check(run) == []
    # A run in which the faults missed proves nothing.
    assert happened["kills"] >= 100
    assert happened["publishers killed"] >= 10
    assert happened["killed while handlers ran"] >= 3  # 16 to 64 on an idle machine
    assert happened["events"] >= 2000
    assert happened["dead letters"] >= 1

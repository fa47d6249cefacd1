"""A pace is never faster than its rate, hardly slower, and no clock brings it to a halt."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import MAX_DELAY
from tidemill.rate import Pace, Rate

SECOND = 1_000_000_000


class Time:
    def __init__(self) -> None:
        self.ns = 1_900_000_000 * SECOND

    def now(self) -> int:
        return self.ns

    def pass_(self, seconds: float) -> None:
        self.ns += math.ceil(seconds * SECOND)


rates = st.builds(
    Rate, st.floats(0.5, 10_000), per=st.floats(0.01, 3600), burst=st.one_of(st.none(), st.integers(1, 50))
)


@given(rate=rates, pauses=st.lists(st.floats(0, 5), max_size=30))
def test_no_span_of_time_holds_more_than_the_rate_and_the_burst(rate: Rate, pauses: list[float]) -> None:
    time = Time()
    pace = Pace(rate, time.now)
    started: deque[int] = deque()
    for pause in [*pauses, *[0.0] * 100]:
        time.pass_(pause * rate.per)
        time.pass_(pace.take() if pause == 0 and len(started) % 2 else 0)
        if pace.take() == 0:
            started.append(time.ns)
    for index, began in enumerate(started):
        within = [at for at in list(started)[index:] if at - began < rate.per * SECOND]
        assert len(within) <= rate.count + rate.at_once


@given(rate=rates)
def test_who_asks_again_when_told_starts_then_and_keeps_the_rate(rate: Rate) -> None:
    time = Time()
    pace = Pace(rate, time.now)
    for _ in range(rate.at_once):
        assert pace.take() == 0
    began = time.ns
    for _ in range(20):
        wait = pace.take()
        assert 0 < wait <= rate.per / rate.count * 1.0001 + 1e-6
        time.pass_(wait)
        assert pace.take() == 0
    assert math.isclose((time.ns - began) / SECOND, 20 * rate.per / rate.count, rel_tol=1e-3, abs_tol=1e-6)


def test_asking_counts_nothing_while_it_must_wait() -> None:
    time = Time()
    pace = Pace(Rate(1), time.now)
    assert pace.take() == 0
    assert [pace.take() for _ in range(5)] == [1.0] * 5
    time.pass_(0.75)
    assert pace.take() == 0.25


def test_a_pause_saves_up_the_burst_and_no_more() -> None:
    time = Time()
    pace = Pace(Rate(10, burst=3), time.now)
    time.pass_(3600)
    assert [pace.take() for _ in range(4)] == [0, 0, 0, 0.1]


def test_those_behind_others_wait_for_them_too() -> None:
    time = Time()
    pace = Pace(Rate(10, burst=2), time.now)
    assert [pace.wait(behind) for behind in range(4)] == [0, 0, 0.1, 0.2]
    pace.take()
    assert [pace.wait(behind) for behind in range(3)] == [0, 0.1, 0.2]
    assert pace.interval == 0.1


def test_a_burst_is_by_default_a_tenth_of_a_seconds_worth() -> None:
    assert [Rate(100).at_once, Rate(9).at_once, Rate(30, per=60).at_once, Rate(100, burst=1).at_once] == [10, 1, 1, 1]


@given(back=st.integers(0, 400 * 86400 * SECOND))
def test_a_clock_set_back_neither_stops_nor_hurries(back: int) -> None:
    time = Time()
    pace = Pace(Rate(1), time.now)
    pace.take()
    time.ns -= back
    wait = pace.take()
    assert wait == 1.0
    time.pass_(wait)
    assert pace.take() == 0
    assert pace.take() == 1.0


def test_a_clock_set_forward_brings_one_burst() -> None:
    time = Time()
    pace = Pace(Rate(10, burst=2), time.now)
    pace.take()
    time.pass_(400 * 86400)
    assert [pace.take() for _ in range(3)] == [0, 0, 0.1]


@pytest.mark.parametrize(
    "options",
    [
        {"count": 0},
        {"count": -1},
        {"count": math.nan},
        {"count": math.inf},
        {"count": "100"},
        {"count": True},
        {"count": 10, "per": 0},
        {"count": 10, "per": -1},
        {"count": 10, "per": math.nan},
        {"count": 10, "per": None},
        {"count": 10, "burst": 0},
        {"count": 10, "burst": -2},
        {"count": 10, "burst": 1.5},
        {"count": 10, "burst": True},
        {"count": 1e7},
        {"count": 1, "per": 2 * MAX_DELAY},
        {"count": 1e-300, "per": 1e300},
    ],
    ids=str,
)
def test_rates_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Rate\(.*: give "):
        Rate(**options)


def test_a_rate_is_a_value() -> None:
    assert Rate(100) == Rate(100, per=1) != Rate(100, per=2)
    assert str(Rate(30, per=60)) == "30 per 60 s"
    with pytest.raises(AttributeError):
        Rate(1).count = 2  # type: ignore[misc]

"""A circuit opens when everything fails, lets one probe through at a time, and closes on the first success."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidemill.circuit import Circuit, CircuitBreaker
from tidemill.errors import MAX_DELAY

SECOND = 1_000_000_000


class Time:
    def __init__(self) -> None:
        self.ns = 1_900_000_000 * SECOND

    def now(self) -> int:
        return self.ns

    def pass_(self, seconds: float) -> None:
        self.ns += math.ceil(seconds * SECOND)


def longest(low: float, high: float) -> float:
    return high


def made(**options: Any) -> tuple[CircuitBreaker, Time]:
    time = Time()
    return CircuitBreaker(Circuit(**options), time.now, longest), time


def broken(**options: Any) -> tuple[CircuitBreaker, Time]:
    breaker, time = made(**options)
    for _ in range(breaker.policy.failures):
        assert breaker.admit() == 0
        breaker.failed()
    return breaker, time


def test_it_opens_after_failures_in_a_row() -> None:
    breaker, time = made(failures=3)
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert (breaker.state, breaker.admit(), breaker.opened_at) == ("closed", 0, None)
    for _ in range(3):
        breaker.failed()
    assert (breaker.state, breaker.admit(), breaker.opened_at) == ("open", 1.0, time.ns)


def test_by_default_two_events_that_always_fail_open_nothing() -> None:
    breaker, _ = made()
    for _ in range(2 * 8):
        breaker.failed()
    assert breaker.state == "closed"
    assert Circuit().failures == 20


def test_exactly_one_probe_is_let_through() -> None:
    breaker, time = broken()
    time.pass_(0.75)
    assert breaker.admit() == 0.25
    time.pass_(0.25)
    assert breaker.admit() == 0
    assert breaker.state == "half-open"
    assert [breaker.admit() for _ in range(3)] == [1.0] * 3
    time.pass_(3600)
    assert breaker.admit() == 1.0  # however long the probe takes


def test_a_success_closes_it() -> None:
    breaker, time = broken()
    time.pass_(1)
    breaker.admit()
    breaker.succeeded()
    assert (breaker.state, breaker.admit(), breaker.opened_at, breaker.in_a_row) == ("closed", 0, None, 0)


def test_a_probe_that_fails_opens_it_for_longer_up_to_the_cap() -> None:
    breaker, time = broken()
    began, delays = breaker.opened_at, []
    for _ in range(8):
        delays.append(breaker.admit())
        time.pass_(delays[-1])
        assert breaker.admit() == 0
        breaker.failed()
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    assert breaker.opened_at == began  # since when the outage lasts
    time.pass_(30)
    breaker.admit()
    breaker.succeeded()
    for _ in range(20):
        breaker.failed()
    assert breaker.admit() == 1.0  # a new outage begins small


def test_a_probe_without_an_answer_lets_another_through() -> None:
    breaker, time = broken()
    time.pass_(1)
    assert breaker.admit() == 0
    breaker.release()
    assert breaker.state == "open"
    assert breaker.admit() == 0
    assert breaker.admit() == 1.0
    breaker.failed()
    assert breaker.admit() == 2.0  # one that was released made nothing longer


def test_an_answer_of_an_earlier_turn_says_nothing() -> None:
    breaker, time = made(failures=2)
    old = breaker.turn
    breaker.failed(old)
    breaker.failed(old)
    assert breaker.state == "open"
    breaker.succeeded(old)  # began before it opened
    assert breaker.state == "open"
    time.pass_(1)
    assert breaker.admit() == 0
    probe = breaker.turn
    breaker.failed(old)
    breaker.release(old)
    breaker.succeeded(old)
    assert (breaker.state, breaker.admit()) == ("half-open", 1.0)
    breaker.succeeded(probe)
    for _ in range(5):
        breaker.failed(old)
    assert (breaker.state, breaker.in_a_row) == ("closed", 0)


def test_a_clock_set_back_makes_no_delay_longer() -> None:
    breaker, time = broken()
    time.ns -= 86400 * SECOND
    assert breaker.admit() == 1.0
    time.pass_(1)
    assert breaker.admit() == 0


@given(
    policy=st.builds(
        Circuit, base=st.floats(0.001, 10), factor=st.floats(1, 1e6), cap=st.floats(10, 3600), failures=st.just(1)
    ),
    opened=st.integers(1, 10_000),
)
def test_delays_are_bounded_and_spread(policy: Circuit, opened: int) -> None:
    windows: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        windows.append((low, high))
        return low

    policy.delay(opened, uniform)
    ((low, high),) = windows
    assert 0 < low <= high / 2 < high <= policy.cap


class AnyOrder(RuleBasedStateMachine):
    """Whatever is asked and answered in whatever order, by whoever was admitted."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.policy = Circuit(failures=3, base=1, factor=2, cap=10)
        self.breaker = CircuitBreaker(self.policy, self.time.now)
        self.inside: list[tuple[int, bool]] = []

    @rule()
    def ask(self) -> None:
        before = self.breaker.state
        wait = self.breaker.admit()
        assert 0 <= wait <= self.policy.cap
        if wait == 0:
            self.inside.append((self.breaker.turn, before != "closed"))

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.time.pass_(seconds)

    @rule(seconds=st.integers(0, 1000))
    def set_back(self, seconds: int) -> None:
        self.time.ns -= seconds * SECOND

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "release"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        turn, probe = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        before = self.breaker.state
        getattr(self.breaker, how)(turn)
        if probe:
            assert before == "half-open"
            assert self.breaker.state == ("closed" if how == "succeeded" else "open")
        elif before != "closed":
            assert self.breaker.state == before

    @invariant()
    def at_most_one_probe(self) -> None:
        probes = sum(probe for _, probe in self.inside)
        assert probes == (self.breaker.state == "half-open")

    @invariant()
    def is_open_since_some_time(self) -> None:
        assert (self.breaker.opened_at is None) == (self.breaker.state == "closed")
        assert self.breaker.in_a_row < self.policy.failures

    def teardown(self) -> None:
        for turn, probe in self.inside:
            if probe:
                self.breaker.release(turn)
        if (wait := self.breaker.admit()) > 0:
            self.time.pass_(wait)
            assert self.breaker.admit() == 0  # nothing leaves it shut for ever


TestAnyOrder = AnyOrder.TestCase


@pytest.mark.parametrize(
    "options",
    [
        {"failures": 0},
        {"failures": 2.5},
        {"failures": True},
        {"failures": "20"},
        {"base": 0},
        {"base": math.nan},
        {"base": "1"},
        {"factor": 0.5},
        {"factor": math.inf},
        {"cap": 0.5},
        {"cap": math.nan},
        {"cap": 2 * MAX_DELAY},
    ],
    ids=str,
)
def test_circuits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Circuit\(.*(give a|must be)"):
        Circuit(**options)

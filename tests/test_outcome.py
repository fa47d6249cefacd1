"""Every exception has an outcome, every outcome can be stored, and a policy never makes a hot loop."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import (
    MAX_DELAY,
    DecodeError,
    FutureVersion,
    ProcessDied,
    Reject,
    RetryAfter,
    TidemillError,
    UnknownEvent,
)
from tidemill.outcome import RELEASE, Ack, DeadLetter, Release, Retry, RetryPolicy, describe, one_line


class Hostile(Exception):
    """Breaks whoever reads it."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class NoText(BaseException):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307


class Forgetful(RetryAfter):
    def __init__(self) -> None:
        pass  # never calls its base: neither delay nor reason


class ForgetfulReject(Reject):
    def __init__(self) -> None:
        pass


text = st.text(st.characters(), max_size=700)  # lone surrogates and control characters included
leaves = st.one_of(
    st.sampled_from([Exception, ValueError, OSError, KeyboardInterrupt, SystemExit, asyncio.CancelledError]).flatmap(
        text.map
    ),
    st.sampled_from([DecodeError, FutureVersion, UnknownEvent, TidemillError]).flatmap(text.map),
    text.map(Reject),
    st.builds(RetryAfter, st.floats(0, MAX_DELAY), text),
    st.builds(Hostile),
    st.builds(NoText),
    st.builds(Forgetful),
    st.builds(ForgetfulReject),
    st.just(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
)
exceptions = st.recursive(
    leaves,
    lambda inner: st.builds(BaseExceptionGroup, text, st.lists(inner, min_size=1, max_size=3)),
    max_leaves=5,
)
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 5000),
    immediate=st.integers(0, 10),
    base=st.floats(1e-6, 100),
    factor=st.floats(1, 1e6),
    cap=st.floats(100, MAX_DELAY),
    never=st.sampled_from([(), (ValueError,), (Exception,), (BaseException,), (OSError, TidemillError)]),
    only=st.sampled_from([None, None, (KeyError, ConnectionError), (TimeoutError,)]),
)


@given(error=exceptions, policy=policies, attempt=st.integers(1, 6000))
def test_every_exception_has_an_outcome_that_can_be_stored(
    error: BaseException, policy: RetryPolicy, attempt: int
) -> None:
    outcome = policy.outcome_of(error, attempt)

    assert isinstance(outcome, Retry | DeadLetter)
    assert len(outcome.reason.encode()) <= 4 * 500
    assert outcome.reason.isprintable() or not any(char < " " for char in outcome.reason)
    if isinstance(outcome, Retry):
        assert attempt < policy.attempts
        assert 0 <= outcome.after <= MAX_DELAY


@given(policy=policies, attempt=st.integers(1, 10_000), draw=st.floats(0, 1))
def test_every_delay_lies_in_its_window(policy: RetryPolicy, attempt: int, draw: float) -> None:
    windows: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        windows.append((low, high))
        return low + (high - low) * draw

    delay = policy.delay(attempt, uniform)

    if attempt <= policy.immediate:
        assert delay == 0
        return
    ((low, high),) = windows
    assert 0 < low <= high / 2  # at least half of it is jitter
    assert high <= policy.cap
    assert high == policy.cap or math.isclose(high, policy.base * policy.factor ** (attempt - policy.immediate - 1))


def test_the_default_policy_tries_8_times_within_about_a_quarter_of_an_hour() -> None:
    policy = RetryPolicy()

    def total(pick: Any) -> float:
        return sum(policy.delay(attempt, pick) for attempt in range(1, policy.attempts))

    soonest, latest = total(min), total(max)
    assert 5 * 60 < soonest < latest < 21 * 60
    assert 12 * 60 < (soonest + latest) / 2 < 16 * 60


def test_the_default_policy_runs_at_most_3_attempts_in_the_first_second() -> None:
    policy = RetryPolicy()
    at, attempts = 0.0, 0
    while at < 1.0:
        attempts += 1
        at += policy.delay(attempts, min)  # as soon as the policy ever would
    assert attempts == 3


def test_delays_are_spread() -> None:
    assert len({RetryPolicy().delay(3) for _ in range(50)}) > 40
    assert len({RetryPolicy(factor=1, base=10).delay(3) for _ in range(50)}) > 40


def test_the_last_attempt_is_a_dead_letter_that_says_so() -> None:
    policy = RetryPolicy(attempts=3)
    assert isinstance(policy.outcome_of(ValueError("x"), 2), Retry)
    assert policy.outcome_of(ValueError("x"), 3) == DeadLetter("ValueError: x (attempt 3 of 3)")


def test_what_a_handler_asks_for() -> None:
    policy = RetryPolicy(attempts=5, never=(Exception,))
    assert policy.outcome_of(Reject("no address"), 1) == DeadLetter("no address")
    assert policy.outcome_of(RetryAfter(90, "rate limit"), 1) == Retry(90.0, "rate limit")  # asked: before never
    assert isinstance(policy.outcome_of(RetryAfter(90), 5), DeadLetter)
    assert policy.outcome_of(KeyError("x"), 1) == DeadLetter("KeyError: 'x' (an error the policy never retries)")


def test_only_some_are_retried() -> None:
    policy = RetryPolicy(attempts=5, only=(ConnectionError, TimeoutError), never=(ConnectionRefusedError,))
    assert isinstance(policy.outcome_of(ConnectionResetError("x"), 1), Retry)
    assert isinstance(policy.outcome_of(TimeoutError("x"), 4), Retry)
    assert policy.outcome_of(TimeoutError("x"), 5) == DeadLetter("TimeoutError: x (attempt 5 of 5)")
    assert policy.outcome_of(KeyError("x"), 1) == DeadLetter(
        "KeyError: 'x' (an error the policy does not retry: only ConnectionError, TimeoutError)"
    )
    assert policy.outcome_of(ConnectionRefusedError("x"), 1) == DeadLetter(
        "ConnectionRefusedError: x (an error the policy never retries)"
    )  # in both: never wins
    assert policy.outcome_of(RetryAfter(90, "rate limit"), 1) == Retry(90.0, "rate limit")
    assert isinstance(policy.outcome_of(ProcessDied("kill -9"), 1), Retry)  # a crash is no error of the handler
    assert isinstance(policy.outcome_of(ProcessDied("killed"), 1), Retry)
    assert policy.outcome_of(Reject("no address"), 1) == DeadLetter("no address")


def test_a_group_is_retried_if_all_in_it_are() -> None:
    policy = RetryPolicy(only=(ConnectionError,))
    down = ConnectionError("down")
    assert isinstance(policy.outcome_of(ExceptionGroup("two", [down, ExceptionGroup("one", [down])]), 1), Retry)
    assert isinstance(policy.outcome_of(ExceptionGroup("two", [down, ValueError("x")]), 1), DeadLetter)


def test_only_and_never_must_not_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="OSError is in both"):
        RetryPolicy(only=(KeyError, OSError), never=(ValueError, OSError))
    with pytest.raises(ValueError, match="attempts=1"):
        RetryPolicy(only=())


def test_undecodable_is_given_up_and_the_future_is_awaited() -> None:
    policy = RetryPolicy(attempts=2)
    assert policy.outcome_of(DecodeError("bad"), 1) == DeadLetter("DecodeError: bad")
    assert policy.outcome_of(UnknownEvent("who"), 1) == DeadLetter("UnknownEvent: who")
    for attempt in (1, 2):
        assert policy.outcome_of(FutureVersion("2 > 1"), attempt) == Release(1.0, "FutureVersion: 2 > 1")


def test_a_task_group_with_one_failure_counts_as_that_failure() -> None:
    async def handler() -> None:
        async def child() -> None:
            raise Reject("no address")

        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(handler())
    assert RetryPolicy().outcome_of(raised.value, 1) == DeadLetter("no address")
    two = ExceptionGroup("two", [Reject("a"), ValueError("b")])
    assert isinstance(RetryPolicy().outcome_of(two, 1), Retry)


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"immediate": -1},
        {"base": 0},
        {"base": -1.0},
        {"base": math.nan},
        {"factor": 0.5},
        {"factor": math.inf},
        {"factor": math.nan},
        {"base": 5.0, "cap": 4.0},
        {"cap": math.inf},
        {"cap": math.nan},
        {"cap": MAX_DELAY * 2},
    ],
    ids=str,
)
def test_policies_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"RetryPolicy\(.*(at least 1|must be)"):
        RetryPolicy(**options)


@pytest.mark.parametrize("classes", [ValueError, (int,), ("ValueError",), [ValueError]], ids=str)
def test_never_and_only_take_a_tuple_of_exceptions(classes: Any) -> None:
    with pytest.raises(TypeError, match=r"RetryPolicy\(never=.*tuple of exception classes"):
        RetryPolicy(never=classes)
    with pytest.raises(TypeError, match=r"RetryPolicy\(only=.*tuple of exception classes"):
        RetryPolicy(only=classes)


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": True},
        {"attempts": 2.5},
        {"attempts": "3"},
        {"attempts": None},
        {"immediate": 1.0},
        {"immediate": False},
        {"base": "1"},
        {"factor": None},
        {"cap": True},
    ],
    ids=str,
)
def test_what_is_no_number_is_refused_by_name(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(TypeError) as raised:
        RetryPolicy(**options)
    assert f"RetryPolicy({name}={value!r}): give a" in str(raised.value)


@pytest.mark.parametrize("after", [-1, math.nan, math.inf, MAX_DELAY + 1])
def test_a_delay_that_no_broker_could_keep_is_refused(after: float) -> None:
    with pytest.raises(ValueError, match="from 0 to a year"):
        Retry(after, "x")
    with pytest.raises(ValueError, match="from 0 to a year"):
        Release(after)


def test_reasons_become_one_storable_line() -> None:
    assert DeadLetter("two\nlines\x00").reason == "two lines\\x00"
    assert Retry(1, "caf\udce9").reason == "caf\\udce9"  # as in the name of a file that is not UTF-8
    assert Release(1, "two\nlines").reason == "two lines"
    assert DeadLetter(ValueError("an error")).reason == "an error"  # type: ignore[arg-type]
    long = DeadLetter("x" * 10_000).reason
    assert (len(long), long[-1]) == (500, "…")
    assert one_line("Grüße, 東京 👩‍👩‍👧") == "Grüße, 東京 👩‍👩‍👧"  # with its zero-width joiners


def test_describe_names_the_type() -> None:
    assert describe(ValueError("bad\nvalue")) == "ValueError: bad value"
    assert describe(TimeoutError()) == "TimeoutError"
    assert describe(Hostile()) == "Hostile: <its text could not be read>"


def test_outcomes_are_values() -> None:
    assert Ack() == Ack()
    assert Release() == Release() == RELEASE != Release(1)
    assert Retry(1, "x") == Retry(1, "x") != Retry(2, "x")
    with pytest.raises(AttributeError):
        DeadLetter("x").reason = "y"  # type: ignore[misc]

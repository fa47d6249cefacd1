from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import RetryPolicy
from tidemill.describe.model import RetryModel
from tidemill.describe.words import duration, retries

from .flows import retry_models


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.0000001, "0 s"),
        (0.25, "0.25 s"),
        (4, "4 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min"),
        (60, "1 min"),
        (64, "1 min 4 s"),
        (900, "15 min"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d"),
        (7 * 86400 + 3600, "7 d 1 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def model(**changes: object) -> RetryModel:
    policy = RetryPolicy(**changes)  # type: ignore[arg-type]
    return RetryModel(
        attempts=policy.attempts,
        immediate=policy.immediate,
        base=policy.base,
        factor=policy.factor,
        cap=policy.cap,
        never=tuple(error.__name__ for error in policy.never),
    )


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (
            model(),
            "8 attempts: again at once, then after up to 1 s, 4 s, 16 s, 1 min 4 s, 4 min 16 s, 15 min",
        ),
        (model(attempts=1), "1 attempt, never retried"),
        (model(attempts=2), "2 attempts: again at once"),
        (model(attempts=2, immediate=5), "2 attempts: again at once"),
        (model(attempts=4, immediate=5), "4 attempts: again 3 times at once"),
        (model(attempts=3, immediate=0, base=0.5, factor=2), "3 attempts: again after up to 0.5 s, 1 s"),
        (
            model(attempts=2, never=(ValueError, KeyError)),
            "2 attempts: again at once; never after ValueError, KeyError",
        ),
        (
            model(attempts=99, immediate=0, factor=1),
            "99 attempts: again after up to 1 s, 1 s, 1 s, 1 s, 1 s, 1 s, 1 s, …",
        ),
    ],
)
def test_retries(policy: RetryModel, words: str) -> None:
    assert retries(policy) == words


@given(retry_models, st.integers(1, 12))
def test_the_delays_are_those_of_the_policy(policy: RetryModel, attempt: int) -> None:
    real = RetryPolicy(
        attempts=policy.attempts,
        immediate=policy.immediate,
        base=policy.base,
        factor=policy.factor,
        cap=max(policy.cap, policy.base),
    )
    words = retries(policy)
    longest = real.delay(attempt, lambda low, high: high)
    step = attempt - policy.immediate - 1
    if 0 <= step < 7 and attempt < policy.attempts:
        assert words.split("up to ")[1].split("; never")[0].split(", ")[step] == duration(longest)

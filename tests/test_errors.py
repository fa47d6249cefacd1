"""The tree in the docstring is the tree there is, and every text says what to do next."""

from __future__ import annotations

import inspect
import pickle
import re
from datetime import timedelta

import pytest

from tidemill import errors
from tidemill.broker import Receipt, Status
from tidemill.errors import MAX_DELAY, MissingExtra, PublishError, Reject, RetryAfter, TidemillError
from tidemill.message import Message


def drawn_tree() -> dict[str, str]:
    """Each error in the docstring, with the one it hangs from."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*)([├└]── )?([A-Z]\w+)", line):
            depth = len(found[1]) // 4 + bool(found[2])
            path[depth:] = [found[3]]
            if depth:
                parents[found[3]] = path[depth - 1]
    return parents


def real_tree() -> dict[str, str]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, TidemillError)]
    return {cls.__name__: cls.__bases__[0].__name__ for cls in classes if cls is not TidemillError}


def test_the_drawn_tree_is_the_real_tree() -> None:
    assert drawn_tree() == real_tree()


def test_every_error_has_a_docstring() -> None:
    for name in real_tree():
        assert vars(getattr(errors, name)).get("__doc__"), name


def test_a_missing_extra_names_the_install() -> None:
    text = str(MissingExtra("the nats broker", "nats"))
    assert 'pip install "tidemill[nats]"' in text
    assert text.startswith("the nats broker needs")


@pytest.mark.parametrize("delay", [-0.001, float("nan"), float("inf"), MAX_DELAY + 1, timedelta(seconds=-1)])
def test_retry_after_refuses_delays_that_are_none(delay: float | timedelta) -> None:
    with pytest.raises(ValueError, match="between 0 seconds and a year"):
        RetryAfter(delay)


def test_retry_after_takes_seconds_and_timedeltas() -> None:
    assert RetryAfter(1.5).delay == 1.5
    assert RetryAfter(timedelta(minutes=2), "later").delay == 120
    assert str(RetryAfter(0)) == RetryAfter(0).reason == "asked to be retried later"


def test_a_reason_is_text_whatever_was_given() -> None:
    assert Reject(ValueError("no such order")).reason == "no such order"
    assert RetryAfter(1, OSError("busy")).reason == "busy"


def test_errors_survive_a_process_pool() -> None:
    message = Message("1", "shop", "order.placed", "orders", 0, b"{}")
    failed = [(message, Receipt(Status.UNKNOWN, "no answer"))]

    later = pickle.loads(pickle.dumps(RetryAfter(30, "busy")))
    assert (later.delay, later.reason, str(later)) == (30.0, "busy", "busy")
    assert pickle.loads(pickle.dumps(Reject("bad"))).reason == "bad"
    assert pickle.loads(pickle.dumps(MissingExtra("x", "nats"))).extra == "nats"
    again = pickle.loads(pickle.dumps(PublishError("1 of 2", failed)))
    assert (str(again), again.failed) == ("1 of 2", failed)

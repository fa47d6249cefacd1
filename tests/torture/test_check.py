"""The torture run's checker is tested too: each thing that may go wrong is put into a clean run, and must be found."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from kills import ATTEMPTS, Run, check

from tidemill.broker import DeadLettered, SubscriptionStatus
from tidemill.message import Failure, Message
from tidemill.testing.worker import Fact, fails_of

KILLED, ALIVE = 1, 2
GOOD = [number for number in range(200) if fails_of("a", number) == 0][:4]


def clean() -> Run:
    """One key; the first two events were handled by a process that was killed, which had begun the third."""
    numbers = range(GOOD[-1] + 1)
    stored = [Message(f"a-{n}", "walker-feet", "step.taken", "steps", n, b"{}", key="a") for n in numbers]
    history = [Fact("confirmed", 3, 1, f"a-{n}", "a", n) for n in numbers]
    dead = []
    at = 10
    for n in numbers:
        fails = fails_of("a", n)
        for attempt in range(1, min(fails, ATTEMPTS - 1) + 2):
            well = attempt > fails
            history += [Fact("began", ALIVE, at, f"a-{n}", "a", n, attempt)]
            history += [Fact("ended" if well else "failed", ALIVE, at + 1, f"a-{n}", "a", n, attempt)]
            at += 2
        if fails >= ATTEMPTS:
            failures = tuple(Failure(attempt, at, "OSError") for attempt in range(1, ATTEMPTS + 1))
            dead.append(
                DeadLettered(
                    number=1,
                    subscription="walker.walk",
                    message=stored[n],
                    reason="",
                    attempts=ATTEMPTS,
                    at=at,
                    history=failures,
                )
            )
            at += 2
    status = SubscriptionStatus(
        name="walker.walk",
        topic="steps",
        types=None,
        backlog=0,
        retrying=0,
        dead=len(dead),
        oldest=None,
        consumers=0,
        acked=len(stored) - len(dead),
        retried=0,
    )
    return Run(0, {KILLED: 100_000}, 0, 0, history, stored, dead, status, "ok")


def facts(run: Run, what: str, number: int) -> list[Fact]:
    return [fact for fact in run.history if fact.what == what and fact.number == number]


def lose(run: Run) -> None:
    run.stored = [message for message in run.stored if message.id != f"a-{GOOD[1]}"]


def store_twice(run: Run) -> None:
    run.stored.append(run.stored[0])


def leave_unhandled(run: Run) -> None:
    run.history = [fact for fact in run.history if fact.number != GOOD[-1] or fact.what == "confirmed"]


def invent(run: Run) -> None:
    run.history.append(Fact("ended", ALIVE, 10**6, "a-999", "a", 999, 1))


def give_up_the_innocent(run: Run) -> None:
    failures = tuple(Failure(attempt, 1, "OSError") for attempt in range(1, ATTEMPTS + 1))
    run.dead.append(
        DeadLettered(
            number=1,
            subscription="w",
            message=run.stored[GOOD[0]],
            reason="",
            attempts=ATTEMPTS,
            at=1,
            history=failures,
        )
    )


def repeat_without_a_kill(run: Run) -> None:
    ended = facts(run, "ended", GOOD[0])[0]
    run.history += [
        msgspec.structs.replace(ended, what="began", pid=7, at=10**6),
        msgspec.structs.replace(ended, pid=7, at=10**6 + 1),
    ]


def overtake(run: Run) -> None:
    first, second = facts(run, "began", GOOD[0])[0], facts(run, "ended", GOOD[0])[0]
    run.history.remove(first)
    run.history.remove(second)
    run.history += [
        msgspec.structs.replace(first, at=10**6),
        msgspec.structs.replace(second, at=10**6 + 1),
    ]


def run_two_at_once(run: Run) -> None:
    began = facts(run, "began", GOOD[0])[0]
    run.history.append(msgspec.structs.replace(began, pid=7, at=began.at + 1))
    ended = facts(run, "ended", GOOD[0])[0]
    run.history.remove(ended)
    run.history.append(msgspec.structs.replace(ended, at=began.at + 2))


def try_too_often(run: Run) -> None:
    run.history.append(Fact("failed", ALIVE, 10**6, f"a-{GOOD[0]}", "a", GOOD[0], ATTEMPTS + 1))


def miscount(run: Run) -> None:
    assert run.status is not None
    run.status = msgspec.structs.replace(run.status, acked=run.status.acked + 1)


def damage(run: Run) -> None:
    run.integrity = "row 7 missing from index"


def test_a_clean_run_is_clean() -> None:
    assert check(clean()) == []


def test_a_run_repeated_after_a_kill_is_clean() -> None:
    run = clean()
    ended = facts(run, "ended", 0) or facts(run, "failed", 0)
    run.history += [
        msgspec.structs.replace(ended[0], what="began", pid=KILLED, at=1),
        msgspec.structs.replace(ended[0], what="ended", pid=KILLED, at=2),
    ]
    run.kills[KILLED] = 3
    assert check(run) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lose,
        store_twice,
        leave_unhandled,
        invent,
        give_up_the_innocent,
        repeat_without_a_kill,
        overtake,
        run_two_at_once,
        try_too_often,
        miscount,
        damage,
    ],
)
def test_what_is_wrong_is_found(wrong: Callable[[Run], None]) -> None:
    run = clean()
    wrong(run)
    assert check(run)

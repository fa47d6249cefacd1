from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from tidemill.codec import codec_of
from tidemill.errors import DecodeError
from tidemill.event import event_type
from tidemill.testing.torture.plan import POISON, FaultKind, Kind, Plan, id_of, parts
from tidemill.testing.torture.steps import bodies, code, message

PLAN = Plan(seed=7)


def kinds(plan: Plan) -> list[Kind]:
    return [plan.kind(plan.key(key), number) for key in range(plan.keys) for number in range(plan.last(key))]


def test_the_same_seed_makes_the_same_run() -> None:
    assert kinds(PLAN) == kinds(Plan(seed=7))
    assert PLAN.timeline() == Plan(seed=7).timeline()
    assert kinds(PLAN) != kinds(Plan(seed=8))
    assert PLAN.timeline() != Plan(seed=8).timeline()


def test_five_in_a_hundred_are_poison_of_every_kind() -> None:
    counts = Counter(kinds(PLAN))
    assert sum(counts.values()) == PLAN.events
    assert 0.045 < sum(counts[kind] for kind in POISON) / PLAN.events < 0.055
    assert min(counts[kind] for kind in POISON) > 20


def test_what_is_dangerous_is_so_to_one_subscription_alone() -> None:
    plan = msgspec.structs.replace(PLAN, shares={Kind.EXITS: 1.0})
    assert {plan.kind_for(name, "k00", 0): ordered for name, ordered in plan.subscriptions.items()} == {
        Kind.EXITS: True,
        Kind.HEALTHY: False,
    }


@pytest.mark.parametrize(
    ("events", "kills", "pauses", "seconds"), [(6_000, 60, 8, 60), (100_000, 300, 50, 480)], ids=["ci", "full"]
)
def test_enough_faults_fit_into_a_run(events: int, kills: int, pauses: int, seconds: float) -> None:
    plan = Plan(seed=1, events=events)
    needed = plan.needed(FaultKind.KILL_CONSUMER) + plan.needed(FaultKind.KILL_PUBLISHER)
    assert needed >= kills
    assert plan.needed(FaultKind.PAUSE) >= pauses
    assert plan.duration <= seconds
    timeline = plan.timeline()
    assert Counter(fault.kind for fault in timeline) == {kind: plan.planned(kind) for kind in FaultKind}
    assert all(0 < fault.at <= plan.duration and 0 <= fault.roll < 1 for fault in timeline)


def test_minutes_end_a_run_sooner() -> None:
    plan = Plan(seed=1, minutes=0.5)
    assert plan.duration == 30
    assert max(fault.at for fault in plan.timeline()) <= 30


def test_faults_that_are_named_are_all_there_are() -> None:
    plan = Plan(seed=1, faults={FaultKind.PAUSE: 3})
    assert [fault.kind for fault in plan.timeline()] == [FaultKind.PAUSE] * 3
    assert plan.needed(FaultKind.PAUSE) == 2
    assert plan.needed(FaultKind.BURST) == 0


def test_an_id_says_key_and_number() -> None:
    assert parts(id_of("k-1", 20)) == ("k-1", 20)


@pytest.mark.parametrize("version", [1, 2])
def test_newer_code_reads_both_versions(version: int) -> None:
    made = message(msgspec.structs.replace(PLAN, shares={}), version, "k01", 3)
    assert made.version == version
    read = codec_of(type(code(2, PLAN.topic).make("k01", 3))).decode(made)
    assert (read.key, read.number) == ("k01", 3)
    assert made.body in bodies(PLAN, "k01", 3)


def test_no_code_reads_what_is_undecodable() -> None:
    plan = msgspec.structs.replace(PLAN, shares={Kind.UNDECODABLE: 1.0})
    for version in (1, 2):
        step = type(code(version, plan.topic).make("k01", 3))
        assert event_type(step).name == message(plan, version, "k01", 3).type
        with pytest.raises(DecodeError):
            codec_of(step).decode(message(plan, version, "k01", 3))
    assert len(bodies(plan, "k01", 3)) == 1

from __future__ import annotations

import json

import msgspec

from tidemill.testing.torture.checker import Checked, Finding
from tidemill.testing.torture.plan import FaultKind, Plan
from tidemill.testing.torture.report import as_json, command_line, faults, happenings, progress_line, verdict
from tidemill.testing.torture.runner import FIGURES, Progress, Result

PLAN = Plan(seed=7, events=1000)
PASSED = Result(
    plan=PLAN,
    broker="sqlite:////tmp/torture/disk/torture.db",
    folder="/tmp/torture",
    hits={kind: PLAN.planned(kind) for kind in FaultKind},
    skipped={},
    figures=dict.fromkeys(FIGURES, 1000),
    stored=1000,
    seconds=25.0,
    drained=0.3,
    checked=Checked([], {"killed": 3, "paused": 0}, {"raises": 12}),
)


def test_a_run_without_findings_and_with_enough_faults_passes() -> None:
    word, text = verdict(PASSED)
    assert word == "PASSED"
    assert "1,000 events through 74 kills and 9 pauses" in text


def test_any_finding_fails_it() -> None:
    found = Checked([Finding("lost", 2, ["a", "b"]), Finding("order", 1, ["c"])], {}, {})
    assert verdict(msgspec.structs.replace(PASSED, checked=found)) == ("FAILED", "lost (2), order (1)")


def test_too_few_faults_make_it_invalid() -> None:
    few = msgspec.structs.replace(PASSED, hits=PASSED.hits | {FaultKind.PAUSE: 1})
    word, text = verdict(few)
    assert word == "INVALID"
    assert "pause past the lease: 1 of at least 7" in text


def test_too_few_events_make_it_invalid() -> None:
    word, text = verdict(msgspec.structs.replace(PASSED, stored=999))
    assert word == "INVALID"
    assert "events: 999 of 1,000" in text


def test_a_fault_that_cannot_be_tried_here_is_named_and_misses_nothing() -> None:
    skipped = msgspec.structs.replace(
        PASSED, hits=PASSED.hits | {FaultKind.DISK_FULL: 0}, skipped={FaultKind.DISK_FULL: "no root"}
    )
    assert verdict(skipped)[0] == "PASSED"
    assert ("full disk", "-", "skipped: no root") in faults(skipped)


def test_what_happened_is_told_in_numbers() -> None:
    rows = {name: (count, text) for name, count, text in happenings(PASSED)}
    assert rows["handled again"] == ("3", "3 killed")
    assert rows["dead letters"] == ("12", "12 raises")
    assert rows["drained"] == ("0.3 s", "after the last fault")
    never = {name: count for name, count, _ in happenings(msgspec.structs.replace(PASSED, drained=None))}
    assert never["drained"] == "never"


def test_the_command_that_does_it_again_names_a_broker_that_was_given() -> None:
    assert command_line(PASSED) == ("tidemill torture --seed 7 --events 1000 --minutes 10 --consumers 4 --publishers 2")
    other = msgspec.structs.replace(PASSED, broker="nats://host", skipped={FaultKind.DISK_FULL: "not here"})
    assert command_line(other).endswith(" --broker nats://host")


def test_programs_get_all_of_it() -> None:
    parts = json.loads(as_json(PASSED))
    assert (parts["verdict"], parts["seed"], parts["again"]) == ("PASSED", 7, command_line(PASSED))
    assert parts["hits"]["pause past the lease"] == 9
    assert parts["checked"]["repeated"]["killed"] == 3


def test_progress_fits_on_a_line() -> None:
    line = progress_line(Progress(61.0, "faults", 12768, 23947, 88, 9, 1104, 485))
    assert line == (
        "  61 s  faults    12,768 confirmed  23,947 handled  485 to do  88 kills  9 pauses  1,104 dead letters"
    )

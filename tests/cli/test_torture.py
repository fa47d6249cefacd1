from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from click.testing import Result as CommandResult

from tidemill.cli import cli
from tidemill.cli.torture import _text
from tidemill.testing.torture.checker import Checked, Finding
from tidemill.testing.torture.plan import FaultKind, Plan
from tidemill.testing.torture.runner import FIGURES, Progress, Result


def result_of(*findings: Finding) -> Result:
    plan = Plan(seed=7, events=1000)
    return Result(
        plan=plan,
        broker="sqlite:////tmp/torture/disk/torture.db",
        folder="/tmp/torture",
        hits={kind: plan.planned(kind) for kind in FaultKind},
        skipped={},
        figures=dict.fromkeys(FIGURES, 1000),
        stored=1000,
        seconds=25.0,
        drained=0.3,
        checked=Checked(list(findings), {}, {}),
    )


def test_a_verdict_in_a_few_lines() -> None:
    lines = list(map(click.unstyle, _text(result_of())))
    assert "kill -9 of a consumer    55  at least 44" in lines
    assert any(re.fullmatch(r"events stored +1,000  1,000 publishes refused, and repeated", line) for line in lines)
    assert lines[-1].startswith("PASSED: nothing lost")


def test_a_failure_says_what_and_how_to_see_it_again() -> None:
    lines = list(map(click.unstyle, _text(result_of(Finding("lost", 7, ["k00-1 was confirmed and is not stored"])))))
    assert lines[-3:] == [
        "FAILED: lost (7)",
        "  lost: k00-1 was confirmed and is not stored (and 6 more)",
        "again: tidemill torture --seed 7 --events 1000 --minutes 10 --consumers 4 --publishers 2",
    ]


def test_a_broker_within_one_process_is_refused() -> None:
    done = CliRunner().invoke(cli, ["torture", "--broker", "memory:"])
    assert done.exit_code == 2
    assert "lives inside one process" in done.output


def test_a_broker_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "other.db").write_bytes(b"something else entirely" * 100)
    done = CliRunner().invoke(cli, ["torture", "--broker", f"sqlite:///{tmp_path}/other.db"])
    assert done.exit_code == 3
    assert "not an SQLite database" in done.output


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CommandResult]:
    """The command, with a run that has come to its result already."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(result: Result, *arguments: str) -> CommandResult:
        async def torture(plan: Plan, folder: Path, url: str | None, report: Callable[[Progress], object]) -> Result:
            report(Progress(11.0, "faults", 1, 2, 3, 4, 5, 6))
            return result

        monkeypatch.setattr("tidemill.testing.torture.runner.torture", torture)
        return CliRunner().invoke(cli, ["torture", *arguments])

    return run


def folders(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("tidemill-torture-*"))


def test_what_has_passed_leaves_nothing(run: Callable[..., CommandResult], tmp_path: Path) -> None:
    done = run(result_of(), "--seed", "7")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "seed 7"
    assert "  11 s  faults    1 confirmed  2 handled  6 to do  3 kills  4 pauses  5 dead letters\n" in done.stderr
    assert folders(tmp_path) == []


def test_what_has_passed_is_kept_on_request(run: Callable[..., CommandResult], tmp_path: Path) -> None:
    done = run(result_of(), "--keep")
    (folder,) = folders(tmp_path)
    assert f"the evidence is in {folder}" in done.stderr
    assert json.loads((folder / "verdict.json").read_bytes())["verdict"] == "PASSED"


def test_the_evidence_of_a_failure_is_kept(run: Callable[..., CommandResult], tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    done = run(result_of(Finding("lost", 1, ["k00-1"])), "--json", str(file))
    assert done.exit_code == 1
    (folder,) = folders(tmp_path)
    assert f"the evidence is in {folder}" in done.stderr
    assert json.loads(file.read_bytes())["verdict"] == "FAILED"


def test_what_is_invalid_has_not_passed(run: Callable[..., CommandResult], tmp_path: Path) -> None:
    done = run(msgspec.structs.replace(result_of(), stored=999))
    assert done.exit_code == 1
    assert "INVALID: nothing is wrong, and not enough was tried: events: 999 of 1,000" in done.stdout
    assert folders(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_on_a_broker_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url, file = f"sqlite:///{tmp_path}/mine.db?namespace=ours", tmp_path / "verdict.json"
    arguments = ["--broker", url, "--events", "300", "--minutes", "0.05", "--keep", "--json", str(file)]
    done = CliRunner().invoke(cli, ["torture", *arguments])
    assert "FAILED" not in done.output
    assert "skipped: only on a file that this run makes itself" in done.output
    (folder,) = folders(tmp_path)
    assert {each.name for each in folder.iterdir()} >= {"history.jsonl", "errors.txt", "plan.json", "verdict.json"}
    found = json.loads(file.read_bytes())
    assert (found["stored"], found["checked"]["findings"]) == (300, [])
    assert found["again"].endswith(f" --broker {url}")
    listed = CliRunner().invoke(cli, ["status", "--broker", url]).output
    assert re.search(r"^torture-\d+\.ordered +torture-\d+\.steps +0 ", listed, re.MULTILINE)

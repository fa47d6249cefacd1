# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The benchmark runs and its figures, ratios and verdicts are what they say; how fast it is, is not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure import Case, Comparison, Figures, Results, Skipped, measure
from bench.report import verdicts

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_a_quick_run_writes_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("--quick", "--case", "memory", "--scale", "0.02", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["failed"] == {}
    figures = {case["name"]: case["figures"] for case in found["cases"]}
    assert len(figures) == 20
    for name, units in figures.items():
        for unit, figure in units.items():
            assert len(figure["runs"]) == 2, name
            assert figure["low"] <= figure["median"] <= figure["high"], name
            assert figure["median"] > 0 or unit == "late ms", name
    targets = {each["case"]: each for each in found["comparisons"] if each["ok"] is not None}
    assert set(targets) == {"memory end to end", "memory end to end, all policies"}
    target = targets["memory end to end"]
    ours = figures["memory end to end"]["events/s"]["runs"]
    theirs = figures["memory limit: end to end"]["events/s"]["runs"]
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    assert target["found"]["low"] == pytest.approx(min(ratios))
    assert target["ok"] is (sum(ratios) / 2 >= 0.5)
    assert "memory end to end" in done.stdout
    assert "\x1b" not in done.stdout


def test_sqlite_runs_in_two_processes(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run(
        *("--case", "consume, other process, keyed", "--case", "backlog-million", "--runs", "1"),
        *("--scale", "0.005", "--folder", str(tmp_path), "--json", str(file)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {case["name"]: case["figures"] for case in json.loads(file.read_text())["cases"]}
    assert figures["sqlite consume, other process, keyed"]["events/s"]["median"] > 0
    assert list(tmp_path.iterdir()) == [file]


def test_trouble_is_made_and_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run(
        *("--case", "running for 0.5 s", "--case", "delays that end", "--case", "retries that are due"),
        *("--runs", "1", "--scale", "0.02", "--folder", str(tmp_path), "--json", str(file)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {case["name"]: case["figures"] for case in json.loads(file.read_text())["cases"]}
    assert len(figures) == 3
    drain = figures["sqlite drain, 16 running for 0.5 s"]
    assert 0 < drain["rest ms"]["median"] <= drain["all ms"]["median"]
    assert drain["given back"]["median"] > 100
    assert list(tmp_path.iterdir()) == [file]


def test_an_unknown_case_is_refused() -> None:
    done = run("--case", "carrier pigeon")
    assert done.returncode == 2
    assert "carrier pigeon" in done.stderr


def test_rounds_are_interleaved_and_ratios_are_taken_between_neighbours() -> None:
    order: list[str] = []

    def case(name: str, values: list[float]) -> Case:
        def run(count: int) -> Figures:
            order.append(name)
            return {"events/s": values.pop(0)}

        return Case(name, "group", run, 10)

    # The first of each is the round that is thrown away. The second round met a machine that was half as fast.
    cases = [case("ours", [1, 60, 30, 50]), case("limit", [1, 100, 50, 100])]
    results = measure(cases, 3, 1.0, lambda *_: None)
    assert order == ["ours", "limit"] * 4
    assert results.ratios(Comparison("ours", "events/s", "limit")) == [0.6, 0.6, 0.5]
    (verdict,) = verdicts(results, [Comparison("ours", "events/s", "limit", at_least=0.55)])
    assert verdict.ok is True
    (verdict,) = verdicts(results, [Comparison("ours", "events/s", "limit", at_least=0.61)])
    assert verdict.ok is False


def test_costs_are_compared_the_other_way_round() -> None:
    results = Results([], {"ours": [{"µs/event": 5.0}], "peer": [{"µs/event": 40.0}]})
    assert results.ratios(Comparison("ours", "µs/event", "peer")) == [8.0]
    (verdict,) = verdicts(results, [Comparison("ours", "µs/event", at_most=4)])
    assert verdict.ok is False


def test_what_cannot_run_here_is_skipped_and_what_fails_is_told() -> None:
    def skip(count: int) -> Figures:
        raise Skipped("not installed")

    def fail(count: int) -> Figures:
        raise ZeroDivisionError

    results = measure([Case("a", "g", skip, 1), Case("b", "g", fail, 1)], 2, 1.0, lambda *_: None)
    assert results.skipped == {"a": "not installed"}
    assert results.failed["b"].endswith("ZeroDivisionError")
    assert results.rounds == {}

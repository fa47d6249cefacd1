# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Results as a table for people and as JSON for programs, and whether the targets hold."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from .measure import Comparison, Results, Spread, spread

BOLD, DIM, GREEN, RED = "1", "2", "32", "31"


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison. `ok` is None where there is no target."""

    comparison: Comparison
    found: Spread
    ok: bool | None


def verdicts(results: Results, comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Those comparisons whose cases were measured. A target is held against the median."""
    found: list[Verdict] = []
    for each in comparisons:
        values = results.values(each.case, each.unit) if each.of is None else results.ratios(each)
        if not values:
            continue
        summary = spread(values)
        ok = None
        if each.at_least is not None:
            ok = summary.median >= each.at_least
        elif each.at_most is not None:
            ok = summary.median <= each.at_most
        found.append(Verdict(each, summary, ok))
    return found


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "sqlite": sqlite3.sqlite_version,
    }


def as_json(results: Results, judged: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "environment": environment(),
        "cases": [
            {
                "name": case.name,
                "group": case.group,
                "role": case.role,
                "figures": {
                    unit: asdict(spread(results.values(case.name, unit))) | {"runs": results.values(case.name, unit)}
                    for unit in results.rounds[case.name][0]
                },
            }
            for case in results.cases
            if case.name in results.rounds
        ],
        "comparisons": [asdict(each.comparison) | {"found": asdict(each.found), "ok": each.ok} for each in judged],
        "skipped": results.skipped,
        "failed": results.failed,
    }


def print_report(results: Results, judged: Sequence[Verdict], out: TextIO = sys.stdout) -> None:
    colour = out.isatty() and not os.environ.get("NO_COLOR")

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    def line(text: str = "") -> None:
        print(text.rstrip(), file=out)

    where = environment()
    line(
        f"Python {where['python']}, SQLite {where['sqlite']}, {where['system']}, {where['cpus']} CPUs. "
        "Median [lowest – highest] of the rounds."
    )
    width = max((len(case.name) for case in results.cases), default=0) + 2
    group = ""
    for case in results.cases:
        if case.group != group:
            group = case.group
            line()
            line(paint(group, BOLD))
        name = f"  {case.name:<{width}}"
        if case.name in results.skipped:
            line(name + paint(f"skipped: {results.skipped[case.name]}", DIM))
        elif case.name in results.failed:
            line(name + paint(f"FAILED: {results.failed[case.name].splitlines()[-1]}", RED))
        else:
            for unit in results.rounds[case.name][0]:
                row = f"{name}{_figure(spread(results.values(case.name, unit)))}  {unit}"
                line(row if case.role == "tidemill" else paint(row, DIM))
                name = f"  {'':<{width}}"
    compared = [each for each in judged if each.comparison.of is not None]
    held = [each for each in judged if each.ok is not None]
    for title, those in (("Compared, round by round (above 1 is better)", compared), ("Targets", held)):
        if those:
            widest = max(len(_subject(each)) for each in those) + 2
            line()
            line(paint(title, BOLD))
            for each in those:
                row = f"  {_subject(each):<{widest}}{_figure(each.found)}"
                line(
                    row
                    if those is compared
                    else f"{row}{_bound(each)}" + (paint("ok", GREEN) if each.ok else paint("MISSED", RED))
                )
    for name, text in results.failed.items():
        line()
        line(f"{name} failed:")
        line(text)


def _subject(verdict: Verdict) -> str:
    each = verdict.comparison
    return f"{each.case}, {each.unit}" if each.of is None else f"{each.case}  ÷  {each.of}"


def _bound(verdict: Verdict) -> str:
    each = verdict.comparison
    return f"{f'≥ {each.at_least:g}' if each.at_least is not None else f'≤ {each.at_most:g}':<8}"


def _figure(found: Spread) -> str:
    return f"{_number(found.median):>10}  [{_number(found.low)} – {_number(found.high)}]".ljust(34)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"

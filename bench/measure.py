# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Interleaved measuring: A B C A B C …, medians with their spread, ratios pair by pair.

Whatever else the machine does meets all cases alike, and a ratio is taken between two runs that were neighbours
in time. That is why a ratio says more than either of its figures.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

Figures: TypeAlias = dict[str, float]
"""What one run measured: unit (a key of `UNITS`) to value."""

UNITS: dict[str, Literal["more", "less"]] = {
    "events/s": "more",
    "µs/event": "less",
    "µs of CPU/event": "less",
    "p50 ms": "less",
    "p99 ms": "less",
    "% of a core": "less",
    "RSS growth MiB": "less",
    "last/first 100k": "less",
    "late ms": "less",
    "opening ms": "less",
    "rest ms": "less",
    "all ms": "less",
    "given back": "more",
}
"""Every unit, and whether more of it is better."""


class Skipped(Exception):
    """A case that cannot run here, and why."""


@dataclass(frozen=True)
class Case:
    """One thing to measure. `run(count)` moves that many events and returns figures."""

    name: str
    group: str
    run: Callable[[int], Figures]
    count: int
    role: Literal["tidemill", "limit", "peer"] = "tidemill"
    usual: bool = True
    """Whether it runs when nobody names it."""
    once: bool = False
    """Too long to repeat: one run, whatever `--runs` says."""
    fixed: bool = False
    """`--quick` and `--scale` leave its count alone."""


@dataclass(frozen=True)
class Comparison:
    """One figure beside another, or on its own, with the project's target where it has one."""

    case: str
    unit: str
    of: str | None = None
    of_unit: str | None = None
    at_least: float | None = None
    """Target for the ratio; more is always better, as costs are compared the other way round."""
    at_most: float | None = None
    """Target for the value itself."""


@dataclass
class Results:
    """What was measured: per case the figures of every round, or why there are none."""

    cases: list[Case]
    rounds: dict[str, list[Figures]] = field(default_factory=dict[str, list[Figures]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def values(self, case: str, unit: str) -> list[float]:
        return [figures[unit] for figures in self.rounds.get(case, []) if unit in figures]

    def ratios(self, comparison: Comparison) -> list[float]:
        """Round by round; above 1 is better than what it is compared with."""
        assert comparison.of is not None
        other_unit = comparison.of_unit or comparison.unit
        ratios: list[float] = []
        for ours, theirs in zip(
            self.values(comparison.case, comparison.unit),
            self.values(comparison.of, other_unit),
            strict=False,
        ):
            ratios.append(ours / theirs if UNITS[comparison.unit] == "more" else theirs / ours)
        return ratios


@dataclass(frozen=True)
class Spread:
    """A median, with the smallest and the largest it was taken from."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def measure(cases: Sequence[Case], runs: int, scale: float, progress: Callable[[int, int, Case], object]) -> Results:
    """Run all cases `runs` times, interleaved, after one small round that is thrown away (caches, bytecode)."""
    results = Results(list(cases))
    total = len(cases) * runs

    def run(case: Case, factor: float) -> Figures | None:
        if case.name in results.skipped or case.name in results.failed:
            return None
        # What earlier cases left is neither collected nor looked at on this one's time.
        gc.collect()
        gc.freeze()
        try:
            return case.run(case.count if case.fixed else max(1, round(case.count * factor)))
        except Skipped as why:
            results.skipped[case.name] = str(why)
        except Exception as error:
            results.failed[case.name] = "".join(traceback.format_exception(error)).strip()
        return None

    for case in cases:
        progress(0, total, case)
        if not case.fixed:
            run(case, scale / 20)
    step = 0
    for round_number in range(runs):
        for case in cases:
            step += 1
            progress(step, total, case)
            if case.once and round_number:
                continue
            figures = run(case, scale)
            if figures is not None:
                results.rounds.setdefault(case.name, []).append(figures)
    return results

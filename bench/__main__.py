# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""`python -m bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import cases_dispatch, cases_memory, cases_sqlite, cases_trouble, places, report
from .measure import Case, measure
from .targets import COMPARISONS

CASES = [*cases_memory.cases(), *cases_dispatch.cases(), *cases_sqlite.cases(), *cases_trouble.cases()]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure what Tidemill costs, beside hand-written limits and FastStream. See bench/README.md.",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="PATTERN",
        dest="patterns",
        help="only cases whose name contains this, and what they are compared with; may be repeated",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="interleaved rounds (default 5; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events: a look, not a measurement")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="multiply the number of events")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where databases lie (default /var/tmp)")
    return parser.parse_args(argv)


def select(patterns: Sequence[str]) -> list[Case]:
    """The usual cases, or those a pattern names together with what they are compared with."""
    if not patterns:
        return [case for case in CASES if case.usual]
    names = {case.name for case in CASES if any(pattern in case.name for pattern in patterns)}
    # "memory" means the usual ones of them; what is left out by default has to be named by its own name.
    usual = {case.name for case in CASES if case.usual}
    if names & usual:
        names &= usual
    names |= {each.of for each in COMPARISONS if each.case in names and each.of is not None}
    return [case for case in CASES if case.name in names]


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.list:
        for case in CASES:
            print(f"{case.name}{'' if case.usual else '  (only where named)'}")
        return 0
    selected = select(options.patterns)
    if not selected:
        print(f"no case is called {' or '.join(options.patterns)}; --list shows them", file=sys.stderr)
        return 2
    if options.folder is not None:
        places.use(options.folder)
    runs = options.runs or (2 if options.quick else 5)
    results = measure(selected, runs, options.scale * (0.1 if options.quick else 1.0), _progress)
    _clear_progress()
    judged = report.verdicts(results, COMPARISONS)
    report.print_report(results, judged)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(results, judged), indent=1, ensure_ascii=False) + "\n")
    missed = any(each.ok is False for each in judged)
    return 1 if results.failed or (options.check and missed) else 0


def _progress(step: int, total: int, case: Case) -> None:
    where = f"{step}/{total}" if step else "warming up"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{where}  {case.name}", end="", file=sys.stderr, flush=True)
    elif step % 10 == 1:
        print(f"{where}  {case.name}", file=sys.stderr, flush=True)


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

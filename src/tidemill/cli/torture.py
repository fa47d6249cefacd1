"""`tidemill torture`: real processes on a broker, killed, paused, replaced and starved of disk; then a verdict."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .options import examples, refuse_private, run_async
from .output import cut, heading, table

if TYPE_CHECKING:
    from ..testing.torture.runner import Progress, Result

EVERY: Final = 10.0
"""Seconds between two lines of progress where nobody watches."""

_COLOURS: Final = {"PASSED": "green", "FAILED": "red", "INVALID": "yellow"}


@click.command(
    "torture",
    epilog=examples("tidemill torture", "tidemill torture --seed 7 --events 100000 --json verdict.json"),
)
@click.option(
    "--broker",
    metavar="URL",
    help="Where messages are stored, in topics of its own. Default: an SQLite file in a temporary folder.",
)
@click.option("--seed", type=int, metavar="N", help="What everything follows from. Default: a new one.")
@click.option("--events", type=click.IntRange(min=100), default=20_000, show_default=True, metavar="N")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="N",
    help="Begin no fault after so many.",
)
@click.option("--consumers", type=click.IntRange(min=2), default=4, show_default=True, metavar="N")
@click.option("--publishers", type=click.IntRange(min=1), default=2, show_default=True, metavar="N")
@click.option("--keep", is_flag=True, help="Keep the folder with the evidence, whatever the verdict.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
def command(
    broker: str | None,
    seed: int | None,
    events: int,
    minutes: float,
    consumers: int,
    publishers: int,
    keep: bool,
    json_file: Path | None,
) -> None:
    """Torture a broker, and Tidemill on it.

    Processes publish and consume events, some of them poison; meanwhile they are killed, paused past their lease,
    replaced by other versions, and, on a file made for it, left without disk. Everything they do is written down,
    and checked in the end. Faults come by the seed, so a run can be repeated, as far as real processes can.

    $TIDEMILL_BROKER is not used: nobody tortures a production broker by accident.

    Exit codes: 0 passed; 1 failed, or invalid as too few faults hit; 2 usage; 3 the broker failed.
    """
    from ..testing.torture.plan import Plan
    from ..testing.torture.report import as_json, verdict
    from ..testing.torture.runner import torture

    if broker is not None:
        refuse_private(broker)
    if seed is None:
        seed = random.randrange(1_000_000)
    click.echo(f"seed {seed}")
    plan = Plan(
        seed=seed,
        events=events,
        minutes=minutes,
        consumers=consumers,
        publishers=publishers,
        name="torture" if broker is None else f"torture-{time.time_ns() // 1_000_000}",
    )
    folder = Path(tempfile.mkdtemp(prefix="tidemill-torture-"))
    reporter = _Reporter()
    kept = True
    try:
        result = run_async(torture(plan, folder, broker, reporter.tell))
        (folder / "verdict.json").write_bytes(as_json(result))
        kept = keep or verdict(result)[0] != "PASSED"
    finally:
        reporter.close()
        if kept:
            click.echo(f"the evidence is in {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if json_file is not None:
        json_file.write_bytes(as_json(result))
    click.echo("\n".join(_text(result)))
    click.get_current_context().exit(0 if verdict(result)[0] == "PASSED" else 1)


class _Reporter:
    """Tells how far the run is: on a terminal in one line that changes, elsewhere in a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = EVERY

    def tell(self, progress: Progress) -> None:
        from ..testing.torture.report import progress_line

        line = progress_line(progress)
        if self._terminal:
            click.echo(f"\r\x1b[K{cut(line, shutil.get_terminal_size().columns - 1)}", nl=False, err=True)
        elif progress.seconds >= self._next:
            self._next = progress.seconds + EVERY
            click.echo(line, err=True)

    def close(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


def _text(result: Result) -> list[str]:
    from ..testing.torture.report import command_line, faults, happenings, verdict

    word, text = verdict(result)
    lines = ["", *_aligned(("FAULT", "HIT", ""), faults(result))]
    lines += ["", *_aligned(("WHAT HAPPENED", "", ""), happenings(result)), ""]
    lines.append(f"{click.style(word, fg=_COLOURS[word], bold=True)}: {text}")
    lines += [f"  {finding}" for finding in result.checked.findings]
    if word != "PASSED":
        lines.append(f"again: {command_line(result)}")
    return lines


def _aligned(headers: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> list[str]:
    """Names to the left, figures to the right, and what there is to say behind them."""
    lines = table([heading(header) for header in headers[:2]], [row[:2] for row in rows])
    said = [click.style(text, dim=True) if text else "" for _, _, text in (headers, *rows)]
    return [f"{line}  {text}".rstrip() for line, text in zip(lines, said, strict=True)]

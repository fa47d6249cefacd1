"""What a torture run tells people and programs: how far it is, what happened, and the verdict."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from .plan import FaultKind
from .runner import Progress, Result

Verdict: TypeAlias = Literal["PASSED", "FAILED", "INVALID"]


def verdict(result: Result) -> tuple[Verdict, str]:
    """Whether a run found something, and a sentence. What was not tried cannot pass."""
    if result.failed:
        rules = ", ".join(f"{finding.rule} ({finding.count:,})" for finding in result.checked.findings)
        return "FAILED", rules
    if result.missed:
        return "INVALID", "nothing is wrong, and not enough was tried: " + "; ".join(result.missed)
    kills = result.hits[FaultKind.KILL_CONSUMER] + result.hits[FaultKind.KILL_PUBLISHER]
    return "PASSED", (
        f"nothing lost, nothing out of order, nobody charged for another, in {result.plan.events:,} events "
        f"through {kills:,} kills and {result.hits[FaultKind.PAUSE]:,} pauses"
    )


def faults(result: Result) -> list[tuple[str, str, str]]:
    """A row for each fault: its name, how often it hit, and how often it had to, or why it was left out."""
    return [
        (kind.value, "-", f"skipped: {result.skipped[kind]}")
        if kind in result.skipped
        else (kind.value, f"{result.hits.get(kind, 0):,}", f"at least {result.plan.needed(kind):,}")
        for kind in FaultKind
        if result.plan.planned(kind)
    ]


def happenings(result: Result) -> list[tuple[str, str, str]]:
    """A row for each thing that happened: its name, how often, and what there is to say about it."""
    figures, checked = result.figures, result.checked
    count = len(result.plan.subscriptions)
    return [
        ("events stored", f"{result.stored:,}", f"{figures['refused']:,} publishes refused, and repeated"),
        (
            "handled",
            f"{figures['acked']:,}",
            f"by {count} subscriptions, {result.stored / result.seconds:,.0f} events/s",
        ),
        ("handled again", f"{sum(checked.repeated.values()):,}", _listed(checked.repeated)),
        ("retried", f"{figures['retried']:,}", f"{figures['exits']:,} processes ended by an event"),
        ("given back", f"{figures['released']:,}", "by who drained, or waited behind a retry"),
        ("met from the future", f"{figures['future']:,}", "events that waited for newer code"),
        ("refused as too late", f"{figures['late']:,}", "of who had lost the lease"),
        ("dead letters", f"{sum(checked.dead.values()):,}", _listed(checked.dead)),
        ("drained", "never" if result.drained is None else f"{result.drained:.1f} s", "after the last fault"),
        ("took", f"{result.seconds:.0f} s", ""),
    ]


def command_line(result: Result) -> str:
    """The command that does the same again."""
    plan = result.plan
    words = ["tidemill torture", f"--seed {plan.seed}", f"--events {plan.events}", f"--minutes {plan.minutes:g}"]
    words += [f"--consumers {plan.consumers}", f"--publishers {plan.publishers}"]
    if FaultKind.DISK_FULL in result.skipped and result.folder not in result.broker:
        words.append(f"--broker {result.broker}")
    return " ".join(words)


def as_json(result: Result) -> bytes:
    """All of it, for programs."""
    word, text = verdict(result)
    parts: dict[str, Any] = {
        "verdict": word,
        "text": text,
        "seed": result.plan.seed,
        "again": command_line(result),
        **msgspec.to_builtins(result),
    }
    return msgspec.json.format(msgspec.json.encode(parts))


def progress_line(progress: Progress) -> str:
    """One line of how far a run is."""
    return (
        f"{progress.seconds:4.0f} s  {progress.phase:8}  {progress.confirmed:,} confirmed  "
        f"{progress.handled:,} handled  {progress.backlog:,} to do  {progress.kills:,} kills  "
        f"{progress.pauses:,} pauses  {progress.dead:,} dead letters"
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if count)

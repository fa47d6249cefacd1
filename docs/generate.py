# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Writes what the documentation takes from the code: between `<!-- generated: NAME -->` and `<!-- /generated -->`.

    python docs/generate.py            writes the pages anew
    python docs/generate.py --check    writes nothing; exit code 1 where a page is out of date

Needs what the tests need.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec

from tidemill import RetryPolicy, Service, Topic, consumer, message, publisher, runtime, telemetry
from tidemill.broker import Broker, Capabilities, Feed, Subscription, connect
from tidemill.brokers.memory import backlog as keeps
from tidemill.cli import COMMANDS, cli
from tidemill.clock import SystemClock
from tidemill.testing.conformance import PROMISES, SCENARIOS, Conformance

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_PART = re.compile(r"(<!-- generated: ([a-z-]+)(?: ([^>]*?))? -->\n).*?(<!-- /generated -->)", re.DOTALL)

PROMISED = {
    "G1": "What `publish` confirmed reaches every subscription that exists, until it is handled or given up.",
    "G2": "`publish` returns, or says per message: stored, not stored, or unknown.",
    "G3": "Every delivery ends in exactly one outcome, whatever the handler or a middleware does.",
    "G4": "Attempts, delays, concurrency, buffers and sizes have limits, by default.",
    "G5": "A message that cannot be handled, or kills its process, becomes a dead letter, and its neighbours go on.",
    "G6": "Events of one key are handled one at a time, in publish order, across processes and retries.",
    "G7": "On SIGTERM: fetch no more, finish what runs, give the rest back uncharged.",
    "G8": "With an inbox, a handler's database writes happen exactly once.",
    "G9": "With an outbox, an event leaves if and only if the transaction commits.",
    "G10": "Dead letters are kept whole until replayed or discarded, for the subscription that failed alone.",
    "G11": "Events written years ago reach today's handler as today's class.",
    "G12": "A lease is kept alive while a handler runs; who lost it cannot settle any more.",
}
"""Each promise in a sentence, for the front page. `docs/guarantees.md` says what they leave out."""

UNBUILT = {"G8": "the inbox, not built yet", "G9": "the outbox, not built yet"}


@cache
def failing() -> dict[str, str]:
    """The scenarios that one of the brokers here is expected to fail so far, and why."""
    found: dict[str, str] = {}
    for file in ("test_memory.py", "test_sqlite.py"):
        for each in runpy.run_path(str(ROOT / "tests" / "conformance" / file)).values():
            if isinstance(each, type) and issubclass(each, Conformance):
                for name, test in vars(each).items():
                    for mark in getattr(test, "pytestmark", []):
                        if mark.name == "xfail":
                            found[name.removeprefix("test_")] = mark.kwargs["reason"]
    return found


def promises() -> str:
    """The front page's table: each promise, and what proves it today."""
    rows = ["| | promise | in short | proved by |", "|---|---|---|---|"]
    for key, title in PROMISES.items():
        proof = f"waits for {UNBUILT[key]}" if key in UNBUILT else _proof(key)
        anchor = f"docs/guarantees.md#{_anchor(f'{key} {title}')}"
        rows.append(f"| {key} | [{title}]({anchor}) | {PROMISED[key]} | {proof} |")
    return _lines(rows)


def suite() -> str:
    """How large the suite is, and what of it does not pass."""
    fails = len(failing())
    lack = f"; {fails} {'does' if fails == 1 else 'do'} not pass yet, which is marked below" if fails else ""
    return f"The suite has {_scenarios(len(SCENARIOS))}{lack}.\n"


def scenarios(promise: str) -> str:
    """The scenarios that prove a promise."""
    found = [scenario for scenario in SCENARIOS.values() if promise in scenario.promises]
    if not found:
        return "Proved by: no scenario yet.\n"
    rows: list[str] = []
    for scenario in found:
        needs = f" *(where the broker has: {', '.join(scenario.needs)})*" if scenario.needs else ""
        why = f" **Does not pass yet:** {failing()[scenario.name]}." if scenario.name in failing() else ""
        rows.append(f"- `{scenario.name}`: {scenario.text}{needs}{why}")
    return _lines([f"<details><summary>Proved by {_proof(promise)}</summary>", "", *rows, "", "</details>"])


def _proof(promise: str) -> str:
    """How many scenarios prove a promise."""
    found = [scenario.name for scenario in SCENARIOS.values() if promise in scenario.promises]
    fails = sum(name in failing() for name in found)
    return f"{_scenarios(len(found) - fails)}; {fails} more does not pass yet" if fails else _scenarios(len(found))


def limits() -> str:
    """What is bounded, and by how much."""
    retry, options = RetryPolicy(), inspect.signature(Service.on).parameters
    mib = 1024 * 1024
    rows = [
        ("attempts", f"{retry.attempts}, the first one included", "`RetryPolicy(attempts=)`"),
        ("retries at once", f"{retry.immediate}", "`RetryPolicy(immediate=)`"),
        (
            "delays of the others",
            f"random, at most {retry.base:g} s, then {retry.factor:g} times as much each time, "
            f"at most {retry.cap / 60:g} min",
            "`RetryPolicy(base=, factor=, cap=)`",
        ),
        ("one attempt", f"{options['timeout'].default:g} s", "`@service.on(timeout=)`"),
        (
            "handlers at once",
            f"{options['concurrency'].default} a subscription and process",
            "`concurrency=`",
        ),
        (
            "fetched and not settled",
            f"twice the concurrency, up to {consumer.MAX_WINDOW:,} where handlers are fast; "
            f"{consumer.MAX_BUFFER // mib} MiB of bodies",
            "",
        ),
        ("drain", f"{runtime.GRACE:g} s for running handlers", "`--grace`, `grace=`"),
        ("lease", f"{Subscription(name='-', topic='-').lease:g} s without a sign of life", ""),
        ("confirmation of a publish", f"{publisher.CONFIRM:g} s, then it is unknown", ""),
        ("body", f"{message.MAX_BODY // mib} MiB", ""),
        ("attributes and headers", f"{message.MAX_HEADERS // 1024} KiB together", ""),
        ("handled events stay readable", f"{Topic('t').retain.days} days", "`Topic(retain=)`"),
    ]
    return _lines(["| what | default | set by |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


def capabilities() -> str:
    """What each broker declares that it can do."""
    with tempfile.TemporaryDirectory() as folder:
        urls = {"memory:": "memory:", "sqlite:": f"sqlite:///{folder}/events.db"}
        found = {name: asyncio.run(_capabilities(url)) for name, url in urls.items()}
    meaning = _documented(Capabilities)
    rows = [f"| | {' | '.join(f'`{name}`' for name in found)} | |", f"|---|{'---|' * len(found)}---|"]
    for field in Capabilities.__struct_fields__:
        values = (_shown(getattr(each, field)) for each in found.values())
        rows.append(f"| {field} | {' | '.join(values)} | {meaning[field]} |")
    return _lines(rows)


async def _capabilities(url: str) -> Capabilities:
    broker = connect(url, SystemClock())
    await broker.open()
    try:
        return msgspec.structs.replace(broker.capabilities)
    finally:
        await broker.close()


def memory() -> str:
    """What `memory:` keeps."""
    mib = keeps.KEPT_BYTES // (1024 * 1024)
    return (
        f"- Per topic the last {keeps.KEPT_MESSAGES:,} messages, at most {mib} MiB of bodies, stay readable, "
        "and duplicates are recognised among them.\n"
    )


def protocol(name: str) -> str:
    """The methods of a protocol and what they promise."""
    protocols: dict[str, type] = {"Broker": Broker, "Feed": Feed}
    rows = ["| method | contract |", "|---|---|"]
    for method, function in vars(protocols[name]).items():
        text = inspect.getdoc(function.fget if isinstance(function, property) else function)
        if not method.startswith("_") and text:
            rows.append(f"| `{method}` | {' '.join(text.split())} |")
    return _lines(rows)


def telling() -> str:
    """The table of what Tidemill says about itself."""
    return _lines([line for line in (telemetry.__doc__ or "").splitlines() if line.startswith("|")])


def commands() -> str:
    """Every command's help."""
    parts = ["```text", _help([]), "```", ""]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        below = list(command.commands) if isinstance(command, click.Group) else []
        for words in [[name], *([name, each] for each in below)]:
            parts += [f"## tidemill {' '.join(words)}", "", "```text", _help(words), "```", ""]
    return _lines(parts[:-1])


def _help(words: list[str]) -> str:
    settings: dict[str, Any] = {"help_option_names": ["-h", "--help"], "terminal_width": 80, "color": False}
    command: click.Command | None = cli
    context = click.Context(cli, info_name="tidemill", **settings)
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(context, word)
        assert command is not None
        context = click.Context(command, info_name=word, parent=context, **settings)
    assert command is not None
    return command.get_help(context).rstrip()


def _documented(cls: type) -> dict[str, str]:
    """The first line of the text under each field."""
    source = inspect.getsource(cls)
    found = re.findall(r'^    (\w+): [^\n]+\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _scenarios(count: int) -> str:
    return "1 scenario" if count == 1 else f"{count} scenarios"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


PARTS: dict[str, Callable[..., str]] = {
    "promises": promises,
    "suite": suite,
    "scenarios": scenarios,
    "limits": limits,
    "capabilities": capabilities,
    "memory": memory,
    "protocol": protocol,
    "telemetry": telling,
    "commands": commands,
}


def generated(text: str) -> str:
    """A page with its generated parts as they are now."""

    def part(found: re.Match[str]) -> str:
        start, name, argument, end = found.groups()
        return f"{start}{PARTS[name](*([argument] if argument else []))}{end}"

    return _PART.sub(part, text)


def main(check: bool) -> int:
    stale = 0
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = generated(before)
        if after == before:
            continue
        stale += 1
        if check:
            print(f"{page.relative_to(ROOT)} is out of date: run python docs/generate.py", file=sys.stderr)
        else:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

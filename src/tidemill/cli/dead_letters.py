"""`tidemill dead-letters`: the messages that subscriptions gave up on, and what is to become of them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from ..broker import DeadLettered, Resolve
from ..dead_letters import RATE, Filter, by_error, find
from ..errors import ConfigurationError
from .letters import (
    as_text,
    filter_options,
    group_json,
    group_table,
    identified,
    letter_json,
    letter_table,
    resolution_json,
    resolution_table,
    which,
)
from .options import broker_option, examples, opened, run_async
from .output import cut
from .resolving import Order, carry_out, somebody

F = TypeVar("F", bound=Callable[..., Any])

SHOWN: Final = 100
"""Lines of a table unless --limit says otherwise: more than fit a screen, and few where there are 100,000."""


@click.group(
    "dead-letters",
    epilog=examples(
        "tidemill dead-letters list --by-error",
        "tidemill dead-letters show 0198c0de-7d2f-7000-8000-1f2e3d4c5b6a",
        "tidemill dead-letters replay --subscription notifications.send_receipt --error 'connection refused'",
    ),
)
def command() -> None:
    """Look at the messages that subscriptions gave up on, replay or discard them."""


# ----------------------------------------------------------------------- looking


@command.command(
    "list",
    epilog=examples(
        "tidemill dead-letters list --by-error",
        "tidemill dead-letters list --subscription notifications.send_receipt --since 1h",
        "tidemill dead-letters list --json | jq -r .event.id",
    ),
)
@broker_option
@filter_options
@click.option("--by-error", is_flag=True, help="One line for each subscription and cause: how many, since when.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"At most N.  [default: {SHOWN}; JSON: all]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the whole event.")
def list_(broker: str, by_error: bool, limit: int | None, as_json: bool, **filters: Any) -> None:
    """List dead letters, oldest first.

    With --by-error, reasons that differ in numbers, ids and quoted values alone are one cause.
    """
    run_async((_groups if by_error else _list)(broker, which(**filters), limit, as_json))


async def _list(url: str, meant: Filter, limit: int | None, as_json: bool) -> None:
    found: list[DeadLettered] = []
    count = 0
    async with opened(url) as broker:
        async for letter in find(broker, meant):
            count += 1
            if as_json:
                click.echo(letter_json(letter))
            elif count <= (limit or SHOWN):
                found.append(letter)
            if count == limit:
                break
    if as_json:
        return
    if not found:
        _say_none(meant)
        return
    _print(letter_table(found))
    if count > len(found):
        click.echo(
            f"and {count - len(found):,} more: narrow it down, or see them with --limit, --by-error or --json", err=True
        )


async def _groups(url: str, meant: Filter, limit: int | None, as_json: bool) -> None:
    async with opened(url) as broker:
        groups = (await by_error(broker, meant))[:limit]
    if as_json:
        for group in groups:
            click.echo(msgspec.json.encode(group_json(group)))
    elif groups:
        _print(group_table(groups))
    else:
        _say_none(meant)


def _say_none(meant: Filter) -> None:
    click.echo("no dead letters" if meant.fits_everything else "no dead letter matches")


@command.command("show", epilog=examples("tidemill dead-letters show 0198c0de-7d2f-7000-8000-1f2e3d4c5b6a"))
@click.argument("id")
@broker_option
@click.option("--subscription", metavar="NAME", help="Only that of this subscription.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole event.")
def show(id: str, broker: str, subscription: str | None, as_json: bool) -> None:
    """Show one message with its body and every failed attempt.

    ID is the message's id, or the beginning or end of it. A message that several subscriptions gave up on is shown
    once for each.
    """

    async def look() -> list[DeadLettered]:
        async with opened(broker) as connected:
            return await identified(connected, id, subscription)

    found = run_async(look())
    click.echo("\n\n".join(letter_json(one).decode() if as_json else as_text(one) for one in found))


@command.command(
    "export",
    epilog=examples(
        "tidemill dead-letters export --output dead.jsonl",
        "tidemill dead-letters export --error timeout | jq -r .body_base64 | base64 -d",
    ),
)
@broker_option
@filter_options
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE, which is there when it is complete and not before.  [default: standard output]",
)
def export(broker: str, output: Path | None, **filters: Any) -> None:
    """Write dead letters as JSON Lines: event, headers, every attempt, and the body's bytes in Base64.

    Nothing is changed: to take them out, discard them afterwards.
    """
    run_async(_export(broker, which(**filters), output))


async def _export(url: str, meant: Filter, output: Path | None) -> None:
    async with opened(url) as broker:
        if output is None:
            async for letter in find(broker, meant):
                click.echo(letter_json(letter, raw=True))
            return
        count = 0
        try:
            file = tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", delete=False)  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"{output} cannot be written ({error}). Nothing was exported.") from error
        try:
            with file:
                async for letter in find(broker, meant):
                    file.write(letter_json(letter, raw=True) + b"\n")
                    count += 1
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, output)
        except BaseException:
            os.unlink(file.name)
            raise
    click.echo(f"exported {count:,} dead letter{'' if count == 1 else 's'} to {output}", err=True)


@command.command("log", epilog=examples("tidemill dead-letters log --limit 10"))
@broker_option
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="The last N.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def log(broker: str, limit: int, as_json: bool) -> None:
    """Show who replayed or discarded what, newest last."""

    async def look() -> list[Any]:
        async with opened(broker) as connected:
            return await connected.resolutions(limit=limit)

    lines = run_async(look())
    if as_json:
        for line in lines:
            click.echo(resolution_json(line))
    elif lines:
        _print(resolution_table(lines))
    else:
        click.echo("nobody has replayed or discarded anything")


# --------------------------------------------------------------------- resolving


def _resolving(command: F) -> F:
    for option in reversed(
        (
            click.argument("id", required=False),
            broker_option,
            filter_options,
            click.option("--all", "everything", is_flag=True, help="Every dead letter there is."),
            click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N, the oldest first."),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
            click.option("--by", metavar="NAME", help="Who decides, for the log.  [default: user@host]"),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        )
    ):
        command = option(command)
    return command


@command.command(
    "replay",
    epilog=examples(
        "tidemill dead-letters replay 0198c0de-7d2f-7000-8000-1f2e3d4c5b6a",
        "tidemill dead-letters replay --subscription notifications.send_receipt --error 'connection refused'",
        "tidemill dead-letters replay --all --dry-run",
    ),
)
@_resolving
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=RATE,
    show_default=True,
    metavar="N",
    help="At most N a second, for the sake of what has just recovered.",
)
def replay(rate: float, **given: Any) -> None:
    """Give dead letters to the subscription that gave them up once more, and to no other.

    ID is a message's id, or the beginning or end of it; or options say which are meant. Attempts begin again at 1,
    and the history is kept. Ctrl-C ends it between two batches and says how many were replayed.
    """
    _order("replay", rate=rate, yes=True, **given)


@command.command(
    "discard",
    epilog=examples(
        "tidemill dead-letters discard 0198c0de-7d2f-7000-8000-1f2e3d4c5b6a",
        "tidemill dead-letters discard --before 30d --yes",
    ),
)
@_resolving
@click.option("--yes", is_flag=True, help="Do not ask, where standard input is a terminal and there are several.")
def discard(yes: bool, **given: Any) -> None:
    """Remove dead letters for good. Events that wait for a parked one go on.

    ID is a message's id, or the beginning or end of it; or options say which are meant.
    """
    _order("discard", rate=None, yes=yes, **given)


def _order(
    action: Resolve,
    *,
    rate: float | None,
    yes: bool,
    broker: str,
    id: str | None,
    everything: bool,
    limit: int | None,
    dry_run: bool,
    by: str | None,
    as_json: bool,
    **filters: Any,
) -> None:
    others = [name for name, value in filters.items() if value is not None and name != "subscription"]
    if id is not None and (others or everything or limit):
        raise click.UsageError("give either an ID or options that say which are meant, not both")
    order = Order(
        action=action,
        which=which(**filters),
        id=id,
        everything=everything,
        rate=rate,
        limit=limit,
        dry_run=dry_run,
        yes=yes,
        by=somebody() if by is None else by,
        as_json=as_json,
    )
    run_async(carry_out(broker, order))


def _print(lines: list[str]) -> None:
    if sys.stdout.isatty():
        lines = [cut(line, shutil.get_terminal_size().columns) for line in lines]
    click.echo("\n".join(lines))

"""`tidemill dead-letters`: the messages that subscriptions gave up on, with their whole history."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click
import msgspec

from ..broker import DeadLettered
from ..cloudevents import attributes, format_time, to_structured
from ..errors import ConfigurationError
from .options import broker_option, examples, opened, run_async
from .output import cut, heading, local_time, table, visible


@click.group(
    "dead-letters",
    epilog=examples(
        "tidemill dead-letters list --subscription notifications.send_receipt",
        "tidemill dead-letters show 0198c0de-7d2f-7000-8000-1f2e3d4c5b6a",
    ),
)
def command() -> None:
    """Look at the messages that subscriptions gave up on."""


@command.command("list", epilog=examples("tidemill dead-letters list --json | jq -r .reason | sort | uniq -c"))
@broker_option
@click.option("--subscription", metavar="NAME", help="Only those of this subscription.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the whole event.")
def list_(broker: str, subscription: str | None, as_json: bool) -> None:
    """List dead letters, oldest first."""
    found = run_async(_fetch(broker, subscription))
    if as_json:
        for one in found:
            click.echo(_json(one))
        return
    if not found:
        click.echo("no dead letters")
        return
    rows = [
        (
            local_time(one.at),
            visible(one.subscription),
            visible(one.message.type),
            visible(one.message.key or "-"),
            visible(one.message.id),
            f"{one.attempts}",
            visible(one.reason),
        )
        for one in found
    ]
    columns = ("GIVEN UP", "SUBSCRIPTION", "TYPE", "KEY", "ID", "ATTEMPTS", "REASON")
    lines = table(columns, rows, left=len(columns))
    if sys.stdout.isatty():
        lines = [cut(line, shutil.get_terminal_size().columns) for line in lines]
    click.echo("\n".join([heading(lines[0]), *lines[1:]]))


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
    letters = run_async(_fetch(broker, subscription))
    found = [one for one in letters if one.message.id == id]
    found = found or [one for one in letters if one.message.id.startswith(id) or one.message.id.endswith(id)]
    ids = sorted({one.message.id for one in found})
    if not ids:
        raise ConfigurationError(f"there is no dead letter with the id {id!r}. See: tidemill dead-letters list")
    if len(ids) > 1:
        raise ConfigurationError(f"{id!r} fits {len(ids)} dead letters: {', '.join(ids[:5])}. Write more of it.")
    click.echo("\n\n".join(_json(one).decode() if as_json else _text(one) for one in found))


async def _fetch(url: str, subscription: str | None) -> list[DeadLettered]:
    async with opened(url) as broker:
        if subscription is not None:
            names = sorted(one.name for one in (await broker.inspect()).subscriptions)
            if subscription not in names:
                raise ConfigurationError(
                    f"there is no subscription {subscription!r} on {broker.url}. "
                    f"There are: {', '.join(names) or 'none'}."
                )
        return await broker.dead_letters(subscription)


def _json(one: DeadLettered) -> bytes:
    return msgspec.json.encode(
        {
            "subscription": one.subscription,
            "topic": one.message.topic,
            "reason": one.reason,
            "attempts": one.attempts,
            "at": format_time(one.at),
            "history": [{**msgspec.to_builtins(failure), "at": format_time(failure.at)} for failure in one.history],
            "event": msgspec.Raw(to_structured(one.message)),
        }
    )


def _text(one: DeadLettered) -> str:
    facts: dict[str, Any] = {
        "subscription": one.subscription,
        "topic": one.message.topic,
        "given up": local_time(one.at),
        "attempts": one.attempts,
        "reason": one.reason,
    }
    facts |= {name: value for name, value in attributes(one.message).items() if name != "specversion"}
    size = max(map(len, facts))
    lines = [f"{heading(f'{name:<{size}}')}  {visible(str(value))}" for name, value in facts.items()]
    for failure in one.history:
        lines += [
            "",
            f"{heading(f'attempt {failure.attempt}')}  {local_time(failure.at)}  {visible(failure.error)}",
        ]
        lines += [f"  {visible(line)}" for line in failure.traceback.splitlines()]
    return "\n".join([*lines, "", *_body(one.message.body)])


def _body(body: bytes) -> list[str]:
    try:
        text = msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, ValueError):
        text = body.decode("utf-8", "backslashreplace")
    return [visible(line) for line in text.splitlines()] or ["(no body)"]

"""Dead letters as people and programs read them, and the options that say which are meant."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import msgspec

from ..broker import Broker, DeadLettered, Resolution
from ..cloudevents import attributes, format_time, to_structured
from ..dead_letters import Filter, Group, find
from ..errors import ConfigurationError
from .options import when
from .output import heading, local_time, table, visible

F = TypeVar("F", bound=Callable[..., Any])

_WHEN = "an age (90s, 15m, 1h, 7d) or a time (2026-01-31T12:00)"

_FILTERS = (
    click.option("--subscription", metavar="NAME", help="Only those of this subscription."),
    click.option("--type", "type_", metavar="TYPE", help="Only this event type."),
    click.option("--key", metavar="KEY", help="Only events with this key."),
    click.option("--error", metavar="TEXT", help="Only where the reason or an attempt's error has this in it."),
    click.option("--since", callback=when, metavar="WHEN", help=f"Only those given up since then: {_WHEN}."),
    click.option("--before", callback=when, metavar="WHEN", help="Only those given up before then: as --since."),
    click.option("--parked", is_flag=True, default=None, help="Only those that later events of their key wait for."),
)


def filter_options(command: F) -> F:
    """The options that say which dead letters are meant: handed on by name, for `which`."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def which(
    subscription: str | None,
    type_: str | None,
    key: str | None,
    error: str | None,
    since: int | None,
    before: int | None,
    parked: bool | None,
) -> Filter:
    """What the filter options ask for."""
    return Filter(
        subscription=subscription,
        type=type_,
        key=key,
        error=error,
        since=None if since is None else datetime.fromtimestamp(since / 1e9, UTC),
        before=None if before is None else datetime.fromtimestamp(before / 1e9, UTC),
        parked=parked,
    )


async def identified(broker: Broker, id: str, subscription: str | None) -> list[DeadLettered]:
    """The dead letters of the one message whose id is `id`, or begins or ends with it.

    Raises `ConfigurationError` where there is none, or where several messages fit.
    """
    exact: list[DeadLettered] = []
    near: dict[str, list[DeadLettered]] = {}
    async for letter in find(broker, Filter(subscription=subscription)):
        known = letter.message.id
        if known == id:
            exact.append(letter)
        elif known.startswith(id) or known.endswith(id):
            near.setdefault(known, [])
            if len(near) == 1:  # of several none is wanted, so that many need not be held
                near[known].append(letter)
    if exact:
        return exact
    if not near:
        raise ConfigurationError(f"there is no dead letter with the id {id!r}. See: tidemill dead-letters list")
    if len(near) > 1:
        shown = ", ".join(sorted(near)[:5])
        raise ConfigurationError(f"{id!r} fits {len(near)} dead letters: {shown}. Write more of it.")
    return next(iter(near.values()))


def letter_json(one: DeadLettered, *, raw: bool = False) -> bytes:
    """A dead letter as one JSON object; with `raw` the body's bytes too, exactly as they were published."""
    parts: dict[str, Any] = {
        "number": one.number,
        "subscription": one.subscription,
        "topic": one.message.topic,
        "reason": one.reason,
        "attempts": one.attempts,
        "at": format_time(one.at),
        "parked": one.parked,
        "history": [{**msgspec.to_builtins(failure), "at": format_time(failure.at)} for failure in one.history],
        "event": msgspec.Raw(to_structured(one.message)),
    }
    if raw:
        parts["body_base64"] = base64.b64encode(one.message.body).decode()
    return msgspec.json.encode(parts)


def group_json(group: Group) -> dict[str, Any]:
    """A group as JSON has it."""
    times = {"oldest": format_time(group.oldest), "newest": format_time(group.newest)}
    return {**msgspec.to_builtins(group), **times}


def resolution_json(line: Resolution) -> bytes:
    """A line of the audit trail as one JSON object."""
    return msgspec.json.encode({**msgspec.to_builtins(line), "at": format_time(line.at)})


def letter_table(letters: Sequence[DeadLettered]) -> list[str]:
    """Dead letters, a line each."""
    rows = [
        (
            local_time(one.at),
            visible(one.subscription),
            visible(one.message.type),
            visible(one.message.key or "-"),
            visible(one.message.id),
            f"{one.attempts}",
            visible(one.reason) + (" (its key waits)" if one.parked else ""),
        )
        for one in letters
    ]
    return _table(("GIVEN UP", "SUBSCRIPTION", "TYPE", "KEY", "ID", "ATTEMPTS", "REASON"), rows)


def group_table(groups: Sequence[Group]) -> list[str]:
    """Groups of dead letters, a line each."""
    rows = [
        (
            f"{group.count:,}",
            visible(group.subscription),
            local_time(group.oldest),
            local_time(group.newest),
            visible(group.example),
            visible(group.cause),
        )
        for group in groups
    ]
    return _table(("COUNT", "SUBSCRIPTION", "OLDEST", "NEWEST", "EXAMPLE", "CAUSE"), rows)


def resolution_table(lines: Sequence[Resolution]) -> list[str]:
    """The audit trail, a line each."""
    rows = [
        (
            local_time(line.at),
            visible(line.by),
            line.action,
            visible(line.subscription),
            visible(line.type),
            visible(line.key or "-"),
            visible(line.message_id),
            f"{line.attempts}",
            visible(line.reason),
        )
        for line in lines
    ]
    return _table(("WHEN", "BY", "DID", "SUBSCRIPTION", "TYPE", "KEY", "ID", "ATTEMPTS", "REASON"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = table(columns, rows, left=len(columns))
    return [heading(lines[0]), *lines[1:]]


def as_text(one: DeadLettered) -> str:
    """Everything about a dead letter, for people."""
    facts: dict[str, Any] = {
        "subscription": one.subscription,
        "topic": one.message.topic,
        "given up": local_time(one.at),
        "attempts": one.attempts,
        "reason": one.reason,
    }
    if one.parked:
        facts["parked"] = "later events of its key wait until it is replayed or discarded"
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

"""`tidemill status`: the topics there are, and how far each subscription is."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Final

import click
import msgspec

from ..broker import Broker, Inspection
from .options import broker_option, examples, opened, run_async
from .output import age, heading, table, visible, warn_if

REFRESH: Final = 1.0
"""Seconds between two looks of `--watch`."""


@click.command(
    "status",
    epilog=examples("tidemill status", "tidemill status --json | jq '.subscriptions[] | select(.dead > 0)'"),
)
@broker_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--watch", is_flag=True, help="Look again every second until Ctrl-C.")
def command(broker: str, as_json: bool, watch: bool) -> None:
    """Show the topics there are and how far each subscription is.

    BACKLOG is what is not settled yet, RETRYING the part of it that failed at least once, DEAD what was given up,
    OLDEST the age of the oldest message in the backlog, CONSUMERS the processes that consume, or that it is paused.
    """
    run_async(_status(broker, as_json, watch))


async def _status(url: str, as_json: bool, watch: bool) -> None:
    async with opened(url) as broker:
        while True:
            text = _json(broker, await broker.inspect()) if as_json else _text(broker, await broker.inspect())
            if watch and not as_json and sys.stdout.isatty():
                text = f"\x1b[H\x1b[J{text}"
            click.echo(text)
            if not watch:
                return
            await asyncio.sleep(REFRESH)


def _json(broker: Broker, found: Inspection) -> str:
    now = time.time_ns()
    parts: dict[str, Any] = msgspec.to_builtins(found)
    for one in parts["subscriptions"]:
        one["oldest_age"] = None if one["oldest"] is None else round((now - one["oldest"]) / 1e9, 3)
    return msgspec.json.encode({"broker": broker.url, **parts}).decode()


def _text(broker: Broker, found: Inspection) -> str:
    if not found.topics and not found.subscriptions:
        return f"{broker.url}: nothing is declared here yet. Run a service, or publish an event."
    now = time.time_ns()
    topics = [
        (visible(one.name), visible(one.key or "-"), f"{one.messages:,}", f"{one.scheduled:,}")
        for one in sorted(found.topics, key=lambda one: one.name)
    ]
    subscriptions = [
        (
            visible(one.name),
            visible(one.topic),
            f"{one.backlog:,}",
            warn_if(one.retrying, "yellow"),
            warn_if(one.dead, "red"),
            "-" if one.oldest is None else age((now - one.oldest) / 1e9),
            click.style("paused", fg="yellow", bold=True) if one.paused else f"{one.consumers:,}",
            f"{one.acked:,}",
            f"{one.retried:,}",
        )
        for one in sorted(found.subscriptions, key=lambda one: one.name)
    ]
    lines = [
        broker.url,
        "",
        *table([heading(text) for text in ("TOPIC", "KEY", "MESSAGES", "SCHEDULED")], topics, left=2),
    ]
    columns = (
        "SUBSCRIPTION",
        "TOPIC",
        "BACKLOG",
        "RETRYING",
        "DEAD",
        "OLDEST",
        "CONSUMERS",
        "ACKED",
        "RETRIED",
    )
    lines += ["", *table([heading(text) for text in columns], subscriptions, left=2)]
    return "\n".join(lines if subscriptions else [*lines[:-2], "", "no subscriptions"])

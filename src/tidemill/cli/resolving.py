"""What `tidemill dead-letters replay` and `discard` do: look, ask, resolve batch by batch, say what was done."""

from __future__ import annotations

import getpass
import os
import socket
import sys

import click
import msgspec

from ..broker import Broker, Resolve
from ..dead_letters import Filter, Report, Survey, discard, refuse_everything, replay, survey
from .letters import group_json, group_table, identified
from .options import opened

_DONE = {"replay": "replayed", "discard": "discarded"}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done, with what."""

    action: Resolve
    which: Filter
    id: str | None
    everything: bool
    rate: float | None
    limit: int | None
    dry_run: bool
    yes: bool
    by: str
    as_json: bool


def somebody() -> str:
    """Who runs this: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


async def carry_out(url: str, order: Order) -> None:
    """Do it, and say on standard output what was done, also where it is interrupted or the broker fails."""
    async with opened(url) as broker:
        found = await _meant(broker, order)
        last = Report(action=order.action, matched=len(found.numbers), dry_run=order.dry_run, groups=found.groups)
        if not found.numbers and not order.as_json:
            click.echo("no dead letter matches")
            return
        if order.dry_run:
            _tell(order, last)
            return
        if not _agreed(order, found):
            click.echo("nothing was done", err=True)
            return
        line = _Line(len(found.numbers), _DONE[order.action])

        def note(report: Report) -> None:
            nonlocal last
            last = report
            line.show(report)

        do = replay if order.action == "replay" else discard
        try:
            await do(broker, found, by=order.by, rate=order.rate, progress=note)
        finally:  # also where it was interrupted, or the broker failed
            line.clear()
            _tell(order, last)


async def _meant(broker: Broker, order: Order) -> Survey:
    which = order.which
    if order.id is not None:
        letters = await identified(broker, order.id, which.subscription)
        which = Filter(subscription=which.subscription, id=letters[0].message.id)
    elif not order.everything:
        refuse_everything(order.action, which)
    return await survey(broker, which, limit=order.limit)


def _agreed(order: Order, found: Survey) -> bool:
    count = len(found.numbers)
    if order.action == "replay" or order.yes or count <= 1 or not _interactive():
        return True
    click.echo("\n".join(group_table(found.groups)), err=True)
    return click.confirm(f"Discard these {count:,} dead letters for good?", err=True)


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


class _Line:
    """How far it is, on one line of a terminal; nothing elsewhere."""

    def __init__(self, total: int, done: str) -> None:
        self._total = total
        self._done = done
        self._terminal = sys.stderr.isatty()

    def show(self, report: Report) -> None:
        if self._terminal:
            click.echo(f"\r{report.resolved:,} of {self._total:,} {self._done} …", err=True, nl=False)

    def clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def _tell(order: Order, report: Report) -> None:
    if order.as_json:
        parts = {**msgspec.to_builtins(report), "by": order.by, "groups": [group_json(each) for each in report.groups]}
        click.echo(msgspec.json.encode(parts))
        return
    if report.dry_run:
        click.echo("\n".join(group_table(report.groups)))
        click.echo(f"would {report.action} {_count(report.matched)}; nothing was changed")
        return
    click.echo(f"{_DONE[report.action]} {_count(report.resolved)}")
    if report.gone:
        click.echo(f"{_count(report.gone)} of those found had been resolved by somebody else meanwhile")
    left = report.matched - report.resolved - report.gone
    if left:
        click.echo(f"{_count(left)} of those found are left as they were")


def _count(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"

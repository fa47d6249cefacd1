"""`tidemill tail`: the messages of a topic, as they are stored, without consuming them."""

from __future__ import annotations

import asyncio
import difflib
import os
import shutil
import stat
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import click
import msgspec

from ..broker import Broker
from ..cloudevents import to_structured
from ..errors import ConfigurationError
from ..message import Message
from .options import broker_option, examples, opened, run_async, when
from .output import cut, local_time, visible, width


@click.command(
    "tail",
    epilog=examples(
        "tidemill tail payments --from 1h", "tidemill tail payments -f --type payment.confirmed --key p-17"
    ),
)
@click.argument("topic")
@broker_option
@click.option(
    "--from",
    "since",
    callback=when,
    metavar="WHEN",
    help="beginning, now, an age (90s, 15m, 1h, 7d) or a time (2026-01-31T12:00).  "
    "[default: beginning; with --follow: now]",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new messages until Ctrl-C.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only this event type; may be repeated.")
@click.option("--key", metavar="KEY", help="Only messages with this key.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option("--json", "as_json", is_flag=True, help="One structured CloudEvent a line, as `tidemill publish` reads.")
def command(
    topic: str,
    broker: str,
    since: int | None,
    follow: bool,
    types: tuple[str, ...],
    key: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the messages of TOPIC without consuming them.

    A line has the local time, the event's type and version, key, id, the end of the flow's correlation id (unless
    the event began the flow itself), and the body, cut to the terminal.
    """
    if since is None:
        since = time.time_ns() if follow else 0

    def wanted(message: Message) -> bool:
        return (not types or message.type in types) and (key is None or message.key == key)

    show = _show_json if as_json else _human(sys.stdout.isatty())
    run_async(_tail(broker, topic, since, follow, wanted, limit, show))


async def _tail(
    url: str,
    topic: str,
    since: int,
    follow: bool,
    wanted: Callable[[Message], bool],
    limit: int | None,
    show: Callable[[Message], None],
) -> None:
    async with opened(url) as broker:
        await _refuse_unknown(broker, topic)
        reading = asyncio.create_task(_read(broker.read(topic, since=since, follow=follow), wanted, limit, show))
        gone = False

        def stop() -> None:
            nonlocal gone
            gone = True
            reading.cancel()

        _on_closed_stdout(stop)
        try:
            await reading
        except asyncio.CancelledError:
            if not gone:
                raise


async def _read(
    messages: AsyncIterator[Message],
    wanted: Callable[[Message], bool],
    limit: int | None,
    show: Callable[[Message], None],
) -> None:
    left = limit
    try:
        async for message in messages:
            if wanted(message):
                show(message)
                if left is not None and (left := left - 1) == 0:
                    return
    finally:
        if isinstance(messages, AsyncGenerator):
            await messages.aclose()  # before the broker closes


def _on_closed_stdout(callback: Callable[[], None]) -> None:
    """Call `callback` when the reader of a pipe is gone, which a quiet topic would otherwise never notice."""
    try:
        number = sys.stdout.fileno()
        mode = os.fstat(number).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            # The write end of a pipe becomes readable only when its reader is gone; asyncio's pipes watch the same way.
            asyncio.get_running_loop().add_reader(number, callback)
    except (OSError, ValueError):
        pass  # standard output is no file, as where a test has replaced it: the next line written will tell


def _show_json(message: Message) -> None:
    click.echo(to_structured(message))


def _human(terminal: bool) -> Callable[[Message], None]:
    columns = [0, 0]

    def show(message: Message) -> None:
        kind = f"{visible(message.type)} v{message.version}"
        key = visible(message.key) if message.key is not None else "-"
        # Columns grow with what was seen, within reason, so that most lines stand below each other.
        columns[0] = max(columns[0], min(width(kind), 40))
        columns[1] = max(columns[1], min(width(key), 24))
        flow = (
            "" if message.correlation_id in (None, message.id) else f"  flow {visible(short(message.correlation_id))}"
        )
        head = (
            f"{click.style(local_time(message.time), dim=True)}  "
            f"{click.style(kind, fg='cyan')}{' ' * (columns[0] - width(kind))}  "
            f"{key}{' ' * (columns[1] - width(key))}  {visible(message.id)}{flow}"
        )
        body = body_text(message)
        if terminal:
            room = shutil.get_terminal_size().columns - width(head) - 2
            body = cut(body, room) if room > 0 else ""
        click.echo(f"{head}  {body}".rstrip())

    return show


def short(identifier: str | None) -> str:
    """The end of an id: a UUID of version 7 begins with the time, and what tells two apart is at its end."""
    return (identifier or "")[-8:]


def body_text(message: Message) -> str:
    """The body on one line: compact where it is JSON, and free of what a terminal would act on."""
    try:
        return visible(msgspec.json.format(message.body, indent=-1).decode())
    except (msgspec.DecodeError, ValueError):
        return visible(message.body.decode("utf-8", "backslashreplace"))


async def _refuse_unknown(broker: Broker, topic: str) -> None:
    names = sorted(one.name for one in (await broker.inspect()).topics)
    if topic in names:
        return
    near = difflib.get_close_matches(topic, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    there = f"The topics there are: {', '.join(names)}." if names else "There are no topics yet."
    raise ConfigurationError(f"there is no topic {topic!r} on {broker.url}. {hint}{there}")

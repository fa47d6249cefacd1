"""`tidemill publish`: events from JSON Lines, each line checked, good ones published, bad ones reported."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import click
import msgspec

from ..broker import Receipt, Status, TopicSpec
from ..errors import BrokerError
from ..event import Topic, is_event
from ..message import Message
from .entry import EntryReader, Refused
from .lines import MAX_LINE, LineSplitter, Reads, TooLong, read_chunks
from .load import load
from .options import broker_option, examples, opened, run_async

BATCH: Final = 1000
"""Most messages in one `publish`. Their bytes are bounded too, by what one chunk of input can end."""

Batch: TypeAlias = list[tuple[int, Message]]
"""Messages, each with the number of its line."""


class Input(Reads, Protocol):
    """What is read from, and closed in the end."""

    def close(self) -> None:
        """Take no more from it."""
        ...


class Tally(msgspec.Struct):
    """What became of the lines so far."""

    published: int = 0
    duplicates: int = 0
    refused: int = 0
    not_stored: int = 0
    unknown: int = 0
    valid: int = 0


@click.command(
    "publish",
    epilog=examples(
        "tidemill publish contracts:PaymentConfirmed payments.jsonl",
        "tidemill tail payments --json | tidemill publish contracts:payments --broker sqlite:///copy.db",
    ),
)
@click.argument("target", metavar="MODULE:EVENT_OR_TOPIC")
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(path_type=Path, allow_dash=True))
@broker_option
@click.option("--source", default="cli", show_default=True, help="Who publishes, where a line does not say.")
@click.option("--id-field", metavar="FIELD", help="Take a plain line's id from this field: repeating is then safe.")
@click.option("--dry-run", is_flag=True, help="Check every line and publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as a JSON object.")
def command(
    target: str,
    file: Path | None,
    broker: str,
    source: str,
    id_field: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish events from JSON Lines in FILE, or from standard input.

    A line is either the body of the event in its current version, or a structured CloudEvent: an object with
    "specversion", "data", and as it likes "id", "source", "time", "dataversion" (1 where absent; older versions are
    checked by upcasting them), "correlationid" and "partitionkey". Where a Topic is named instead of an event class,
    every line is a CloudEvent of one of its events. A key that is not given comes from the event.

    Bad lines are reported with their number and reason; all others are published.

    Exit codes: 0 all published; 1 some lines refused; 2 usage, configuration or declaration; 3 the broker failed,
    and the text says how much is surely stored.
    """
    found = load(target, "an event class or a Topic", lambda thing: isinstance(thing, Topic) or is_event(thing))
    reader = EntryReader(found, source=source, id_field=id_field)
    tally = Tally()
    stream = _open(file)
    code = 130
    try:
        run_async(_check(reader, stream, tally) if dry_run else _publish(reader, stream, broker, tally))
        code = 1 if tally.refused else 0
    except BrokerError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        code = 3
    except KeyboardInterrupt:
        pass
    finally:
        stream.close()
    if as_json:
        click.echo(msgspec.json.encode(tally))
    else:
        click.echo(_summary(tally, dry_run))
    click.get_current_context().exit(code)


def _open(file: Path | None) -> Input:
    """The input without a buffer around it: what is there is read at once, and a thread may be left reading."""
    if file is not None and str(file) != "-":
        try:
            return file.open("rb", buffering=0)
        except OSError as error:
            raise click.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError):  # a stand-in for stdin without a file descriptor
        return sys.stdin.buffer
    return open(number, "rb", buffering=0, closefd=False)


async def _check(reader: EntryReader, stream: Reads, tally: Tally) -> None:
    progress = _Progress(tally)
    async for batch in _batches(reader, stream, tally):
        tally.valid += len(batch)
        progress.show()
    progress.clear()


async def _publish(reader: EntryReader, stream: Reads, url: str, tally: Tally) -> None:
    topic = reader.topic
    progress = _Progress(tally)
    async with opened(url, create=True) as broker:
        await broker.declare([TopicSpec(topic.name, topic.key, topic.retain.total_seconds())], [])
        async for batch in _batches(reader, stream, tally):
            tally.valid += len(batch)
            try:
                receipts = await broker.publish([message for _, message in batch])
            except BrokerError as error:
                tally.not_stored += len(batch)
                raise type(error)(f"{error}\n{_state(tally, batch[0][0], scattered=False)}") from error
            except asyncio.CancelledError:
                tally.unknown += len(batch)
                raise
            finally:
                progress.clear()
            _count(batch, receipts, tally)
            progress.show()
        progress.clear()


def _count(batch: Batch, receipts: Sequence[Receipt], tally: Tally) -> None:
    """Add up one batch. Raises `BrokerError` where not all of it is stored."""
    first = 0
    for (number, _), receipt in zip(batch, receipts, strict=True):
        match receipt.status:
            case Status.STORED:
                tally.published += 1
                continue
            case Status.DUPLICATE:
                tally.duplicates += 1
                continue
            case Status.NOT_STORED:
                tally.not_stored += 1
                _report(number, f"not stored: {receipt.error}")
            case Status.UNKNOWN:
                tally.unknown += 1
                _report(number, f"perhaps stored: {receipt.error}")
        first = first or number
    if first:
        raise BrokerError(_state(tally, first, scattered=True))


def _state(tally: Tally, line: int, *, scattered: bool) -> str:
    """What is true after a failure at `line`, beyond which some may be stored too where it is `scattered`."""
    stored = tally.published + tally.duplicates
    text = (
        f"{stored:,} {'event is' if stored == 1 else 'events are'} surely stored, "
        f"among them all before line {line:,} that were not refused. "
        f"Publish from line {line:,} on again once the broker works"
    )
    if scattered:
        return f"{text}; what is stored already is not stored twice where lines have ids or --id-field is given."
    return f"{text}."


async def _batches(reader: EntryReader, stream: Reads, tally: Tally) -> AsyncIterator[Batch]:
    """Good lines as messages. Whatever has arrived is a batch: a slow pipe does not wait until one is full."""
    splitter = LineSplitter()
    async for chunk in read_chunks(stream):
        for batch in _cut(reader, splitter.feed(chunk), tally):
            yield batch
    for batch in _cut(reader, splitter.end(), tally):
        yield batch


def _cut(reader: EntryReader, lines: Iterator[tuple[int, bytes | TooLong]], tally: Tally) -> Iterator[Batch]:
    batch: Batch = []
    for number, line in lines:
        try:
            if isinstance(line, TooLong):
                raise Refused(f"the line is {line.size:,} bytes long and the limit is {MAX_LINE:,}.")
            message = reader.read(line)
        except Refused as refusal:
            tally.refused += 1
            _report(number, str(refusal))
            continue
        batch.append((number, message))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _report(number: int, reason: str) -> None:
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    click.echo(f"{start}line {number:,}: {reason}", err=True)


class _Progress:
    """One line on standard error that is written over, on a terminal only and at most five times a second."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._on = sys.stderr.isatty()
        self._next = 0.0

    def show(self) -> None:
        if self._on and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            click.echo(f"\r\x1b[K{self._tally.valid:,} lines, {self._tally.refused:,} refused", err=True, nl=False)

    def clear(self) -> None:
        if self._on:
            click.echo("\r\x1b[K", err=True, nl=False)


def _summary(tally: Tally, dry_run: bool) -> str:
    if dry_run:
        return f"valid {tally.valid:,}, refused {tally.refused:,}; nothing was published"
    text = f"published {tally.published:,}, duplicates {tally.duplicates:,}, refused {tally.refused:,}"
    if tally.not_stored or tally.unknown:
        text += f", not stored {tally.not_stored:,}, unknown {tally.unknown:,}"
    return text

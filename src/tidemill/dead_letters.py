"""Dead letters on any open broker: find them, see what they have in common, replay or discard them.

    from tidemill.dead_letters import Filter, by_error, replay

    found = Filter(subscription="notifications.send_receipt", error="connection refused")
    for group in await by_error(broker, found):
        print(group.count, group.cause)
    report = await replay(broker, found, by="zoe", rate=50)

Everything goes in pages and small batches: a hundred thousand dead letters need no more memory than a hundred, and a
number each.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from .broker import Broker, DeadLettered, Resolve
from .clock import Clock, SystemClock
from .errors import ConfigurationError

RATE: Final = 100.0
"""Dead letters replayed a second unless another rate is given. What was given up in an outage comes from a system that
has just recovered: a hundred a second are through 10,000 in under two minutes, and leave it room for what is new."""

PAGE: Final = 100
"""Dead letters read at once: at most 100 MiB, as a body has at most one."""

BATCH: Final = 100
"""Most dead letters resolved in one transaction, so that nobody else who writes waits for long."""

_BEATS: Final = 10
"""Batches a second where there is a rate: not everything at the beginning of each second."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters: those that meet all that is given. Raises `ConfigurationError` where nothing could."""

    subscription: str | None = None
    type: str | None = None
    """The event's type."""
    key: str | None = None
    error: str | None = None
    """A part of the reason, or of any attempt's error; upper and lower case are the same."""
    id: str | None = None
    """The message's id. Each subscription that gave it up has a dead letter of its own."""
    older_than: float | timedelta | None = None
    """Given up at least so many seconds (or a timedelta) ago."""
    newer_than: float | timedelta | None = None
    """Given up at most so many seconds (or a timedelta) ago."""
    before: datetime | None = None
    """Given up before this time; with a time zone."""
    since: datetime | None = None
    """Given up at this time or later; with a time zone."""
    parked: bool | None = None
    """Whether the later events of its key wait for it."""

    def __post_init__(self) -> None:
        for name in ("subscription", "type", "key", "error", "id"):
            if getattr(self, name) == "":
                raise ConfigurationError(f"{name}='' fits no dead letter. Leave {name} out, or give some text.")
        for name in ("older_than", "newer_than"):
            age = _seconds(getattr(self, name))
            if age is not None and not 0 <= age < math.inf:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is no age. Give 0 seconds or more.")
        for name in ("before", "since"):
            at: datetime | None = getattr(self, name)
            if at is not None and at.tzinfo is None:
                raise ConfigurationError(f"{name}={at!r} has no time zone. Give an aware datetime, such as in UTC.")
        older, newer = _seconds(self.older_than), _seconds(self.newer_than)
        if older is not None and newer is not None and older > newer:
            raise ConfigurationError(
                f"older_than={self.older_than!r} and newer_than={self.newer_than!r} fit no dead letter together. "
                "The larger age is that of newer_than."
            )
        if self.before is not None and self.since is not None and self.before <= self.since:
            raise ConfigurationError(
                f"before={self.before!r} and since={self.since!r} fit no dead letter together. Give a later before."
            )

    @property
    def fits_everything(self) -> bool:
        """Whether nothing is asked for."""
        return self == Filter()

    def fits(self, letter: DeadLettered, now: int) -> bool:
        """Whether a dead letter is meant; `now` in nanoseconds since 1970 is what ages are counted from."""
        older, newer = _seconds(self.older_than), _seconds(self.newer_than)
        age = (now - letter.at) / 1e9
        return (
            self.subscription in (None, letter.subscription)
            and self.type in (None, letter.message.type)
            and self.key in (None, letter.message.key)
            and self.id in (None, letter.message.id)
            and self.parked in (None, letter.parked)
            and (older is None or age >= older)
            and (newer is None or age <= newer)
            and (self.before is None or letter.at < self.before.timestamp() * 1e9)
            and (self.since is None or letter.at >= self.since.timestamp() * 1e9)
            and (self.error is None or _tells(letter, self.error.casefold()))
        )


class Group(msgspec.Struct, kw_only=True):
    """Dead letters of one subscription with one cause."""

    subscription: str
    cause: str
    """The reason, with `…` for what differs from message to message: see `cause_of`."""
    count: int
    oldest: int
    """When the first of them was given up: nanoseconds since 1970."""
    newest: int
    example: str
    """The id of the newest one's message."""


class Survey(msgspec.Struct, frozen=True):
    """The dead letters that a filter fitted at one moment. What is given up later is not among them."""

    numbers: tuple[int, ...]
    groups: tuple[Group, ...]
    """The largest first."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a replay or a discard, or is about to."""

    action: Resolve
    matched: int
    """Dead letters that were meant."""
    resolved: int = 0
    """Replayed or discarded so far."""
    gone: int = 0
    """Somebody else had replayed or discarded them before."""
    dry_run: bool = False
    groups: tuple[Group, ...] = ()


Progress: TypeAlias = Callable[[Report], object]
"""Called with the report so far: once before anything is done, and after each batch."""


async def find(
    broker: Broker, which: Filter | None = None, *, clock: Clock | None = None
) -> AsyncIterator[DeadLettered]:
    """The dead letters that are meant (by default all), in the order they were given up.

    Raises `ConfigurationError` where the filter names a subscription that does not exist.
    """
    which = which or Filter()
    if which.subscription is not None:
        names = sorted(one.name for one in (await broker.inspect()).subscriptions)
        if which.subscription not in names:
            raise ConfigurationError(
                f"there is no subscription {which.subscription!r} on {broker.url}. "
                f"There are: {', '.join(names) or 'none'}."
            )
    now = (clock or SystemClock()).now()
    after = 0
    while page := await broker.dead_letters(which.subscription, after=after, limit=PAGE):
        for letter in page:
            if which.fits(letter, now):
                yield letter
        after = page[-1].number


async def by_error(broker: Broker, which: Filter | None = None, *, clock: Clock | None = None) -> list[Group]:
    """What the dead letters that are meant have in common: a group for each subscription and cause, largest first."""
    return list((await survey(broker, which, clock=clock)).groups)


async def survey(
    broker: Broker, which: Filter | None = None, *, limit: int | None = None, clock: Clock | None = None
) -> Survey:
    """The dead letters that are meant now, the first `limit` of them at most: to be shown, then to be resolved."""
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit={limit!r}: give at least 1, or None for no limit.")
    numbers: list[int] = []
    groups: dict[tuple[str, str], Group] = {}
    async for letter in find(broker, which, clock=clock):
        numbers.append(letter.number)
        identity = (letter.subscription, cause_of(letter.reason))
        group = groups.get(identity)
        if group is None:
            group = groups[identity] = Group(
                subscription=letter.subscription,
                cause=identity[1],
                count=0,
                oldest=letter.at,
                newest=letter.at,
                example=letter.message.id,
            )
        group.count += 1
        group.oldest = min(group.oldest, letter.at)
        group.newest = max(group.newest, letter.at)
        group.example = letter.message.id
        if len(numbers) == limit:
            break
    largest = sorted(groups.values(), key=lambda each: (-each.count, each.subscription, each.cause))
    return Survey(tuple(numbers), tuple(largest))


async def replay(
    broker: Broker,
    which: Filter | Survey,
    *,
    by: str,
    everything: bool = False,
    rate: float | None = RATE,
    limit: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Report:
    """Give dead letters to the subscription that gave them up once more, and to no other: see `Broker.resolve`.

    which       a filter, or what `survey` found. What is given up again meanwhile is not replayed twice.
    by          who decides, for the audit trail.
    everything  True where a filter that fits every dead letter is meant. Otherwise that is refused, as it is a slip
                more often than a wish.
    rate        most dead letters a second (default 100, see `RATE`); None for no limit.
    limit       most dead letters altogether, the oldest first.
    dry_run     True to change nothing: the report says what would be.
    progress    called with the report so far.

    Cancelled, it finishes the batch under way, tells `progress`, and ends: what was replayed stays so. Raises
    `ConfigurationError` where an argument makes no sense or the subscription does not exist, before anything is
    done; `BrokerError` where the broker fails, with the batches before done.
    """
    return await _resolve("replay", broker, which, by, everything, rate, limit, dry_run, progress, clock)


async def discard(
    broker: Broker,
    which: Filter | Survey,
    *,
    by: str,
    everything: bool = False,
    rate: float | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Report:
    """Remove dead letters for good. What waits behind a parked one goes on.

    See `replay`, but for the rate: no limit by default, as only what was parked gives anybody work to do.
    """
    return await _resolve("discard", broker, which, by, everything, rate, limit, dry_run, progress, clock)


async def _resolve(
    action: Resolve,
    broker: Broker,
    which: Filter | Survey,
    by: str,
    everything: bool,
    rate: float | None,
    limit: int | None,
    dry_run: bool,
    progress: Progress | None,
    clock: Clock | None,
) -> Report:
    clock = clock or SystemClock()
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigurationError(f"rate={rate!r}: give more than 0 a second, or None for no limit.")
    if not by.strip() or not by.isprintable() or len(by) > 200:
        raise ConfigurationError(f"by={by!r:.80}: say who decides, in one line of at most 200 characters.")
    if isinstance(which, Filter):
        if not everything:
            refuse_everything(action, which)
        which = await survey(broker, which, limit=limit, clock=clock)
    numbers = which.numbers[:limit]
    report = Report(action=action, matched=len(numbers), dry_run=dry_run, groups=which.groups)
    if progress is not None:
        progress(report)
    if dry_run:
        return report
    size = BATCH if rate is None else max(1, min(BATCH, int(rate / _BEATS)))
    for start in range(0, len(numbers), size):
        batch = numbers[start : start + size]
        if start and rate is not None:
            await clock.sleep(len(batch) / rate)
        done, cancelled = await _to_the_end(broker, action, batch, by)
        report = msgspec.structs.replace(
            report, resolved=report.resolved + len(done), gone=report.gone + len(batch) - len(done)
        )
        if progress is not None:
            progress(report)
        if cancelled is not None:
            raise cancelled
    return report


def refuse_everything(action: Resolve, which: Filter) -> None:
    """Raise `ConfigurationError` where a filter fits every dead letter."""
    if which.fits_everything:
        raise ConfigurationError(
            f"this would {action} every dead letter there is. Nothing was done. Say which: a subscription, a part of "
            "the error, an age; or that everything is meant (everything=True, on the command line --all)."
        )


async def _to_the_end(
    broker: Broker, action: Resolve, batch: Sequence[int], by: str
) -> tuple[list[int], asyncio.CancelledError | None]:
    """Resolve a batch, and say whether this was cancelled meanwhile: what is written is to be in the report."""
    writing = asyncio.ensure_future(broker.resolve(action, batch, by=by))
    try:
        return await asyncio.shield(writing), None
    except asyncio.CancelledError as cancelled:
        return await writing, cancelled


# What differs from message to message where the cause is one. The names in quotes of these errors are names in code.
_ATTEMPTS: Final = re.compile(r" \(attempt \d+ of \d+\)$")
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_NAMES_CODE: Final = re.compile(r"(?:Key|Attribute|Name|Type|Import|ModuleNotFound)Error\b")
_VARYING: Final = re.compile(r"[\w.+-]+@[\w.-]+|[\w.:+/-]*\d[\w.:+/-]*")
_LONGEST: Final = 160


def cause_of(reason: str) -> str:
    """A reason without what differs from message to message: numbers, ids, addresses and quoted values are `…`."""
    text = _ATTEMPTS.sub("", reason)
    if not _NAMES_CODE.match(text):
        text = _QUOTED.sub("'…'", text)
    text = _VARYING.sub("…", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _tells(letter: DeadLettered, part: str) -> bool:
    return part in letter.reason.casefold() or any(part in failure.error.casefold() for failure in letter.history)


def _seconds(age: float | timedelta | None) -> float | None:
    return age.total_seconds() if isinstance(age, timedelta) else age

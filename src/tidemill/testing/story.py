"""A record as text: who published what, what came of it attempt by attempt, and what that caused, as a tree.

    +0 s       test published payment.received, key 'p-1'
    +0 s         payments.confirm, attempt 1: handled
    +0 s           payments published payment.confirmed v2, key 'p-1'
    +0 s             notifications.send_receipt, attempt 1: OSError: no route (mailer.py:31), again at once
    +0 s             notifications.send_receipt, attempt 2: OSError: no route (mailer.py:31), again in 0.71 s
    +0.71 s          notifications.send_receipt, attempt 3: handled

The times are those of the mill's clock, since it began.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from ..broker import Subscription
from ..message import Delivery, Message
from ..outcome import Ack, DeadLetter, Release, Retry
from .record import Attempt, Published, Record

MAX_LINES: Final = 200
"""Most lines of a story in a failure report: enough for any test one person can follow."""

_DEEPEST: Final = 20
"""Levels that are indented; what is deeper stands below each other."""

_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)
_OWN = str(Path(__file__).parents[1])

Line: TypeAlias = tuple[int | None, int, str]
"""When, how deep, what."""


def tell(
    record: Record,
    subscriptions: Sequence[Subscription],
    working: Sequence[Delivery],
    now: int,
    start: int,
) -> str:
    """The story so far. `working` are the deliveries whose handlers have not ended."""
    lines = [
        ("" if at is None else moment(at - start), f"{'  ' * min(depth, _DEEPEST)}{text}")
        for at, depth, text in _Teller(record, subscriptions, working, now, start).lines()
    ]
    width = max((len(when) for when, _ in lines), default=0)
    return "\n".join(f"{when:{max(width, 10)}} {text}".rstrip() for when, text in lines)


def moment(nanoseconds: int) -> str:
    """A time by the mill's clock, as seconds since it began."""
    return f"+{_number(nanoseconds / 1e9)} s"


def cut(text: str, most: int = MAX_LINES) -> str:
    """`text` without its middle where it has too many lines."""
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    half = most // 2
    return "\n".join([*lines[:half], f"… {len(lines) - 2 * half:,} lines left out …", *lines[-half:]])


class _Teller:
    def __init__(
        self,
        record: Record,
        subscriptions: Sequence[Subscription],
        working: Sequence[Delivery],
        now: int,
        start: int,
    ) -> None:
        self._subscriptions = subscriptions
        self._working = {_handling(delivery): delivery for delivery in working}
        self._now = now
        self._start = start
        self._ended = record.ended
        self._roots: list[Published] = []
        self._caused: dict[int, list[Published]] = {}  # by the identity of the attempt, which the record keeps
        for published in record.published:
            if published.cause is None:
                self._roots.append(published)
            else:
                self._caused.setdefault(id(published.cause), []).append(published)
        self._attempts: dict[_Handling, list[Attempt]] = {}
        for attempt in record.attempts:
            self._attempts.setdefault(_handling(attempt.delivery), []).append(attempt)

    def lines(self) -> Iterator[Line]:
        """The lines of the tree. Flows can be thousands of events deep, so this does not recurse."""
        branches = [self._publication(published, 0) for published in reversed(self._roots)]
        while True:
            if not branches:
                if not self._caused:
                    return
                # Caused by an attempt that is not in this record, such as one in another mill.
                branches += [self._publication(published, 0) for published in self._caused.popitem()[1][::-1]]
            step = next(branches[-1], None)
            if step is None:
                branches.pop()
            elif isinstance(step, _Branch):
                branches.append(self._publication(step.published, step.depth))
            else:
                yield step

    def _publication(self, published: Published, depth: int) -> Iterator[Line | _Branch]:
        message = published.message
        key = "" if message.key is None else f", key {message.key!r}"
        later = "" if published.due is None else f", to appear at {moment(published.due - self._start)}"
        again = ", which was there already: nothing happens" if published.duplicate else ""
        yield published.at, depth, f"{message.source} published {event_name(message)}{key}{later}{again}"
        if published.duplicate:
            return
        waits = published.due is not None and published.due > self._now
        nobody = True
        for subscription in self._subscriptions:
            if subscription.topic == message.topic and (
                subscription.types is None or message.type in subscription.types
            ):
                nobody = False
                if not waits:
                    yield from self._handled(subscription.name, message, depth + 1)
        if nobody:
            yield None, depth + 1, f"nobody here subscribes to it on topic {message.topic!r}"

    def _handled(self, subscription: str, message: Message, depth: int) -> Iterator[Line | _Branch]:
        handling = (subscription, message.source, message.id)
        number = 1
        due: int | None = None
        for attempt in self._attempts.get(handling, ()):
            delivery = attempt.delivery
            yield attempt.at, depth, f"{subscription}, attempt {delivery.attempt}: {_ending(attempt)}"
            yield from self._consequences(delivery, depth + 1)
            if attempt.late:
                continue
            number, due = delivery.attempt, None
            match attempt.outcome:
                case Ack() | DeadLetter():
                    return
                case Retry(after=after):
                    number += 1
                    due = attempt.at + round(after * 1e9)
                case Release(after=after):
                    due = attempt.at + round(after * 1e9) if after else None
        working = self._working.get(handling)
        if working is not None:
            doing = "was running when the test ended" if self._ended else "is running"
        elif due is not None and due > self._now:
            doing = f"waits until {moment(due - self._start)}"
        else:
            doing = "had not begun when the test ended" if self._ended else "has not begun"
        yield None, depth, f"{subscription}, attempt {number}: {doing}"
        if working is not None:
            yield from self._consequences(working, depth + 1)

    def _consequences(self, delivery: Delivery, depth: int) -> Iterator[_Branch]:
        for published in self._caused.pop(id(delivery), ()):
            yield _Branch(published, depth)


_Handling: TypeAlias = tuple[str, str, str]
"""One subscription's work on one message: its name, and the message's source and id."""


def _handling(delivery: Delivery) -> _Handling:
    return delivery.subscription, delivery.message.source, delivery.message.id


class _Branch:
    __slots__ = ("depth", "published")

    def __init__(self, published: Published, depth: int) -> None:
        self.published = published
        self.depth = depth


def event_name(message: Message) -> str:
    """An event as stories name it: its version where that is not 1."""
    return message.type if message.version == 1 else f"{message.type} v{message.version}"


def _ending(attempt: Attempt) -> str:
    late = ", too late to count" if attempt.late else ""
    match attempt.outcome:
        case Ack():
            return f"handled{late}"
        case Retry(after=after, reason=reason):
            again = f"again in {_number(after)} s" if after else "again at once"
            return f"{reason}{_place(attempt)}, {again}{late}"
        case DeadLetter(reason=reason):
            return f"dead letter: {reason}{_place(attempt)}{late}"
        case Release(after=after, reason=reason):
            why = f"given back: {reason}" if reason else "given back"
            return f"{why}, again in {_number(after)} s{late}" if after else f"{why}{late}"


def _place(attempt: Attempt) -> str:
    """Where the attempt's exception was raised, unless that is inside Tidemill."""
    delivery = attempt.delivery
    if not delivery.history or delivery.history[-1].attempt != delivery.attempt:
        return ""
    frames = _FRAME.findall(delivery.history[-1].traceback)
    if not frames or frames[-1][0].startswith(_OWN):
        return ""
    return f" ({Path(frames[-1][0]).name}:{frames[-1][1]})"


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if value < 1e6 else f"{value:,.0f}"

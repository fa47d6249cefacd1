"""Looking without touching: figures, dead letters, and what happened in a flow."""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Literal

import msgspec

from ...broker import DeadLettered, Fate, Inspection, Resolution, SubscriptionStatus, TopicStatus, Trace
from .rows import to_message, unpack_history
from .sql import SQL

_types = msgspec.json.Decoder(tuple[str, ...]).decode


def is_in(name: str, prefix: str) -> bool:
    """Whether a stored name belongs to the namespace of that prefix. Names themselves have no slash."""
    return name.startswith(prefix) and "/" not in name[len(prefix) :]


def inspect(reader: sqlite3.Connection, prefix: str) -> Inspection:
    """Every topic and subscription whose name begins with `prefix`."""
    strip = len(prefix)
    topics = [
        TopicStatus(
            name=name[strip:],
            key=key,
            messages=_one(reader, "count_messages", topic),
            scheduled=_one(reader, "count_scheduled", topic),
        )
        for topic, name, key, _ in reader.execute(SQL["topics"]).fetchall()
        if is_in(name, prefix)
    ]
    subscriptions: list[SubscriptionStatus] = []
    for row in reader.execute(SQL["subscriptions"]).fetchall():
        number, name, topic_name, types, _, _, acked, retried, topic, paused = row
        if not is_in(name, prefix):
            continue
        waiting, oldest = reader.execute(
            SQL["backlog"], {"subscription": number, "topic": topic, "types": types}
        ).fetchone()
        exceptions, retrying, oldest_exception = reader.execute(SQL["exceptions"], (number,)).fetchone()
        subscriptions.append(
            SubscriptionStatus(
                name=name[strip:],
                topic=topic_name[strip:],
                types=None if types is None else _types(types),
                backlog=waiting + exceptions,
                retrying=retrying or 0,
                dead=_one(reader, "count_dead", number),
                oldest=min((at for at in (oldest, oldest_exception) if at is not None), default=None),
                consumers=_one(reader, "count_consumers", number, time.monotonic_ns()),
                acked=acked,
                retried=retried,
                paused=bool(paused),
            )
        )
    return Inspection(sorted(topics, key=lambda topic: topic.name), subscriptions)


def dead_letters(
    reader: sqlite3.Connection, prefix: str, subscription: str | None, after: int, limit: int | None
) -> list[DeadLettered]:
    """The dead letters kept, oldest first: the next `limit` after a number, or all."""
    strip = len(prefix)
    parameters = {
        "prefix": prefix,
        "subscription": None if subscription is None else prefix + subscription,
        "after": after,
        "most": -1 if limit is None else limit,
    }
    return [
        DeadLettered(
            number=row[15],
            subscription=row[13][strip:],
            message=to_message(row, row[14][strip:]),
            reason=row[16],
            attempts=row[17],
            at=row[18],
            history=unpack_history(row[19]),
            parked=bool(row[20]),
        )
        for row in reader.execute(SQL["dead_letters"], parameters)
    ]


def resolutions(reader: sqlite3.Connection, prefix: str, before: int | None, limit: int) -> list[Resolution]:
    """The last lines of the audit trail, or the last before a number, newest last."""
    parameters = {"prefix": prefix, "before": before, "most": limit}
    return [
        Resolution(
            number=number,
            at=at,
            action=action,
            by=by,
            letter=letter,
            subscription=name[len(prefix) :],
            message_id=message,
            source=source,
            type=type_,
            key=key,
            reason=reason,
            attempts=attempts,
        )
        for number, at, action, by, letter, name, message, source, type_, key, reason, attempts in reversed(
            reader.execute(SQL["resolutions"], parameters).fetchall()
        )
    ]


def trace(reader: sqlite3.Connection, prefix: str, correlation_id: str) -> Trace:
    """The messages of a flow and what every subscription did with them."""
    strip = len(prefix)
    rows = [
        row for row in reader.execute(SQL["flow"], {"correlation": correlation_id}).fetchall() if is_in(row[14], prefix)
    ]
    subscriptions = reader.execute(SQL["subscriptions"]).fetchall()
    fates: list[Fate] = []
    for row in rows:
        for number, name, _, types, _, first, _, _, topic, _ in subscriptions:
            wanted = types is None or row[4] in _types(types)
            if topic == row[13] and wanted and row[0] > first:
                fates.append(_fate(reader, number, name[strip:], row))
    return Trace([to_message(row, row[14][strip:]) for row in rows], fates)


def _fate(reader: sqlite3.Connection, subscription: int, name: str, row: tuple[Any, ...]) -> Fate:
    seq, slot, message = row[0], row[1], row[2]
    attempts, history, reason = 1, None, ""
    state: Literal["pending", "retrying", "acked", "dead"]
    if dead := reader.execute(SQL["fate_dead"], (subscription, seq)).fetchone():
        state, (attempts, history, reason) = "dead", dead
    elif waiting := reader.execute(SQL["fate_exception"], (subscription, seq)).fetchone():
        failed, history = waiting
        state, attempts = ("retrying" if failed else "pending"), failed + 1
    elif recovered := reader.execute(SQL["fate_recovered"], (subscription, seq)).fetchone():
        state, (attempts, history) = "acked", recovered
    elif discarded := reader.execute(SQL["fate_discarded"], (subscription, seq)).fetchone():
        state, (attempts, reason) = "dead", discarded
    else:
        state = "acked" if seq <= _one(reader, "position_of", subscription, slot) else "pending"
    return Fate(
        subscription=name,
        message_id=message,
        state=state,
        attempts=attempts,
        history=unpack_history(history),
        reason=reason,
    )


def _one(reader: sqlite3.Connection, statement: str, *parameters: object) -> int:
    count: int = reader.execute(SQL[statement], parameters).fetchone()[0]
    return count

"""Messages as rows of the log, and back."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgspec

from ...broker import Subscription
from ...message import Delivery, Failure, Message

SLOTS = 32
"""What the keys of a topic are divided into. A slot belongs to one consumer at a time, so this is also how many
processes can share a subscription."""

ALL_SLOTS = (1 << SLOTS) - 1
JSON = "application/json"

NEVER = 1 << 62
"""When a parked event is due: in the year 2116, so not before somebody replays it."""

encode = msgspec.json.Encoder().encode
_extensions = msgspec.json.Decoder(dict[str, str]).decode
_history = msgspec.json.Decoder(tuple[Failure, ...]).decode


def slot_of(key: str) -> int:
    """The slot of a key: the same in every process and for ever, as it is stored."""
    return crc32(key.encode()) % SLOTS


def to_row(message: Message, topic: int, spread: int, stored: int) -> tuple[Any, ...]:
    """The columns that INSERT takes. Events without a key go round the slots by `spread`."""
    key = message.key
    correlation = message.correlation_id
    if correlation == message.id:
        correlation = None  # the first of a flow, as most are: 36 bytes less
    elif correlation is None:
        correlation = ""
    return (
        topic,
        crc32(key.encode()) % SLOTS if key is not None else spread % SLOTS,
        message.id,
        message.source,
        message.type,
        message.version,
        message.time,
        stored,
        key,
        correlation,
        message.causation_id,
        None if message.content_type == JSON else message.content_type,
        encode(message.extensions) if message.extensions else None,
        message.body,
    )


def to_message(row: tuple[Any, ...], topic: str) -> Message:
    """The message in a row of `next_events` and its like."""
    correlation = row[9]
    return Message(
        row[2],
        row[3],
        row[4],
        topic,
        row[5],
        row[6],
        row[7],
        row[8],
        row[2] if correlation is None else correlation or None,
        row[10],
        row[11] or JSON,
        _extensions(row[12]) if row[12] is not None else {},
    )


def to_delivery(row: tuple[Any, ...], spec: Subscription) -> Delivery:
    """The delivery in a row of `due_exceptions`."""
    message, history = to_message(row, spec.topic), unpack_history(row[14])
    return Delivery(message, spec.name, row[13] + 1, row[0], history, row[1], died=row[15] != 0)


def pack_history(history: tuple[Failure, ...]) -> bytes | None:
    """Failed attempts as stored; None for none."""
    return encode(history) if history else None


def unpack_history(data: bytes | None) -> tuple[Failure, ...]:
    """Failed attempts as stored, read back."""
    return _history(data) if data else ()

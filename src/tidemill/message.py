"""A message is an event on the wire; a delivery is one attempt to hand one message to one subscription."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from .errors import InvalidMessage

MAX_BODY = 1024 * 1024
"""Largest body, in bytes: 1 MiB, the default limit of NATS and about that of Kafka, so that moving stays possible."""

MAX_HEADERS = 16 * 1024
"""Most bytes of key and extensions together: 16 KiB, which every broker's header limits leave room for."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Message(msgspec.Struct, frozen=True):
    """An event on the wire: CloudEvents 1.0 attributes and bytes. Immutable.

    `(source, id)` identifies the event: brokers deduplicate by it, and so may handlers.
    """

    id: str
    """Unique per source; a UUID version 7 unless the publisher chose another."""
    source: str
    """The service that published it."""
    type: str
    """The event's name, such as `payment.confirmed`."""
    topic: str
    time: int
    """When it happened: nanoseconds since 1970-01-01 UTC. See `when`."""
    body: bytes
    version: int = 1
    """The version of the event's schema (`dataversion` on the wire)."""
    key: str | None = None
    """Events of one key stay in order (`partitionkey` and `subject` on the wire)."""
    correlation_id: str | None = None
    """The flow this event belongs to: the id of the event that began it."""
    causation_id: str | None = None
    """The id of the event whose handler published this one; None for the first of a flow."""
    content_type: str = "application/json"
    extensions: dict[str, str] = msgspec.field(default_factory=dict)
    """Every other CloudEvents attribute, such as `traceparent`; unknown ones travel through untouched."""

    @property
    def when(self) -> datetime:
        """`time` as an aware datetime in UTC, cut to microseconds."""
        return _EPOCH + timedelta(microseconds=self.time // 1000)


class Failure(msgspec.Struct, frozen=True):
    """One failed attempt, as kept with a retried or dead-lettered message."""

    attempt: int
    at: int
    """When it failed: nanoseconds since 1970-01-01 UTC."""
    error: str
    """The exception's type and text, one line."""
    traceback: str = ""
    """The end of the traceback, at most 4 KiB; empty where there was no exception."""


class Delivery(msgspec.Struct):
    """One attempt to hand one message to one subscription.

    `token` belongs to the adapter that made the delivery and means nothing to anyone else.
    """

    message: Message
    subscription: str
    attempt: int
    """1 for the first run of the handler; failed runs count, releases do not, and restarts do not reset it."""
    position: int
    """Where the message stands in its topic; larger is later. What lanes sort by."""
    history: tuple[Failure, ...] = ()
    """The failed attempts so far, oldest first."""
    token: Any = None


def check(message: Message) -> Message:
    """Return `message`, or raise `InvalidMessage` if no broker could be trusted to carry it unchanged."""
    if len(message.body) > MAX_BODY:
        raise InvalidMessage(
            f"{_name(message)}: the body is {len(message.body):,} bytes and the limit is {MAX_BODY:,}. "
            "Nothing was stored. Store large data elsewhere and publish a reference to it."
        )
    key = message.key
    if key is not None and not (key.isprintable() and key):
        raise InvalidMessage(
            f"{_name(message)}: the key {key!r} is empty or has control characters. Nothing was stored. "
            "Use a key of printable characters."
        )
    if not (message.id and message.source and message.type and (message.id + message.source + message.type).isprintable()):
        raise InvalidMessage(
            f"{_name(message)}: id, source and type must be non-empty and printable "
            f"(id={message.id!r}, source={message.source!r}, type={message.type!r}). Nothing was stored."
        )
    if message.extensions or (key is not None and len(key) > 1024):
        _check_headers(message)
    return message


def _check_headers(message: Message) -> None:
    size = len((message.key or "").encode())
    for name, value in message.extensions.items():
        # CloudEvents 1.0.2 §"Attribute Naming Convention": lower-case ASCII letters and digits.
        if not (name.isascii() and name.isalnum() and name == name.lower()) or name == "data":
            raise InvalidMessage(
                f"{_name(message)}: the header name {name!r} is not allowed. Nothing was stored. "
                "Use lower-case letters and digits only, such as 'tenantid'."
            )
        if not value.isprintable():
            raise InvalidMessage(
                f"{_name(message)}: the header {name!r} has control characters in its value {value[:80]!r}. "
                "Nothing was stored. Use printable characters only."
            )
        size += len(name) + len(value.encode())
    if size > MAX_HEADERS:
        raise InvalidMessage(
            f"{_name(message)}: key and headers are {size:,} bytes and the limit is {MAX_HEADERS:,}. "
            "Nothing was stored. Put what is large into the body."
        )


def _name(message: Message) -> str:
    return f"{message.type or 'a message without a type'} to topic {message.topic!r}"[:200]

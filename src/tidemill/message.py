"""A message is an event on the wire; a delivery is one attempt to hand one message to one subscription."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec

from .errors import InvalidMessage

MAX_BODY = 1024 * 1024
"""Largest body, in bytes: 1 MiB, the default limit of NATS and about that of Kafka, so that moving is possible."""

MAX_HEADERS = 16 * 1024
"""Most bytes of all attributes together: 16 KiB, which every broker's header limits leave room for."""

OWN_ATTRIBUTES = frozenset(
    [
        *("specversion", "id", "source", "type", "time", "datacontenttype"),
        *("dataversion", "partitionkey", "correlationid", "causationid"),
    ]
)
"""The CloudEvents attributes that `Message` has fields for: no extension may be named so."""

# CloudEvents 1.0.2 §"Type System": no control characters, surrogates or noncharacters in a String.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_EXTENSION_NAME = re.compile("[a-z0-9]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# gc=False: made of text and bytes alone it is in no cycle, and kept by the thousand it costs the collector nothing.
class Message(msgspec.Struct, frozen=True, gc=False):
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
    """When it happened: nanoseconds since 1970-01-01 UTC; 0 where a foreign producer did not say. See `when`."""
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
    extensions: dict[str, str] = {}
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
    died: bool = False
    """The process ended, or lost its lease, while the handler ran: nobody knows how far it came."""

    def __post_init__(self) -> None:
        # Exceptions can hold lone surrogates (a file's name that is not UTF-8 is enough), which no store takes.
        for name in ("error", "traceback"):
            text: str = getattr(self, name)
            if not text.isascii():
                msgspec.structs.force_setattr(self, name, text.encode("utf-8", "backslashreplace").decode())


class Delivery(msgspec.Struct, gc=False):
    """One attempt to hand one message to one subscription.

    `token` belongs to the adapter that made the delivery and means nothing to anyone else. It must not lead back to
    the delivery, as the garbage collector does not look into deliveries: there are hundreds of thousands a second.
    """

    message: Message
    subscription: str
    attempt: int
    """1 for the first run of the handler; failed runs count, releases do not; restarts do not reset it."""
    position: int
    """Where the message stands in its topic; larger is later. What lanes sort by."""
    history: tuple[Failure, ...] = ()
    """The failed attempts so far, oldest first."""
    token: Any = None
    lost: bool = False
    """The lease is gone: another consumer may have the message already, and no outcome of this run counts (G12)."""
    died: bool = False
    """This attempt was begun by a consumer that died, or lost its lease, before it was settled. It has failed already,
    as the last entry of `history` says; the handler is not to run until a retry policy has had its say."""


def check(message: Message) -> Message:
    """Return `message`, or raise `InvalidMessage` if no broker could be trusted to carry it unchanged."""
    if len(message.body) > MAX_BODY:
        raise InvalidMessage(
            f"{_name(message)}: the body is {len(message.body):,} bytes and the limit is {MAX_BODY:,}. "
            "Nothing was stored. Store large data elsewhere and publish a reference to it."
        )
    # One look at all attributes at once; what is not plainly in order is looked at one by one.
    key = message.key
    flow = message.correlation_id
    try:
        text = message.id + message.source + message.type
        if key is not None:
            text += key
        if flow is not message.id or message.causation_id is not None:  # else it is the first event of a flow
            text = f"{text}{flow}{message.causation_id}"
    except TypeError:
        text = "\0"
    if (
        not text.isprintable()
        or not (message.id and message.source and message.type)
        or key == ""
        or len(text) > 1024
        or message.extensions
    ):
        _check_attributes(message)
    return message


def _check_attributes(message: Message) -> None:
    size = 0
    for name in ("id", "source", "type", "key", "correlation_id", "causation_id"):
        attribute: object = getattr(message, name)
        if attribute is None and name in ("key", "correlation_id", "causation_id"):
            continue
        if not isinstance(attribute, str) or not attribute:
            raise InvalidMessage(
                f"{_name(message)}: {name} is {attribute!r:.80}. Nothing was stored. Give a string that is not empty."
            )
        size += _size(message, name, attribute)
    for header, value in cast(dict[object, object], message.extensions).items():
        if not isinstance(header, str) or not _EXTENSION_NAME.fullmatch(header) or header == "data":
            raise InvalidMessage(
                f"{_name(message)}: the header name {header!r} is not allowed. Nothing was stored. "
                "Use lower-case letters and digits only, such as 'tenantid'."
            )
        if header in OWN_ATTRIBUTES:
            raise InvalidMessage(
                f"{_name(message)}: the header {header!r} belongs to the message itself. Nothing was stored. "
                "Use another name."
            )
        if not isinstance(value, str):
            raise InvalidMessage(
                f"{_name(message)}: the header {header!r} is {value!r:.80}. Nothing was stored. "
                "Headers are strings on every broker: convert it."
            )
        size += len(header) + _size(message, f"the header {header!r}", value)
    if size > MAX_HEADERS:
        raise InvalidMessage(
            f"{_name(message)}: its attributes (key, headers, …) are {size:,} bytes and the limit is "
            f"{MAX_HEADERS:,}. Nothing was stored. Put what is large into the body."
        )


def _size(message: Message, what: str, value: str) -> int:
    found = _UNFIT.search(value)
    if found is not None:
        raise InvalidMessage(
            f"{_name(message)}: {what} has a character that headers cannot carry, {found[0]!a}, in {value[:80]!a}. "
            "Nothing was stored. Remove control characters."
        )
    return len(value.encode())


def _name(message: Message) -> str:
    return f"{message.type or 'a message without a type'} to topic {message.topic!r}"[:200]

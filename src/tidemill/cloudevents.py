"""Messages as CloudEvents 1.0.2: any CloudEvents consumer reads Tidemill, and Tidemill any CloudEvents producer.

Binary mode: attributes as headers under the binding's prefix (`ce_` on Kafka, `ce-` on NATS and RabbitMQ), the body
as it is. Structured mode: attributes and body in one JSON document, content type `application/cloudevents+json`.
Writing is strict, reading is lenient: header names in any case, booleans and numbers as text, unknown attributes
kept. Values are plain text here: the percent-encoding that some bindings ask for (HTTP, NATS) is the adapter's part.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec

from .errors import DecodeError
from .message import Message

STRUCTURED = "application/cloudevents+json"

_JSON = "application/json"
_SECOND = 1_000_000_000
_MAX_VERSION = 2**31 - 1  # a CloudEvents Integer
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder().decode
_parse_text = msgspec.json.Decoder(str).decode
_parse_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

# RFC 3339 §5.6, with what is common beyond it: a space for the T, a comma before the fraction, no offset.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([+-])(\d\d):?(\d\d))?", re.ASCII)


def attributes(message: Message) -> dict[str, str]:
    """The message's CloudEvents attributes without its body, in their canonical text form."""
    found = {
        "specversion": "1.0",
        "id": message.id,
        "source": message.source,
        "type": message.type,
        "datacontenttype": message.content_type,
        "dataversion": str(message.version),
        "dataschema": _schema(message.type, message.version),
    }
    if message.time:
        found["time"] = format_time(message.time)
    if message.key is not None:
        found["subject"] = found["partitionkey"] = message.key
    if message.correlation_id is not None:
        found["correlationid"] = message.correlation_id
    if message.causation_id is not None:
        found["causationid"] = message.causation_id
    if message.extensions:
        found.update(message.extensions)
    return found


def to_binary(message: Message, prefix: str = "ce-") -> tuple[dict[str, str], bytes]:
    """Headers and body in binary mode; the content type is under `content-type`, without the prefix."""
    found = attributes(message)
    headers = {"content-type": found.pop("datacontenttype")}
    for name, value in found.items():
        headers[prefix + name] = value
    return headers, message.body


def from_binary(headers: Mapping[str, Any], body: bytes, *, topic: str, prefix: str = "ce-") -> Message:
    """The message in `headers` and `body`; a structured body is recognised by its content type.

    Raises `DecodeError` where a required attribute is missing or one is malformed.
    """
    prefix = prefix.lower()
    start = len(prefix)
    found: dict[str, str] = {}
    content_type = ""
    for header, value in headers.items():
        name = header.lower()
        if value is None:
            continue
        if name.startswith(prefix):
            found[name[start:]] = value if isinstance(value, str) else _text(value)
        elif name == "content-type":
            content_type = _text(value)
    if is_structured(content_type):
        return from_structured(body, topic=topic)
    if content_type:
        found["datacontenttype"] = content_type
    return _message(found, body, topic)


def to_structured(message: Message) -> bytes:
    """The message as one JSON document."""
    document: dict[str, Any] = dict(attributes(message))
    if _is_json(message.content_type) and _is_plain_json(message.body):
        document["data"] = msgspec.Raw(message.body)
    else:
        document["data_base64"] = base64.b64encode(message.body).decode()
    return _encode(document)


def from_structured(document: bytes, *, topic: str) -> Message:
    """The message in a JSON document. Raises `DecodeError` where it is no CloudEvent."""
    try:
        parts = _parse_parts(document)
        found: dict[str, str] = {}
        for name, raw in parts.items():
            if name not in ("data", "data_base64") and (text := _as_text(raw)) is not None:
                found[name.lower()] = text
        body = _data(parts, found.get("datacontenttype", _JSON))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeError(f"not a CloudEvent in JSON: {error}") from error
    return _message(found, body, topic)


def is_structured(content_type: str) -> bool:
    """Whether a body of this content type is a whole CloudEvent."""
    return content_type.lower().startswith("application/cloudevents")


def format_time(time: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC; as many digits as it takes, none where it is a whole second."""
    seconds, rest = divmod(time, _SECOND)
    return f"{_format_seconds(seconds)}.{rest:09d}".rstrip("0") + "Z" if rest else f"{_format_seconds(seconds)}Z"


def parse_time(text: str) -> int:
    """RFC 3339 text as nanoseconds since 1970; text without an offset is taken as UTC. Raises `ValueError`.

    Digits past the nanosecond are cut off. A leap second is the second before it.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is no time as in 2026-01-31T12:00:00.5Z")
    day, minute, second, digits, sign, hours, minutes = found.groups()
    seconds = _parse_minute(f"{day}T{minute}") + min(_below(second, 61), 59)
    if sign:
        offset = _below(hours, 24) * 3600 + _below(minutes, 60) * 60
        seconds += offset if sign == "-" else -offset
    return seconds * _SECOND + (int(f"{digits:0<9.9}") if digits else 0)


# Times of one stretch differ in little but their last digits.
@lru_cache(maxsize=64)
def _format_seconds(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


@lru_cache(maxsize=64)
def _parse_minute(text: str) -> int:
    whole = datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH
    return whole.days * 86400 + whole.seconds


def _below(text: str, limit: int) -> int:
    value = int(text)
    if value >= limit:
        raise ValueError(f"{text} is out of range in a time")
    return value


@lru_cache(maxsize=1024)
def _schema(type: str, version: int) -> str:
    return f"urn:tidemill:event:{quote(type, safe='')}:{version}"


def _message(found: dict[str, str], body: bytes, topic: str) -> Message:
    take = found.pop
    id, source, type = take("id", ""), take("source", ""), take("type", "")
    if not (id and source and type):
        missing = "id" if not id else "source" if not source else "type"
        raise DecodeError(f"not a CloudEvent: the required attribute {missing!r} is missing or empty")
    specification = take("specversion", "1.0")
    if not specification.startswith("1."):
        raise DecodeError(f"CloudEvents {specification[:20]} cannot be read, only 1.0. Upgrade its producer.")
    version = take("dataversion", None)
    time = take("time", None)
    try:
        number = 1 if version is None else int(version)
        nanoseconds = 0 if time is None else parse_time(time)
    except ValueError as error:
        raise DecodeError(f"a CloudEvents attribute is malformed: {error}") from error
    if not 1 <= number <= _MAX_VERSION:
        raise DecodeError(f"a CloudEvents attribute is malformed: dataversion is {number}")
    key = take("partitionkey", None)
    if key is None and version is None:
        key = found.get("subject")  # of a foreign producer, whose nearest thing to a key it is
    # subject and dataschema are written from key, type and version: kept only where they say something else.
    if key is not None and found.get("subject") == key:
        del found["subject"]
    if found.get("dataschema") == _schema(type, number):
        del found["dataschema"]
    return Message(
        id,
        source,
        type,
        topic,
        nanoseconds,
        body,
        number,
        key,
        take("correlationid", None),
        take("causationid", None),
        take("datacontenttype", _JSON),
        found,
    )


def _text(value: object) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case bytes() | bytearray():
            return value.decode("utf-8", "replace")
        case memoryview():
            return value.tobytes().decode("utf-8", "replace")
        case _:
            return str(value)


def _as_text(raw: msgspec.Raw) -> str | None:
    """An attribute of a JSON document in its canonical text form; None where it is null, which means absent."""
    json = bytes(raw)
    if json.startswith(b'"'):
        return _parse_text(json)
    return None if json == b"null" else json.decode()


def _data(parts: Mapping[str, msgspec.Raw], content_type: str) -> bytes:
    data = parts.get("data")
    if data is None:
        encoded = _as_text(parts.get("data_base64", msgspec.Raw(b"null")))
        return b"" if encoded is None else base64.b64decode(encoded, validate=True)
    json = bytes(data)
    # A string stands for JSON only where the content is JSON; elsewhere it is the content.
    return _parse_text(json).encode() if json.startswith(b'"') and not _is_json(content_type) else json


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.endswith(("/json", "+json"))


def _is_plain_json(body: bytes) -> bool:
    """Whether the body can stand in a JSON document and come out byte for byte: JSON with nothing around it."""
    if body[:1] in b" \t\r\n" or body[-1:] in b" \t\r\n":
        return False
    try:
        _parse(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True

"""Messages as CloudEvents 1.0.2, so that any CloudEvents consumer reads Tidemill and Tidemill reads any producer.

Binary mode: attributes as headers under the binding's prefix (`ce_` on Kafka, `ce-` on NATS and RabbitMQ), the body
as it is. Structured mode: attributes and body in one JSON document, content type `application/cloudevents+json`.
Writing is strict, reading is lenient: header names in any case, booleans and numbers as text, unknown attributes kept.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from .errors import DecodeError
from .message import Message

STRUCTURED = "application/cloudevents+json"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder().decode

# What Message has a field for; everything else is an extension and travels through as it is.
_OWN = frozenset(
    ("specversion", "id", "source", "type", "time", "datacontenttype", "dataversion", "partitionkey")
    + ("correlationid", "causationid")
)


def attributes(message: Message) -> dict[str, str]:
    """The message's CloudEvents attributes without its body, in their canonical text form."""
    found = {
        "specversion": "1.0",
        "id": message.id,
        "source": message.source,
        "type": message.type,
        "time": format_time(message.time),
        "datacontenttype": message.content_type,
        "dataversion": str(message.version),
        "dataschema": f"urn:tidemill:event:{message.type}:{message.version}",
    }
    if message.key is not None:
        found["subject"] = found["partitionkey"] = message.key
    if message.correlation_id is not None:
        found["correlationid"] = message.correlation_id
    if message.causation_id is not None:
        found["causationid"] = message.causation_id
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

    Raises `DecodeError` where a required attribute is missing or malformed.
    """
    lower = {name.lower(): _text(value) for name, value in headers.items()}
    content_type = lower.get("content-type") or lower.get(prefix + "datacontenttype") or "application/json"
    if is_structured(content_type):
        return from_structured(body, topic=topic)
    found = {name[len(prefix) :]: value for name, value in lower.items() if name.startswith(prefix)}
    found["datacontenttype"] = content_type
    return _message(found, body, topic)


def to_structured(message: Message) -> bytes:
    """The message as one JSON document."""
    document: dict[str, Any] = dict(attributes(message))
    if _is_json(message.content_type) and _is_valid_json(message.body):
        document["data"] = msgspec.Raw(message.body)
    else:
        document["data_base64"] = base64.b64encode(message.body).decode()
    return _encode(document)


def from_structured(document: bytes, *, topic: str) -> Message:
    """The message in a JSON document. Raises `DecodeError` where it is no CloudEvent."""
    try:
        parts = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        found: dict[str, str] = {}
        body = b""
        for name, raw in parts.items():
            if name == "data":
                body = bytes(raw)
            elif name == "data_base64":
                body = base64.b64decode(msgspec.json.decode(raw, type=str), validate=True)
            else:
                value = _parse(raw)
                if value is not None:
                    found[name.lower()] = _text(value)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise DecodeError(f"not a CloudEvent in JSON: {error}") from error
    return _message(found, body, topic)


def is_structured(content_type: str) -> bool:
    """Whether a body of this content type is a whole CloudEvent."""
    return content_type.lower().startswith("application/cloudevents")


def unwrap(message: Message) -> Message:
    """`message` itself, or the event inside it where its body is a structured CloudEvent."""
    return from_structured(message.body, topic=message.topic) if is_structured(message.content_type) else message


def format_time(time: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC; as many digits as it takes, none where it is a whole second."""
    seconds, rest = divmod(time, 1_000_000_000)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}".rstrip("0") + "Z" if rest else f"{text}Z"


def parse_time(text: str) -> int:
    """RFC 3339 text as nanoseconds since 1970; text without an offset is taken as UTC. Raises `ValueError`."""
    head, dot, tail = text.partition(".")
    digits = ""
    if dot:
        digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
        head += tail[len(digits) :]
    moment = datetime.fromisoformat(head)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = moment - _EPOCH
    return (whole.days * 86400 + whole.seconds) * 1_000_000_000 + int(f"{digits:0<9.9}" if digits else 0)


def _message(found: Mapping[str, str], body: bytes, topic: str) -> Message:
    missing = [name for name in ("id", "source", "type") if not found.get(name)]
    if missing:
        raise DecodeError(f"not a CloudEvent: the required attribute {missing[0]!r} is missing or empty")
    try:
        time = parse_time(found["time"]) if "time" in found else 0
        version = int(found.get("dataversion", 1))
    except ValueError as error:
        raise DecodeError(f"a CloudEvent attribute is malformed: {error}") from error
    key = found.get("partitionkey", found.get("subject"))
    own = {"dataschema": f"urn:tidemill:event:{found['type']}:{version}"}
    if key is not None:
        own["subject"] = key
    return Message(
        id=found["id"],
        source=found["source"],
        type=found["type"],
        topic=topic,
        time=time,
        body=body,
        version=version,
        key=key,
        correlation_id=found.get("correlationid"),
        causation_id=found.get("causationid"),
        content_type=found.get("datacontenttype", "application/json"),
        # dataschema and subject are written from type, version and key: kept only where they say something else.
        extensions={
            name: value for name, value in found.items() if name not in _OWN and own.get(name) != value
        },
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else str(value)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.endswith(("/json", "+json"))


def _is_valid_json(body: bytes) -> bool:
    try:
        _parse(body)
    except (msgspec.DecodeError, ValueError):
        return False
    return True

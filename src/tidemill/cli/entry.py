"""One line of JSON as a message: an event's body, or a structured CloudEvent, checked against its declaration."""

from __future__ import annotations

import re
import time
from typing import Any, cast

import msgspec

from ..cloudevents import format_time, from_structured
from ..codec import codec_of
from ..errors import DecodeError, InvalidMessage
from ..event import EventType, Topic, event_type
from ..ids import new_id
from ..message import Message, check

_parse_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_BYTE = re.compile(r" \(byte (\d+)\)$")


class Refused(Exception):
    """A line that cannot be published; the text is the reason."""


class EntryReader:
    """Turns lines into messages for one event class or one topic.

    Bodies are validated by decoding them, old versions by upcasting, and then published as they were written, so
    that nothing in them is lost.
    """

    def __init__(self, target: type | Topic, *, source: str, id_field: str | None = None) -> None:
        self._plain: EventType | None = None if isinstance(target, Topic) else event_type(target)
        self.topic = target if isinstance(target, Topic) else event_type(target).topic
        self._source = source
        self._id_field = id_field
        self._known = self.topic.events if self._plain is None else {self._plain.name: self._plain}
        for declared in self._known.values():
            declared.check_chain()
            codec_of(declared.cls)

    def read(self, line: bytes) -> Message:
        """The message in `line`. Raises `Refused` with the reason where there is none."""
        try:
            parts = _parse_object(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Refused(_malformed(error, line)) from None
        message, declared = self._structured(parts) if "specversion" in parts else self._body(parts, line)
        message = _keyed(message, declared, _given(parts, "partitionkey"))
        if message.correlation_id is None:
            message = msgspec.structs.replace(message, correlation_id=message.id)
        try:
            return check(message)
        except InvalidMessage as error:
            raise Refused(str(error)) from None

    def _body(self, parts: dict[str, msgspec.Raw], line: bytes) -> tuple[Message, EventType]:
        declared = self._plain
        if declared is None:
            raise Refused(
                f"not a CloudEvent (it has no 'specversion'). Lines for a whole topic must say which event they are; "
                f"to publish bodies of one event, name its class. Events of {self.topic.name!r}: {self._names()}."
            )
        message = Message(
            self._id(parts),
            self._source,
            declared.name,
            self.topic.name,
            time.time_ns(),
            line,
            declared.version,
        )
        return message, declared

    def _id(self, parts: dict[str, msgspec.Raw]) -> str:
        if self._id_field is None:
            return new_id()
        value: Any = msgspec.json.decode(parts[self._id_field]) if self._id_field in parts else None
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise Refused(f"its id field {self._id_field!r} is {value!r}, and an id is a text or a whole number.")
        return str(value)

    def _structured(self, parts: dict[str, msgspec.Raw]) -> tuple[Message, EventType]:
        defaults = {"id": new_id(), "source": self._source, "time": format_time(time.time_ns())}
        if self._plain is not None:
            defaults["type"] = self._plain.name
        for attribute, default in defaults.items():
            if not _given(parts, attribute):
                parts[attribute] = msgspec.Raw(msgspec.json.encode(default))
        try:
            message = from_structured(msgspec.json.encode(parts), topic=self.topic.name)
        except DecodeError as error:
            raise Refused(str(error)) from None
        declared = self._known.get(message.type)
        if declared is None:
            elsewhere = self._plain is not None and message.type in self.topic.events
            way_out = " To publish several types, name the topic instead of the class." if elsewhere else ""
            raise Refused(f"unknown event type {message.type!r}. Known here: {self._names()}.{way_out}")
        if message.version > declared.version:
            raise Refused(
                f"{message.type!r} version {message.version} is newer than this code, which knows version "
                f"{declared.version}. Publish it with newer code."
            )
        return message, declared

    def _names(self) -> str:
        return ", ".join(sorted(self._known)) or "none"


def _given(parts: dict[str, msgspec.Raw], attribute: str) -> bool:
    return attribute in parts and bytes(parts[attribute]) != b"null"


def _keyed(message: Message, declared: EventType, has_key: bool) -> Message:
    """`message` with its key, having been decoded once, which is what validates it."""
    try:
        event = codec_of(cast("type[object]", declared.cls)).decode(message)
    except DecodeError as error:
        raise Refused(str(error)) from None
    if has_key or declared.topic.key is None:
        return message
    key = declared.key(event)
    if key is None:
        raise Refused(f"its key {declared.topic.key!r} is null, and topic {message.topic!r} is ordered by it.")
    extensions = dict(message.extensions)
    if message.key is not None:
        extensions["subject"] = message.key  # a foreign subject, which is read as the key for want of a better one
    if extensions.get("subject") == key:
        del extensions["subject"]
    return msgspec.structs.replace(message, key=key, extensions=extensions)


def _malformed(error: Exception, line: bytes) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"not a JSON object: {error}".replace("Expected", "expected")
    if isinstance(error, UnicodeDecodeError):
        return "malformed JSON: not UTF-8"
    text = str(error).removeprefix("JSON is malformed: ")
    byte = _BYTE.search(text)
    if byte is None:
        return f"malformed JSON: {'the line ends too early' if 'truncated' in text else text}"
    column = len(line[: int(byte[1])].decode("utf-8", "replace")) + 1
    return f"malformed JSON at column {column}: {text[: byte.start()]}"

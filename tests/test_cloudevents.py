"""Messages as CloudEvents: there and back unchanged, and in agreement with the official SDK in both directions."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings import http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from tidemill import DecodeError, Message
from tidemill.cloudevents import (
    STRUCTURED,
    attributes,
    format_time,
    from_binary,
    from_structured,
    is_structured,
    parse_time,
    to_binary,
    to_structured,
)
from tidemill.message import OWN_ATTRIBUTES

FORMAT = JSONFormat()

MESSAGE = Message(
    "1",
    "shop",
    "order.placed",
    "orders",
    1_700_000_000_123_456_789,
    b'{"id": 1}',
    version=2,
    key="o-1",
    correlation_id="0",
    causation_id="0",
    extensions={"tenantid": "acme"},
)

#: Characters that a CloudEvents String may have.
fit = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"])
text = st.text(fit, min_size=1, max_size=20)
names = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True).filter(
    lambda name: name not in OWN_ATTRIBUTES | {"data", "dataschema", "subject"}
)
bodies = st.one_of(
    st.binary(max_size=40),
    st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(fit), st.lists, max_leaves=4).map(
        msgspec.json.encode
    ),
    st.sampled_from([b"", b" {}", b"{}\n", b'{"a": [1, 2]}', b'"text"', b"null", b"NaN"]),
    st.sampled_from([b'{"a":"\xff"}', b"\xef\xbb\xbf{}"]),
)
messages = st.builds(
    Message,
    id=text,
    source=text,
    type=text,
    topic=st.just("orders"),
    time=st.integers(0, 253_402_300_799_999_999_999),
    body=bodies,
    version=st.integers(1, 2**31 - 1),
    key=st.none() | text,
    correlation_id=st.none() | text,
    causation_id=st.none() | text,
    content_type=st.sampled_from(
        [
            "application/json",
            "application/json; charset=utf-8",
            "application/vnd.x+json",
            "text/plain",
            "avro/binary",
        ]
    ),
    extensions=st.dictionaries(names, text, max_size=3)
    | st.fixed_dictionaries({"subject": text.map(lambda value: f"other {value}"), "dataschema": text}),
)


# --------------------------------------------------------------------- there and back


@given(message=messages, prefix=st.sampled_from(["ce-", "ce_", "cloudEvents:", "cloudEvents_"]))
def test_binary_mode_loses_nothing(message: Message, prefix: str) -> None:
    headers, body = to_binary(message, prefix)
    assert from_binary(headers, body, topic="orders", prefix=prefix) == message


@given(message=messages)
def test_structured_mode_loses_nothing(message: Message) -> None:
    document = to_structured(message)
    assert from_structured(document, topic="orders") == message
    assert from_binary({"Content-Type": STRUCTURED}, document, topic="orders") == message


@given(message=messages, data=st.data())
def test_header_names_may_be_in_any_case_and_values_bytes(message: Message, data: st.DataObject) -> None:
    headers, body = to_binary(message)
    change = data.draw(st.sampled_from([str.upper, str.title, str.lower]))
    wild = {change(name): value.encode() for name, value in headers.items()}
    assert from_binary(wild, body, topic="orders") == message


def test_the_attributes_are_the_documented_ones() -> None:
    assert attributes(MESSAGE) == {
        "specversion": "1.0",
        "id": "1",
        "source": "shop",
        "type": "order.placed",
        "time": "2023-11-14T22:13:20.123456789Z",
        "datacontenttype": "application/json",
        "dataversion": "2",
        "dataschema": "urn:tidemill:event:order.placed:2",
        "subject": "o-1",
        "partitionkey": "o-1",
        "correlationid": "0",
        "causationid": "0",
        "tenantid": "acme",
    }
    headers, body = to_binary(MESSAGE)
    assert headers["content-type"] == "application/json"
    assert "ce-datacontenttype" not in headers
    assert headers["ce-id"] == "1"
    assert body == MESSAGE.body
    assert to_binary(MESSAGE, "ce_")[0]["ce_partitionkey"] == "o-1"


def test_json_stands_in_a_document_as_json_and_anything_else_in_base64() -> None:
    def document(**fields: Any) -> Any:
        return json.loads(to_structured(msgspec.structs.replace(MESSAGE, **fields)))

    assert document()["data"] == {"id": 1}
    assert b'"data":{"id": 1}' in to_structured(MESSAGE)
    for fields in ({"body": b"\xff\x00"}, {"body": b"{}", "content_type": "text/plain"}, {"body": b""}):
        found = document(**fields)
        assert base64.b64decode(found["data_base64"]) == fields["body"]
        assert "data" not in found


# ------------------------------------------------------------------ the official SDK


@given(message=messages)
def test_the_sdk_reads_our_binary_mode(message: Message) -> None:
    headers, body = to_binary(message)
    # Percent-encoding is the binding's: for HTTP and NATS an adapter does it, and here the test.
    quoted = {name: http._encode_header_value(value) for name, value in headers.items()}  # pyright: ignore[reportPrivateUsage]
    quoted["content-type"] = message.content_type
    _check_against_sdk(http.from_binary(http.HTTPMessage(quoted, body), FORMAT), message)

    headers, body = to_binary(message, "ce_")
    record = kafka.KafkaMessage({name: value.encode() for name, value in headers.items()}, None, body)
    _check_against_sdk(kafka.from_binary(record, FORMAT), message)


@given(message=messages)
def test_the_sdk_reads_our_documents(message: Message) -> None:
    found = FORMAT.read(CloudEvent, to_structured(message))
    _check_against_sdk(found, message)


def _check_against_sdk(found: Any, message: Message) -> None:
    expected: dict[str, Any] = dict(attributes(message))
    theirs = dict(found.get_attributes())
    moment = theirs.pop("time", None)
    text = expected.pop("time", None)
    if text is None:
        assert not message.time
    else:
        assert moment == message.when
    assert theirs == expected
    data = found.get_data()
    if isinstance(data, bytes):
        assert data == message.body
    elif data is not None and "json" in message.content_type:
        try:
            assert json.dumps(data) == json.dumps(json.loads(message.body.decode()))  # as text, for NaN
        except ValueError:
            assert data == message.body.decode()


sdk_events = st.builds(
    CloudEvent,
    st.fixed_dictionaries(
        {
            "id": text,
            "source": text,
            "type": text,
            "specversion": st.just("1.0"),
            "time": st.datetimes(timezones=st.just(UTC)),
        },
        optional={
            "subject": text,
            "datacontenttype": st.just("application/json"),
            "dataschema": text,
            "partitionkey": text,
            "tenantid": text,
            "sampledrate": st.integers(-(2**31), 2**31 - 1),
        },
    ),
    st.dictionaries(text, st.integers(-(2**53), 2**53) | text, min_size=1, max_size=3),
)


@given(event=sdk_events)
def test_we_read_what_the_sdk_writes(event: CloudEvent) -> None:
    structured = http.to_structured(event, FORMAT)
    _check_against_event(from_binary(structured.headers, structured.body, topic="orders"), event)
    record = kafka.to_structured(event, FORMAT)
    assert record.value is not None
    _check_against_event(from_binary(record.headers, record.value, topic="orders", prefix="ce_"), event)

    binary = http.to_binary(event, FORMAT)
    headers = {
        name: http._decode_header_value("", value)  # pyright: ignore[reportPrivateUsage]
        for name, value in binary.headers.items()
    }
    _check_against_event(from_binary(headers, binary.body, topic="orders"), event)
    record = kafka.to_binary(event, FORMAT)
    assert record.value is not None
    _check_against_event(from_binary(record.headers, record.value, topic="orders", prefix="ce_"), event)


def _check_against_event(message: Message, event: CloudEvent) -> None:
    theirs = dict(event.get_attributes())
    assert (message.id, message.source, message.type) == (theirs["id"], theirs["source"], theirs["type"])
    assert message.when == theirs["time"]
    assert message.key == theirs.get("partitionkey", theirs.get("subject"))
    assert message.version == 1
    assert message.content_type == "application/json"
    assert json.loads(message.body) == event.get_data()
    for name in ("tenantid", "sampledrate", "dataschema"):
        if name in theirs:
            assert message.extensions[name] == str(theirs[name])
    if theirs.get("subject") != message.key:
        assert message.extensions.get("subject") == theirs.get("subject")


# ---------------------------------------------------------------------------- leniency


def ce(**more: Any) -> dict[str, Any]:
    return {"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-specversion": "1.0"} | {
        f"ce-{name}": value for name, value in more.items()
    }


def document(**more: Any) -> bytes:
    return json.dumps({"id": "1", "source": "s", "type": "t", "specversion": "1.0"} | more).encode()


def test_a_minimal_event_is_read() -> None:
    expected = Message("1", "s", "t", "orders", 0, b"x")
    assert from_binary(ce(), b"x", topic="orders") == expected
    assert from_structured(document(), topic="orders") == msgspec.structs.replace(expected, body=b"")


def test_an_event_without_a_time_is_written_without_one() -> None:
    assert "time" not in attributes(from_binary(ce(), b"", topic="orders"))


def test_values_of_other_types_become_their_canonical_text() -> None:
    found = from_binary(
        ce(flag=True, off=False, number=5, raw=b"caf\xc3\xa9", odd=b"\xff", view=memoryview(b"v"), none=None),
        b"",
        topic="orders",
    )
    assert found.extensions == {
        "flag": "true",
        "off": "false",
        "number": "5",
        "raw": "café",
        "odd": "\N{REPLACEMENT CHARACTER}",
        "view": "v",
    }
    found = from_structured(document(flag=True, off=False, number=-5, none=None, nested={"a": [1]}), topic="orders")
    assert found.extensions == {"flag": "true", "off": "false", "number": "-5", "nested": '{"a": [1]}'}
    assert from_structured(document(dataversion=3), topic="orders").version == 3


def test_a_subject_stands_in_for_the_key_of_foreign_events_only() -> None:
    assert from_binary(ce(subject="a"), b"", topic="orders").key == "a"
    assert from_binary(ce(subject="a", partitionkey="b"), b"", topic="orders").key == "b"
    ours = from_binary(ce(subject="a", dataversion="1"), b"", topic="orders")
    assert (ours.key, ours.extensions) == (None, {"subject": "a"})


def test_the_content_type_is_found_where_each_binding_puts_it() -> None:
    assert from_binary(ce(datacontenttype="text/plain"), b"", topic="orders").content_type == "text/plain"
    assert from_binary(ce() | {"Content-Type": "text/x"}, b"", topic="orders").content_type == "text/x"
    assert from_binary(ce(), b"", topic="orders").content_type == "application/json"


def test_data_in_documents() -> None:
    def body(**more: Any) -> bytes:
        return from_structured(document(**more), topic="orders").body

    assert body(data={"a": 1}) == b'{"a": 1}'
    assert body(data="text") == b'"text"'
    assert body(data=None) == b"null"
    assert body(data="text", datacontenttype="text/plain") == b"text"
    assert body(data={"a": 1}, datacontenttype="text/plain") == b'{"a": 1}'
    assert body(data_base64="/wA=") == b"\xff\x00"
    assert body(data_base64=None) == b""


@pytest.mark.parametrize("name", ["id", "source", "type"])
@pytest.mark.parametrize("value", ["", None])
def test_required_attributes(name: str, value: str | None) -> None:
    for read in (
        lambda: from_binary(ce(**{name: value}), b"", topic="orders"),
        lambda: from_structured(document(**{name: value}), topic="orders"),
    ):
        with pytest.raises(DecodeError, match=f"required attribute '{name}' is missing or empty"):
            read()


def test_headers_of_no_cloudevent() -> None:
    with pytest.raises(DecodeError, match="required attribute 'id'"):
        from_binary({"id": "1", "other": "2"}, b"", topic="orders")


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"time": "yesterday"}, "'yesterday' is no time as in 2026-01-31T12:00:00.5Z"),
        ({"time": ""}, "is no time"),
        ({"dataversion": "two"}, "malformed"),
        ({"dataversion": "0"}, "dataversion is 0"),
        ({"dataversion": "99999999999"}, "dataversion is 99999999999"),
        ({"dataversion": "9" * 5000}, "malformed"),
        ({"specversion": "0.3"}, "CloudEvents 0.3 cannot be read, only 1.0"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_malformed_attributes_are_decode_errors(attributes: dict[str, str], text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        from_binary(ce(**attributes), b"", topic="orders")
    with pytest.raises(DecodeError, match=text):
        from_structured(document(**attributes), topic="orders")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"id": "\xff"}',
        b'[{"id":"1"}]',
        b'{"a":' + b"[" * 100_000,
        document(data_base64="no base64!"),
        document(data_base64=5),
    ],
    ids=lambda body: repr(body[:80]),
)
def test_documents_that_are_none_are_decode_errors(body: bytes) -> None:
    with pytest.raises(DecodeError, match="not a CloudEvent"):
        from_structured(body, topic="orders")


@given(st.binary(max_size=60) | st.dictionaries(st.text(), st.integers() | st.text()).map(msgspec.json.encode))
def test_any_bytes_are_an_event_or_a_decode_error(body: bytes) -> None:
    try:
        assert isinstance(from_structured(body, topic="orders"), Message)
    except DecodeError:
        pass


@given(st.dictionaries(st.text() | st.sampled_from(sorted(ce(time=""))), st.none() | st.text() | st.binary()))
def test_any_headers_are_an_event_or_a_decode_error(headers: dict[str, Any]) -> None:
    try:
        assert isinstance(from_binary(headers, b"{}", topic="orders"), Message)
    except DecodeError:
        pass


def test_structured_content_types() -> None:
    assert is_structured("application/cloudevents+json; charset=utf-8")
    assert is_structured("Application/CloudEvents+JSON")
    assert not is_structured("application/json")


# -------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_500_000_000, "2023-11-14T22:13:20.5Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (-62_135_596_800_000_000_000, "0001-01-01T00:00:00Z"),
    ],
)
def test_times_are_written_and_read(time: int, text: str) -> None:
    assert format_time(time) == text
    assert parse_time(text) == time


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T18:30:00-05:30", 0),
        ("1970-01-01T01:00:00.25+0100", 250_000_000),
        ("1970-01-01t00:00:01z", 1_000_000_000),
        ("1970-01-01 00:00:01", 1_000_000_000),
        ("1970-01-01T00:00:00,5Z", 500_000_000),
        ("1970-01-01T00:00:00.1234567899Z", 123_456_789),
        ("1970-01-01T00:00:60Z", 59_000_000_000),
        ("0001-01-01T00:00:00+23:59", -62_135_596_800_000_000_000 - 86_340_000_000_000),
    ],
)
def test_times_of_others_are_read(text: str, time: int) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-01",
        "20260101T000000Z",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:61Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+00:60",
        "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00ZZ",
        "٢٠٢٦-01-01T00:00:00Z",
        "2026-W01-1T00:00:00Z",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time|range|month|day|hour|minute"):
        parse_time(text)


@given(st.integers(-62_135_596_800_000_000_000, 253_402_300_799_999_999_999))
def test_every_time_comes_back(time: int) -> None:
    assert parse_time(format_time(time)) == time


@given(st.datetimes(timezones=st.timezones()))
def test_python_agrees_on_times(moment: datetime) -> None:
    offset = moment.utcoffset()
    assert offset is not None
    if offset.total_seconds() % 60:
        return  # of local time before it had whole minutes, which RFC 3339 cannot write
    exact = (moment.replace(tzinfo=None) - datetime(1970, 1, 1)) - offset  # noqa: DTZ001
    assert parse_time(moment.isoformat()) == exact // timedelta(microseconds=1) * 1000

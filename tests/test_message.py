"""Messages are values; what no broker could carry is refused before it leaves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import Failure, InvalidMessage, Message
from tidemill.message import MAX_BODY, MAX_HEADERS, OWN_ATTRIBUTES, check

MESSAGE = Message("1", "shop", "order.placed", "orders", 0, b"{}", key="o-1", correlation_id="1")


def changed(**fields: Any) -> Message:
    return msgspec.structs.replace(MESSAGE, **fields)


def test_a_message_in_order_comes_back_as_it_is() -> None:
    assert check(MESSAGE) is MESSAGE
    full = changed(
        body=b"x" * MAX_BODY,
        key="日本 👩‍👩‍👧 \u200cنام",  # joiners are part of names
        causation_id="0",
        extensions={"tenantid": "Müller GmbH", "subject": "s", "traceparent": "00-ab-cd-01", "empty": ""},
    )
    assert check(full) is full


def test_messages_are_immutable_values() -> None:
    assert changed() == MESSAGE
    assert changed(extensions={}).extensions is not MESSAGE.extensions
    with pytest.raises(AttributeError):
        MESSAGE.key = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"body": b"x" * (MAX_BODY + 1)}, "the body is 1,048,577 bytes and the limit is 1,048,576"),
        ({"id": ""}, "id is ''"),
        ({"source": ""}, "source is ''"),
        ({"type": ""}, "a message without a type.*type is ''"),
        ({"key": ""}, "key is ''"),
        ({"id": 5}, "id is 5.*Give a string"),
        ({"key": 0}, "key is 0.*Give a string"),
        ({"causation_id": "x\r\ny", "correlation_id": "a"}, r"causation_id has a character.*'\\r'"),
        ({"correlation_id": "a\x00"}, "correlation_id has a character"),
        ({"id": "a\nb"}, "id has a character"),
        ({"key": "a\tb"}, "key has a character"),
        ({"key": "\ud800"}, r"key has a character.*ud800"),
        ({"key": "k" * (MAX_HEADERS + 1)}, "its attributes .* bytes and the limit is 16,384"),
        ({"extensions": {"a": "x" * MAX_HEADERS}}, "its attributes"),
        ({"extensions": {"Tenant": "x"}}, "the header name 'Tenant' is not allowed.*such as 'tenantid'"),
        ({"extensions": {"tenant-id": "x"}}, "the header name 'tenant-id' is not allowed"),
        ({"extensions": {"ténant": "x"}}, "is not allowed"),
        ({"extensions": {"": "x"}}, "is not allowed"),
        ({"extensions": {5: "x"}}, "is not allowed"),
        ({"extensions": {"data": "x"}}, "is not allowed"),
        ({"extensions": {"a": 5}}, "the header 'a' is 5.*Headers are strings"),
        ({"extensions": {"a": None}}, "the header 'a' is None"),
        ({"extensions": {"a": "x\ny"}}, "the header 'a' has a character"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_no_broker_could_carry_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidMessage, match=text) as raised:
        check(changed(**fields))
    assert "Nothing was stored." in str(raised.value)


@pytest.mark.parametrize("name", sorted(OWN_ATTRIBUTES))
def test_a_header_cannot_overwrite_the_message(name: str) -> None:
    with pytest.raises(InvalidMessage, match=f"{name!r} belongs to the message itself"):
        check(changed(extensions={name: "x"}))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.text(st.characters()),
            "source": st.text(st.characters()),
            "key": st.none() | st.text(st.characters()),
            "correlation_id": st.none() | st.text(st.characters()),
            "causation_id": st.none() | st.text(st.characters()),
            "extensions": st.dictionaries(st.text(st.characters()), st.text(st.characters()), max_size=3),
        },
    )
)
def test_what_is_let_through_can_be_written_as_headers(fields: dict[str, Any]) -> None:
    message = changed(**fields)
    try:
        check(message)
    except InvalidMessage:
        return
    values = [message.id, message.source, message.key, message.correlation_id, message.causation_id]
    for value in [*values, *message.extensions, *message.extensions.values()]:
        if value is not None:
            assert value.encode().decode() == value
            assert not any(char < " " or "\x7f" <= char <= "\x9f" for char in value)


def test_when_is_the_time_in_utc() -> None:
    assert changed(time=1_700_000_000_123_456_789).when == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)
    assert changed(time=0).when == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_failure_can_always_be_stored() -> None:
    failure = Failure(1, 0, "FileNotFoundError: 'caf\udce9'", 'File "caf\udce9"\n')
    assert failure.error == "FileNotFoundError: 'caf\\udce9'"
    assert failure.traceback == 'File "caf\\udce9"\n'
    assert msgspec.json.decode(msgspec.json.encode(failure), type=Failure) == failure
    assert Failure(1, 0, "Grüße").error == "Grüße"

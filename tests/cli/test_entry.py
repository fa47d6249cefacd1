from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest

from tidemill import Json, Topic, event, upcast
from tidemill.cli.entry import EntryReader, Refused
from tidemill.cloudevents import from_structured, parse_time, to_structured
from tidemill.message import MAX_BODY, Message

orders = Topic("orders", key="order_id")
loose = Topic("loose")


@event("order.placed", version=3, topic=orders)
class Placed:
    order_id: str
    total: int
    note: str = ""


@upcast(Placed, from_version=1)
def rename(v1: Json) -> Json:
    return {"order_id": v1["id"], "total": v1["total"]}


@upcast(Placed, from_version=2)
def to_cents(v2: Json) -> Json:
    return v2 | {"total": v2["total"] * 100}


@event("order.closed", topic=orders)
class Closed:
    order_id: str | None


@event("checked", topic=loose)
class Checked(pydantic.BaseModel):
    name: str
    sizes: list[int]


BODY = {"order_id": "o1", "total": 5}


def read(line: object, target: Any = Placed, **options: Any) -> Message:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return EntryReader(target, **({"source": "cli"} | options)).read(data)


def refusal(line: object, target: Any = Placed, **options: Any) -> str:
    with pytest.raises(Refused) as caught:
        read(line, target, **options)
    return str(caught.value)


def cloud(data: object = BODY, **attributes: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "type": "order.placed", "dataversion": 3, "data": data} | attributes


def test_a_plain_line_is_the_body_of_todays_version() -> None:
    line = b'{ "order_id": "o1", "total": 5, "unknown": 1.0 }'
    message = read(line)
    assert message.body == line, "published as it was written: nothing in it is lost"
    assert (message.type, message.version, message.topic) == ("order.placed", 3, "orders")
    assert (message.key, message.source) == ("o1", "cli")
    assert message.correlation_id == message.id
    assert message.causation_id is None
    assert read(line).id != message.id
    assert read(line, source="import").source == "import"


def test_a_cloudevent_keeps_what_it_says() -> None:
    message = read(
        cloud(
            id="e1",
            source="shop",
            time="2026-01-02T03:04:05.000000006Z",
            partitionkey="k",
            correlationid="c",
            causationid="b",
            tenant="t",
        )
    )
    assert (message.id, message.source, message.key) == ("e1", "shop", "k")
    assert message.time == parse_time("2026-01-02T03:04:05.000000006Z")
    assert (message.correlation_id, message.causation_id) == ("c", "b")
    assert message.extensions == {"tenant": "t"}
    assert json.loads(message.body) == BODY


def test_a_cloudevent_need_not_say_much() -> None:
    message = read({"specversion": "1.0", "data": {"id": "o1", "total": 5}})
    assert (message.type, message.version, message.source, message.key) == ("order.placed", 1, "cli", "o1")
    assert message.time > parse_time("2020-01-01T00:00:00Z")
    assert message.correlation_id == message.id
    assert read(cloud(id=None, time=None)).time > parse_time("2020-01-01T00:00:00Z")


def test_what_tail_writes_is_read_back_unchanged() -> None:
    message = read(cloud(id="e1", source="shop", subject="else", traceparent="00-0"), orders)
    assert read(to_structured(message), orders) == message == from_structured(to_structured(message), topic="orders")


def test_an_old_version_is_checked_by_upcasting_and_kept_as_it_is() -> None:
    old = {"id": "o7", "total": 5}
    message = read(cloud(old, dataversion=1))
    assert json.loads(message.body) == old
    assert message.version == 1
    assert message.key == "o7", "the key comes from the event as it is today"
    assert "rename" in refusal(cloud(BODY, dataversion=1))
    assert "order.placed' version 2" in refusal(cloud({"order_id": 1, "total": 5}, dataversion=2))


def test_a_foreign_subject_is_not_taken_for_the_key() -> None:
    message = read(cloud(subject="shelf/7"))
    assert message.key == "o1"
    assert message.extensions == {"subject": "shelf/7"}
    assert read(cloud(subject="o1")).extensions == {}
    assert read({"specversion": "1.0", "subject": "o1", "data": {"id": "o1", "total": 1}}).extensions == {}
    foreign = read({"specversion": "1.0", "subject": "s", "data": {"id": "o1", "total": 1}})
    assert (foreign.key, foreign.extensions) == ("o1", {"subject": "s"})


def test_the_id_field_makes_repeating_safe() -> None:
    assert read(BODY, id_field="order_id").id == "o1"
    assert read(BODY, id_field="total").id == "5"
    assert read(cloud(id="e1"), id_field="order_id").id == "e1"
    assert "its id field 'nope' is None" in refusal(BODY, id_field="nope")
    assert "its id field 'note' is ''" in refusal(BODY | {"note": ""}, id_field="note")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"order_id": }', "malformed JSON at column 14: invalid character"),
        ('{"order_id": "é", x}'.encode(), "malformed JSON at column 19: "),
        (b'{"order_id": "o1"', "malformed JSON: the line ends too early"),
        (b'{"order_id": "o1"} {}', "malformed JSON at column 21: trailing characters"),
        (b'{"order_id": "\xff", "total": 5}', "order.placed"),
        (b'{"a":' * 5000, "malformed JSON"),
        (b'"text"', "not a JSON object: expected `object`, got `str`"),
        (
            BODY | {"total": "5"},
            "'order.placed' version 3 cannot be decoded: Expected `int`, got `str` - at `$.total`",
        ),
        ({"total": 5}, "missing required field `order_id`"),
        (BODY | {"order_id": ""}, "key is ''. Nothing was stored"),
        (cloud(type="order.plcaed"), "unknown event type 'order.plcaed'. Known here: order.placed."),
        (cloud(type="order.closed"), "name the topic instead of the class"),
        (cloud(dataversion=4), "'order.placed' version 4 is newer than this code, which knows version 3."),
        (cloud(dataversion=0), "malformed: dataversion is 0"),
        (cloud(dataversion="x"), "malformed"),
        (cloud(time="yesterday"), "malformed"),
        (cloud(data="text"), "expected `object`, got `str`"),
        (cloud(tenant_id="t"), "the header name 'tenant_id' is not allowed"),
        (cloud(tenant="a\nb"), "the header 'tenant' has a character that headers cannot carry"),
        (cloud(tenant="x" * 20_000), "limit is 16,384"),
        (BODY | {"note": "x" * MAX_BODY}, "the limit is 1,048,576"),
    ],
)
def test_reasons(line: object, text: str) -> None:
    assert text.lower() in refusal(line).lower()


def test_reasons_on_a_topic() -> None:
    assert "Events of 'orders': order.closed, order.placed." in refusal(BODY, orders)
    assert "Known here: order.closed, order.placed." in refusal(cloud(type="x"), orders)
    assert "the required attribute 'type' is missing" in refusal({"specversion": "1.0", "data": BODY}, orders)
    assert read(cloud(), orders).type == "order.placed"


def test_a_key_that_is_null_is_refused() -> None:
    assert "its key 'order_id' is null" in refusal({"order_id": None}, Closed)


def test_every_misfit_of_a_pydantic_class_is_named_with_its_path() -> None:
    text = refusal({"sizes": [1, "x"]}, Checked)
    assert "name: Field required" in text
    assert "sizes.1: Input should be a valid integer" in text
    assert "\n" not in text

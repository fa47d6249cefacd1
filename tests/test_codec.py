"""Events to bytes and back: every kind of class, strict on the way out, errors that say where and why."""

from __future__ import annotations

import dataclasses
import math
import pickle
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from tidemill import DecodeError, DefinitionError, InvalidMessage, Json, Message, Topic, event, upcast
from tidemill.codec import codec_of, to_message
from tidemill.errors import FutureVersion

payments = Topic("payments", key="payment_id")
things = Topic("things")


@event("payment.confirmed", version=3, topic=payments)
class PaymentConfirmed:
    payment_id: str
    amount: Decimal
    currency: str
    lines: list[Line] = []  # noqa: RUF012


class Line(msgspec.Struct, frozen=True):
    """Declared after the event that has it."""

    text: str


@upcast(PaymentConfirmed, from_version=1)
def euros(v1: Json) -> Json:
    return v1 | {"currency": "EUR"}


@upcast(PaymentConfirmed, from_version=2)
def amount_was_cents(v2: Json) -> Json:
    v2["amount"] = str(Decimal(v2.pop("cents")) / 100)
    return v2


PAID = PaymentConfirmed("p-1", Decimal("12.50"), "EUR", [Line("tea")])


def sent(event: object = PAID, **options: Any) -> Message:
    return to_message(event, **({"source": "shop", "time": 7} | options))


def received(body: bytes, version: int = 3, type: str = "payment.confirmed") -> Message:
    return Message("1", "shop", type, "payments", 7, body, version)


# -------------------------------------------------------------------- to a message


def test_a_message_says_all_about_its_event() -> None:
    message = sent()
    assert message == Message(
        message.id,
        "shop",
        "payment.confirmed",
        "payments",
        7,
        b'{"payment_id":"p-1","amount":"12.50","currency":"EUR","lines":[{"text":"tea"}]}',
        version=3,
        key="p-1",
        correlation_id=message.id,  # a first event starts its own flow
        causation_id=None,
    )
    assert codec_of(PaymentConfirmed).decode(message) == PAID
    assert sent().id != message.id


def test_an_event_published_by_a_handler_joins_the_flow() -> None:
    first = sent()
    second = sent(cause=first)
    third = sent(cause=second, id="mine", extensions={"tenantid": "a"})
    assert (second.correlation_id, second.causation_id) == (first.id, first.id)
    assert (third.correlation_id, third.causation_id) == (first.id, second.id)
    assert (third.id, third.extensions) == ("mine", {"tenantid": "a"})


def test_a_foreign_cause_without_a_flow_begins_one() -> None:
    assert sent(cause=received(b"{}")).correlation_id == "1"


def test_an_ordered_topic_needs_the_key() -> None:
    @event("keyed", topic=Topic("t", key="id"))
    class Keyed:
        id: str | None

    with pytest.raises(InvalidMessage, match=r"its key 'id' is None, .*Nothing was stored\. Set the field\."):
        sent(Keyed(None))


def test_what_is_no_event_cannot_be_sent() -> None:
    with pytest.raises(DefinitionError, match="is not an event: decorate it"):
        sent(Line("tea"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((5, Decimal(1), "EUR"), "Expected `str`, got `int` - at `$.payment_id`"),
        (("p", "much", "EUR"), "Invalid decimal string - at `$.amount`"),
        (("p", Decimal(1), "EUR", ["tea"]), "Expected `object`, got `str` - at `$.lines[0]`"),
        (("p", Decimal(1), object()), "Encoding objects of type object is unsupported"),
        (("p", Decimal(1), "\ud800"), "surrogates not allowed"),
    ],
)
def test_what_consumers_could_not_read_does_not_leave(values: tuple[Any, ...], text: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        sent(PaymentConfirmed(*values))
    assert "'payment.confirmed' cannot be encoded: " in str(raised.value)
    assert text in str(raised.value)
    assert "Nothing was stored. Correct the values of PaymentConfirmed." in str(raised.value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_json_does_not_have_do_not_leave(number: float) -> None:
    @event("measured", topic=things)
    class Measured:
        value: float

    @event("measured.maybe", topic=things)
    class Maybe:
        other: str | None
        value: float | None

    @event("measured.any", topic=things)
    class Anything:
        value: Any

    class Model(pydantic.BaseModel):
        value: float | None

    event("measured.model", topic=things)(Model)

    for refused in (
        Measured(number),
        Maybe(None, number),
        Maybe("null", number),
        Anything([1, {"a": (number,)}]),
        Model(value=number),
    ):
        with pytest.raises(InvalidMessage, match="cannot be encoded"):
            sent(refused)
    for fine in (Maybe(None, 1.5), Maybe("null", None), Anything([None]), Model(value=None)):
        assert codec_of(type(fine)).decode(sent(fine)) == fine


# ------------------------------------------------------------- every kind of class


def test_other_kinds_of_classes_travel() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Inner:
        value: int

    @dataclasses.dataclass(frozen=True, slots=True)
    class Data:
        id: str
        inner: Inner

    class Structured(msgspec.Struct, frozen=True, rename="camel"):
        an_id: str

    @attrs.frozen
    class Attrs:
        id: str
        size: int = attrs.field(default=3, validator=attrs.validators.gt(2))

    class Model(pydantic.BaseModel):
        id: str = pydantic.Field(alias="identity")
        amount: Decimal

    @pydantic.dataclasses.dataclass(frozen=True)
    class ModelData:
        id: str

    # Names in annotations are looked up in the module, as everywhere in Python: these classes are in a function.
    Data.__annotations__["inner"] = Inner
    for one, body in (
        (Data("a", Inner(1)), b'{"id":"a","inner":{"value":1}}'),
        (Structured("a"), b'{"anId":"a"}'),
        (Attrs("a"), b'{"id":"a","size":3}'),
        (Model(identity="a", amount=Decimal("1.50")), b'{"identity":"a","amount":"1.50"}'),
        (ModelData("a"), b'{"id":"a"}'),
    ):
        event(f"kind.{type(one).__name__}", topic=things)(type(one))
        message = sent(one)
        assert message.body == body
        assert codec_of(type(one)).decode(message) == one


def test_a_plain_class_inside_an_event_is_refused_when_its_codec_is_made() -> None:
    class Nested:
        value: int

    @event("nesting", topic=things)
    class Nesting:
        nested: list[Nested | None]

    Nesting.__annotations__["nested"] = list[Nested | None]
    with pytest.raises(
        DefinitionError,
        match=r"Nesting \(.*test_codec.py:\d+\) has a field .*Nested is a plain class.*dataclasses",
    ):
        codec_of(Nesting)


def test_a_name_that_cannot_be_found_is_named() -> None:
    @event("lost", topic=things)
    class Lost:
        thing: NoSuchThing  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(DefinitionError, match=r"'NoSuchThing' is not defined.*not under TYPE_CHECKING"):
        codec_of(Lost)


def test_a_type_that_json_cannot_carry_is_named() -> None:
    @event("odd", topic=things)
    class Odd:
        thing: int | float | Decimal | list[int] | set[int]

    with pytest.raises(DefinitionError, match=r"has a field with a type that cannot be encoded: .*array-like"):
        codec_of(Odd)


def test_a_recursive_type_is_fine() -> None:
    message = sent(Tree(1, [Tree(2, [])]))
    assert codec_of(Tree).decode(message) == Tree(1, [Tree(2, [])])


@event("tree", topic=things)
class Tree:
    value: int
    children: list[Tree]


def test_the_codec_of_a_class_is_made_once() -> None:
    assert codec_of(Tree) is codec_of(Tree)


# --------------------------------------------------------------------- from a message


def test_unknown_fields_are_passed_over() -> None:
    body = b'{"new":[1],"payment_id":"p","amount":"1","currency":"EUR"}'
    assert codec_of(PaymentConfirmed).decode(received(body)) == PaymentConfirmed("p", Decimal(1), "EUR")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"null", "Expected `object`, got `null`"),
        (b"[1]", "Expected `object`, got `array`"),
        (b'"x"', "Expected `object`, got `str`"),
        (b'{"payment_id":"p"}', "missing required field `amount`"),
        (b'{"payment_id":"p","amount":"1","currency":NaN}', "malformed"),
        (b'{"payment_id":"\xff","amount":"1","currency":"EUR"}', "utf-8|UTF-8"),
        (b'{"payment_id":"p","amount":"1","currency":"E","x":' + b"[" * 100_000, "recursion|Recursion"),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else "",
)
def test_bodies_that_fit_nothing_are_decode_errors(body: bytes, text: str) -> None:
    for version in (1, 3):
        with pytest.raises(DecodeError) as raised:
            codec_of(PaymentConfirmed).decode(received(body, version))
        assert str(raised.value).startswith(f"'payment.confirmed' version {version} cannot be decoded: ")
        assert "\n" not in str(raised.value)
    with pytest.raises(DecodeError, match=text):
        codec_of(PaymentConfirmed).decode(received(body))


def test_pydantics_errors_are_one_line() -> None:
    class Inner(pydantic.BaseModel):
        count: int

    class Model(pydantic.BaseModel):
        id: str
        inner: list[Inner]

    event("model", topic=things)(Model)
    with pytest.raises(DecodeError) as raised:
        codec_of(Model).decode(received(b'{"inner":[{"count":"x"}]}', 1, "model"))
    assert str(raised.value) == (
        "'model' version 1 cannot be decoded: id: Field required; "
        "inner.0.count: Input should be a valid integer, unable to parse string as an integer"
    )
    with pytest.raises(DecodeError, match="Invalid JSON"):
        codec_of(Model).decode(received(b"{", 1, "model"))


def test_what_a_class_refuses_is_a_decode_error() -> None:
    @event("picky", topic=things)
    class Picky:
        count: int

        def __post_init__(self) -> None:
            if self.count < 0:
                raise LookupError("count is negative")

    with pytest.raises(DecodeError, match="count is negative"):
        codec_of(Picky).decode(received(b'{"count":-1}', 1, "picky"))


# --------------------------------------------------------------------------- versions


def test_old_versions_pass_through_every_upcaster() -> None:
    decode = codec_of(PaymentConfirmed).decode
    expected = PaymentConfirmed("p", Decimal("12.5"), "EUR")
    assert decode(received(b'{"payment_id":"p","cents":1250}', 1)) == expected
    assert decode(received(b'{"payment_id":"p","cents":1250,"currency":"EUR"}', 2)) == expected
    assert decode(received(b'{"payment_id":"p","amount":"12.5","currency":"EUR"}', 3)) == expected


def test_the_future_is_told_apart() -> None:
    with pytest.raises(FutureVersion, match="version 4 is newer than this code, which knows version 3"):
        codec_of(PaymentConfirmed).decode(received(b"{}", 4))
    with pytest.raises(FutureVersion):
        codec_of(PaymentConfirmed).decode(received(b"no json at all", 2**31 - 1))


@pytest.mark.parametrize("version", [1, 0, -5])
def test_versions_below_the_oldest_say_what_to_do(version: int) -> None:
    @event("aged", version=3, oldest=2, topic=things)
    class Aged:
        id: str

    with pytest.raises(DecodeError, match=r"older than the oldest readable version, 2. Lower oldest"):
        codec_of(Aged).decode(received(b"{}", version, "aged"))


def test_an_upcaster_that_fails_is_named() -> None:
    @event("broken", version=4, topic=things)
    class Broken:
        id: str

    @upcast(Broken, from_version=1)
    def forgets_to_return(v1: Json) -> Json:
        v1["id"] = "x"  # type: ignore[return]

    @upcast(Broken, from_version=2)
    def wants_more(v2: Json) -> Json:
        return {"id": v2["name"]}

    @upcast(Broken, from_version=3)
    def leaves_out(v3: Json) -> Json:
        return {}

    decode = codec_of(Broken).decode
    with pytest.raises(DecodeError, match=r"forgets_to_return \(.*test_codec.py:\d+\) returned NoneType, not the new"):
        decode(received(b'{"id":"a"}', 1, "broken"))
    with pytest.raises(DecodeError, match=r"wants_more \(.*\) failed: KeyError: 'name'"):
        decode(received(b'{"id":"a"}', 2, "broken"))
    with pytest.raises(DecodeError, match=r"after upcasting: .*missing required field `id`"):
        decode(received(b'{"id":"a"}', 3, "broken"))


def test_a_missing_upcaster_is_a_decode_error_even_unchecked() -> None:
    @event("gap", version=2, topic=things)
    class Gap:
        id: str

    with pytest.raises(DecodeError, match="there is no upcaster from version 1"):
        codec_of(Gap).decode(received(b"{}", 1, "gap"))


def test_the_cause_is_kept_and_the_error_survives_pickling() -> None:
    with pytest.raises(DecodeError) as raised:
        codec_of(PaymentConfirmed).decode(received(b"{"))
    assert isinstance(raised.value.__cause__, msgspec.DecodeError)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)

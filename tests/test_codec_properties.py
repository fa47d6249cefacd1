"""Whatever fits the declaration comes back equal; whatever bytes arrive, the answer is an event or a DecodeError."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Literal
from uuid import UUID

import msgspec
import pydantic
from hypothesis import given
from hypothesis import strategies as st

from tidemill import DecodeError, Message, Topic, event, upcast
from tidemill.codec import codec_of, to_message

topic = Topic("everything")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mood(StrEnum):
    GOOD = "good"
    BAD = "bad"


class Card(msgspec.Struct, frozen=True, tag="card"):
    number: str


class Cash(msgspec.Struct, frozen=True, tag="cash"):
    amount: Decimal


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float


@event("everything", topic=topic)
class Everything:
    text: str
    whole: int
    huge: int
    real: float
    yes: bool
    money: Decimal
    moment: datetime
    day: date
    clock: time
    span: timedelta
    id: UUID
    colour: Colour
    level: Level
    mood: Mood
    raw: bytes
    maybe: str | None
    maybe_real: float | None
    numbers: list[int]
    pair: tuple[int, str]
    many: tuple[float, ...]
    unique: set[int]
    frozen: frozenset[str]
    by_name: dict[str, list[Decimal | None]]
    by_number: dict[int, str]
    by_id: dict[UUID, bool]
    point: Point
    paid: Card | Cash
    either: int | str | None
    fixed: Literal["a", "b"]


class Model(pydantic.BaseModel):
    text: str
    whole: int
    real: float
    money: Decimal
    moment: pydantic.AwareDatetime
    id: UUID
    colour: Colour
    maybe: float | None
    numbers: list[int]
    unique: set[int]
    by_name: dict[str, Decimal]
    point: Point


event("model", topic=topic)(Model)

text = st.text(st.characters(codec="utf-8"), max_size=20)
whole = st.integers(-(2**63), 2**64 - 1)
real = st.floats(allow_nan=False, allow_infinity=False)
money = st.decimals(allow_nan=False, allow_infinity=False)
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moment = st.datetimes(
    datetime(1, 1, 3),  # noqa: DTZ001
    datetime(9999, 12, 29),  # noqa: DTZ001
    timezones=st.just(UTC) | offsets,
)
point = st.builds(Point, whole, real)

everything = st.builds(
    Everything,
    text=text,
    whole=whole,
    huge=st.integers(-(10**100), 10**100),
    real=real,
    yes=st.booleans(),
    money=money,
    moment=moment,
    day=st.dates(),
    clock=st.times(),
    span=st.timedeltas(timedelta(days=-1_000_000), timedelta(days=1_000_000)),
    id=st.uuids(),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    mood=st.sampled_from(Mood),
    raw=st.binary(max_size=20),
    maybe=st.none() | text,
    maybe_real=st.none() | real,
    numbers=st.lists(whole, max_size=3),
    pair=st.tuples(whole, text),
    many=st.lists(real, max_size=3).map(tuple),
    unique=st.sets(whole, max_size=3),
    frozen=st.frozensets(text, max_size=3),
    by_name=st.dictionaries(text, st.lists(st.none() | money, max_size=2), max_size=2),
    by_number=st.dictionaries(whole, text, max_size=2),
    by_id=st.dictionaries(st.uuids(), st.booleans(), max_size=2),
    point=point,
    paid=st.builds(Card, text) | st.builds(Cash, money),
    either=st.none() | whole | text,
    fixed=st.sampled_from(["a", "b"]),
)
models = st.builds(
    Model,
    text=text,
    whole=whole,
    real=real,
    money=money,
    moment=st.datetimes(timezones=st.just(UTC)),
    id=st.uuids(),
    colour=st.sampled_from(Colour),
    maybe=st.none() | real,
    numbers=st.lists(whole, max_size=3),
    unique=st.sets(whole, max_size=3),
    by_name=st.dictionaries(text, money, max_size=2),
    point=point,
)


@given(everything)
def test_every_type_comes_back_equal(one: Everything) -> None:
    message = to_message(one, source="shop", time=1)
    back = codec_of(Everything).decode(message)
    assert back == one
    assert back.moment.utcoffset() is not None
    assert str(back.money) == str(one.money)  # 1.50 stays 1.50
    assert [type(value) for value in msgspec.structs.astuple(back)] == [  # type: ignore[arg-type]
        type(value)
        for value in msgspec.structs.astuple(one)  # type: ignore[arg-type]
    ]


@given(models)
def test_pydantic_models_come_back_equal(one: Model) -> None:
    assert codec_of(Model).decode(to_message(one, source="shop", time=1)) == one


json = st.recursive(
    st.none() | st.booleans() | whole | real | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@event("small", version=2, topic=topic)
class Small:
    text: str
    numbers: list[int]
    maybe: Point | None = None


@upcast(Small, from_version=1)
def careless(v1: dict[str, list[int]]) -> dict[str, object]:
    return {"text": v1["text"], "numbers": [number + 1 for number in v1["numbers"]]}


event("small.model", topic=topic)(
    pydantic.create_model("SmallModel", text=(str, ...), numbers=(list[int], ...), __module__=__name__)
)


@given(
    body=st.binary(max_size=40)
    | json.map(msgspec.json.encode)
    | st.fixed_dictionaries({"text": json, "numbers": json}).map(msgspec.json.encode),
    version=st.integers(-1, 4),
)
def test_whatever_arrives_is_an_event_or_a_decode_error(body: bytes, version: int) -> None:
    for name, declared in topic.events.items():
        message = Message("1", "shop", name, "everything", 1, body, version)
        found: object = None
        try:
            found = codec_of(declared.cls).decode(message)
        except DecodeError as error:
            text = str(error)
        else:
            text = ""
        assert type(found) is declared.cls or text
        assert "\n" not in text

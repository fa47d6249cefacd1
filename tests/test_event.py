"""Declaring events: every kind of class, nothing lost on the way, and errors at import that name the fix."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from tidemill import DefinitionError, Json, Topic, event, upcast
from tidemill.event import event_type, is_event, where

topic = Topic("things")
HERE = f"{Path(__file__).name}:"


@event("thing.plain", topic=topic)
class Plain:
    """What it says."""

    limit: ClassVar[int] = 3

    name: str
    count: int = 1
    tags: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    size: Decimal = dataclasses.field(default=Decimal("1.5"))
    later: Later | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")

    @property
    def label(self) -> str:
        return f"{self.name} x{self.count}"

    @classmethod
    def single(cls, name: str) -> Plain:
        return cls(name)

    @staticmethod
    def double(number: int) -> int:
        return 2 * number

    @functools.cached_property
    def expensive(self) -> object:
        return object()


class Later(msgspec.Struct, frozen=True):
    """Declared after the event that names it."""

    value: int


# ------------------------------------------------------------------ plain classes


def test_a_plain_class_becomes_an_immutable_value() -> None:
    one = Plain("a", 2)
    assert one == Plain(name="a", count=2)
    assert one != Plain("a", 3)
    assert repr(one).startswith("Plain(name='a', count=2, tags=[]")
    with pytest.raises(AttributeError):
        one.count = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Plain()  # type: ignore[call-arg]


def test_it_keeps_all_that_the_class_had() -> None:
    assert Plain.__doc__ == "What it says."
    assert (Plain.__module__, Plain.__qualname__) == (__name__, "Plain")
    assert Plain.limit == 3
    assert Plain.single("a").label == "a x1"
    assert Plain.double(4) == 8
    one = Plain("a")
    assert one.expensive is one.expensive
    with pytest.raises(ValueError, match="negative"):
        Plain("a", -1)


def test_defaults_are_made_anew_each_time() -> None:
    one, two = Plain("a"), Plain("b")
    one.tags.append("x")
    one.notes["x"] = "y"
    assert (two.tags, two.notes, two.size) == ([], {}, Decimal("1.5"))


def test_super_and_class_mean_the_new_class() -> None:
    def shout(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def shouting(*arguments: Any) -> str:
            return function(*arguments).upper()

        return shouting

    class Greets:
        def greet(self) -> str:
            return "hello"

        @classmethod
        def make(cls) -> Any:
            return cls()

        @property
        def kind(self) -> str:
            return "greeting"

    @event("thing.super", topic=topic)
    class Polite(Greets):
        name: str = "you"

        @shout
        def greet(self) -> str:
            return f"{super().greet()} {self.name}"

        @classmethod
        def make(cls) -> Any:
            return super().make()

        @property
        def kind(self) -> str:
            return f"{super().kind} of {__class__.__name__}"  # type: ignore[name-defined]

    assert Polite.make().greet() == "HELLO YOU"
    assert Polite().kind == "greeting of Polite"


def test_own_equality_hash_and_repr_are_kept() -> None:
    @event("thing.own", topic=topic)
    class Own:
        id: str
        noise: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and self.id == other.id

        def __hash__(self) -> int:
            return hash(self.id)

        def __repr__(self) -> str:
            return "own"

    assert Own("a", 1) == Own("a", 2)
    assert len({Own("a", 1), Own("a", 2)}) == 1
    assert repr(Own("a", 1)) == "own"


def test_slots_are_no_hindrance() -> None:
    @event("thing.slots", topic=topic)
    class Slotted:
        __slots__ = ("id",)
        id: str

    assert Slotted("a").id == "a"  # type: ignore[call-arg, unused-ignore]


def test_an_event_may_inherit_from_an_event() -> None:
    @event("thing.base", topic=topic)
    class Base:
        id: str

        def greet(self) -> str:
            return f"I am {self.id}"

    @event("thing.derived", topic=topic)
    class Derived(Base):
        size: int = 1

        def greet(self) -> str:
            return super().greet() + "!"

    assert Derived("a", 2).size == 2
    assert Derived("a").greet() == "I am a!"
    assert (event_type(Base).name, event_type(Derived).name) == ("thing.base", "thing.derived")


def test_a_class_in_a_function_and_an_empty_one_will_do() -> None:
    @event("thing.empty", topic=topic)
    class Nothing:
        pass

    assert Nothing() == Nothing()


# ------------------------------------------------------------- other kinds of classes


def test_other_classes_are_taken_as_they_are() -> None:
    keyed = Topic("keyed", key="id")

    @dataclasses.dataclass(frozen=True, slots=True)
    class Data:
        id: str

    class Structured(msgspec.Struct, frozen=True):
        id: str

    @attrs.frozen
    class Attrs:
        id: str

    class Model(pydantic.BaseModel):
        id: str

    @pydantic.dataclasses.dataclass(frozen=True)
    class ModelData:
        id: str

    for cls in (Data, Structured, Attrs, Model, ModelData):
        assert event(f"kind.{cls.__name__}", topic=keyed)(cls) is cls
        assert is_event(cls)
        assert event_type(cls).key(cls(id="k")) == "k"


def test_every_kind_of_class_has_its_key_checked() -> None:
    keyed = Topic("keyed2", key="nope")

    @dataclasses.dataclass
    class Data:
        id: str

    class Structured(msgspec.Struct):
        id: str

    @attrs.define
    class Attrs:
        id: str

    class Model(pydantic.BaseModel):
        id: str

    class Simple:
        id: str

    for cls in (Data, Structured, Attrs, Model, Simple):
        with pytest.raises(DefinitionError, match=r"ordered by 'nope', which is no field .*it has id"):
            event("kind.x", topic=keyed)(cls)


# ------------------------------------------------------------------------- errors


def declared(cls: type) -> None:
    event("thing.refused", topic=Topic("refused"))(cls)


class OwnInit:
    def __init__(self, id: str) -> None:
        self.id = id


class InheritsInit(OwnInit):
    size: int


class HasFields:
    id: str
    shared: ClassVar[int] = 1


class InheritsFields(HasFields):
    size: int


@dataclasses.dataclass
class ADataclass:
    id: str


class InheritsDataclass(ADataclass):
    size: int


@attrs.define
class AnAttrs:
    id: str


class InheritsAttrs(AnAttrs):
    size: int


class MisplacedDefault:
    id: str = "x"
    size: int


class SharedList:
    ids: list[int] = [1]  # noqa: RUF012


class HiddenField:
    secret: str = dataclasses.field(repr=False)


class KeywordField:
    id: str = dataclasses.field(kw_only=True)


class Abstract(ABC):
    id: str

    @abstractmethod
    def act(self) -> None: ...


class Colour(Enum):
    RED = 1


class Shape(Protocol):
    id: str


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (OwnInit, "it has its own __init__.*declare its fields as annotations"),
        (InheritsInit, "it inherits from OwnInit, which has its own __init__"),
        (
            InheritsFields,
            r"HasFields, which has its own fields \(id\).*Make HasFields a msgspec.Struct, or put",
        ),
        (InheritsDataclass, r"not decorated itself.*Put @dataclass\(frozen=True\) right above the class"),
        (InheritsAttrs, "not decorated itself.*Put @attrs.frozen right above the class"),
        (MisplacedDefault, "Required field 'size' cannot follow optional fields"),
        (SharedList, "default_factory"),
        (HiddenField, r"'secret' asks dataclasses.field\(\) for more.*Put @dataclass\(frozen=True\)"),
        (KeywordField, r"'id' asks dataclasses.field\(\) for more"),
        (Abstract, "metaclass conflict"),
        (Colour, "cannot be made an event"),
        (Shape, "cannot be made an event"),
    ],
)
def test_what_would_be_lost_is_refused_with_class_file_and_fix(cls: type, text: str) -> None:
    with pytest.raises(DefinitionError, match=text) as raised:
        declared(cls)
    assert f"{__name__}.{cls.__qualname__} (" in str(raised.value)
    assert HERE in str(raised.value)


def test_what_is_no_class_is_refused() -> None:
    with pytest.raises(DefinitionError, match="which is not a class"):
        event("thing.function", topic=topic)(test_what_is_no_class_is_refused)  # type: ignore[arg-type, type-var, unused-ignore]


@pytest.mark.parametrize("name", ["", "a b", ".a", "-a", "ä", "a\n", "a" * 201, "a/b", "a:b", None, 5])
def test_names_no_broker_could_carry_are_refused(name: Any) -> None:
    with pytest.raises(DefinitionError, match="cannot name a topic: use letters, digits"):
        Topic(name)
    with pytest.raises(DefinitionError, match="cannot name an event: use letters, digits"):
        event(name, topic=topic)


@pytest.mark.parametrize("name", ["a", "payment.confirmed", "A-1_b.C", "7", "a" * 200])
def test_other_names_are_fine(name: str) -> None:
    assert Topic(name).name == name


def test_topics_are_checked() -> None:
    with pytest.raises(DefinitionError, match="negative"):
        Topic("a", retain=timedelta(seconds=-1))
    with pytest.raises(DefinitionError, match=r"topic='payments' is not a Topic.*Declare one"):
        event("a", topic="payments")  # type: ignore[arg-type]
    assert repr(Topic("a")) == "Topic('a')"
    assert repr(Topic("a", key="id")) == "Topic('a', key='id')"


@pytest.mark.parametrize(("version", "oldest"), [(0, 1), (-1, 1), (1, 2), (2, 0), (2, 3)])
def test_versions_are_checked(version: int, oldest: int) -> None:
    with pytest.raises(DefinitionError, match="versions start at 1 and oldest is no larger"):
        event("a", version=version, oldest=oldest, topic=topic)


def test_two_classes_cannot_share_a_name_on_a_topic() -> None:
    mine, other = Topic("mine"), Topic("other")

    @event("thing", topic=mine)
    class First:
        id: str

    with pytest.raises(DefinitionError, match=r"Second .*First .*are both 'thing' on topic 'mine'"):

        @event("thing", topic=mine)
        class Second:
            id: str

    @event("thing", topic=other)  # elsewhere it is free
    class Third:
        id: str

    assert (mine.events["thing"].cls, other.events["thing"].cls) == (First, Third)


def test_a_class_that_is_no_event_is_named() -> None:
    with pytest.raises(DefinitionError, match=r"Later \(.*test_event.py:\d+\) is not an event: decorate it"):
        event_type(Later)
    assert is_event(Plain)
    assert not is_event(Later)
    assert not is_event(Plain("a"))


def test_a_module_may_be_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "reloaded_contracts.py"
    file.write_text(
        "from tidemill import Topic, event, upcast\n"
        "things = Topic('things')\n"
        "def declare():\n"
        "    @event('thing', version=2, topic=things)\n"
        "    class Thing:\n"
        "        id: str\n"
        "    @upcast(Thing, from_version=1)\n"
        "    def up(v1):\n"
        "        return v1\n"
        "    return Thing\n"
    )
    spec = importlib.util.spec_from_file_location("reloaded_contracts", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reloaded_contracts"] = module
    try:
        spec.loader.exec_module(module)
        first, second = module.declare(), module.declare()
        assert module.things.events["thing"].cls is second is not first
        event_type(second).check_chain()
    finally:
        del sys.modules["reloaded_contracts"]


# ---------------------------------------------------------------------------- keys


class Size(Enum):
    BIG = "big"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("a", "a"),
        (5, "5"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Size.BIG, "big"),
        (None, None),
        (Decimal("1.50"), "1.50"),
    ],
)
def test_a_key_is_text(value: Any, key: str | None) -> None:
    @event("thing.keyed", topic=Topic("keyed3", key="id"))
    class Keyed:
        id: Any

    assert event_type(Keyed).key(Keyed(value)) == key


def test_without_a_key_there_is_none() -> None:
    assert event_type(Plain).key(Plain("a")) is None


def test_a_class_variable_or_property_is_no_key() -> None:
    with pytest.raises(DefinitionError, match="ordered by 'limit', which is no field"):

        @event("thing.keyed", topic=Topic("keyed4", key="limit"))
        class Keyed:
            limit: ClassVar[int] = 3
            id: str


# ----------------------------------------------------------------------- upcasting


def versioned(version: int, oldest: int = 1) -> type:
    @event("thing.versioned", version=version, oldest=oldest, topic=Topic("versions"))
    class Versioned:
        id: str

    return Versioned


def same(body: Json) -> Json:
    return body


def test_a_gap_in_the_chain_names_the_missing_upcaster() -> None:
    cls = versioned(4)
    upcast(cls, from_version=1)(same)
    upcast(cls, from_version=3)(same)
    with pytest.raises(
        DefinitionError,
        match=r"Versioned .*version 4, but version 2 cannot be read: .*from 2 to 3\. "
        r"Add @upcast\(Versioned, from_version=2\).*or say oldest=3",
    ):
        event_type(cls).check_chain()
    assert upcast(cls, from_version=2)(same) is same
    event_type(cls).check_chain()


def test_versions_below_the_oldest_need_no_upcaster() -> None:
    cls = versioned(3, oldest=2)
    upcast(cls, from_version=2)(same)
    event_type(cls).check_chain()


def test_two_upcasters_for_one_version_are_refused() -> None:
    cls = versioned(2)
    upcast(cls, from_version=1)(same)
    upcast(cls, from_version=1)(same)  # the same one is no contradiction
    with pytest.raises(DefinitionError, match=r"has two upcasters from version 1: .*same .*other.*Remove one"):

        @upcast(cls, from_version=1)
        def other(v1: Json) -> Json:
            return v1


def test_two_upcasters_of_one_name_are_told_apart() -> None:
    cls = versioned(2)
    upcast(cls, from_version=1)(lambda v1: v1)
    with pytest.raises(DefinitionError, match="two upcasters"):
        upcast(cls, from_version=1)(lambda v1: v1 | {"x": 1})


@pytest.mark.parametrize("version", [0, 2, 3, -1])
def test_only_older_versions_can_be_upcast(version: int) -> None:
    with pytest.raises(DefinitionError, match="nothing to upcast from"):
        upcast(versioned(2), from_version=version)


def test_an_upcaster_is_no_coroutine_function() -> None:
    async def slow(v1: Json) -> Json:
        return v1

    with pytest.raises(DefinitionError, match=r"slow .*is an `async def`.*make it a `def`"):
        upcast(versioned(2), from_version=1)(slow)  # type: ignore[type-var]


def test_where_never_fails() -> None:
    assert where(int) == "builtins.int"
    assert "partial" in where(functools.partial(same))
    assert where(same).startswith(f"{__name__}.same (")

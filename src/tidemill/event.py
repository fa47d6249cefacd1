"""Declaring what services agree on: topics, events with versions, and how old versions become today's.

    payments = Topic("payments", key="payment_id")

    @event("payment.confirmed", version=2, topic=payments)
    class PaymentConfirmed:
        payment_id: str
        amount: Decimal
        currency: str

    @upcast(PaymentConfirmed, from_version=1)
    def add_currency(v1: Json) -> Json:
        return v1 | {"currency": "EUR"}

What is wrong is an error here, at import, naming the class, the file and the fix.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar, cast, dataclass_transform

import msgspec

from .errors import DefinitionError
from .value import as_value, field_names

Json: TypeAlias = dict[str, Any]
"""The body of an event as plain JSON values: what upcasters take and return."""

E = TypeVar("E")
F = TypeVar("F", bound=Callable[[Json], Json])

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Topic:
    """A named stream of events. Declare it once, next to its events.

    name     letters, digits, `.`, `_` and `-`; at most 200 characters.
    key      the field of its events that orders them: events of one key are handled one at a time, in the
             order they were published (G6). None (the default): no order is promised.
    retain   how long handled events stay readable (default 7 days). What a subscription has not settled is
             never removed by age.
    options  settings for one kind of broker, as that adapter's typed values; other brokers pass over them.
    """

    __slots__ = ("events", "key", "name", "options", "retain")

    def __init__(
        self,
        name: str,
        *,
        key: str | None = None,
        retain: timedelta = timedelta(days=7),
        options: tuple[object, ...] = (),
    ) -> None:
        check_name("a topic", name)
        if retain < timedelta(0):
            raise DefinitionError(f"Topic({name!r}): retain={retain} is negative. Give a timedelta of 0 or more.")
        self.name = name
        self.key = key
        self.retain = retain
        self.options = options
        self.events: dict[str, EventType] = {}

    def __repr__(self) -> str:
        return f"Topic({self.name!r})" if self.key is None else f"Topic({self.name!r}, key={self.key!r})"


class EventType:
    """What was declared about one event class."""

    __slots__ = ("cls", "key_of", "name", "oldest", "topic", "upcasters", "version")

    def __init__(self, cls: type, name: str, version: int, oldest: int, topic: Topic) -> None:
        self.cls = cls
        self.name = name
        self.version = version
        self.oldest = oldest
        self.topic = topic
        self.upcasters: dict[int, Callable[[Json], Json]] = {}
        self.key_of: Callable[[Any], object] | None = attrgetter(topic.key) if topic.key else None

    def key(self, event: object) -> str | None:
        """The event's key as text, or None on a topic without a key."""
        if self.key_of is None:
            return None
        value = self.key_of(event)
        if type(value) is str:
            return value
        if value is None:
            return None
        return str(value.value if isinstance(value, Enum) else value)

    def check_chain(self) -> None:
        """Raise `DefinitionError` unless every version from `oldest` on can be brought up to today's."""
        missing = [v for v in range(self.oldest, self.version) if v not in self.upcasters]
        if missing:
            first = missing[0]
            raise DefinitionError(
                f"{where(self.cls)} is {self.name!r} version {self.version}, but version {first} cannot be read: "
                f"there is no upcaster from {first} to {first + 1}. Add @upcast({self.cls.__name__}, "
                f"from_version={first}) below the class, or say oldest={first + 1} in @event if no event of "
                f"version {first} was ever published."
            )


_declared: dict[type, EventType] = {}


def event_type(cls: type) -> EventType:
    """What was declared about `cls`; raises `DefinitionError` if it was not decorated with `@event`."""
    found = _declared.get(cls)
    if found is None:
        raise DefinitionError(
            f"{where(cls)} is not an event: decorate it with @event('its.name', version=1, topic=...)."
        )
    return found


def is_event(cls: object) -> bool:
    """Whether `cls` is a class decorated with `@event`."""
    return isinstance(cls, type) and cls in _declared


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, msgspec.field))
def event(name: str, *, version: int = 1, topic: Topic, oldest: int = 1) -> Callable[[type[E]], type[E]]:
    """Declare a class to be an event.

    A plain annotated class becomes an immutable value with a constructor, equality and a repr (a frozen
    `msgspec.Struct`, the fastest to make and to decode); its methods, properties and class variables stay.
    Dataclasses, msgspec Structs, attrs and pydantic classes are taken as they are. Values inside an event are
    of such types too, or plain ones: str, int, Decimal, aware datetime, UUID, Enum, list, dict, ….

    name     what it is called on the wire; it outlives the class's name.
    version  which version of its schema this class is (default 1). Raise it when old bodies no longer fit,
             and say with `@upcast` how they become new ones.
    topic    where it is published.
    oldest   the oldest version that must stay readable (default 1, all of them).

    Raises `DefinitionError` where the key is no field, the name is taken on this topic, a version is below 1, or
    the class cannot be made a value without losing something.
    """
    check_name("an event", name)
    if not isinstance(cast(object, topic), Topic):
        raise DefinitionError(f"@event({name!r}): topic={topic!r} is not a Topic. Declare one: Topic('payments').")
    if version < 1 or not 1 <= oldest <= version:
        raise DefinitionError(
            f"@event({name!r}): version={version}, oldest={oldest}; versions start at 1 and oldest is no larger."
        )

    def declare(cls: type[E]) -> type[E]:
        if not isinstance(cast(object, cls), type):
            raise DefinitionError(f"@event({name!r}) is over {cls!r:.80}, which is not a class.")
        known = topic.events.get(name)
        # The same class again is its module being loaded again: the newer one counts.
        if known is not None and _path(known.cls) != _path(cls):
            raise DefinitionError(
                f"{where(cls)} and {where(known.cls)} are both {name!r} on topic {topic.name!r}. "
                "Give one of them another name."
            )
        try:
            made = as_value(cls)
        except TypeError as error:
            raise DefinitionError(f"{where(cls)} cannot be made an event: {error}") from error
        fields = field_names(made)
        if topic.key is not None and fields is not None and topic.key not in fields:
            raise DefinitionError(
                f"{where(cls)}: topic {topic.name!r} is ordered by {topic.key!r}, which is no field of the "
                f"class (it has {', '.join(fields) or 'none'}). Add the field, or use a topic with another key."
            )
        declared = EventType(made, name, version, oldest, topic)
        _declared[made] = declared
        topic.events[name] = declared
        return made

    return declare


def upcast(cls: type, *, from_version: int) -> Callable[[F], F]:
    """Declare how the body of version `from_version` becomes one of the next version.

    The function takes the body as plain JSON values and returns the new one; it must not depend on anything
    else. Chains run by themselves: version 1 meets each upcaster in turn until it is today's.

    Raises `DefinitionError` if there is one for this version already, if there is no such older version, or if
    the function is a coroutine function.
    """
    declared = event_type(cls)
    if not 1 <= from_version < declared.version:
        raise DefinitionError(
            f"@upcast({cls.__name__}, from_version={from_version}): {where(cls)} is version {declared.version}, "
            f"so there is nothing to upcast from {from_version}. Raise version in @event, or correct from_version."
        )

    def declare(function: F) -> F:
        if inspect.iscoroutinefunction(function):
            raise DefinitionError(
                f"{where(function)} is an `async def`. An upcaster only rearranges JSON: make it a `def`."
            )
        known = declared.upcasters.get(from_version)
        if known is not None and (_path(known), _line(known)) != (_path(function), _line(function)):
            raise DefinitionError(
                f"{where(cls)} has two upcasters from version {from_version}: {where(known)} and "
                f"{where(function)}. Remove one."
            )
        declared.upcasters[from_version] = function
        return function

    return declare


def check_name(what: str, name: object) -> None:
    """Raise `DefinitionError` unless `name` is one that every broker can carry."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r} cannot name {what}: use letters, digits, '.', '_' and '-', starting with a letter or "
            "digit, at most 200 characters."
        )


def where(thing: Any) -> str:
    """A class or function as error messages name it: with its file and line where they can be found."""
    module, qualname = _path(thing)
    try:
        file = inspect.getsourcefile(thing)
        line = inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        file, line = getattr(sys.modules.get(module), "__file__", None), None
    name = f"{module}.{qualname}"
    if file is None:
        return name
    return f"{name} ({file}:{line})" if line else f"{name} ({file})"


def _path(thing: Any) -> tuple[str, str]:
    return getattr(thing, "__module__", "?"), getattr(thing, "__qualname__", None) or repr(thing)


def _line(function: Any) -> int | None:
    return getattr(getattr(function, "__code__", None), "co_firstlineno", None)

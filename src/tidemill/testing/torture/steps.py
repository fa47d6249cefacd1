"""The events of a torture run, as two versions of the code know them: the second has a field more."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from ...codec import to_message
from ...event import Topic, event, upcast
from ...message import Message
from .plan import Kind, Plan, id_of


class Code(NamedTuple):
    """One version of the code."""

    topic: Topic
    make: Callable[[str, int], Any]


@cache
def code(version: int, topic_name: str) -> Code:
    """What a version of the code declares."""
    topic = Topic(topic_name, key="key")
    return _first(topic) if version == 1 else _second(topic)


def _first(topic: Topic) -> Code:
    @event("torture.step", version=1, topic=topic)
    class Step:
        key: str
        number: int

    return Code(topic, Step)


def _second(topic: Topic) -> Code:
    @event("torture.step", version=2, topic=topic)
    class Step:
        key: str
        number: int
        weight: int

    @upcast(Step, from_version=1)
    def add_weight(v1: dict[str, object]) -> dict[str, object]:
        return v1 | {"weight": 1}

    def make(key: str, number: int) -> Step:
        return Step(key, number, number % 7)

    return Code(topic, make)


def message(plan: Plan, version: int, key: str, number: int) -> Message:
    """The message of an event, with the bytes it must have wherever it is seen again."""
    event = code(version, plan.topic).make(key, number)
    made = to_message(event, source=plan.name, time=0, id=id_of(key, number))
    kind = plan.kind(key, number)
    if kind is Kind.UNDECODABLE:
        body = random.Random(f"{plan.seed}/{key}-{number}/bytes").randbytes(40)
        return Message(made.id, made.source, made.type, made.topic, made.time, body, 1, key)
    if kind is Kind.UNKNOWN:
        return Message(made.id, made.source, "torture.unheard-of", made.topic, made.time, made.body, 1, key)
    return made


def bodies(plan: Plan, key: str, number: int) -> set[bytes]:
    """The bytes an event may have: those of either version."""
    return {message(plan, version, key, number).body for version in (1, 2)}

"""What is declared, as plain data: services, subscriptions, topics, events. It encodes as JSON as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from ..event import EventType, Topic
from ..handler import HandlerSpec
from ..outcome import RetryPolicy
from ..service import Service


class EventModel(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a topic."""

    name: str
    version: int
    oldest: int
    """The oldest version that is still read."""
    declared_as: str
    """The class, as `module:qualified name`."""


class TopicModel(msgspec.Struct, frozen=True, kw_only=True):
    """A topic with every event declared on it, by name."""

    name: str
    key: str | None = None
    retain: float
    """Seconds that handled messages stay readable."""
    events: tuple[EventModel, ...] = ()


class RetryModel(msgspec.Struct, frozen=True, kw_only=True):
    """A `RetryPolicy`, its exceptions by name."""

    attempts: int
    immediate: int
    base: float
    factor: float
    cap: float
    never: tuple[str, ...] = ()


class SubscriptionModel(msgspec.Struct, frozen=True, kw_only=True):
    """A handler and its claim on a topic."""

    name: str
    """`<service>.<handler>`"""
    handler: str
    """The handler's part of the name."""
    function: str
    """The handler, as `module:qualified name`."""
    topic: str
    events: tuple[str, ...] | None
    """The names of the events it takes; None for everything on the topic."""
    retry: RetryModel
    timeout: float | None
    """Seconds; None for no limit."""
    concurrency: int
    ordered: bool
    start: Literal["now", "beginning"] | int
    """Where it begins when it is new: a time is nanoseconds since 1970."""


class ServiceModel(msgspec.Struct, frozen=True, kw_only=True):
    """A service and its subscriptions, in the order of their declaration."""

    name: str
    subscriptions: tuple[SubscriptionModel, ...] = ()


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """Services, and the topics they subscribe to, by name.

    Who publishes is not here, because no code declares it: a diagram of what really happened shows it.
    """

    services: tuple[ServiceModel, ...]
    topics: tuple[TopicModel, ...]


def application_of(services: Iterable[Service[Any]]) -> Application:
    """What is declared by `services`; the same for the same code, whatever ran before."""
    services = list(services)
    topics = {spec.topic.name: spec.topic for service in services for spec in service.handlers}
    return Application(
        services=tuple(
            ServiceModel(
                name=service.name,
                subscriptions=tuple(_subscription(service, spec) for spec in service.handlers),
            )
            for service in services
        ),
        topics=tuple(_topic(topic) for _, topic in sorted(topics.items())),
    )


def _subscription(service: Service[Any], spec: HandlerSpec) -> SubscriptionModel:
    subscription = spec.subscription
    return SubscriptionModel(
        name=subscription.name,
        handler=subscription.name.removeprefix(f"{service.name}."),
        function=_path(spec.function),
        topic=subscription.topic,
        events=subscription.types,
        retry=_retry(spec.retry),
        timeout=spec.timeout,
        concurrency=spec.concurrency,
        ordered=subscription.ordered,
        start=subscription.start,
    )


def _topic(topic: Topic) -> TopicModel:
    return TopicModel(
        name=topic.name,
        key=topic.key,
        retain=topic.retain.total_seconds(),
        events=tuple(_event(declared) for _, declared in sorted(topic.events.items())),
    )


def _event(declared: EventType) -> EventModel:
    return EventModel(
        name=declared.name, version=declared.version, oldest=declared.oldest, declared_as=_path(declared.cls)
    )


def _retry(policy: RetryPolicy) -> RetryModel:
    return RetryModel(
        attempts=policy.attempts,
        immediate=policy.immediate,
        base=policy.base,
        factor=policy.factor,
        cap=policy.cap,
        never=tuple(error.__name__ for error in policy.never),
    )


def _path(thing: Any) -> str:
    return f"{thing.__module__}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"

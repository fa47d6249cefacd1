"""A handler: the user's function, checked against the events it takes, and how it is called."""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from functools import partial
from typing import Any

from .broker import Subscription
from .circuit import Circuit
from .codec import codec_of
from .context import Context
from .errors import DefinitionError, UnknownEvent
from .event import Topic, event_type, is_event, where
from .message import Delivery, Message
from .outcome import ACK, Outcome, RetryPolicy
from .pipeline import Handle, Middleware
from .rate import Rate
from .threads import Threads


class HandlerSpec:
    """Everything declared with `@service.on`."""

    __slots__ = (
        "circuit",
        "concurrency",
        "events",
        "function",
        "rate",
        "raw",
        "retry",
        "subscription",
        "takes_context",
        "timeout",
        "topic",
        "use",
    )

    def __init__(
        self,
        function: Callable[..., object],
        subscription: Subscription,
        topic: Topic,
        events: tuple[type, ...] | None,
        *,
        retry: RetryPolicy,
        timeout: float | None,
        concurrency: int,
        rate: Rate | None,
        circuit: Circuit | None,
        use: tuple[Middleware, ...],
    ) -> None:
        self.function = function
        self.subscription = subscription
        self.topic = topic
        self.events = events
        self.retry = retry
        self.timeout = timeout
        self.concurrency = concurrency
        self.rate = rate
        self.circuit = circuit
        self.use = use
        self.takes_context, self.raw = _check_signature(function, topic, events)
        for cls in self.classes():
            event_type(cls).check_chain()

    def classes(self) -> tuple[type, ...]:
        """The event classes it takes: those named, or all that are declared on the topic."""
        if self.events is not None:
            return self.events
        return tuple(declared.cls for declared in self.topic.events.values())

    def handle(self) -> Handle:
        """The innermost step: decode, call the function. Built once, when consuming starts."""
        call = self._call()
        if self.raw:
            return _raw_step(call)
        # The commonest kind of handler is called without a step in between.
        function: Callable[..., Any] = self.function
        direct = inspect.iscoroutinefunction(function) and not self.takes_context
        decoders: dict[str, Callable[[Message], Any]] = {
            event_type(cls).name: codec_of(cls).decode for cls in self.classes()
        }
        foreign = self.events is None

        async def step(delivery: Delivery) -> Outcome:
            message = delivery.message
            decode = decoders.get(message.type)
            if decode is None:
                if foreign:
                    known = ", ".join(sorted(decoders)) or "none"
                    raise UnknownEvent(f"no event {message.type!r} is declared on {message.topic!r} (known: {known})")
                return ACK  # another event of the topic, which this subscription did not ask for
            if direct:
                await function(decode(message))
            else:
                await call(decode(message), delivery)
            return ACK

        return step

    def _call(self) -> Callable[[Any, Delivery], Awaitable[object]]:
        function: Callable[..., Any] = self.function
        loop = asyncio.get_running_loop()
        if inspect.iscoroutinefunction(function):
            if self.takes_context:
                return lambda event, delivery: function(event, Context(delivery, loop))
            return lambda event, delivery: function(event)
        threads = Threads(f"tidemill {self.subscription.name}")
        takes_context = self.takes_context

        def call(event: object, delivery: Delivery) -> Awaitable[object]:
            arguments = (event, Context(delivery, loop)) if takes_context else (event,)
            return threads.run(partial(copy_context().run, function, *arguments))

        return call


def _raw_step(function: Callable[[Any, Delivery], Awaitable[object]]) -> Handle:
    async def step(delivery: Delivery) -> Outcome:
        await function(delivery.message, delivery)
        return ACK

    return step


def events_of(declared: Iterable[object]) -> tuple[Topic, tuple[type, ...] | None]:
    """The topic and event classes named in `@service.on(...)`; None for the classes where a whole topic is named."""
    named: list[object] = []
    for item in declared:
        named.extend(typing.get_args(item) if isinstance(item, types.UnionType) else (item,))
    if not named:
        raise DefinitionError("@service.on() names no event. Name an event class, several, or a Topic.")
    if len(named) == 1 and isinstance(named[0], Topic):
        return named[0], None
    classes: list[type] = []
    for item in named:
        if isinstance(item, Topic):
            raise DefinitionError("@service.on takes either one Topic or event classes, not both. Use two handlers.")
        if not isinstance(item, type):
            raise DefinitionError(f"@service.on({item!r}): that is neither an event class nor a Topic.")
        classes.append(event_type(item).cls)
    topics = {event_type(cls).topic.name: event_type(cls).topic for cls in classes}
    if len(topics) > 1:
        raise DefinitionError(
            f"@service.on names events of {len(topics)} topics ({', '.join(topics)}), and a subscription is a claim "
            "on one. Declare a handler for each topic; they may call the same function."
        )
    return next(iter(topics.values())), tuple(classes)


def _check_signature(
    function: Callable[..., object], topic: Topic, events: tuple[type, ...] | None
) -> tuple[bool, bool]:
    """Whether the function takes a Context, and whether it takes the raw Message."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(f"{where(function)} is a generator. A handler is an `async def` or a `def` that returns.")
    parameters = list(inspect.signature(function).parameters.values())
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not parameters or len(required) > 2 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise DefinitionError(
            f"{where(function)} cannot be a handler: it takes ({', '.join(map(str, parameters))}). "
            "A handler takes the event and, if it wants one, a Context: `async def name(event: E, ctx: Context)`."
        )
    takes_context = len(required) == 2
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        return takes_context, False  # names known to type checkers only: they do the checking
    wanted = hints.get(parameters[0].name)
    if takes_context and hints.get(parameters[1].name, Context) is not Context:
        raise DefinitionError(
            f"{where(function)}: its second parameter is annotated {hints[parameters[1].name]!r}, but what it gets "
            "is a tidemill.Context. Annotate it so, or remove it."
        )
    if wanted is None or wanted is object or wanted is Any:
        return takes_context, False
    if wanted is Message:
        return takes_context, True
    annotated = set(typing.get_args(wanted)) if isinstance(wanted, types.UnionType) else {wanted}
    if typing.get_origin(wanted) is typing.Union:
        annotated = set(typing.get_args(wanted))
    expected = events if events is not None else tuple(declared.cls for declared in topic.events.values())
    uncovered = [
        cls for cls in expected if not any(isinstance(one, type) and issubclass(cls, one) for one in annotated)
    ]
    if uncovered:
        takes = " | ".join(sorted(getattr(one, "__name__", str(one)) for one in annotated))
        hint = "" if any(is_event(one) for one in annotated) else " (no event class)"
        raise DefinitionError(
            f"{where(function)} is annotated to take {takes}{hint}, but @on gives it "
            f"{', '.join(cls.__name__ for cls in uncovered)}. Make the two agree."
        )
    return takes_context, False

"""A service: the unit of deployment. It publishes events and handles events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from types import UnionType
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, cast, overload

from .broker import Broker, Subscription
from .circuit import Circuit
from .clock import Clock, SystemClock
from .codec import to_message
from .context import Context, current
from .errors import MAX_DELAY, ConfigurationError, DefinitionError
from .event import Topic, check_name, event_type, where
from .handler import HandlerSpec, events_of
from .health import Health, health_of
from .message import Message
from .outcome import RetryPolicy
from .pipeline import Middleware
from .publisher import Publisher
from .rate import Rate
from .runtime import GRACE, Runtime, chaos_asked_for, open_broker, run_until_signal

R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
Result = TypeVar("Result")

_DEFAULT_RETRY = RetryPolicy()
_DEFAULT_CIRCUIT = Circuit()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = 2**63 - 1


class HandlerOptions(TypedDict, total=False):
    """The keyword arguments of `Service.on`, which says what they mean."""

    name: str | None
    retry: RetryPolicy
    timeout: float | timedelta | None
    concurrency: int
    rate: Rate | None
    circuit: Circuit | None
    ordered: bool | None
    start: Literal["now", "beginning"] | datetime
    renamed_from: str | None
    after_dead_letter: Literal["continue", "park"]
    use: Iterable[Middleware]


class Declare(Protocol[E]):
    """What `service.on(...)` returns: a decorator that takes handlers of these events and returns them unchanged."""

    @overload
    def __call__(self, handler: Callable[[E], Result], /) -> Callable[[E], Result]: ...
    @overload
    def __call__(self, handler: Callable[[E, Context], Result], /) -> Callable[[E, Context], Result]: ...


class Service(Generic[R]):
    """A service: a name, handlers, and the right to publish.

    name       what events name as their `source`, and the first part of its subscriptions' names.
    resources  an async context manager function for what handlers need (a database pool, an HTTP client): entered
               before the first event is handled, left after the last one is settled. `service.resources` is what it
               yields.
    """

    @overload
    def __init__(self: Service[None], name: str, *, resources: None = None) -> None: ...
    @overload
    def __init__(self, name: str, *, resources: Callable[[], AbstractAsyncContextManager[R]]) -> None: ...
    def __init__(self, name: str, *, resources: Callable[[], AbstractAsyncContextManager[Any]] | None = None) -> None:
        check_name("a service", name)
        self.name = name
        self.handlers: list[HandlerSpec] = []
        self._open_resources = resources
        self._resources: R | None = None
        self._publisher: Publisher | None = None
        self._runtime: Runtime | None = None
        self._clock: Clock = SystemClock()

    def __repr__(self) -> str:
        return f"Service({self.name!r})"

    @property
    def resources(self) -> R:
        """What the `resources` context manager yielded. Raises `ConfigurationError` while the service does not run."""
        if self._publisher is None:
            raise _not_running(self, "has no resources")
        return cast(R, self._resources)

    # -------------------------------------------------------------- handlers

    @overload
    def on(self, topic: Topic, /, **options: Unpack[HandlerOptions]) -> Declare[Any]: ...
    @overload
    def on(self, event: type[A], /, **options: Unpack[HandlerOptions]) -> Declare[A]: ...
    @overload
    def on(self, first: type[A], second: type[B], /, **options: Unpack[HandlerOptions]) -> Declare[A | B]: ...
    @overload
    def on(
        self, first: type[A], second: type[B], third: type[C], /, **options: Unpack[HandlerOptions]
    ) -> Declare[A | B | C]: ...
    @overload
    def on(
        self,
        first: type[A],
        second: type[B],
        third: type[C],
        fourth: type[D],
        /,
        **options: Unpack[HandlerOptions],
    ) -> Declare[A | B | C | D]: ...
    @overload
    def on(self, union: UnionType, /, **options: Unpack[HandlerOptions]) -> Declare[Any]: ...
    def on(
        self,
        *events: Any,
        name: str | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        timeout: float | timedelta | None = 60.0,
        concurrency: int = 16,
        rate: Rate | None = None,
        circuit: Circuit | None = _DEFAULT_CIRCUIT,
        ordered: bool | None = None,
        start: Literal["now", "beginning"] | datetime = "now",
        renamed_from: str | None = None,
        after_dead_letter: Literal["continue", "park"] = "continue",
        use: Iterable[Middleware] = (),
    ) -> Any:
        """Declare a handler: `@service.on(PaymentConfirmed)`. The function is returned unchanged.

        Takes one event class, several (or their union), or a whole `Topic`: then the handler gets every event that
        is declared on it, or, if it is annotated `Message`, every message undecoded.

        name          the subscription is `<service>.<name>`; the function's name by default. It is a contract: the
                      backlog belongs to it.
        retry         when a failed event is tried again; see `RetryPolicy`.
        timeout       seconds (or a timedelta) one attempt may take; None for no limit. Default 60. The handler is
                      cancelled then, which counts as a failed attempt; a `def` handler runs on in its thread.
        concurrency   most events handled at once in one process. Default 16.
        rate          most handlers that begin in a time, in one process: `Rate(100)`. Default: no limit.
        circuit       when everything fails, events wait uncharged while one at a time is tried: see `Circuit`, which
                      opens after 20 failures in a row by default. None: every event goes through its retries.
        ordered       one event of a key at a time, in order (G6). Default: whether the topic has a key.
        start         where a *new* subscription begins: `"now"` (the default: adding a handler does not repeat the
                      past), `"beginning"`, or a point in time. An existing one goes on where it was.
        renamed_from  the full name this subscription had before; its backlog moves along.
        after_dead_letter
                      what becomes of a key after one of its events was given up (G6): its later events are handled
                      (`"continue"`, the default: one bad event must not stop the rest), or wait, uncharged, until
                      that one is replayed or discarded (`"park"`: for events that make no sense without it). Other
                      keys go on either way.
        use           middlewares around this handler, outermost first.

        Raises `DefinitionError` where the function's annotation disagrees with the events, a chain of upcasters has
        a gap, a name is taken, or an option makes no sense.
        """
        topic, classes = events_of(events)
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if seconds is not None and not (0 < seconds <= MAX_DELAY):  # written so that NaN fails too
            raise DefinitionError(
                f"@on(timeout={timeout!r}): give more than 0 seconds and at most a year, or None for no limit."
            )
        if type(cast(object, concurrency)) is not int or concurrency < 1:
            raise DefinitionError(f"@on(concurrency={concurrency!r}): give a whole number, at least 1.")
        for option, value, kind in (("retry", retry, RetryPolicy), ("rate", rate, Rate), ("circuit", circuit, Circuit)):
            if not isinstance(value, kind) and (value is not None or option == "retry"):
                raise DefinitionError(f"@on({option}={value!r}): give a {kind.__name__}, as in {kind.__name__}(...).")
        if ordered and topic.key is None:
            raise DefinitionError(
                f"@on(ordered=True): topic {topic.name!r} has no key to be ordered by. Declare it as "
                f"Topic({topic.name!r}, key=...)."
            )
        by_key = topic.key is not None if ordered is None else ordered
        if after_dead_letter not in ("continue", "park"):
            raise DefinitionError(f'@on(after_dead_letter={after_dead_letter!r}): give "continue" or "park".')
        if after_dead_letter == "park" and not by_key:
            way_out = (
                "Remove ordered=False" if topic.key is not None else f"Declare it as Topic({topic.name!r}, key=...)"
            )
            raise DefinitionError(
                f'@on(after_dead_letter="park"): without order no event waits for another. {way_out}, or remove the '
                "option."
            )
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise DefinitionError(f"@on(start={start!r}): give a datetime with a time zone, such as UTC.")
            begin: Literal["now", "beginning"] | int = round(start.timestamp() * 1e9)
        elif start in ("now", "beginning"):
            begin = start
        else:
            raise DefinitionError(f'@on(start={start!r}): give "now", "beginning" or an aware datetime.')

        def declare(function: Callable[..., object]) -> Callable[..., object]:
            short = name or function.__name__
            check_name("a subscription", short)
            full = f"{self.name}.{short}"
            if renamed_from == full:
                raise DefinitionError(f"{where(function)}: renamed_from={renamed_from!r} is its own name. Remove it.")
            for other in self.handlers:
                if other.subscription.name == full:
                    raise DefinitionError(
                        f"{where(function)} and {where(other.function)} are both the subscription {full!r}; each "
                        "would get half of the events. Give one of them another name with @service.on(..., name=...)."
                    )
            spec = HandlerSpec(
                function,
                Subscription(
                    name=full,
                    topic=topic.name,
                    types=None if classes is None else tuple(sorted(_type_names(topic, classes))),
                    ordered=by_key,
                    start=begin,
                    renamed_from=renamed_from,
                    parks=after_dead_letter == "park",
                ),
                topic,
                classes,
                retry=retry,
                timeout=seconds,
                concurrency=concurrency,
                rate=rate,
                circuit=circuit,
                use=tuple(use),
            )
            self.handlers.append(spec)
            return function

        return declare

    # ------------------------------------------------------------ publishing

    async def publish(
        self,
        event: object,
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Publish one event. When this returns, the event is stored as durably as the broker does (G1).

        Inside a handler the event joins the handled event's flow and names it as its cause. Awaiting one publish
        after the other costs a broker round trip each: publish from many tasks at once, or use `publish_many`.

        delay, at  let it appear on its topic later: after seconds (or a timedelta), or at an aware datetime. It
                   survives restarts wherever the broker does.
        id         to repeat a publish whose outcome was unknown; a new UUID version 7 by default.
        headers    further CloudEvents attributes: names of lower-case letters and digits.

        Returns the message as stored. Raises `InvalidMessage` (nothing left this process), `PublishError` (not
        stored, or not known), `ConfigurationError` if the service does not run.
        """
        publisher = self._publisher
        if publisher is None:
            raise _not_running(self, "cannot publish")
        delivery = current.get()
        message = to_message(
            event,
            source=self.name,
            time=self._clock.now(),
            cause=None if delivery is None else delivery.message,
            id=id,
            extensions=None if headers is None else dict(headers),
        )
        if message.topic not in publisher.topics:
            await publisher.declare(event_type(type(event)).topic)
        await publisher.publish(message, None if delay is None and at is None else self._due(delay, at))
        return message

    async def publish_many(
        self, events: Iterable[object], *, delay: float | timedelta | None = None, at: datetime | None = None
    ) -> list[Message]:
        """Publish many events in order, in as few round trips as the broker allows: the fast way for one caller.

        Not a transaction: on `PublishError` some may be stored; it says which are not. See `publish` for all else.
        """
        publisher = self._publisher
        if publisher is None:
            raise _not_running(self, "cannot publish")
        delivery = current.get()
        cause = None if delivery is None else delivery.message
        now = self._clock.now()
        messages: list[Message] = []
        for event in events:
            message = to_message(event, source=self.name, time=now, cause=cause)
            if message.topic not in publisher.topics:
                await publisher.declare(event_type(type(event)).topic)
            messages.append(message)
        await publisher.publish_many(messages, None if delay is None and at is None else self._due(delay, at))
        return messages

    def _due(self, delay: float | timedelta | None, at: datetime | None) -> int:
        if at is not None:
            if delay is not None:
                raise ValueError("publish takes either delay= or at=, not both")
            if at.tzinfo is None:
                raise ValueError(f"at={at!r} has no time zone. Give an aware datetime, such as datetime.now(UTC)")
            due = (at - _EPOCH) // timedelta(microseconds=1) * 1000
        else:
            seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay or 0)
            if not 0 <= seconds < _LATEST / 1e9:
                raise ValueError(f"delay={delay!r}: give 0 seconds or more, and no more than centuries")
            due = self._clock.now() + round(seconds * 1e9)
        if due > _LATEST:
            raise ValueError("brokers keep time in 64 bits of nanoseconds, which end in the year 2262")
        return due

    # --------------------------------------------------------------- pausing

    async def pause(self, handler: str) -> None:
        """Let no consumer of a handler's subscription, in any process, begin anything more until `resume`.

        What runs finishes, what waits goes back uncharged, and the events that come meanwhile wait. It survives
        restarts. Raises `ConfigurationError` where the service does not run or has no such handler.

        handler  its name: the function's, or the one given with `name=`.
        """
        await self._set_paused(handler, True)

    async def resume(self, handler: str) -> None:
        """Let the consumers of a paused subscription go on. Where it was not paused, nothing changes."""
        await self._set_paused(handler, False)

    async def _set_paused(self, handler: str, paused: bool) -> None:
        if self._publisher is None:
            raise _not_running(self, "cannot pause or resume")
        names = [spec.subscription.name for spec in self.handlers]
        name = f"{self.name}.{handler}"
        if name not in names:
            known = ", ".join(one.partition(".")[2] for one in names) or "none"
            raise ConfigurationError(f"service {self.name!r} has no handler {handler!r}. It has: {known}.")
        await self._publisher.broker.pause(name, paused)

    # --------------------------------------------------------------- running

    @asynccontextmanager
    async def running(
        self,
        broker: str | Broker | None = None,
        *,
        consume: bool = True,
        clock: Clock | None = None,
        grace: float = GRACE,
    ) -> AsyncGenerator[Service[R]]:
        """Run while the block runs, then drain (G7).

        broker   a URL; by default `$TIDEMILL_BROKER`, or `sqlite:///tidemill.db`.
        consume  False to publish only, as a script does.
        grace    seconds running handlers have to finish at the end.
        """
        time = clock or SystemClock()
        chaos = chaos_asked_for(time) if isinstance(broker, str | None) else None
        runtime = Runtime([self], open_broker(broker, time), time, consume=consume, chaos=chaos)
        await runtime.start()
        try:
            yield self
        finally:
            await runtime.close(grace)

    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """The service as an ASGI application's lifespan: `FastAPI(lifespan=service.lifespan)`.

        It consumes while the application serves, on the broker named by `$TIDEMILL_BROKER`.
        """

        @asynccontextmanager
        async def span() -> AsyncGenerator[None]:
            async with self.running():
                yield

        return span()

    def health(self) -> Health:
        """Whether this service lives and consumes, subscription by subscription: what a web application answers
        probes with. Costs nothing and asks nobody."""
        return health_of(self._runtime, [spec.subscription.name for spec in self.handlers])

    async def run(self, broker: str | None = None, *, grace: float = GRACE) -> None:
        """Run until SIGTERM or SIGINT, then drain (G7); a second signal cancels what still runs."""
        await run_until_signal([self], broker, grace=grace)

    @asynccontextmanager
    async def bound(self, publisher: Publisher, clock: Clock, runtime: Runtime) -> AsyncGenerator[None]:
        """Enter the resources and publish through `publisher`: what a `Runtime` does with its services."""
        if self._publisher is not None:
            raise ConfigurationError(
                f"service {self.name!r} is running already. One Service object runs once at a time; "
                "make a second one, or stop the first."
            )
        resources = self._open_resources() if self._open_resources is not None else nullcontext(cast(R, None))
        self._publisher = publisher
        self._clock = clock
        self._runtime = runtime
        try:
            async with resources as self._resources:
                yield
        finally:
            self._publisher = None
            self._resources = None
            self._runtime = None


def _type_names(topic: Topic, classes: tuple[type, ...]) -> list[str]:
    return [declared.name for declared in topic.events.values() if declared.cls in classes]


def _not_running(service: Service[Any], what: str) -> ConfigurationError:
    return ConfigurationError(
        f"service {service.name!r} {what} because it is not running. Use `async with service.running(): ...`, "
        "its lifespan, or `tidemill run`."
    )

"""Running services: one broker, their publishers and consumers, from start to drained."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from contextvars import copy_context
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from .broker import DEFAULT_URL, Broker, connect
from .clock import Clock, SystemClock, ticking
from .consumer import Consumer
from .errors import ConfigurationError, Unsupported
from .handler import HandlerSpec
from .isolation import Isolation
from .loop_watch import LEAST_STUCK, LoopWatch
from .publisher import Publisher
from .telemetry import emit
from .watchdog import ABANDON_AFTER

if TYPE_CHECKING:
    from .chaos import Chaos
    from .service import Service

GRACE = 25.0
"""Seconds a drain waits for running handlers: Kubernetes kills after 30, and settling needs a moment."""

MARGIN = 15.0
"""Seconds beyond the grace before a process of Tidemill's own ends hard: a handler that does not end when it is
cancelled is abandoned after 10, and closing takes a moment."""


def default_url() -> str:
    """`$TIDEMILL_BROKER`, or the embedded broker in the working directory."""
    return os.environ.get("TIDEMILL_BROKER") or DEFAULT_URL


class Runtime:
    """Services running on one broker in this process.

    owned   whether the process is Tidemill's own, so that it may be ended where its event loop is stuck.
    """

    def __init__(
        self,
        services: Sequence[Service[Any]],
        broker: Broker,
        clock: Clock | None = None,
        *,
        consume: bool = True,
        chaos: Chaos | None = None,
        owned: bool = False,
    ) -> None:
        self.services = list(services)
        self.broker = broker if chaos is None else chaos.broker(broker)
        self.clock: Clock = clock or SystemClock()
        self.consumers: list[Consumer] = []
        self.state: Literal["starting", "running", "draining", "stopped"] = "starting"
        self.watch: LoopWatch | None = None
        """What watches the event loop, while this consumes. Not in a test that owns time."""
        self._consume = consume
        self._chaos = chaos
        self._isolation = Isolation()
        self._owned = owned
        self._stack = AsyncExitStack()
        self._drained = False

    async def start(self) -> None:
        """Open the broker, declare what is missing, enter resources, begin to consume.

        Raises a `TidemillError` where anything of it is impossible; nothing stays open then.
        """
        specs = [spec for service in self.services for spec in service.handlers]
        if self._chaos is not None:
            self._chaos.tell()
            specs = [self._chaos.handler(spec) for spec in specs]
        _refuse_shared_names(self.services, specs)
        async with AsyncExitStack() as stack:
            if self._consume and isinstance(self.clock, SystemClock):
                self.watch = LoopWatch(stuck_after=_stuck_after(specs), owned=self._owned, let_go=self._let_go)
                self.watch.start()
                stack.callback(self.watch.stop)
            stack.push_async_callback(self.broker.close)
            await self.broker.open()
            _refuse_long_runs(self.broker, specs)
            publisher = Publisher(self.broker)
            stack.push_async_callback(publisher.close)
            for topic in {spec.topic.name: spec.topic for spec in specs}.values():
                await publisher.declare(topic)
            await self.broker.declare([], [spec.subscription for spec in specs])
            for service in self.services:
                await stack.enter_async_context(service.bound(publisher, self.clock, self))
            if self._consume:
                for spec in specs:
                    feed = await self.broker.subscribe(spec.subscription)
                    stack.push_async_callback(feed.close)
                    self.consumers.append(Consumer(spec, feed, self.clock, self._isolation))
                await self._warn_of_orphans(specs)
            self._stack = stack.pop_all()
            variables = copy_context()
            variables.run(ticking.set, self.clock)
            for consumer in self.consumers:  # last, and without waiting for anything: nothing can fail behind it
                variables.run(consumer.start)
            self.state = "running"

    async def drain(self, grace: float = GRACE) -> None:
        """Stop consuming, all subscriptions at once: see `Consumer.drain`."""
        if not self._drained:
            self._drained = True
            self.state = "draining"
            await asyncio.gather(*(consumer.drain(grace) for consumer in self.consumers))

    def _let_go(self) -> None:
        for consumer in tuple(self.consumers):
            consumer.let_go()

    def force(self) -> None:
        """Make a drain that is under way cancel what still runs."""
        for consumer in self.consumers:
            consumer.force()

    @property
    def running(self) -> int:
        """Handlers at work."""
        return sum(consumer.running for consumer in self.consumers)

    async def close(self, grace: float = GRACE) -> None:
        """Drain, leave the resources, close the broker."""
        try:
            await self.drain(grace)
        finally:
            await self._stack.aclose()
            self.state = "stopped"

    async def _warn_of_orphans(self, specs: Sequence[HandlerSpec]) -> None:
        declared = {spec.subscription.name for spec in specs}
        prefixes = tuple(f"{service.name}." for service in self.services)
        for status in (await self.broker.inspect()).subscriptions:
            if status.backlog and status.name.startswith(prefixes) and status.name not in declared:
                emit("subscription.orphaned", subscription=status.name, backlog=status.backlog)


async def run_until_signal(
    services: Sequence[Service[Any]],
    broker: str | Broker | None = None,
    *,
    grace: float = GRACE,
    starting: Callable[[Runtime], object] | None = None,
    ready: Callable[[Runtime], object] | None = None,
    draining: Callable[[Runtime], object] | None = None,
) -> None:
    """Run services until SIGTERM or SIGINT, then drain (G7); a second signal cancels what still runs.

    `starting` is called before the start, `ready` once everything consumes, `draining` when the first signal came. A
    signal that comes before everything consumes ends the start, and nothing is handled.
    Raises a `TidemillError` where the services cannot start.

    The process counts as Tidemill's own: it ends hard, with exit code 1, where it has not drained 15 seconds after the
    grace (after the second signal: after 15 seconds), and with 70 where the event loop is stuck (see `loop_watch`).
    """
    clock = SystemClock()
    runtime = Runtime(services, open_broker(broker, clock), clock, chaos=chaos_asked_for(clock), owned=True)
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    stop = asyncio.Event()
    asked = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        # Not by loop.add_signal_handler: this runs while the loop is blocked, too, and must do next to nothing.
        nonlocal asked
        if runtime.watch is not None:
            runtime.watch.end_within((0.0 if asked else grace) + MARGIN)
        asked += 1
        loop.call_soon_threadsafe(on_loop)

    def on_loop() -> None:
        if stop.is_set():
            runtime.force()
        elif runtime.state == "starting":
            task.cancel()  # what was opened is closed again; nothing has been fetched
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if starting is not None:
            starting(runtime)
        try:
            await runtime.start()
        except asyncio.CancelledError:
            if stop.is_set() and task.uncancel() == 0:
                return
            raise
        try:
            if stop.is_set():
                task.uncancel()  # it came too late to be noticed, or somebody's resources kept it to themselves
            elif ready is not None:
                ready(runtime)
            await stop.wait()
            if draining is not None:
                draining(runtime)
        finally:
            await runtime.close(grace)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _stuck_after(specs: Sequence[HandlerSpec]) -> float | None:
    """Seconds after which a loop that stands still is stuck: every handler's timeout has passed, and abandoned it."""
    timeouts = [spec.timeout for spec in specs]
    if None in timeouts:
        return None  # somebody's handler may take as long as it likes
    return max([LEAST_STUCK, *(timeout + ABANDON_AFTER for timeout in timeouts if timeout is not None)])


def open_broker(broker: str | Broker | None, clock: Clock) -> Broker:
    """A broker as it is, or the one for a URL; by default `default_url()`."""
    return connect(broker or default_url(), clock) if isinstance(broker, str | None) else broker


def chaos_asked_for(clock: Clock) -> Chaos | None:
    """The faults that `$TIDEMILL_CHAOS` asks for. Raises `ConfigurationError` where that makes no sense."""
    if not os.environ.get("TIDEMILL_CHAOS"):
        return None
    from .chaos import Chaos

    return Chaos.from_environment(os.environ, clock)


def _refuse_long_runs(broker: Broker, specs: Sequence[HandlerSpec]) -> None:
    longest = broker.capabilities.longest_run
    for spec in specs:
        if longest is not None and (spec.timeout is None or spec.timeout > longest):
            timeout = "no timeout" if spec.timeout is None else f"a timeout of {spec.timeout:g} s"
            raise Unsupported(
                f"{spec.subscription.name} has {timeout}, and {broker.url} takes events away from handlers that run "
                f"for longer than {longest:g} s: they would run twice at once. Nothing was started. "
                f"Give @service.on(timeout={longest:g}) or less."
            )


def _refuse_shared_names(services: Sequence[Service[Any]], specs: Sequence[HandlerSpec]) -> None:
    seen: set[str] = set()
    for service in services:
        if service.name in seen:
            raise ConfigurationError(
                f"two services are named {service.name!r}. A service's name is its identity on the broker: rename one."
            )
        seen.add(service.name)
    names: set[str] = set()
    for spec in specs:
        name = spec.subscription.name
        if name in names:
            raise ConfigurationError(
                f"two handlers share the subscription {name!r}; each would get half of the events. "
                "Give one of them another name with @service.on(..., name=...)."
            )
        names.add(name)

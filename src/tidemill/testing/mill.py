"""Component tests: the real pipeline on the memory broker, with a clock that jumps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, overload

from ..broker import DeadLettered
from ..brokers.memory import MemoryBroker
from ..codec import codec_of, to_message
from ..context import Context
from ..errors import ConfigurationError, DecodeError
from ..event import event_type
from ..handler import HandlerSpec
from ..message import Delivery, Message, check
from ..outcome import Ack
from ..publisher import Publisher
from ..runtime import Runtime
from ..service import Service
from .clock import VirtualClock
from .record import Record, RecordingBroker
from .report import unsettled
from .story import cut, tell
from .watchers import watchers

E = TypeVar("E")

SOURCE: Final = "test"
"""What events published by the test itself name as their source."""

PATIENCE: Final = 0.1
"""Real seconds that `advance` gives a handler that waits for something before time passes over it: enough for a
thread or a local socket, and little for a test that wants to see a handler hang."""

_TURNS: Final = 20
"""Turns of the event loop after which what was begun is under way: a few for each step from a delivery that is ready
to its handler's first wait, and some for tasks that handlers leave behind."""


class NotSettled(AssertionError):
    """Services were still at work when the time to wait for them was over. The text says which, and the story."""


@asynccontextmanager
async def running(*services: Service[Any]) -> AsyncGenerator[Mill, None]:
    """Run services while the block runs, as in production except for broker and clock.

        async with running(notifications, audit) as mill:
            await mill.publish(PaymentConfirmed(...))
            await mill.settled()

    Each block has a broker of its own, empty at first, and a clock that begins at the same date and stands still
    but for `settled` and `advance`. Code under test that asks the machine for the time, or that sleeps, meets real
    time. Resources are entered as in production. When the block ends, running handlers have a second to finish.

    If the block fails, the story of what happened is added to the failure.
    """
    clock = VirtualClock()
    record = Record()
    memory = MemoryBroker(clock)
    runtime = Runtime(services, RecordingBroker(memory, record, clock), clock)
    await runtime.start()
    mill = Mill(services, runtime, memory, clock, record)
    for watcher in watchers:
        watcher(mill)
    grace = 0.0
    try:
        yield mill
        grace = 1.0
    except Exception as error:
        if not watchers and not isinstance(error, NotSettled):
            error.add_note(f"What happened in the mill:\n{cut(mill.story())}")
        raise
    finally:
        mill.end()
        await runtime.close(grace)


class Mill:
    """Running services, and time, in the hands of a test. Made by `running`."""

    def __init__(
        self,
        services: Sequence[Service[Any]],
        runtime: Runtime,
        broker: MemoryBroker,
        clock: VirtualClock,
        record: Record,
    ) -> None:
        self._services = [service.name for service in services]
        self._specs = [spec for service in services for spec in service.handlers]
        self._runtime = runtime
        self._broker = broker
        self._clock = clock
        self._record = record
        self._publisher = Publisher(runtime.broker)
        self._topics = {spec.topic.name for spec in self._specs}
        self._hanging: list[Delivery] = []
        self._left: list[Delivery] = []

    def __repr__(self) -> str:
        return f"<Mill of {', '.join(self._services)} at {self.now}>"

    # ------------------------------------------------------------ publishing

    async def publish(
        self,
        event: object,
        *,
        id: str | None = None,
        delay: float | timedelta | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Publish one event as somebody outside would, with the source `"test"`. It begins a flow of its own.

        id       a new UUID version 7 by default; the same one again is recognised as a duplicate.
        delay    seconds (or a timedelta) by the mill's clock after which it appears on its topic.
        headers  further CloudEvents attributes.

        Returns the message. Raises what `Service.publish` raises.
        """
        topic = event_type(type(event)).topic
        message = to_message(
            event,
            source=SOURCE,
            time=self._clock.now(),
            id=id,
            extensions=None if headers is None else dict(headers),
        )
        if topic.name not in self._topics:
            await self._publisher.declare(topic)
            self._topics.add(topic.name)
        return await self._publish(message, delay)

    async def publish_message(self, message: Message, *, delay: float | timedelta | None = None) -> Message:
        """Publish a message as it is: bytes that are no event, an old version, a foreign producer's.

        Raises `ConfigurationError` where nothing running here knows its topic.
        """
        known = self._topics | {published.message.topic for published in self._record.published}
        if message.topic not in known:
            raise ConfigurationError(
                f"no service that runs here knows the topic {message.topic!r}, so nothing would happen. Nothing was "
                f"published. Known topics: {', '.join(sorted(known)) or 'none'}."
            )
        return await self._publish(message, delay)

    async def _publish(self, message: Message, delay: float | timedelta | None) -> Message:
        if self._record.ended:
            raise ConfigurationError("this mill has ended. Publish inside its `async with running(...)` block.")
        later = delay.total_seconds() if isinstance(delay, timedelta) else float(delay or 0)
        if not 0 <= later < 1e9:
            raise ValueError(f"delay={delay!r}: give 0 seconds or more")
        await self._publisher.publish(check(message), self._clock.now() + round(later * 1e9) if later else None)
        return message

    # ------------------------------------------------------------------ time

    @property
    def now(self) -> datetime:
        """The time by the mill's clock, in UTC. It stands still but for `settled` and `advance`."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._clock.now() // 1000)

    async def settled(self, within: float = 5.0) -> None:
        """Return when every event has been handled or given up: nothing is ready, running, delayed or scheduled.

        Whenever all that is left waits for time to pass (a retry, a delayed event), the clock jumps there.
        While a handler runs, time stands still: what it waits for is real.

        within  real seconds to wait (default 5). After that `NotSettled` is raised, which names what is not settled:
                a handler that hangs, or services that keep causing events for ever.
        """
        deadline = time.monotonic() + within
        begun = self._clock.now()
        while True:
            await self._turns()
            left = deadline - time.monotonic()
            held = self._held()
            if self._broker.active() and not held:
                if left <= 0 or not await self._progress(left):
                    raise self._not_settled(within, begun)
            elif self._broker.delayed() or held:
                if left <= 0:
                    raise self._not_settled(within, begun)
                due = self._clock.next_due()
                if due is not None:
                    self._clock.move_to(due)
            else:
                return

    async def advance(self, seconds: float | timedelta, *, patience: float = PATIENCE, within: float = 5.0) -> None:
        """Let time pass: every retry, delayed event and timeout comes at its time, and services work in between.

        A handler that waits for something real has `patience` (real seconds, default 0.1) to get it before time
        passes over it; so one that hangs reaches its timeout. Services that cause each other's events without end,
        and without time passing, raise `NotSettled` after `within` real seconds (default 5).
        """
        amount = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
        if not 0 <= amount < 1e9:
            raise ValueError(f"advance({seconds!r}): time only passes forwards. Give 0 seconds or more")
        begun = self._clock.now()
        until = begun + round(amount * 1e9)
        while True:
            await self._until_still(patience, within, begun)
            due = self._clock.next_due()
            if due is None or due > until:
                break
            self._clock.move_to(due)
        self._clock.move_to(until)
        await self._turns()

    async def _until_still(self, patience: float, within: float, begun: int) -> None:
        """Return when nothing more will happen without time passing, as far as one can tell."""
        deadline = time.monotonic() + within
        while True:
            steps = self._record.steps
            await self._turns()
            if not self._broker.active() or self._held():
                return
            if time.monotonic() >= deadline:
                raise self._not_settled(within, begun)
            if self._record.steps != steps:
                continue
            working = [delivery for delivery, _ in self._at_work()]
            if working and all(any(delivery is one for one in self._hanging) for delivery in working):
                return  # they had their time already
            if not await self._progress(patience):
                self._hanging = working
                return

    def _held(self) -> bool:
        """Whether all that is ready or at work waits for time to pass, as for a rate or an open circuit."""
        working = len(self._at_work())
        if working:
            return working == self._clock.sleeping
        return any(consumer.held for consumer in self._runtime.consumers)

    async def _turns(self) -> None:
        """Let everybody take some steps."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def _progress(self, within: float) -> bool:
        progress = self._broker.progress()
        await asyncio.wait([progress], timeout=within)
        return progress.done()

    # ---------------------------------------------------------- what happened

    def published(self, event: type[E], *, by: str | None = None) -> list[E]:
        """The events of this class that were published, in order, whoever did, the test included.

        A delayed event counts from the moment it was published, a duplicate not at all. Old versions are brought
        up to today's; messages that cannot be decoded are left out (see `messages`).

        by  only what this service published; `"test"` is the test. Raises `ValueError` where there is none such.
        """
        declared = event_type(event)
        decode = codec_of(event).decode
        if by is not None:
            sources = {*self._services, SOURCE}
            sources |= {message.source for message in self.messages()}
            if by not in sources:
                raise ValueError(
                    f"nothing named {by!r} runs here or has published. There is: {', '.join(sorted(sources))}."
                )
        found: list[E] = []
        for message in self.messages(declared.topic.name):
            if message.type != declared.name or by not in (None, message.source):
                continue
            try:
                found.append(decode(message))
            except DecodeError:
                pass
        return found

    def messages(self, topic: str | None = None) -> list[Message]:
        """The messages that were published, in order; those of one topic if named. Duplicates are left out."""
        return [
            published.message
            for published in self._record.published
            if not published.duplicate and topic in (None, published.message.topic)
        ]

    @overload
    def handled(self, subscription: Callable[[E], object]) -> list[E]: ...
    @overload
    def handled(self, subscription: Callable[[E, Context], object]) -> list[E]: ...
    @overload
    def handled(self, subscription: str) -> list[Any]: ...
    def handled(self, subscription: Any) -> list[Any]:
        """The events that a handler (or the subscription of that name) handled without failing, in that order.

        A handler of messages gives messages. Raises `ValueError` where it is no handler of these services.
        """
        specs = self._named(subscription)
        names = {spec.subscription.name for spec in specs}
        raw = specs[0].raw
        decoders: dict[str, Callable[[Message], Any]] = {
            event_type(cls).name: codec_of(cls).decode for spec in specs for cls in spec.classes()
        }
        return [
            message if raw else decoders[message.type](message)
            for attempt in self._record.attempts
            if isinstance(attempt.outcome, Ack) and not attempt.late and attempt.delivery.subscription in names
            for message in (attempt.delivery.message,)
        ]

    def dead_letters(self, subscription: str | Callable[..., object] | None = None) -> list[DeadLettered]:
        """The dead letters there are, in the order they were given up; of one handler (or subscription) if given.

        Raises `ValueError` where it is no handler of these services.
        """
        names = None if subscription is None else {spec.subscription.name for spec in self._named(subscription)}
        return [letter for letter in self._broker.letters() if names is None or letter.subscription in names]

    async def replay(self, subscription: str | Callable[..., object] | None = None) -> int:
        """Replay dead letters as an operator would: all, or those of one handler (or subscription). Returns how many.

        Raises `ValueError` where it is no handler of these services.
        """
        numbers = [letter.number for letter in self.dead_letters(subscription)]
        return len(await self._broker.resolve("replay", numbers, by=SOURCE))

    def story(self) -> str:
        """All that happened so far, as text: who published what, what came of it, and what that caused."""
        return tell(
            self._record,
            [spec.subscription for spec in self._specs],
            self._left or [delivery for delivery, _ in self._at_work()],
            self._clock.now(),
            self._clock.start,
        )

    def end(self) -> None:
        """Note what is still at work: from here on the services are only being stopped."""
        self._left = [delivery for delivery, _ in self._at_work()]
        self._record.ended = True

    def _named(self, subscription: str | Callable[..., object]) -> list[HandlerSpec]:
        found = [
            spec
            for spec in self._specs
            if (spec.subscription.name if isinstance(subscription, str) else spec.function) == subscription
        ]
        if not found:
            names = ", ".join(spec.subscription.name for spec in self._specs) or "none"
            raise ValueError(f"{subscription!r} is no handler or subscription of these services. There is: {names}.")
        return found

    def _at_work(self) -> list[tuple[Delivery, int | None]]:
        return [found for consumer in self._runtime.consumers for found in consumer.at_work]

    def _not_settled(self, within: float, begun: int) -> NotSettled:
        return NotSettled(
            unsettled(
                within=within,
                working=self._at_work(),
                active=self._broker.active(),
                delayed=self._broker.delayed(),
                begun=begun,
                now=self._clock.now(),
                start=self._clock.start,
                story=self.story(),
            )
        )

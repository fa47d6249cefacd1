"""Where one scenario runs: an empty broker, and the few verbs that scenarios are written in."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ...broker import Broker, Feed, Settlement, Subscription, SubscriptionStatus, TopicSpec, connect
from ...clock import SystemClock
from ...message import Delivery, Failure, Message
from ...outcome import ACK
from ...service import Service
from ...stand_in import KeptOpen

MAX_BYTES = 64 * 1024 * 1024
ABSENCE = 0.15
"""Seconds after which what has not come counts as not coming. Only for scenarios that prove an absence."""


class Place:
    """One broker URL with nothing on it, and everything a scenario opened there: closed at its end, in order.

    url          where the broker is.
    folder       an empty folder for the scenario's own files.
    unreachable  a URL of the same kind where no broker can be, if there is one.
    wrap         what to put around each broker: for tests of the suite itself.
    patience     seconds to wait for what must come. Far more than any healthy broker needs, as machines are slow.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        unreachable: str | None = None,
        wrap: Callable[[Broker], Broker] = lambda broker: broker,
        patience: float = 10.0,
    ) -> None:
        self.url = url
        self.folder = folder
        self.unreachable = unreachable
        self.patience = patience
        self.clock = SystemClock()
        self._wrap = wrap
        self._stack = AsyncExitStack()
        self._first: Broker | None = None

    async def __aenter__(self) -> Place:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    # --------------------------------------------------------------- brokers

    async def broker(self) -> Broker:
        """The scenario's broker, open. The same one at every call."""
        if self._first is None:
            self._first = await self.another()
        return self._first

    async def another(self, url: str | None = None) -> Broker:
        """A broker object of its own on the same URL, as another process has it; or on `url`."""
        broker = self.connect(url)
        await broker.open()
        self._stack.push_async_callback(broker.close)
        return broker

    def connect(self, url: str | None = None) -> Broker:
        """A broker object that is not opened."""
        return self._wrap(connect(url or self.url, self.clock))

    async def reopened(self) -> Broker:
        """The scenario's broker closed, and opened again by a new object: what a restart leaves of it."""
        await (await self.broker()).close()
        self._first = None
        return await self.broker()

    async def feed(self, subscription: Subscription, broker: Broker | None = None) -> Feed:
        """Declare a subscription on the scenario's broker, or on `broker`, and open it."""
        broker = broker or await self.broker()
        await broker.declare([TopicSpec(subscription.topic)], [subscription])
        feed = await broker.subscribe(subscription)
        self._stack.push_async_callback(feed.close)
        return feed

    @asynccontextmanager
    async def running(
        self,
        service: Service[Any],
        broker: Broker | None = None,
        *,
        grace: float | None = None,
        consume: bool = True,
    ) -> AsyncGenerator[Service[Any]]:
        """A service consuming on the scenario's broker, which stays open when the service has drained."""
        kept = KeptOpen(broker or await self.broker())
        async with service.running(kept, grace=grace or min(5.0, self.patience), consume=consume) as run:
            yield run

    # --------------------------------------------------------------- waiting

    async def until(self, condition: Callable[[], object], what: str, within: float | None = None) -> None:
        """Wait until `condition()`, or what it returns to be awaited, is true; if it stays false, fail with `what`."""
        limit = within or self.patience
        end = time.monotonic() + limit
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit:g} s: {what}")
            await asyncio.sleep(0.005)

    async def take(self, feed: Feed, count: int, *, limit: int = 1000) -> list[Delivery]:
        """The next `count` deliveries, not settled."""
        taken: list[Delivery] = []
        end = time.monotonic() + self.patience
        while len(taken) < count:
            taken += await feed.fetch(min(limit, count - len(taken)), 0.2, MAX_BYTES)
            if time.monotonic() > end and len(taken) < count:
                raise AssertionError(f"not within {self.patience:g} s: {count} deliveries; {len(taken)} came")
        return taken

    async def status(self, name: str, broker: Broker | None = None) -> SubscriptionStatus:
        """What `inspect` says of one subscription."""
        inspection = await (broker or await self.broker()).inspect()
        found = [status for status in inspection.subscriptions if status.name == name]
        assert found, f"no subscription {name!r} among {[status.name for status in inspection.subscriptions]}"
        return found[0]

    async def handled(self, name: str, count: int = 0) -> None:
        """Wait until the backlog of a subscription is `count`: by default until everything is settled."""

        async def done() -> bool:
            return (await self.status(name)).backlog == count

        await self.until(done, f"a backlog of {count} on {name}")


async def moment(place: Place) -> int:
    """A point in time that lies between what was done before and what is done after, by any clock."""
    at = time.time_ns() + 2_000_000
    await place.until(lambda: time.time_ns() > at + 2_000_000, "four milliseconds pass")
    return at


async def nothing(feed: Feed, seconds: float = ABSENCE) -> None:
    """Fail if anything is delivered within `seconds`."""
    found = await feed.fetch(10, seconds, MAX_BYTES)
    assert not found, f"delivered, but it must not be: {[summary(delivery) for delivery in found]}"


async def ack(feed: Feed, deliveries: Iterable[Delivery]) -> None:
    """Acknowledge, and fail if any came too late."""
    await settle(feed, [(delivery, ACK) for delivery in deliveries])


async def settle(feed: Feed, settlements: list[Settlement]) -> None:
    """Settle, and fail if any came too late."""
    late = await feed.settle(settlements)
    assert not late, f"reported late, but this feed held them: {[summary(delivery) for delivery in late]}"


async def store(broker: Broker, *messages: Message, due: int | None = None) -> list[Message]:
    """Publish, fail unless everything is newly stored, and return what was published."""
    receipts = await broker.publish(messages, due=due)
    assert [receipt.status.value for receipt in receipts] == ["stored"] * len(messages)
    return list(messages)


async def collect(messages: AsyncIterator[Message], count: int | None = None) -> list[Message]:
    """What an iterator gives: everything, or the next `count`."""
    found: list[Message] = []
    try:
        if count == 0:
            return found
        async for message in messages:
            found.append(message)
            if len(found) == count:
                break
    finally:
        close: Callable[[], Awaitable[None]] | None = getattr(messages, "aclose", None)
        if close is not None:
            await close()
    return found


_serial = itertools.count(1)


def message(number: int = 0, *, key: str | None = None, topic: str = "numbers", **fields: Any) -> Message:
    """A message whose body is `number`, unless `fields` say otherwise."""
    given: dict[str, Any] = {
        "id": f"m{next(_serial)}",
        "source": "conformance",
        "type": "number.said",
        "time": time.time_ns(),
        "body": str(number).encode(),
    } | fields
    return Message(topic=topic, key=key, **given)


def reader(name: str = "reader.all", topic: str = "numbers", **options: Any) -> Subscription:
    """A subscription."""
    return Subscription(name=name, topic=topic, **options)


def numbers(deliveries: Iterable[Delivery]) -> list[int]:
    """The bodies of deliveries that `message` made."""
    return [int(delivery.message.body) for delivery in deliveries]


def failed(delivery: Delivery, error: str) -> Delivery:
    """The delivery with one failure more in its history, as a consumer hands it to `settle`."""
    failure = Failure(delivery.attempt, time.time_ns(), error, f"Traceback …\n{error}")
    delivery.history = (*delivery.history, failure)
    return delivery


def summary(delivery: Delivery) -> str:
    """A delivery in a few words."""
    body = delivery.message.body[:20]
    return f"{body!r} key={delivery.message.key} attempt={delivery.attempt}"

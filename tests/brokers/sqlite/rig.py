"""What the tests of the embedded broker share: brokers on a file, messages, and ways to die."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tidemill.broker import Receipt, Subscription, TopicSpec, parse_url
from tidemill.brokers.sqlite import writer
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.brokers.sqlite.feed import SqliteFeed
from tidemill.clock import Clock, SystemClock
from tidemill.message import Delivery, Message
from tidemill.outcome import ACK, Outcome

MAX_BYTES = 64 * 1024 * 1024
TOPIC = TopicSpec("orders", "customer")

_numbers = itertools.count(1)


class ManualClock(SystemClock):
    """The time of day is what the test says it is."""

    def __init__(self, now: int = 1_700_000_000_000_000_000) -> None:
        self.time = now

    def now(self) -> int:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += round(seconds * 1e9)


def message(key: str | None = None, *, topic: str = "orders", body: bytes = b"{}", **fields: object) -> Message:
    number = next(_numbers)
    values: dict[str, object] = {"id": f"m{number}", "source": "tests", "type": "order.placed", "time": 0} | fields
    return Message(topic=topic, body=body, key=key, **values)  # type: ignore[arg-type]


def reader(name: str = "shop.handle", **options: object) -> Subscription:
    values: dict[str, object] = {"topic": "orders", "start": "beginning"} | options
    return Subscription(name=name, **values)  # type: ignore[arg-type]


def url_of(path: Path | str, **parameters: str) -> str:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"sqlite:///{path}" + (f"?{query}" if query else "")


def broker_at(path: Path | str, clock: Clock | None = None, **parameters: str) -> SqliteBroker:
    return SqliteBroker(parse_url(url_of(path, **parameters)), clock or SystemClock())


@asynccontextmanager
async def brokers(
    path: Path, count: int = 1, clock: Clock | None = None, topic: TopicSpec = TOPIC, **parameters: str
) -> AsyncIterator[list[SqliteBroker]]:
    """Open brokers on one file, as so many processes would have."""
    async with AsyncExitStack() as stack:
        found: list[SqliteBroker] = []
        for _ in range(count):
            broker = broker_at(path, clock, **parameters)
            await broker.open()
            stack.push_async_callback(broker.close)
            await broker.declare([topic], [])
            found.append(broker)
        yield found


async def subscribe(broker: SqliteBroker, spec: Subscription) -> SqliteFeed:
    await broker.declare([], [spec])
    return await broker.subscribe(spec)


async def store(broker: SqliteBroker, *messages: Message) -> list[Receipt]:
    receipts = await broker.publish(messages)
    assert all(receipt.ok for receipt in receipts), receipts
    return receipts


async def take(feed: SqliteFeed, limit: int = 100, wait: float = 0.0) -> list[Delivery]:
    return await feed.fetch(limit, wait, MAX_BYTES)


async def take_all(feed: SqliteFeed, count: int, wait: float = 5.0) -> list[Delivery]:
    """Exactly so many deliveries, in however many fetches."""
    taken: list[Delivery] = []
    while len(taken) < count:
        more = await feed.fetch(count - len(taken), wait, MAX_BYTES)
        assert more, f"{len(taken)} of {count} came within {wait:g} s"
        taken += more
    return taken


async def drain(feed: SqliteFeed, wait: float = 0.0) -> list[Delivery]:
    """Take and acknowledge until nothing comes."""
    done: list[Delivery] = []
    while taken := await take(feed, wait=wait):
        assert await settle(feed, taken) == []
        done += taken
    return done


async def settle(feed: SqliteFeed, deliveries: Sequence[Delivery], outcome: Outcome = ACK) -> list[Delivery]:
    return await feed.settle([(delivery, outcome) for delivery in deliveries])


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


async def kill(broker: SqliteBroker) -> None:
    """End a broker as `kill -9` ends its process: what was committed stays, nothing is given back or said."""
    if broker._writer is None:
        return
    for feed in broker._feeds:
        feed._closed = True
    broker._feeds.clear()
    await broker._writer.close()
    broker._writer = None
    broker._open = False
    broker.poke()
    if broker._life is not None:
        broker._life.forked()  # what the kernel does: the lock is gone, the file stays
        broker._life = None
    broker.reader.close()
    broker._lock.close()


def rows(path: Path | str, query: str, *parameters: object) -> list[tuple[object, ...]]:
    """Look into the file."""
    connection = sqlite3.connect(path, timeout=30.0)
    try:
        return connection.execute(query, parameters).fetchall()
    finally:
        connection.close()


def change(path: Path | str, statement: str, *parameters: object) -> None:
    connection = sqlite3.connect(path, timeout=30.0)
    try:
        with connection:
            connection.execute(statement, parameters)
    finally:
        connection.close()


def expire(path: Path | str, feed: SqliteFeed) -> None:
    """Make a feed's lease have ended, as if its process had been paused for long."""
    change(path, "update tidemill_consumer set lease = 0 where owner = ?", feed.owner)


class Commits:
    """Decides how commits end, for `writer._end`."""

    def __init__(self) -> None:
        self.how: Callable[[], str] = lambda: ""
        self.failed = 0

    def end(self, connection: sqlite3.Connection, path: str) -> None:
        how = self.how()
        if not how:
            connection.execute("commit")
            return
        self.failed += 1
        if how == "full":
            connection.execute("rollback")
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        connection.execute("commit" if how == "lost" else "rollback")
        raise writer.Unconfirmed(f"{path}: injected, {how}")

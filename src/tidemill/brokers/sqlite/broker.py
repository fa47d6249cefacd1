"""`sqlite:///shop.db` — the embedded broker: durable, and shared by the processes of one machine.

Parameters: `?synchronous=full` (the default: a confirmed publish survives a power cut) or `normal` (it survives the
process, and the last moments before a power cut may be lost), `?namespace=`.
Beside the file lie `-wal` and `-shm` (SQLite's), `-lock` (one writer at a time) and `-live/` (who is alive).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec

from ...broker import (
    BrokerUrl,
    Capabilities,
    DeadLettered,
    Inspection,
    Receipt,
    Resolution,
    Resolve,
    Subscription,
    TopicSpec,
    Trace,
)
from ...clock import Clock
from ...errors import BrokerError, BrokerUrlError, ConfigurationError
from ...message import Message
from . import inspection
from .appending import append, schedule
from .bell import Bell
from .feed import SqliteFeed
from .file import WriteLock, connect, path_of, prepare, real_path, translated
from .journal import Begun, Run
from .live import Life
from .resolving import resolve
from .retention import Retention
from .rows import SLOTS, to_message, to_row
from .sql import SQL
from .writer import Done, Job, Writer

P = ParamSpec("P")
T = TypeVar("T")

TICK: Final = 0.05
"""Seconds between two looks at the file while something waits. News come sooner, as whoever publishes rings."""

TICK_WITHOUT_BELL: Final = 0.01
"""The same where this process has no bell: a quarter of what it takes to notice, and a hundredth of a core."""

AGAIN: Final = 1.0
"""Seconds until scheduled events that could not be moved to the log are tried again."""

LOOK_AROUND: Final = 0.5
"""Seconds between two looks whether the other consumers live."""

_types = msgspec.json.Encoder().encode


class SqliteBroker:
    """See `tidemill.broker.Broker`. Writes go through one thread; reads are short and run on the event loop."""

    capabilities = Capabilities(durability="disk", processes=True, publish_batch=1000)

    def __init__(self, url: BrokerUrl, clock: Clock) -> None:
        url.refuse_options("synchronous")
        self.synchronous = url.options.get("synchronous", "full").upper()
        if self.synchronous not in ("FULL", "NORMAL"):
            raise BrokerUrlError(f"{url.text}: synchronous is full or normal, not {self.synchronous.lower()!r}.")
        self.url = url.text
        self.clock = clock
        self.path = path_of(url)
        self._prefix = f"{url.namespace}/" if url.namespace else ""
        self.reader: sqlite3.Connection
        self._lock: WriteLock
        self._writer: Writer | None = None
        self._life: Life | None = None
        self._bell: Bell
        self._interval = TICK_WITHOUT_BELL
        self._open = False
        self._topics: dict[str, int] = {}
        self._feeds: list[SqliteFeed] = []
        self._numbers = itertools.count(1)
        self._spread = random.randrange(SLOTS)
        # Who waits, and the feed it waits for, if any.
        self._waiting: dict[asyncio.Future[None], SqliteFeed | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._version = -1
        self._looked_around = 0.0
        self._next_scheduled: int | None = None
        self._appearing = False
        self._renewed: dict[str, float] = {}
        self._retention = Retention(clock.now)

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        if self._open:
            return
        self.path = real_path(self.path)
        with translated(self.path):
            self._lock = WriteLock(self.path)
            try:
                prepare(self.path, self._lock)
                self.reader = connect(self.path)
                self._topics = self._own_topics(self.reader)
            except BaseException:
                self._lock.retract()
                raise
        self._version = -1
        self._loop = asyncio.get_running_loop()
        self._bell = Bell(self.path)
        self._interval = TICK_WITHOUT_BELL
        self._writer = Writer(self.path, self._lock, self.synchronous, self._beat)
        self._writer.start()
        self._open = True
        _open_brokers.add(self)

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for feed in tuple(self._feeds):
            await feed.close()
        ended = self._writer is None or await self._writer.close()
        self._writer = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.poke()
        if ended:
            with self._lock.held():  # the last connection to close checkpoints
                self.reader.close()
            self._lock.close()
        else:
            # Another process keeps the lock. The thread finishes and closes when it lets go, or ends with the process.
            self.reader.close()
        self._bell.take_down()
        if self._life is not None:
            self._life.end()
            self._life = None
        _open_brokers.discard(self)

    def forked(self) -> None:
        """In a process that was forked from this one: its locks and its writer's thread stay with the parent."""
        self._open = False
        self._lock.close()
        self._bell.forked()
        if self._life is not None:
            self._life.forked()
        for feed in self._feeds:
            feed.forked()
        if self._writer is not None:
            self._writer.refuse(
                f"{self.path} was opened before this process was forked, and only the parent can use what it opened; "
                "nothing was stored. Connect again in this process."
            )

    async def write(self, job: Callable[[sqlite3.Connection], T], *, ring: bool = False) -> T:
        """Run `job` in a transaction, together with whatever else waits; returns after the commit.

        With `ring`, the other processes that wait are told that there is something for them.
        """
        if self._writer is None:
            raise BrokerError(f"{self.path} is not open; nothing was stored. Connect again.")
        result = await self._writer.submit(job)
        if ring:
            self._bell.ring()
        self.poke()
        return result

    def _beat(self) -> Sequence[tuple[Job, Done]]:
        # In the writer's thread: leases are kept and old events removed whatever the event loop is doing.
        now = time.monotonic()
        jobs: list[tuple[Job, Done]] = []
        for feed in tuple(self._feeds):
            if not feed.lease.is_let_go and now - self._renewed.get(feed.owner, 0.0) >= feed.spec.lease / 3:
                jobs.append((feed.lease.renew, partial(self._renew, feed, now)))
        if self._retention.due():
            jobs.append((self._retention.purge, lambda _: None))
        return jobs

    def _renew(self, feed: SqliteFeed, began: float, until: int) -> None:
        self._renewed[feed.owner] = began  # not before: what failed is tried again with the next beat
        feed.lease.renewed(until)

    # --------------------------------------------------------------- waiting

    def tick(self) -> None:
        """See whether anything changed: cheap enough to be asked a hundred times a second."""
        try:
            version = self.reader.execute("pragma data_version").fetchone()[0]
            if version != self._version:
                self._version = version
                self._look()
                self.poke()
            now = time.monotonic()
            if now - self._looked_around >= LOOK_AROUND:
                self._looked_around = now
                for feed in self._feeds:
                    feed.look_around()
        except sqlite3.Error:
            self._version = -1  # in the way of a checkpoint or a recovery: look again at the next tick
        due = self._next_scheduled is not None and self._next_scheduled <= self.clock.now()
        if due and not self._appearing and self._writer is not None:
            self._appearing = True
            self._writer.submit(self._appear).add_done_callback(self._appeared)

    def _look(self) -> None:
        self._next_scheduled = self.reader.execute(SQL["next_scheduled"]).fetchone()[0]
        for feed in self._feeds:
            generation, touched, paused = self.reader.execute(SQL["generation"], (feed.subscription,)).fetchone()
            feed.looked_up(generation, touched, bool(paused))

    def _appear(self, connection: sqlite3.Connection) -> None:
        now = self.clock.now()
        connection.execute(SQL["appear"], (now,))
        connection.execute(SQL["appeared"], (now,))

    def _appeared(self, done: asyncio.Future[None]) -> None:
        self._appearing = False
        if done.exception() is None:
            self._bell.ring()
            self._look_up()
        else:  # a full disk, say
            self._next_scheduled = self.clock.now() + round(AGAIN * 1e9)

    async def news(self, seconds: float, feed: SqliteFeed | None = None) -> None:
        """Wait until something may have changed, or be due for `feed`, at most `seconds`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting[future] = feed
        self._set_timer()
        timeout = loop.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timeout.cancel()
            self._waiting.pop(future, None)

    def _set_timer(self) -> None:
        # Only for what somebody waits for: a feed whose consumer is busy has no use for being told.
        due = [feed.next_due for feed in self._waiting.values() if feed is not None and feed.next_due is not None]
        if self._next_scheduled is not None and not self._appearing:
            due.append(self._next_scheduled)
        seconds = self._interval
        if due:
            seconds = max(0.001, min(seconds, (min(due) - self.clock.now()) / 1e9))
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._look_up()
        if self._waiting:
            self._set_timer()

    def _look_up(self) -> None:
        if not self._waiting or not self._open:
            return
        self.tick()
        now = self.clock.now()
        for future, feed in tuple(self._waiting.items()):
            if feed is not None and (feed.stale or (feed.next_due is not None and feed.next_due <= now)):
                del self._waiting[future]
                _wake(future)

    def poke(self) -> None:
        """Wake everyone who waits for news."""
        for future in self._waiting:
            _wake(future)
        self._waiting.clear()

    # ------------------------------------------------------------ publishing

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        rows: list[tuple[Any, ...]] = []
        spread = self._spread
        now = self.clock.now()
        stored = now if due is None else max(now, due)
        for message in messages:
            topic = self._topics.get(message.topic)
            if topic is None:
                topic = await self._add_topic(message.topic)
            spread += 1
            rows.append(to_row(message, topic, spread, stored))
        self._spread = spread
        if due is not None and due > now:
            receipts = await self.write(partial(schedule, rows, due), ring=True)
            if self._next_scheduled is None or due < self._next_scheduled:
                self._next_scheduled = due
            return receipts
        return await self.write(partial(append, rows), ring=True)

    async def _add_topic(self, name: str) -> int:
        def add(connection: sqlite3.Connection) -> int:
            connection.execute(SQL["add_topic"], (self._prefix + name, None, 7 * 86400.0))
            found: int = connection.execute(SQL["find_topic"], (self._prefix + name,)).fetchone()[0]
            return found

        self._topics[name] = number = await self.write(add)
        return number

    # ------------------------------------------------------------- declaring

    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        def put(connection: sqlite3.Connection) -> dict[str, int]:
            for topic in topics:
                connection.execute(SQL["put_topic"], (self._prefix + topic.name, topic.key, topic.retain))
            for spec in subscriptions:
                self._declare(connection, spec)
            return self._own_topics(connection)

        self._topics = await self.write(put)

    def _own_topics(self, connection: sqlite3.Connection) -> dict[str, int]:
        strip = len(self._prefix)
        return {
            name[strip:]: number
            for number, name, _, _ in connection.execute(SQL["topics"])
            if inspection.is_in(name, self._prefix)
        }

    def _declare(self, connection: sqlite3.Connection, spec: Subscription) -> None:
        name, topic = self._prefix + spec.name, self._prefix + spec.topic
        types = None if spec.types is None else _types(spec.types).decode()
        known = connection.execute(SQL["find_subscription"], (name,)).fetchone()
        if known is None and spec.renamed_from is not None:
            known = connection.execute(SQL["find_subscription"], (self._prefix + spec.renamed_from,)).fetchone()
            if known is not None:
                connection.execute(SQL["rename_subscription"], (name, known[0]))
        if known is not None:
            if known[1] != topic:
                raise ConfigurationError(
                    f"subscription {spec.name!r} exists in {self.path} on topic {known[1]!r}, not {topic!r}. Its "
                    "backlog belongs to that topic: give the handler another name with @service.on(..., name=...)."
                )
            facts = {"types": types, "ordered": spec.ordered, "subscription": known[0]}
            connection.execute(SQL["update_subscription"], facts)
            return
        connection.execute(SQL["add_topic"], (topic, None, 7 * 86400.0))
        number = connection.execute(SQL["find_topic"], (topic,)).fetchone()[0]
        if spec.start == "beginning":
            first = 0
        elif spec.start == "now":
            first = connection.execute(SQL["last_seq"]).fetchone()[0]
        else:
            first = connection.execute(SQL["seq_before"], {"topic": number, "since": spec.start}).fetchone()[0]
        parameters = (name, number, types, spec.ordered, first)
        subscription = connection.execute(SQL["put_subscription"], parameters).lastrowid
        connection.executemany(SQL["put_slot"], [(subscription, slot, first) for slot in range(SLOTS)])

    async def subscribe(self, subscription: Subscription) -> SqliteFeed:
        with translated(self.path):
            if self._life is None:
                self._life = Life(self.path, self._is_known)
                if self._bell.hang_up(self._life.token, self._look_up):
                    self._interval = TICK
            found = self.reader.execute(SQL["find_subscription"], (self._prefix + subscription.name,)).fetchone()
        if found is None:
            raise ConfigurationError(f"subscription {subscription.name!r} is not declared in {self.path}.")
        number = next(self._numbers)
        owner, begun = f"{self._life.token}.{number}", Begun(self._life.journal, number)
        feed = SqliteFeed(self, subscription, found[0], found[2], owner, begun)
        feed.touched = found[3]
        self._renewed[owner] = time.monotonic()
        if self._writer is not None:
            self._writer.keep(subscription.lease)
        self._feeds.append(feed)
        try:
            await feed.share_out()
        except BaseException:
            await asyncio.shield(feed.close())  # it may hold slots that nobody else would get before its lease ends
            raise
        return feed

    def forget(self, feed: SqliteFeed) -> None:
        """A feed was closed."""
        if feed in self._feeds:
            self._feeds.remove(feed)
        self.poke()

    def is_alive(self, owner: str) -> bool:
        """Whether the process of a consumer runs."""
        return self._life is not None and self._life.is_alive(owner.partition(".")[0])

    def is_calm(self, lease: float) -> bool:
        """Whether nobody held up the file's writers lately for so long that leases of `lease` seconds were at risk."""
        return self._writer is not None and self._writer.is_calm(lease)

    def running(self, owner: str) -> dict[int, Run]:
        """seq -> run of the handlers that a consumer runs, or ran when its process died."""
        token, _, number = owner.partition(".")
        return {} if self._life is None else self._life.running(token, int(number))

    def bury(self, owners: Sequence[str]) -> None:
        """Take away what the processes of these consumers left, where they are dead and all of it is charged."""
        if self._life is not None:
            for token in {owner.partition(".")[0] for owner in owners}:
                self._life.bury(token)

    def _is_known(self, token: str) -> bool:
        return bool(self.reader.execute(SQL["is_known"], {"token": token}).fetchone()[0])

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have the event loop call something, from the writer's thread."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop is gone, and with it whoever would be told

    async def pause(self, subscription: str, paused: bool) -> None:
        def put(connection: sqlite3.Connection) -> None:
            if not connection.execute(SQL["pause"], (paused, self._prefix + subscription)).rowcount:
                raise ConfigurationError(f"there is no subscription {subscription!r} in {self.path}. Nothing changed.")

        await self.write(put, ring=True)

    # --------------------------------------------------------------- looking

    async def inspect(self) -> Inspection:
        return await self._look_into(inspection.inspect, self._prefix)

    async def dead_letters(
        self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[DeadLettered]:
        return await self._look_into(inspection.dead_letters, self._prefix, subscription, after, limit)

    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        return await self.write(partial(resolve, action, numbers, by, self._prefix, self.clock.now()), ring=True)

    async def resolutions(self, *, before: int | None = None, limit: int = 1000) -> list[Resolution]:
        return await self._look_into(inspection.resolutions, self._prefix, before, limit)

    async def trace(self, correlation_id: str) -> Trace:
        return await self._look_into(inspection.trace, self._prefix, correlation_id)

    async def _look_into(
        self, look: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kw: P.kwargs
    ) -> T:
        """Run what reads much, as counting a long backlog does, beside the event loop."""
        if not self._open:
            raise BrokerError(f"{self.path} is not open. Connect again.")

        def run() -> T:
            with translated(self.path):
                connection = connect(self.path)
                try:
                    return look(connection, *args, **kw)
                finally:
                    connection.close()

        return await asyncio.to_thread(run)

    async def read(self, topic: str, *, since: int | None = None, follow: bool = False) -> AsyncIterator[Message]:
        seq = 0
        while True:
            with translated(self.path):
                found = self.reader.execute(SQL["find_topic"], (self._prefix + topic,)).fetchone()
                rows: list[tuple[Any, ...]] = []
                if found:
                    parameters = {"topic": found[0], "after": seq, "since": since or -(2**62), "most": 200}
                    rows = self.reader.execute(SQL["read"], parameters).fetchall()
            for row in rows:
                seq = row[0]
                yield to_message(row, topic)
            if not rows:
                if not follow:
                    return
                await self.news(1.0)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_open_brokers: weakref.WeakSet[SqliteBroker] = weakref.WeakSet()


def _after_fork() -> None:
    for broker in tuple(_open_brokers):
        broker.forked()
    _open_brokers.clear()


os.register_at_fork(after_in_child=_after_fork)

"""One thread that writes: what shares a commit, what a failed commit means, and how it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from tidemill.broker import Status
from tidemill.brokers.sqlite import feed as feed_module
from tidemill.brokers.sqlite import writer
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.errors import BrokerError, ConfigurationError, PublishError, StorageFull
from tidemill.publisher import Publisher

from .rig import TOPIC, Commits, broker_at, brokers, drain, message, reader, rows, store, subscribe


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    found = Commits()
    monkeypatch.setattr(writer, "_end", found.end)
    return found


@contextmanager
def lock_of_another(path: Path) -> Iterator[None]:
    """Another process has the write lock, and does not give it back."""
    file = os.open(f"{path}-lock", os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(file)


def test_what_waits_shares_a_commit(tmp_path: Path, commits: Commits) -> None:
    path = tmp_path / "a.db"
    count = 0

    def counting() -> str:
        nonlocal count
        count += 1
        return ""

    async def run() -> None:
        async with brokers(path) as (broker,):
            with lock_of_another(path):
                commits.how = counting
                waiting = [asyncio.ensure_future(broker.publish([message()])) for _ in range(50)]
                await asyncio.sleep(0)
            await asyncio.gather(*waiting)
            assert count <= 2 + 1, "one for what came first, one for all that waited, and perhaps a renewal"
            assert rows(path, "select count(*) from tidemill_log") == [(50,)]

    asyncio.run(run())


def test_a_job_that_fails_takes_no_other_along(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    def fails(connection: sqlite3.Connection) -> None:
        connection.execute("insert into tidemill_topic (name, retain) values ('half', 0)")
        raise ConfigurationError("this one alone")

    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("insert into tidemill_topic (name, retain) values ('half', 0)")
        connection.execute("no such statement")

    def bug(connection: sqlite3.Connection) -> None:
        raise ZeroDivisionError("a bug")

    async def run() -> None:
        async with brokers(path) as (broker,):
            with lock_of_another(path):
                jobs: list[Any] = [
                    broker.publish([message()]),
                    broker.write(fails),
                    broker.publish([message()]),
                    broker.write(breaks),
                    broker.write(bug),
                    broker.publish([message()]),
                ]
                waiting = [asyncio.ensure_future(job) for job in jobs]
                await asyncio.sleep(0)
            first, config, second, broken, buggy, third = await asyncio.gather(*waiting, return_exceptions=True)
            assert [each[0].status for each in (first, second, third)] == [Status.STORED] * 3
            assert isinstance(config, ConfigurationError)
            assert isinstance(broken, BrokerError)
            assert "syntax error" in str(broken)
            assert "Nothing of this was stored" in str(broken)
            assert isinstance(buggy, BrokerError)
            assert "ZeroDivisionError: a bug" in str(buggy)
            assert rows(path, "select seq from tidemill_log") == [(1,), (2,), (3,)]
            assert rows(path, "select name from tidemill_topic") == [("orders",)]

    asyncio.run(run())


def test_where_no_transaction_can_begin_nobody_waits_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign program holds SQLite's own lock: a batch fails once, not job by job, each after five seconds."""
    path = tmp_path / "a.db"

    def impatient(path: str, *, synchronous: str = "FULL") -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.2)

    monkeypatch.setattr(writer, "connect", impatient)

    async def run() -> None:
        async with brokers(path) as (broker,):
            foreign = sqlite3.connect(path, isolation_level=None)
            foreign.execute("begin immediate")
            started = time.monotonic()
            results = await asyncio.gather(*(broker.publish([message()]) for _ in range(30)), return_exceptions=True)
            assert time.monotonic() - started < 2.0
            assert {type(each) for each in results} == {BrokerError}
            assert "database is locked" in str(results[0])
            foreign.execute("rollback")
            foreign.close()
            await store(broker, message())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("how", "status", "stored"),
    [("full", "not stored; publish again", 0), ("lost", "may or may not be", 1), ("gone", "may or may not be", 0)],
)
def test_a_commit_that_fails_says_what_is_known(
    how: str, status: str, stored: int, tmp_path: Path, commits: Commits
) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            publisher = Publisher(broker)
            commits.how = lambda: how
            event = message("a")
            with pytest.raises(PublishError, match=status):
                await publisher.publish(event)
            commits.how = lambda: ""
            assert rows(path, "select count(*) from tidemill_log") == [(stored,)]
            assert (await publisher.publish(event)).ok
            assert rows(path, "select count(*) from tidemill_log") == [(1,)]

    asyncio.run(run())


def test_an_error_of_the_disk_at_commit_is_not_called_harmless(tmp_path: Path) -> None:
    class Broken(sqlite3.Connection):
        pass

    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None, factory=Broken)

    class Failing:
        in_transaction = False

        def __init__(self, name: str) -> None:
            self._name = name

        def execute(self, statement: str) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = self._name
            raise error

    with pytest.raises(writer.Unconfirmed, match="disk I/O error"):
        writer._end(Failing("SQLITE_IOERR_FSYNC"), "a.db")  # type: ignore[arg-type]
    with pytest.raises(sqlite3.OperationalError):
        writer._end(Failing("SQLITE_FULL"), "a.db")  # type: ignore[arg-type]
    connection.close()


def test_closing_does_not_wait_for_ever_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain must end although another process stands still inside a transaction. What was on its way is written when
    the lock is free, as its publisher was told that it may be."""
    path = tmp_path / "a.db"
    monkeypatch.setattr(writer, "END_WITHIN", 0.2)
    monkeypatch.setattr(feed_module, "LEAVE", 0.2)

    async def run() -> None:
        async with brokers(path) as (broker,):
            await subscribe(broker, reader())
            with lock_of_another(path):
                publishing = asyncio.ensure_future(broker.publish([message()]))
                await asyncio.sleep(0)
                started = time.monotonic()
                await broker.close()
                assert time.monotonic() - started < 2.0
                assert not publishing.done()
            assert [each.status for each in await publishing] == [Status.STORED]

    threads = threading.active_count()
    asyncio.run(run())
    assert rows(path, "select count(*) from tidemill_log") == [(1,)]
    deadline = time.monotonic() + 5.0
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_closing_finishes_what_was_submitted(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            waiting = [asyncio.ensure_future(broker.publish([message()])) for _ in range(20)]
            await asyncio.sleep(0)
            await broker.close()
            assert all([(await each)[0].ok for each in waiting])
            with pytest.raises(BrokerError, match="nothing was stored"):
                await broker.publish([message()])

    asyncio.run(run())
    assert rows(path, "select count(*) from tidemill_log") == [(20,)]


def test_a_broker_that_was_closed_opens_again(tmp_path: Path) -> None:
    """With a new sign of life: others must not think that it is dead."""

    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (broker, other):
            await subscribe(broker, reader())
            await broker.close()
            await broker.open()
            await broker.declare([], [reader()])
            feed = await broker.subscribe(reader())
            assert await other.subscribe(reader())
            assert other.is_alive(feed.owner)
            await store(broker, message())

    asyncio.run(run())


def test_full_means_that_nothing_of_the_batch_is_stored(tmp_path: Path, commits: Commits) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            feed = await subscribe(broker, reader())
            commits.how = lambda: "full"
            with pytest.raises(StorageFull, match="Free disk space"):
                await broker.publish([message(), message()])
            commits.how = lambda: ""
            assert await drain(feed) == []

    asyncio.run(run())


def test_nothing_is_left_running(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db", 3) as found:
            for broker in found:
                await subscribe(broker, reader())
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(run())
    assert [each.name for each in threading.enumerate() if "sqlite" in each.name] == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.db", "a.db-lock"]


def test_a_forgotten_loop_does_not_stop_the_thread(tmp_path: Path) -> None:
    """The loop ended without closing the broker: what was submitted is written, and nobody is told."""
    path = tmp_path / "a.db"
    found: list[SqliteBroker] = []

    async def run() -> None:
        broker = broker_at(path)
        await broker.open()
        await broker.declare([TOPIC], [])
        found.append(broker)
        broker._writer.submit(lambda connection: connection.execute("delete from tidemill_topic"))  # type: ignore[union-attr]

    asyncio.run(run())

    async def check() -> None:
        await wait_until(lambda: rows(path, "select * from tidemill_topic") == [], what="the job was not run")

    asyncio.run(check())
    (broker,) = found
    assert broker._writer is not None
    broker._writer._closing = True
    broker._writer._wanted.set()
    broker._writer._thread.join(5.0)
    broker.reader.close()
    broker._lock.close()

"""Orders of steps in which an event could be lost, repeated or overtaken: each was a bug, or could have been one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.brokers.sqlite import broker as broker_module
from tidemill.brokers.sqlite import writer
from tidemill.brokers.sqlite.feed import SqliteFeed
from tidemill.brokers.sqlite.rows import SLOTS, slot_of
from tidemill.errors import BrokerError, StorageFull
from tidemill.outcome import ACK, RELEASE, Retry

from .rig import (
    Commits,
    ManualClock,
    brokers,
    change,
    drain,
    expire,
    ids,
    kill,
    message,
    reader,
    rows,
    settle,
    store,
    subscribe,
    take,
    take_all,
)


@pytest.fixture(autouse=True)
def look_around_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "LOOK_AROUND", 0.0)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    found = Commits()
    monkeypatch.setattr(writer, "_end", found.end)
    return found


def one_key_per_slot() -> list[str]:
    found: dict[int, str] = {}
    for number in range(10_000):
        found.setdefault(slot_of(str(number)), str(number))
        if len(found) == SLOTS:
            break
    return [found[slot] for slot in range(SLOTS)]


def once(what: str) -> Callable[[], str]:
    """The next commit ends like that, and all others well. Where the disk is full, that is tried twice."""
    answers = iter([what, what] if what == "full" else [what])
    return lambda: next(answers, "")


def lose_everything(path: Path) -> None:
    """As if another consumer had taken all slots after a pause, and died."""
    change(path, "delete from tidemill_consumer")
    change(path, "update tidemill_slot set owner = null")
    change(path, "update tidemill_subscription set generation = generation + 1")


def test_what_is_in_hand_is_known_after_slots_were_taken_over(tmp_path: Path) -> None:
    """A consumer far ahead takes over slots that are far behind. What it reads of those comes after later events in
    its books; the position must not pass them by for that: a crash would lose them."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 3) as (first, second, publisher):
            spec = reader()
            old = await subscribe(first, spec)
            new = await subscribe(second, spec)
            for _ in range(3):
                await take(old), await take(new)
            sent = [message(key) for key in one_key_per_slot() * 2]
            await store(publisher, *sent)
            ahead = await take(old)
            assert len(ahead) == SLOTS, "half of two rounds"
            await old.settle([(each, ACK) for each in ahead[:-1]])
            await new.close()
            behind = await take_all(old, SLOTS)
            # One of the slots just taken is settled, and none before it.
            done = [each for each in behind if each.position < ahead[-1].position][-1]
            assert done is not behind[0]
            await settle(old, [done])
            await kill(first)
            rest = await take_all(await subscribe(second, spec), SLOTS)
            assert sorted(ids(rest)) == sorted(ids([ahead[-1], *(each for each in behind if each is not done)]))

    asyncio.run(run())


@pytest.mark.parametrize("how", ["lost", "cancelled"])
def test_keys_that_wait_are_known_when_the_answer_to_a_takeover_was_lost(
    how: str, tmp_path: Path, commits: Commits
) -> None:
    """Slots were taken over, but the one who took them was not told: what waits in them must still hold back."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 3) as (first, second, publisher):
            spec = reader(ordered=True)
            old = await subscribe(first, spec)
            new = await subscribe(second, spec)
            for _ in range(3):
                await take(old), await take(new)
            keys = one_key_per_slot()
            await store(publisher, *(message(key) for key in keys))
            taken = await take(old)
            await settle(old, taken, Retry(1000.0, "later"))
            await old.close()
            if how == "lost":
                commits.how = once("lost")
                with pytest.raises(writer.Unconfirmed):
                    await take(new)
            else:
                fetch = asyncio.ensure_future(new.fetch(100, 5.0, 10**9))
                for _ in range(3):
                    await asyncio.sleep(0)
                fetch.cancel()
                await asyncio.gather(fetch, return_exceptions=True)
            await store(publisher, *(message(key) for key in keys))
            came = [each.message.key for each in await drain(new, wait=0.1)]
            waiting = {each.message.key for each in taken}
            assert waiting.isdisjoint(came), "an event overtook one of its key that waits for a retry"
            assert sorted(map(str, came)) == sorted([*set(keys) - waiting] * 2)  # type: ignore[list-item]

    asyncio.run(run())


def test_a_slot_lost_and_taken_again_while_a_settlement_was_under_way(tmp_path: Path) -> None:
    """The settlement is late. What was delivered again meanwhile is not: its outcome counts."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            feed = await subscribe(broker, reader())
            await take(feed)
            await store(broker, message("a"), message("a"))
            first, second = await take_all(feed, 2)
            lose_everything(path)
            fetch = asyncio.ensure_future(take(feed))
            await asyncio.sleep(0)  # the fetch is first to have its job in the queue
            late = await settle(feed, [first, second])
            assert late == [first, second]
            again = await fetch
            assert ids(again) == ids([first, second])
            assert await settle(feed, again) == []
            assert rows(path, "select acked from tidemill_subscription") == [(2,)], "late ones are not counted"
            await store(broker, *(message(key) for key in one_key_per_slot()))
            assert len(await drain(feed)) == SLOTS, "a slot is held that nobody reads"

    asyncio.run(run())


def test_nothing_is_written_for_slots_that_were_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (first, second):
            spec = reader(ordered=True)
            zombie = await subscribe(first, spec)
            await store(first, message("a"), message("a"), message("b"))
            head, follower, other = await take_all(zombie, 3)
            await zombie.settle([(follower, RELEASE)])
            expire(path, zombie)
            feed = await subscribe(second, spec)
            assert ids(await take_all(feed, 2)) == ids([head, other])
            before = rows(path, "select * from tidemill_exception")
            assert len(before) == 2
            assert await zombie.settle([(head, ACK), (other, Retry(0.0, "no"))]) == [head, other]
            assert rows(path, "select * from tidemill_exception") == before
            assert rows(path, "select acked, retried from tidemill_subscription") == [(0, 0)]

    asyncio.run(run())


class _FailingReader:
    """A connection that fails when a statement is run that contains some words."""

    def __init__(self, connection: sqlite3.Connection, words: str, after: int = 0) -> None:
        self._connection = connection
        self._words = words
        self._after = after

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        cursor = self._connection.execute(statement, parameters)
        if self._words not in statement:
            return cursor
        return _FailingRows(cursor, self._after)

    def close(self) -> None:
        self._connection.close()


class _FailingRows:
    def __init__(self, cursor: sqlite3.Cursor, after: int) -> None:
        self._cursor = cursor
        self._left = after

    def __iter__(self) -> _FailingRows:
        return self

    def __next__(self) -> Any:
        self._left -= 1
        if self._left < 0:
            self._cursor.close()
            raise sqlite3.OperationalError("disk I/O error")
        return next(self._cursor)


@pytest.mark.parametrize("after", [0, 2])
def test_a_read_that_fails_half_way_leaves_nothing_behind(after: int, tmp_path: Path) -> None:
    """What was read before the error goes out, and what follows comes with the next fetch: each once."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, message("a"))
            (first,) = await take(feed)
            await settle(feed, [first], Retry(0.0, "no"))
            await store(broker, *(message("b") for _ in range(5)))
            intact = broker.reader
            broker.reader = _FailingReader(intact, "tidemill_log\nwhere topic", after)  # type: ignore[assignment]
            came = await take(feed)
            assert len(came) == 1 + after
            if not after:
                with pytest.raises(BrokerError, match="disk I/O error"):
                    await take(feed)
            broker.reader = intact
            came += await take(feed)
            assert len({id(each) for each in came}) == len(set(ids(came))) == 6
            assert await settle(feed, came) == []
            assert await drain(feed) == []

    asyncio.run(run())


def test_giving_up_slots_is_tried_again_when_it_failed(tmp_path: Path, commits: Commits) -> None:
    """The slots are nobody's to read until they are given up, even where nothing else happens on the subscription."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 3) as (first, second, publisher):
            spec = reader()
            old = await subscribe(first, spec)
            await take(old)
            new = await subscribe(second, spec)
            answers = iter(["", "full", "full"])  # the sharing out goes well, the giving up does not
            commits.how = lambda: next(answers, "")
            with pytest.raises(StorageFull):
                await take(old)
            assert commits.failed == 2
            await store(publisher, *(message(key) for key in one_key_per_slot()))
            came = 0
            for _ in range(10):
                came += len(await take(old)) + len(await take(new))
            assert came == SLOTS, "slots are stuck between two consumers"

    asyncio.run(run())


def test_a_settlement_counts_even_where_giving_up_slots_then_fails(tmp_path: Path, commits: Commits) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (first, second):
            spec = reader()
            old = await subscribe(first, spec)
            await store(first, *(message(key) for key in one_key_per_slot()))
            taken = await take(old)
            new = await subscribe(second, spec)
            assert await take(old) == []
            answers = iter(["", "full", "full"])
            commits.how = lambda: next(answers, "")
            assert await settle(old, taken) == []
            assert commits.failed == 2
            assert rows(path, "select acked from tidemill_subscription") == [(SLOTS,)]
            assert await drain(new) == []

    asyncio.run(run())


def test_an_event_in_hand_whose_row_may_exist_leaves_none_when_it_is_done(tmp_path: Path, commits: Commits) -> None:
    """A commit took effect without saying so, and nobody repeated it. It wrote a row for an event that still ran."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (first, second):
            feed = await subscribe(first, reader())
            await store(first, message("a"), message("b"))
            one, two = await take_all(feed, 2)
            commits.how = once("lost")
            with pytest.raises(writer.Unconfirmed):
                await settle(feed, [two])
            assert await settle(feed, [one]) == []
            await feed.close()
            assert await drain(await subscribe(second, reader())) == [], "what was acknowledged came again"

    asyncio.run(run())


def test_a_settlement_repeated_because_nobody_knew_counts_once(tmp_path: Path, commits: Commits) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock) as (broker,):
            feed = await subscribe(broker, reader(ordered=True))
            await store(broker, *(message("a") for _ in range(4)))
            taken = await take_all(feed, 4)
            batch = [(taken[0], ACK), (taken[1], Retry(5.0, "no")), (taken[2], RELEASE), (taken[3], RELEASE)]
            for how in ("lost", "gone", "lost"):
                commits.how = once(how)
                with pytest.raises(writer.Unconfirmed):
                    await feed.settle(batch)
            assert await feed.settle(batch) == []
            assert await take(feed) == []
            clock.advance(6)
            assert [(each.message.id, each.attempt) for each in await drain(feed)] == [
                (taken[1].message.id, 2),
                (taken[2].message.id, 1),
                (taken[3].message.id, 1),
            ]

    asyncio.run(run())


def test_a_subscription_that_was_cancelled_keeps_no_slots(tmp_path: Path) -> None:
    """Its process lives, and its lease is long: nobody would get these slots for half a minute."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (first, second):
            spec = reader()
            await first.declare([], [spec])
            waiting = asyncio.ensure_future(first.subscribe(spec))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert rows(path, "select count(*) from tidemill_consumer") == [(0,)]
            feed = await subscribe(second, spec)
            await store(second, *(message(key) for key in one_key_per_slot()))
            assert len(await take_all(feed, SLOTS)) == SLOTS

    asyncio.run(run())


def test_slots_change_hands_with_all_that_waits_in_them(tmp_path: Path) -> None:
    """Retries, followers behind them and released events go along, in order, with their attempts."""
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, 3, clock) as (first, second, publisher):
            spec = reader(ordered=True)
            old = await subscribe(first, spec)
            keys = one_key_per_slot()
            sent = [message(key) for _ in range(4) for key in keys]
            await store(publisher, *sent)
            taken = await take_all(old, len(sent))
            heads, followers = taken[:SLOTS], taken[SLOTS:]
            await settle(old, heads[: SLOTS // 2], Retry(60.0, "no"))
            await settle(old, followers, RELEASE)
            # Half of the heads still run while the other consumer comes, and half of the slots are to be left.
            new = await subscribe(second, spec)
            for _ in range(3):
                assert await take(new) == []
                assert await take(old) == []
            await settle(old, heads[SLOTS // 2 :], Retry(30.0, "no"))
            came: list[tuple[str, int]] = []
            for _ in range(40):
                clock.advance(10)
                for feed in (old, new):
                    for each in await take(feed):
                        assert await settle(feed, [each]) == []
                        came.append((each.message.id, each.attempt))
            assert new._slots.held, "nothing was handed over"
            assert sorted(came) == sorted((m.id, 2 if n < SLOTS else 1) for n, m in enumerate(sent))
            for key in keys:
                mine = [m.id for m in sent if m.key == key]
                assert [each for each, _ in came if each in mine] == mine

    asyncio.run(run())


def test_what_was_parked_is_not_lost_when_the_fetch_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run(turns: int) -> None:
        path = tmp_path / f"{turns}.db"
        clock = ManualClock()
        async with brokers(path, clock=clock) as (broker,):
            feed = await subscribe(broker, reader(ordered=True))
            await store(broker, message("a"))
            await settle(feed, await take(feed), Retry(10.0, "no"))
            sent = [message("a") for _ in range(5)]
            await store(broker, *sent)
            fetch = asyncio.ensure_future(take(feed, wait=1.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)
            await store(broker, message("a"))
            assert await take(feed) == []
            clock.advance(11)
            assert [each.position for each in await drain(feed, wait=0.05)] == [1, 2, 3, 4, 5, 6, 7]

    for turns in range(8):
        asyncio.run(run(turns))
    assert not path.exists()


def test_what_was_parked_is_not_lost_when_that_cannot_be_written(tmp_path: Path, commits: Commits) -> None:
    async def run() -> None:
        clock = ManualClock()
        async with brokers(tmp_path / "a.db", clock=clock) as (broker,):
            feed = await subscribe(broker, reader(ordered=True))
            await store(broker, message("a"))
            await settle(feed, await take(feed), Retry(10.0, "no"))
            await store(broker, *(message("a") for _ in range(5)))
            for how in ("full", "gone", "lost"):
                commits.how = once(how)
                with pytest.raises((BrokerError, writer.Unconfirmed)):
                    await take(feed, wait=1.0)
            assert await take(feed) == []
            clock.advance(11)
            assert [each.position for each in await drain(feed, wait=0.05)] == [1, 2, 3, 4, 5, 6]

    asyncio.run(run())


def test_a_closed_feed_brings_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            waiting = asyncio.ensure_future(take(feed, wait=30.0))
            await asyncio.sleep(0)
            await feed.close()
            assert await asyncio.wait_for(waiting, 5.0) == []
            await store(broker, message("a"))
            with pytest.raises(BrokerError, match="was closed"):
                await take(feed)

    asyncio.run(run())


def test_a_feed_that_closes_while_it_shares_out_brings_nothing(tmp_path: Path) -> None:
    """What it fetched after that would be handled by two."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (first, second):
            feed = await subscribe(first, reader())
            await store(first, message("a"))
            lose_everything(path)
            fetch = asyncio.ensure_future(take(feed))
            await asyncio.sleep(0)
            await feed.close()
            assert await fetch == []
            assert len(await take_all(await subscribe(second, reader()), 1)) == 1

    asyncio.run(run())


def test_two_feeds_in_one_process_and_one_in_another_share_the_slots(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (first, second):
            feeds: list[SqliteFeed] = [await subscribe(each, reader()) for each in (first, first, second)]
            for _ in range(4):
                for feed in feeds:
                    await take(feed)
            assert sorted(len(feed._slots.held) for feed in feeds) == [10, 11, 11]
            await feeds[0].close()
            for _ in range(4):
                for feed in feeds[1:]:
                    await take(feed)
            assert sorted(len(feed._slots.held) for feed in feeds[1:]) == [16, 16]

    asyncio.run(run())


def test_a_consumer_without_room_gives_its_share_to_one_that_comes(tmp_path: Path) -> None:
    """Its handlers take an hour, and what it has fetched is theirs. The rest is not."""

    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (first, second):
            busy = await subscribe(first, reader())
            await store(first, *(message(key) for key in one_key_per_slot()))
            held = await take_all(busy, 2)
            new = await subscribe(second, reader())
            assert await busy.fetch(0, 0.0, 0) == []
            came = await take_all(new, SLOTS // 2)
            assert {each.position for each in held}.isdisjoint({each.position for each in came})

    asyncio.run(run())


def test_slots_taken_in_a_fetch_that_a_drain_cancels_are_given_up_at_once(tmp_path: Path) -> None:
    """Nobody here knows of them, and the handlers that still run may take as long as the grace."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 3) as (first, second, third):
            feed, other = await subscribe(first, reader()), await subscribe(second, reader())
            for _ in range(3):
                await take(feed), await take(other)
            await other.close()
            fetch = asyncio.ensure_future(take(feed))
            await asyncio.sleep(0)  # its sharing out is under way
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)
            await feed.leave()
            new = await subscribe(third, reader())
            assert len(new._slots.held) == SLOTS

    asyncio.run(run())


def test_a_renewal_brings_nothing_back_that_was_lost(tmp_path: Path, commits: Commits) -> None:
    """Thought dead, a consumer joined anew, and was not told: what it held before may be with others."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (first, second):
            feed = await subscribe(first, reader())
            await store(first, message("a"))
            (before,) = await take_all(feed, 1)
            expire(path, feed)
            feed.lease.until = 0
            other = await subscribe(second, reader())
            (held,) = await take_all(other, 1)
            assert held.position == before.position
            commits.how = once("lost")
            with pytest.raises(writer.Unconfirmed):
                await take(feed)
            feed.lease.renewed(await first.write(feed.lease.renew))
            assert not feed.begin(before), "it would run twice at once"
            for _ in range(3):
                await take(feed), await take(other)
            await store(first, *(message(key) for key in one_key_per_slot()))
            assert feed.begin((await take_all(feed, 1))[0])

    asyncio.run(run())

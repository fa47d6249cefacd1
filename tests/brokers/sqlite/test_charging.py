"""What was running when a process died is charged, and keeps its place."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tidemill.brokers.sqlite import writer
from tidemill.brokers.sqlite.journal import CELLS
from tidemill.message import Failure
from tidemill.outcome import ACK, RELEASE, DeadLetter, Retry

from .rig import brokers, change, expire, kill, message, reader, rows, settle, store, subscribe, take_all


def test_what_is_charged_comes_before_the_later_events_of_its_key(tmp_path: Path) -> None:
    """They had waited behind a retry, and then been let go all together."""

    async def scenario() -> list[tuple[str, bool]]:
        async with brokers(tmp_path / "a.db", 2) as (one, other):
            feed = await subscribe(one, reader(ordered=True))
            await store(one, *(message("k", id=f"{number}") for number in range(5)))
            held = await take_all(feed, 5)
            await feed.settle([(held[0], Retry(0, "no")), *((each, RELEASE) for each in held[1:])])
            await feed.settle([(each, ACK) for each in await take_all(feed, 1)])
            held = await take_all(feed, 4)
            assert feed.begin(held[1])
            await kill(one)
            survivor = await subscribe(other, reader(ordered=True))
            return [(each.message.id, each.died) for each in await take_all(survivor, 4)]

    assert asyncio.run(scenario()) == [("1", False), ("2", True), ("3", False), ("4", False)]


def test_who_has_just_come_takes_nobody_for_dead_by_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All leases may be over because somebody stood still in the middle of writing, which a newcomer has not seen."""

    def owners() -> list[tuple[object, ...]]:
        return rows(tmp_path / "a.db", "select owner from tidemill_consumer order by owner")

    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (first, second):
            living = await subscribe(first, reader())
            expire(tmp_path / "a.db", living)
            newcomer = await subscribe(second, reader())
            assert (living.owner,) in owners()
            monkeypatch.setattr(writer, "CALM", 0.0)  # some time later nobody has renewed it
            await newcomer.share_out()
            assert owners() == [(newcomer.owner,)]

    asyncio.run(run())


def test_what_was_not_running_and_what_is_settled_is_not_charged(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (first, second):
            feed = await subscribe(first, reader())
            await store(first, *(message() for _ in range(6)))
            taken = await take_all(feed, 6)
            for delivery in taken[:4]:
                assert feed.begin(delivery)
            feed.end(taken[0])  # acknowledged, and not recorded any more
            taken[1].history = (Failure(1, 1, "OSError"),)
            assert await settle(feed, [taken[1]], Retry(0.0, "no")) == []
            assert await settle(feed, [taken[2]], DeadLetter("no")) == []
            await kill(first)
            other = await subscribe(second, reader())
            came = {each.message.id: each for each in await take_all(other, 5)}
            assert taken[2].message.id not in came
            found = [
                (came[each.message.id].attempt, came[each.message.id].died) for each in (taken[0], taken[1], *taken[3:])
            ]
            assert found == [(1, False), (2, False), (1, True), (1, False), (1, False)]
            died = came[taken[3].message.id]
            assert [(failure.attempt, failure.died) for failure in died.history] == [(1, True)]
            # The policy has its say, and the next run is the second.
            assert await settle(other, [died], Retry(0.0, "died")) == []
            (again,) = await take_all(other, 1)
            assert (again.attempt, again.died) == (2, False)

    asyncio.run(run())


def test_a_failure_that_was_not_recorded_is_charged(tmp_path: Path) -> None:
    """Whatever a handler that began came to: until it is recorded, its process may die of it."""

    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (first, second):
            feed = await subscribe(first, reader())
            await store(first, message())
            (delivery,) = await take_all(feed, 1)
            assert feed.begin(delivery)
            await kill(first)  # in the moment in which its retry was to be recorded
            other = await subscribe(second, reader())
            (came,) = await take_all(other, 1)
            assert (came.attempt, came.died) == (1, True)

    asyncio.run(run())


def test_a_journal_frees_its_cells(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            journal = broker._life.journal if broker._life else None
            assert journal is not None
            free = len(journal._free)
            await store(broker, *(message() for _ in range(5)))
            taken = await take_all(feed, 5)
            for delivery in taken:
                assert feed.begin(delivery)
            feed.end(taken[0])
            assert len(journal._free) == free - 4
            await settle(feed, [taken[0]])
            await settle(feed, [taken[1]], Retry(0.0, "no"))
            await settle(feed, [taken[2]], DeadLetter("no"))
            assert len(journal._free) == free - 2
            feed._thought_dead()
            assert len(journal._free) == free

    asyncio.run(run())


def test_the_end_of_a_run_whose_lease_was_lost_ends_no_other_run(tmp_path: Path) -> None:
    """Its handler goes on for a moment after its cancellation, while the same event runs here again."""

    async def scenario() -> list[tuple[int, bool]]:
        path = tmp_path / "a.db"
        async with brokers(path, 2) as (one, other):
            feed = await subscribe(one, reader())
            await store(one, message("k"))
            (before,) = await take_all(feed, 1)
            assert feed.begin(before)
            change(path, "update tidemill_slot set owner = null")
            change(path, "update tidemill_subscription set generation = generation + 1")
            (again,) = await take_all(feed, 1)
            assert feed.begin(again)
            feed.end(before)
            await kill(one)
            return [(each.attempt, each.died) for each in await take_all(await subscribe(other, reader()), 1)]

    assert asyncio.run(scenario()) == [(1, True)]


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_replay_is_not_charged_what_was_given_up(attempts: int, tmp_path: Path) -> None:
    """The event was given up, and its process died before it knew. Somebody replays it before anybody takes over."""

    async def scenario() -> list[tuple[int, bool, int]]:
        async with brokers(tmp_path / "a.db", 2) as (one, other):
            feed = await subscribe(one, reader())
            await store(one, message("k"))
            for attempt in range(1, attempts + 1):
                (held,) = await take_all(feed, 1)
                assert feed.begin(held)
                held.history = (*held.history, Failure(attempt, 0, "no"))
                if attempt < attempts:
                    await settle(feed, [held], Retry(0.0, "no"))
            feed._begun.end = lambda _: None  # type: ignore[method-assign]  it dies before
            await settle(feed, [held], DeadLetter("no"))
            await kill(one)
            assert await other.resolve("replay", [1], by="me") == [1]
            again = await take_all(await subscribe(other, reader()), 1)
            return [(each.attempt, each.died, len(each.history)) for each in again]

    assert asyncio.run(scenario()) == [(1, False, attempts)]


def test_what_cannot_be_written_down_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More handlers than ever before, and the disk is full: nobody would know of them if the process died."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, *(message() for _ in range(CELLS + 1)))
            held = await take_all(feed, CELLS + 1)
            monkeypatch.setattr(os, "pwrite", full)
            assert [feed.begin(each) for each in held] == [True] * CELLS + [False]
            feed.end(held[0])
            assert feed.begin(held[-1])

    asyncio.run(scenario())

"""What was running when a process died is charged, and keeps its place."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tidemill.brokers.sqlite.journal import CELLS
from tidemill.message import Failure
from tidemill.outcome import ACK, RELEASE, DeadLetter, Retry

from .rig import brokers, change, kill, message, reader, settle, store, subscribe, take_all


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

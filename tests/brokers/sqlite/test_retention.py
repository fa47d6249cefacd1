"""What is removed, and what never is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidemill.broker import TopicSpec
from tidemill.brokers.sqlite import retention
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.outcome import ACK, DeadLetter, Retry

from .rig import (
    ManualClock,
    brokers,
    drain,
    ids,
    message,
    reader,
    rows,
    settle,
    store,
    subscribe,
    take,
    take_all,
)

AT_ONCE = TopicSpec("orders", "customer", 0.0)


async def purge(broker: SqliteBroker) -> int:
    return await broker.write(broker._retention.purge)


def seqs(path: Path) -> list[object]:
    return [seq for (seq,) in rows(path, "select seq from tidemill_log order by seq")]


def test_only_what_everyone_has_settled_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock, topic=AT_ONCE) as (broker,):
            one, two = [await subscribe(broker, reader(name)) for name in ("a.one", "a.two")]
            await store(broker, *(message("a") for _ in range(6)))
            first = await take_all(one, 6)
            await one.settle(
                [
                    (first[0], ACK),
                    (first[1], Retry(3600.0, "no")),
                    (first[2], DeadLetter("never")),
                    (first[4], ACK),  # the fourth still runs: a gap
                    (first[5], ACK),
                ]
            )
            clock.advance(1)
            assert await purge(broker) == 0, "the other subscription has settled nothing"
            await drain(two)
            assert await purge(broker) == 2
            assert seqs(path) == [2, 3, 4, 6], "a retry, a dead letter, one in hand, and the last one"
            await settle(one, [first[3]])
            clock.advance(3601)
            assert [each.attempt for each in await drain(one)] == [2]
            assert await purge(broker) == 2
            assert seqs(path) == [3, 6]
            (letter,) = await broker.dead_letters()
            assert letter.message == first[2].message, "a dead letter outlives the retention"

    asyncio.run(run())


def test_the_last_event_stays_and_no_number_is_used_twice(tmp_path: Path) -> None:
    """Positions are numbers of events: one used twice would be an event that everybody has already handled."""
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        for round_ in range(3):
            async with brokers(path, clock=clock, topic=AT_ONCE) as (broker,):
                feed = await subscribe(broker, reader())
                sent = [message("a"), message("b")]
                await store(broker, *sent)
                assert ids(await drain(feed)) == ids_of(sent)
                clock.advance(1)
                await purge(broker)
                assert seqs(path) == [2 * round_ + 2]
                assert await purge(broker) == 0

    def ids_of(sent: list[object]) -> list[str]:
        return [each.id for each in sent]  # type: ignore[attr-defined]

    asyncio.run(run())


def test_age_is_counted_from_when_an_event_was_published(tmp_path: Path) -> None:
    """An event may tell of something that happened years ago, or not say when: its retention begins now."""
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock, topic=TopicSpec("orders", None, 60.0)) as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, message(time=1), message(time=clock.now() + 10**18), message())
            await drain(feed)
            clock.advance(59)
            assert await purge(broker) == 0
            clock.advance(2)
            assert await purge(broker) == 2
            assert seqs(path) == [3]

    asyncio.run(run())


def test_a_topic_that_nobody_subscribes_to_ages_too(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock, topic=AT_ONCE) as (broker,):
            await store(broker, *(message() for _ in range(3)))
            clock.advance(1)
            assert await purge(broker) == 2

    asyncio.run(run())


def test_it_keeps_up_with_what_is_published(tmp_path: Path, monkeypatch: object) -> None:
    """Not five hundred a round: a file must not grow for ever because the service is busy."""
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock, topic=AT_ONCE, synchronous="normal") as (broker,):
            feed = await subscribe(broker, reader())
            await feed.close()
            assert not broker._retention.due(), "not at start: commands that only look must not clean up"
            broker._retention._next = 0.0
            for _ in range(6):
                await store(broker, *(message() for _ in range(1000)))
            clock.advance(1)
            # Unsettled events come first, and must not stop it from getting to the others.
            rounds = 0
            while rounds < 100:
                rounds += 1
                await purge(broker)
                if not broker._retention.due():
                    break
            assert seqs(path) == [*range(1, 6001)], "unsettled"
            feed = await subscribe(broker, reader())
            assert len(await drain(feed)) == 6000
            broker._retention._next = 0.0
            rounds = 0
            while broker._retention.due():
                rounds += 1
                await purge(broker)
            assert seqs(path) == [6000]
            assert rounds < 60, f"{rounds} rounds: at one every half second it never catches up"

    asyncio.run(run())


def test_it_runs_by_itself(tmp_path: Path, monkeypatch: object) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, topic=AT_ONCE) as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, *(message() for _ in range(3)))
            await drain(feed)
            broker._retention._next = 0.0
            for _ in range(200):
                if len(seqs(path)) == 1:
                    break
                assert await take(feed, wait=0.05) == []
            assert seqs(path) == [3]
            assert not broker._retention.due()

    asyncio.run(run())
    assert retention.AT_ONCE < 0.1

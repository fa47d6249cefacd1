"""Dead letters in the file: what a replay or a discard by another process means for a consumer that goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidemill.broker import Status, TopicSpec
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.brokers.sqlite.feed import SqliteFeed
from tidemill.brokers.sqlite.rows import NEVER
from tidemill.message import Delivery, Failure
from tidemill.outcome import ACK, RELEASE, DeadLetter, Retry

from .rig import (
    ManualClock,
    brokers,
    drain,
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

NO = DeadLetter("no")


async def replay(broker: SqliteBroker) -> list[int]:
    return await broker.resolve("replay", [letter.number for letter in await broker.dead_letters()], by="zoe")


async def discard(broker: SqliteBroker) -> list[int]:
    return await broker.resolve("discard", [letter.number for letter in await broker.dead_letters()], by="zoe")


def exceptions(path: Path) -> list[tuple[object, ...]]:
    return rows(path, "select seq, due from tidemill_exception order by seq")


def test_what_is_replayed_behind_an_event_in_hand_goes_on_though_its_consumer_has_not_looked(tmp_path: Path) -> None:
    """The consumer settles the event that the replayed one waits for before it has seen that there is one."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (one, two):
            feed = await subscribe(one, reader(ordered=True))
            await store(one, message("a"), message("a"))
            first, second = await take_all(feed, 2)
            await feed.settle([(first, Retry(0.0, "no")), (second, NO)])
            (first,) = await take_all(feed, 1)
            assert len(await replay(two)) == 1
            assert [due is None for _, due in exceptions(path)] == [False, True]
            await settle(feed, [first])
            assert exceptions(path) == [(2, 0)]
            assert ids(await drain(feed, 0.1)) == [second.message.id]

    asyncio.run(run())


def test_what_comes_later_waits_behind_what_waits_behind_a_retry(tmp_path: Path) -> None:
    """The consumer learns of keys that wait by what others replay."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (one, two):
            feed = await subscribe(one, reader(ordered=True))
            await store(one, message("a"), message("a"))
            first, second = await take_all(feed, 2)
            await feed.settle([(first, Retry(0.0, "no")), (second, NO)])
            (first,) = await take_all(feed, 1)
            assert feed._blocked == {}
            await replay(two)
            await store(one, message("a", id="later"))
            assert await take(feed) == []
            assert feed._blocked == {"a": 2}
            await settle(feed, [first])
            assert ids(await take_all(feed, 2)) == [second.message.id, "later"]
            assert feed._blocked == {}

    asyncio.run(run())


async def parked(broker: SqliteBroker, **options: object) -> tuple[SqliteFeed, list[Delivery]]:
    """The second of four events of a key is parked."""
    feed = await subscribe(broker, reader(ordered=True, parks=True, **options))
    await store(broker, *(message("a") for _ in range(4)))
    taken = await take_all(feed, 4)
    await feed.settle([(taken[0], ACK), (taken[1], NO), (taken[2], RELEASE), (taken[3], RELEASE)])
    return feed, taken


def test_a_parked_key_waits_whatever_happens(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            await parked(broker)
            waiting = [(2, NEVER), (3, None), (4, None)]
            assert exceptions(path) == waiting
            await kill(broker)
        async with brokers(path) as (broker,):
            feed = await subscribe(broker, reader(ordered=True, parks=True))
            assert await take(feed, wait=0.05) == []
            assert exceptions(path) == waiting
            await store(broker, message("b", id="other"), message("a", id="fifth"))
            assert ids(await drain(feed, 0.05)) == ["other"]
            (status,) = (await broker.inspect()).subscriptions
            assert (status.backlog, status.retrying, status.dead) == (3, 0, 1)

    asyncio.run(run())


def test_a_discard_by_another_process_frees_a_key_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (one, two):
            feed, taken = await parked(one)
            waiting = asyncio.create_task(take_all(feed, 2))
            await asyncio.sleep(0)
            await discard(two)
            assert ids(await waiting) == ids(taken[2:])
            assert feed._blocked == {}

    asyncio.run(run())


@pytest.mark.parametrize("ordered", [True, False])
def test_a_handler_that_parks_no_more_keeps_what_is_parked(tmp_path: Path, ordered: bool) -> None:
    """Somebody has to decide about it all the same; what is given up from now on holds up nobody."""

    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed, taken = await parked(broker)
            await feed.close()
            feed = await subscribe(broker, reader(ordered=ordered))
            assert await take(feed, wait=0.05) == []
            await discard(broker)
            assert ids(await drain(feed, 0.2)) == ids(taken[2:])
            await store(broker, message("a"), message("a", id="last"))
            first, last = await take_all(feed, 2)
            await feed.settle([(first, NO), (last, ACK)])
            assert [letter.parked for letter in await broker.dead_letters()] == [False]

    asyncio.run(run())


def test_retention_waits_for_the_decision(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock, topic=TopicSpec("orders", "customer", 0.0)) as (broker,):
            feed = await subscribe(broker, reader())
            sent = [message("a"), message("a")]
            await store(broker, *sent, message("a"))
            taken = await take_all(feed, 3)
            await feed.settle([(taken[0], NO), (taken[1], NO), (taken[2], ACK)])

            async def kept() -> list[object]:
                clock.advance(1)
                await broker.write(broker._retention.purge)
                return [seq for (seq,) in rows(path, "select seq from tidemill_log order by seq")]

            assert await kept() == [1, 2, 3]
            assert [receipt.status for receipt in await broker.publish(sent)] == [Status.DUPLICATE] * 2
            first, second = await broker.dead_letters()
            assert await broker.resolve("discard", [first.number], by="zoe") == [first.number]
            assert await kept() == [2, 3]
            assert await broker.resolve("replay", [second.number], by="zoe") == [second.number]
            assert await kept() == [2, 3]
            assert ids(await drain(feed, 0.1)) == [sent[1].id]
            assert await kept() == [3]
            assert [line.message_id for line in await broker.resolutions()] == [sent[0].id, sent[1].id]

    asyncio.run(run())


def test_a_number_is_never_that_of_another(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            numbers = []
            for _ in range(3):
                await store(broker, message())
                await settle(feed, await take_all(feed, 1), NO)
                numbers += await discard(broker)
            assert numbers == [1, 2, 3]

    asyncio.run(run())


def test_the_fate_of_what_was_resolved(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, message(id="m", correlation_id="m"))
            for _ in range(2):
                (delivery,) = await take_all(feed, 1)
                delivery.history = (*delivery.history, Failure(1, 1, "OSError: no"))
                await settle(feed, [delivery], NO)
                (fate,) = (await broker.trace("m")).fates
                assert fate.state == "dead"
                await replay(broker)
            (fate,) = (await broker.trace("m")).fates
            assert (fate.state, fate.attempts, len(fate.history)) == ("pending", 1, 2)
            await settle(feed, await take_all(feed, 1))
            (fate,) = (await broker.trace("m")).fates
            assert (fate.state, fate.attempts, len(fate.history)) == ("acked", 1, 2)
            await store(broker, message(id="n", correlation_id="n"))
            await settle(feed, await take_all(feed, 1), DeadLetter("never"))
            await discard(broker)
            (fate,) = (await broker.trace("n")).fates
            assert (fate.state, fate.reason) == ("dead", "never"), "it was not handled, and nobody waits for it"

    asyncio.run(run())


def test_namespaces_do_not_resolve_each_others(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with (
            brokers(path, namespace="one") as (one,),
            brokers(path, namespace="two") as (two,),
            brokers(path) as (none,),
        ):
            for broker in (one, two, none):
                feed = await subscribe(broker, reader())
                await store(broker, message())
                await settle(feed, await take_all(feed, 1), NO)
            (letter,) = await one.dead_letters()
            for other in (two, none):
                assert letter.number not in [each.number for each in await other.dead_letters()]
                assert await other.resolve("discard", [letter.number], by="max") == []
            assert await discard(one) == [letter.number]
            assert [line.subscription for line in await one.resolutions()] == ["shop.handle"]
            for other in (two, none):
                assert await other.resolutions() == []
                assert len(await other.dead_letters()) == 1

    asyncio.run(run())


def test_a_renamed_subscription_takes_its_dead_letters_along(tmp_path: Path) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, message(), message())
            await settle(feed, await take_all(feed, 2), NO)
            await feed.close()
            await broker.resolve("discard", [1], by="zoe")
            feed = await subscribe(broker, reader("shop.new", renamed_from="shop.handle"))
            assert [letter.subscription for letter in await broker.dead_letters()] == ["shop.new"]
            assert [line.subscription for line in await broker.resolutions()] == ["shop.new"]
            await replay(broker)
            assert len(await drain(feed, 0.1)) == 1

    asyncio.run(run())

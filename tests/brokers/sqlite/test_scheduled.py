"""Events with a delay: they wait in the file, and appear once, whichever process is alive then."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidemill.broker import Status

from .rig import ManualClock, broker_at, brokers, drain, ids, kill, message, reader, rows, store, subscribe, take


def test_they_survive_the_process_that_published_them(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        publisher = broker_at(path, clock)
        await publisher.open()
        later, sooner = message("a"), message("a")
        await publisher.publish([later], due=clock.now() + 20 * 10**9)
        await publisher.publish([sooner], due=clock.now() + 10 * 10**9)
        await kill(publisher)
        async with brokers(path, clock=clock) as (broker,):
            feed = await subscribe(broker, reader(ordered=True))
            assert await drain(feed, wait=0.05) == []
            clock.advance(30)
            assert ids(await drain(feed, wait=0.2)) == [sooner.id, later.id]
            assert rows(path, "select * from tidemill_scheduled") == []

    asyncio.run(run())


def test_all_processes_see_them_appear_and_they_appear_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, 3, clock) as (one, two, publisher):
            feeds = [await subscribe(one, reader("a.one")), await subscribe(two, reader("a.two"))]
            due = clock.now() + 10**9
            sent = [message(str(number)) for number in range(2500)]
            for start in range(0, 2500, 500):
                await publisher.publish(sent[start : start + 500], due=due)
            for feed in feeds:
                assert await take(feed) == []
            clock.advance(2)
            came = await asyncio.gather(*(drain(feed, wait=0.5) for feed in feeds))
            for each in came:
                assert ids(each) == [each.id for each in sent]

    asyncio.run(run())


def test_an_identity_is_stored_once_whether_at_once_or_later(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        clock = ManualClock()
        async with brokers(path, clock=clock) as (broker,):
            feed = await subscribe(broker, reader())
            now_first, later_first = message(), message()
            due = clock.now() + 10**9
            await store(broker, now_first)
            statuses = [
                (await broker.publish([now_first], due=due))[0].status,
                (await broker.publish([later_first], due=due))[0].status,
                (await broker.publish([later_first], due=due))[0].status,
            ]
            assert statuses == [Status.DUPLICATE, Status.STORED, Status.DUPLICATE]
            await broker.publish([later_first])
            clock.advance(2)
            assert sorted(ids(await drain(feed, wait=0.1))) == sorted([now_first.id, later_first.id])

    asyncio.run(run())


def test_a_time_that_is_over_is_now(tmp_path: Path) -> None:
    async def run() -> None:
        clock = ManualClock()
        async with brokers(tmp_path / "a.db", clock=clock) as (broker,):
            feed = await subscribe(broker, reader())
            await broker.publish([message()], due=clock.now() - 10**9)
            assert len(await drain(feed)) == 1

    asyncio.run(run())

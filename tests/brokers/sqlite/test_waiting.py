"""Waiting for news: what wakes a feed, and what must not keep the process busy."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from tidemill.brokers.sqlite import inspection
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.errors import BrokerError, StorageFull
from tidemill.outcome import Retry

from .rig import MAX_BYTES, brokers, message, reader, store, subscribe


class Counted:
    """How often a broker looked at its file."""

    def __init__(self, broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        tick = broker.tick

        def counting() -> None:
            self.times += 1
            tick()

        monkeypatch.setattr(broker, "tick", counting)


def test_a_busy_feed_with_a_retry_that_is_due_does_not_keep_the_others_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            busy = await subscribe(broker, reader("shop.busy"))
            idle = await subscribe(broker, reader("shop.idle", types=("other",)))
            await store(broker, message())
            (delivery,) = await busy.fetch(1, 1.0, MAX_BYTES)
            await busy.settle([(delivery, Retry(0.0, "again"))])  # due at once, and nobody fetches it
            ticks = Counted(broker, monkeypatch)
            assert await idle.fetch(1, 0.5, MAX_BYTES) == []
            assert ticks.times < 30
            assert len(await busy.fetch(1, 1.0, MAX_BYTES)) == 1

    asyncio.run(run())


def test_a_retry_comes_when_it_is_due_and_not_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.brokers.sqlite.broker.TICK", 30.0)
    monkeypatch.setattr("tidemill.brokers.sqlite.broker.TICK_WITHOUT_BELL", 30.0)

    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            await store(broker, message())
            (delivery,) = await feed.fetch(1, 1.0, MAX_BYTES)
            await feed.settle([(delivery, Retry(0.1, "again"))])
            (again,) = await asyncio.wait_for(feed.fetch(1, 20.0, MAX_BYTES), 5)
            assert again.attempt == 2

    asyncio.run(run())


def test_events_that_cannot_appear_are_not_tried_a_thousand_times_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            feed = await subscribe(broker, reader())
            tried: list[None] = []
            appear = broker._appear

            def full(connection: Any) -> None:
                tried.append(None)
                raise StorageFull("no room")

            monkeypatch.setattr(broker, "_appear", full)
            await broker.publish([message()], due=broker.clock.now() + 10_000_000)
            assert await feed.fetch(1, 0.6, MAX_BYTES) == []
            assert 1 <= len(tried) <= 3
            monkeypatch.setattr(broker, "_appear", appear)
            assert len(await feed.fetch(1, 5.0, MAX_BYTES)) == 1

    asyncio.run(run())


def test_looking_at_a_long_backlog_does_not_stop_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()

    def seen(name: str) -> None:
        real = getattr(inspection, name)

        def looking(*arguments: Any) -> Any:
            threads.add(threading.current_thread().name)
            return real(*arguments)

        monkeypatch.setattr(inspection, name, looking)

    for name in ("inspect", "dead_letters", "trace"):
        seen(name)

    async def run() -> None:
        async with brokers(tmp_path / "a.db") as (broker,):
            await subscribe(broker, reader())
            await store(broker, message())
            assert (await broker.inspect()).subscriptions[0].backlog == 1
            assert await broker.dead_letters() == []
            assert (await broker.trace("nobody")).messages == []
        with pytest.raises(BrokerError, match="is not open"):
            await broker.inspect()

    asyncio.run(run())
    assert threads
    assert threading.main_thread().name not in threads

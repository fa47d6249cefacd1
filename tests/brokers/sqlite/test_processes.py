"""Real processes on one file: killed, stopped for longer than their lease, blocked, forked, idle."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tidemill import publisher as publisher_module
from tidemill.broker import Subscription
from tidemill.errors import PublishError
from tidemill.publisher import Publisher

from . import worker as worker_module
from .rig import brokers, drain, ids, message, rows, settle, store, subscribe, take, take_all

SPEC = worker_module.spec()


class Process:
    """A worker, and what it says."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, worker_module.__file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    async def says(self, word: str, seconds: float = 20.0) -> list[str]:
        """Its next line, which begins with `word`."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), seconds)
        words = line.split()
        assert words, f"it ended with {self.process.wait()}"
        assert words[0] == word, line
        return words[1:]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        if number is signal.SIGSTOP:
            while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)


@pytest.fixture
def run_worker() -> Iterator[type[Process]]:
    started: list[Process] = []

    class Started(Process):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            started.append(self)

    yield Started
    for each in started:
        each.process.kill()
        each.process.wait()
        assert each.process.stdout is not None
        each.process.stdout.close()


def reader(lease: float) -> Subscription:
    return worker_module.spec(str(lease))


def test_a_killed_process_is_replaced_at_once(tmp_path: Path, run_worker: type[Process]) -> None:
    """Not when its lease of 30 seconds ends: the kernel says that it is gone."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            victim = run_worker("consume", path, 30, 60)
            await victim.says("ready")
            sent = [message(str(number)) for number in range(40)]
            await store(broker, *sent)
            await victim.says("got")
            feed = await broker.subscribe(SPEC)
            assert await take(feed, wait=0.2) == []
            victim.signal(signal.SIGKILL)
            killed = time.monotonic()
            came = await take_all(feed, 40)
            assert time.monotonic() - killed < 2.0
            assert sorted(ids(came)) == sorted(each.id for each in sent)
            assert {each.attempt for each in came} == {1}
            assert await settle(feed, came) == []

    asyncio.run(run())


def test_a_process_that_stood_still_for_too_long_loses_what_it_had(tmp_path: Path, run_worker: type[Process]) -> None:
    """Its outcomes come late, are reported so, and do not count."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            zombie = run_worker("consume", path, 1, 1.5)
            await zombie.says("ready")
            sent = [message(str(number)) for number in range(20)]
            await store(broker, *sent)
            got = (await zombie.says("got"))[1:]
            assert len(got) == 20
            zombie.signal(signal.SIGSTOP)
            feed = await subscribe(broker, reader(30.0))
            came = await take_all(feed, 20)
            assert await settle(feed, came[:10]) == []
            zombie.signal(signal.SIGCONT)
            assert sorted(await zombie.says("late")) == sorted(got)
            assert await settle(feed, came[10:]) == []
            assert rows(path, "select acked from tidemill_subscription") == [(20,)]
            # It is back, and gets its share of what comes.
            waiting = asyncio.ensure_future(zombie.says("got"))
            while not waiting.done():
                await store(broker, *(message(str(number)) for number in range(40)))
                await drain(feed)
            await waiting

    asyncio.run(run())


def test_a_blocked_event_loop_costs_no_lease(tmp_path: Path, run_worker: type[Process]) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            blocked = run_worker("block", path, 1.2, 3)
            await broker.declare([], [SPEC])
            await store(broker, *(message(str(number)) for number in range(20)))
            got = await blocked.says("got")
            feed = await broker.subscribe(reader(30.0))
            assert await take(feed, wait=2.0) == [], "its lease was lost"
            assert await blocked.says("late") == []
            assert len(got) == 20
            assert await drain(feed) == []

    asyncio.run(run())


def test_a_process_stopped_inside_a_transaction_holds_up_nobody_for_good(
    tmp_path: Path, run_worker: type[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishers are told that they cannot know; when it goes on, so does everyone."""
    path = tmp_path / "a.db"
    monkeypatch.setattr(publisher_module, "CONFIRM", 0.3)

    async def run() -> None:
        async with brokers(path) as (broker,):
            feed = await subscribe(broker, SPEC)
            first = message("a")
            await store(broker, first)
            in_hand = await take_all(feed, 1)
            holder = run_worker("transaction", path, 0.1)
            await holder.says("inside")
            holder.signal(signal.SIGSTOP)
            publisher = Publisher(broker)
            second = message("a")
            with pytest.raises(PublishError, match="publish again with the same id") as caught:
                await publisher.publish(second)
            assert "did not confirm within 0.3 s" in str(caught.value)
            settling = asyncio.ensure_future(settle(feed, in_hand))
            assert await take(feed, wait=0.1) == [], "reading goes on"
            assert not settling.done()
            holder.signal(signal.SIGCONT)
            assert await settling == []
            assert (await publisher.publish(second)).ok
            assert ids(await drain(feed, wait=0.2)) == [second.id]
            await holder.says("outside")

    asyncio.run(run())


def test_a_fork_leaves_the_parent_unharmed(tmp_path: Path, run_worker: type[Process]) -> None:
    """The child is told that it needs a connection of its own."""

    async def run() -> None:
        process = run_worker("fork", tmp_path / "a.db")
        text = " ".join(await process.says("child:"))
        assert "opened before this process was forked" in text
        assert "nothing was stored. Connect again in this process." in text
        assert "was closed" in " ".join(await process.says("child:"))
        assert await process.says("parent") == ["got", "p", "late", "0"]
        assert process.process.wait(10) == 0

    asyncio.run(run())


def test_a_child_that_outlives_its_parent_keeps_no_lock(tmp_path: Path, run_worker: type[Process]) -> None:
    """Neither the parent's sign of life nor the write lock: both would be inherited."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            parent = run_worker("orphan", path)
            await broker.declare([], [SPEC])
            sent = message("a")
            await store(broker, sent)
            child, *_ = await parent.says("child")
            try:
                feed = await broker.subscribe(SPEC)
                parent.signal(signal.SIGKILL)
                killed = time.monotonic()
                assert ids(await take_all(feed, 1)) == [sent.id]
                assert time.monotonic() - killed < 2.0
                await store(broker, message("a"))
            finally:
                os.kill(int(child), signal.SIGKILL)

    asyncio.run(run())


def test_an_idle_consumer_costs_next_to_nothing(tmp_path: Path, run_worker: type[Process]) -> None:
    async def run() -> None:
        idle = run_worker("idle", tmp_path / "a.db")
        await idle.says("ready")
        process = psutil.Process(idle.pid)
        # The least of three: other work on the machine must not fail this.
        shares: list[float] = []
        for _ in range(3):
            await asyncio.sleep(0.2)
            before, started = sum(process.cpu_times()[:2]), time.monotonic()
            await asyncio.sleep(2.0)
            shares.append((sum(process.cpu_times()[:2]) - before) / (time.monotonic() - started))
            if shares[-1] < 0.01:
                break
        assert min(shares) <= 0.015, f"{shares} of a core"

    asyncio.run(run())


def test_another_process_gets_an_event_within_milliseconds(tmp_path: Path, run_worker: type[Process]) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            consumer = run_worker("consume", path, 30, 0)
            await consumer.says("ready")
            taken: list[float] = []
            for _ in range(40):
                await store(broker, message("a"))
                sent = time.time()
                taken.append(float((await consumer.says("got"))[0]) - sent)
                await consumer.says("late")
                await asyncio.sleep(0.005)
            median = statistics.median(taken)
            print(f"median {median * 1000:.1f} ms, worst {max(taken) * 1000:.1f} ms")
            assert median < (0.05 if os.environ.get("CI") else 0.02)

    asyncio.run(run())

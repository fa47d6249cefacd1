"""G1, G6, G7 with real processes that share the broker, and end as processes do: SIGTERM, SIGKILL, SIGSTOP."""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack

from ... import Service
from ...broker import Subscription, TopicSpec
from ..history import Fact
from ..worker import StepTaken
from .place import Place, collect
from .scenario import promise
from .workers import Workers, steps

CONSUME = "consume"
PUBLISH = "publish"
LATENCY = 0.050
"""Seconds that an idle process may take to see another's event: the median, on a slow and busy machine."""


@promise("G1", needs=("processes", "durable"))
async def two_processes_share_the_work(place: Place) -> None:
    """Each event is handled once, and both handle some."""
    async with Workers(place) as workers, publishing(place) as publisher:
        one, two = await asyncio.gather(workers.start(CONSUME), workers.start(CONSUME))
        published = 0

        async def shared() -> bool:
            nonlocal published
            await publisher.publish_many(steps(32, published, published + 1))
            published += 1
            return workers.ended_by(one) >= 20 and workers.ended_by(two) >= 20

        await place.until(shared, "both processes handle events")
        await place.handled("walker.walk")
        _check_once(workers.ended(), 32 * published)
        _check_order(workers)
        await asyncio.gather(workers.stop(one), workers.stop(two))


@promise("G1", "G3", needs=("processes", "durable"))
async def a_killed_consumers_events_are_handled_by_another(place: Place) -> None:
    """kill -9 while handlers run: another process handles what was not finished within seconds; what was finished and
    recorded is not repeated."""
    async with Workers(place) as workers, publishing(place) as publisher:
        victim = await workers.start(CONSUME, "--hangs-from", 5)
        other = await workers.start(CONSUME)
        await publisher.publish_many(steps(40, 0, 5))
        await place.handled("walker.walk")
        await place.until(lambda: workers.ended_by(victim) and workers.ended_by(other), "both handle events")
        before = len(workers.ended())
        await publisher.publish_many(steps(40, 5, 8))
        await place.until(lambda: running_in(workers, victim.pid), "handlers hang in one process")
        workers.kill(victim)
        began = time.monotonic()
        await place.handled("walker.walk")
        assert time.monotonic() - began < 5.0
        assert before == 200
        _check_once(workers.ended(), 320)
        _check_order(workers)
        await workers.stop(other)


@promise("G1", needs=("processes", "durable"))
async def a_consumer_that_died_alone_is_replaced(place: Place) -> None:
    """Nobody else is there when it is killed: the next process to start goes on where it was."""
    async with Workers(place) as workers, publishing(place) as publisher:
        victim = await workers.start(CONSUME, "--hangs-from", 3)
        await publisher.publish_many(steps(10, 0, 4))
        await place.handled("walker.walk", 10)
        await place.until(lambda: len(running_in(workers, victim.pid)) == 10, "ten handlers hang")
        workers.kill(victim)
        began = time.monotonic()
        other = await workers.start(CONSUME)
        await place.handled("walker.walk")
        assert time.monotonic() - began < 5.0
        _check_once(workers.ended(), 40)
        _check_order(workers)
        await workers.stop(other)


@promise("G5", "G4", needs=("processes", "durable"))
async def an_event_that_kills_its_process_is_given_up(place: Place) -> None:
    """Its handler ends the process, every time: each crash is an attempt, after the last one it is a dead letter, and
    its neighbours are handled."""
    async with Workers(place) as workers, publishing(place) as publisher:
        poison = StepTaken("poison", 7)
        subscription = Subscription(name="walker.walk", topic="steps", ordered=True)
        await (await place.broker()).declare([TopicSpec("steps", "key")], [subscription])
        await publisher.publish_many([*steps(4, 0, 2), poison, *steps(4, 2, 4)])
        await publisher.publish(StepTaken("poison", 8))

        async def over() -> bool:
            return process.poll() is not None or (await place.status("walker.walk")).backlog == 0

        for _ in range(5):
            process = workers.spawn(CONSUME, "--dies-at", 7, "--attempts", 3)
            await place.until(over, "the process dies, or all is handled")
        (letter,) = await (await place.broker()).dead_letters("walker.walk")
        assert (letter.message.key, letter.attempts) == ("poison", 3)
        assert len(_finished(workers)) == 17
        assert sum(1 for fact in workers.history.of("began") if fact.number == 7) == 3


@promise("G1", "G2", needs=("processes", "durable", "history"))
async def a_killed_publisher_loses_nothing_it_confirmed(place: Place) -> None:
    """kill -9 in the middle of publishing, some times: every event that was reported as confirmed is there, once, in
    order."""
    async with Workers(place) as workers:
        keys = list("abcd")
        for _ in range(3):
            process = await workers.start(PUBLISH, "--keys", *keys)
            count = len(workers.history.of("confirmed"))
            await workers.wait_for("confirmed", count + 40)
            workers.kill(process)
            confirmed_last = {fact.key: fact.number for fact in workers.history.of("confirmed")}
            # The last one again, and the next, of which nobody knows.
            keys = [f"{key}={number}" for key, number in confirmed_last.items()]
        confirmed = {fact.id for fact in workers.history.of("confirmed")}
        stored = await collect((await place.another()).read("steps"))
        identities = [each.id for each in stored]
        assert confirmed <= set(identities)
        assert len(set(identities)) == len(identities)
        for key in "abcd":
            found = [int(each.id.partition("-")[2]) for each in stored if each.key == key]
            assert found == list(range(len(found)))


@promise("G7", "G1", needs=("processes", "durable"))
async def a_rolling_restart_loses_and_repeats_nothing(place: Place) -> None:
    """One process after the other is replaced under load, by SIGTERM: each event is handled exactly once, in order, at
    its first attempt, and every process ends with exit code 0."""
    async with Workers(place) as workers, publishing(place) as publisher:
        old = await workers.start(CONSUME, "--slow", 0.001, 0.01)
        count = 0
        rolling = True

        async def load() -> None:
            nonlocal count
            while rolling:
                await publisher.publish_many(steps(16, count, count + 1))
                count += 1
                await asyncio.sleep(0.02)

        loading = asyncio.create_task(load())
        for _ in range(3):
            new = await workers.start(CONSUME, "--slow", 0.001, 0.01)
            await workers.wait_for("ended", 10, by=new)
            await workers.stop(old)
            old = new
        rolling = False
        await loading
        await place.handled("walker.walk")
        await workers.stop(old)
        _check_once(workers.ended(), 16 * count)
        assert len(workers.history.of("began")) == 16 * count
        assert {fact.attempt for fact in workers.ended()} == {1}
        _check_order(workers)


@promise("G1", needs=("processes", "durable"))
async def an_idle_process_sees_an_event_soon(place: Place) -> None:
    """From one process to a handler in another that was idle: within tens of milliseconds."""
    async with Workers(place) as workers, publishing(place) as publisher:
        process = await workers.start(CONSUME)
        for number in range(25):
            await publisher.publish_many(steps(1, number, number + 1))
            await workers.wait_for("ended", number + 1)
            await asyncio.sleep(0.03)  # until it is idle again
        waits = sorted((fact.at - fact.published) / 1e6 for fact in workers.history.of("began"))
        median = statistics.median(waits)
        report = f"an idle process began to handle an event after {median:.1f} ms (median; most {waits[-1]:.1f} ms)"
        sys.stdout.write(f"{report}\n")  # pytest -rP shows it
        assert median < LATENCY * 1000, report
        await workers.stop(process)


@promise("G1", "G6", needs=("processes", "durable"))
async def work_moves_to_processes_that_come_and_back(place: Place) -> None:
    """A process that is started gets its share within three seconds; when it is gone, by SIGTERM or by SIGKILL, the
    others have all of it within three seconds."""
    async with Workers(place) as workers, publishing(place) as publisher:
        stays = await workers.start(CONSUME)
        count = 0

        async def load() -> None:
            nonlocal count
            await publisher.publish_many(steps(32, count, count + 1))
            count += 1
            await asyncio.sleep(0.01)

        def all_handled() -> bool:
            return len(_finished(workers)) == 32 * count

        for kill in (False, True):
            comes = await workers.start(CONSUME)

            end = time.monotonic() + 3.0
            while workers.ended_by(comes) < 10:
                assert time.monotonic() < end, "a new process has no share after three seconds"
                await load()
            if kill:
                workers.kill(comes)
            else:
                await workers.stop(comes)
            await load()
            await place.until(all_handled, "one process handles all", 3.0)
        _check_order(workers)
        await workers.stop(stays)


@promise("G12", "G6", needs=("processes", "durable"))
async def a_paused_process_does_not_count_twice(place: Place) -> None:
    """A process that is stopped for a moment (SIGSTOP) and goes on harms nobody: every event is handled, each key in
    order, one at a time."""
    async with Workers(place) as workers, publishing(place) as publisher:
        paused = await workers.start(CONSUME, "--slow", 0.001, 0.005)
        other = await workers.start(CONSUME, "--slow", 0.001, 0.005)
        await publisher.publish_many(steps(32, 0, 10))
        await place.until(lambda: workers.ended_by(paused) and workers.ended_by(other), "both handle events")
        for _ in range(3):
            paused.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)
            paused.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.02)
        await place.handled("walker.walk")
        _check_once(workers.ended(), 320)
        _check_order(workers)
        await asyncio.gather(workers.stop(paused), workers.stop(other))


@promise("G12", "G1", needs=("processes", "durable"))
async def a_process_paused_past_its_lease_is_replaced(place: Place) -> None:
    """Stopped in the middle (SIGSTOP) for longer than its lease: another process handles what it held. When it goes
    on, what it has to say about that counts for nothing: each event is settled once."""
    async with Workers(place) as workers, publishing(place) as publisher:
        options = ("--slow", 0.02, 0.05, "--lease", 1.0)
        paused, other = await workers.start(CONSUME, *options), await workers.start(CONSUME, *options)
        await publisher.publish_many(steps(32, 0, 4))
        await place.until(lambda: workers.ended_by(paused) and workers.ended_by(other), "both handle events")
        probes = await pause_between_writes(paused, publisher)
        await place.until(lambda: len(_finished(workers)) == 128 + probes, "the other process handles everything")
        await place.handled("walker.walk")
        paused.send_signal(signal.SIGCONT)
        await publisher.publish_many(steps(32, 4, 6))
        await place.until(lambda: len(_finished(workers)) == 192 + probes, "all is handled")
        await place.handled("walker.walk")
        status = await place.status("walker.walk")
        assert (status.acked, status.dead) == (192 + probes, 0)
        assert status.retried <= 16  # what was running when the lease ended is charged, and nothing else
        await asyncio.gather(workers.stop(paused), workers.stop(other))


async def pause_between_writes(process: subprocess.Popen[bytes], publisher: Service[None]) -> int:
    """Stop a process while it is not writing, and return how many events it took to make sure.

    Processes that share a file share its lock: one that is stopped inside it holds up all others until it goes on,
    which no lease can help.
    """
    for number in range(20):
        process.send_signal(signal.SIGSTOP)
        probing = asyncio.create_task(publisher.publish(StepTaken("probe", number)))
        await asyncio.wait([probing], timeout=0.5)
        if probing.done():
            return number + 1
        process.send_signal(signal.SIGCONT)
        await probing
    raise AssertionError("stopped twenty times, the process was writing each time")


def publishing(place: Place) -> _Publishing:
    """A service that publishes on the scenario's broker while consumers run elsewhere."""
    return _Publishing(place)


class _Publishing(AsyncExitStack):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    async def __aenter__(self) -> Service[None]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        service: Service[None] = Service("walker-feet")
        return await self.enter_async_context(self.place.running(service, consume=False))


def running_in(workers: Workers, pid: int) -> list[Fact]:
    """Handler runs of a process that began and have not ended."""
    ended = {(fact.pid, fact.id, fact.attempt) for fact in workers.history.of("ended")}
    began = [fact for fact in workers.history.of("began") if fact.pid == pid]
    return [fact for fact in began if (fact.pid, fact.id, fact.attempt) not in ended]


def _finished(workers: Workers) -> set[str]:
    return {f"{fact.key}-{fact.number}" for fact in workers.ended()}


def _check_once(ended: list[Fact], count: int) -> None:
    handled = Counter((fact.key, fact.number) for fact in ended)
    repeated = {step: times for step, times in handled.items() if times > 1}
    assert not repeated, f"handled more than once: {repeated}"
    assert len(handled) == count


def _check_order(workers: Workers) -> None:
    """Fail unless each key's steps began in order: none before the one ahead of it had ended."""
    done: dict[str, int] = {}
    for fact in sorted(workers.history.facts, key=lambda fact: fact.at):
        if fact.what == "began":
            assert fact.number <= done.get(fact.key, -1) + 1, f"began before the one ahead of it had ended: {fact}"
        elif fact.what == "ended":
            done[fact.key] = max(fact.number, done.get(fact.key, -1))

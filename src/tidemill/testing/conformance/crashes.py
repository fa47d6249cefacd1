"""G5, G7, G12: what is charged when a process dies, who is told that its lease is gone, and what a drain hands over."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

from ...broker import Subscription, TopicSpec
from ..worker import StepTaken
from .place import Place
from .processes import pause_between_writes, publishing, running_in
from .scenario import promise
from .workers import Workers, steps

CONSUME = "consume"


@promise("G5", "G4", needs=("processes", "durable"))
async def a_crash_charges_what_was_running_and_nothing_else(place: Place) -> None:
    """kill -9 with four handlers at work and more fetched: those four come again as a second attempt, with a history
    that says why; what had merely been fetched is at its first."""
    async with Workers(place) as workers, publishing(place) as publisher:
        victim = await workers.start(CONSUME, "--hangs-from", 0, "--concurrency", 4)
        await publisher.publish_many(steps(40, 0, 1))
        await place.until(lambda: len(running_in(workers, victim.pid)) == 4, "four handlers hang")
        charged = {fact.id for fact in running_in(workers, victim.pid)}
        workers.kill(victim)
        other = await workers.start(CONSUME)
        await place.handled("walker.walk")
        attempts = {fact.id: fact.attempt for fact in workers.ended()}
        assert {identity for identity, attempt in attempts.items() if attempt == 2} == charged
        assert Counter(attempts.values()) == Counter({1: 36, 2: 4})
        status = await place.status("walker.walk")
        assert (status.acked, status.retried, status.dead) == (40, 4, 0)
        await workers.stop(other)


@promise("G5", needs=("processes", "durable"))
async def what_kills_again_and_again_takes_nobody_along(place: Place) -> None:
    """What was running beside an event that kills its process is charged twice at most: from then on both run alone, so
    the event goes on to die by itself until it is given up."""
    async with Workers(place) as workers, publishing(place) as publisher:
        poison = StepTaken("poison", 7)
        subscription = Subscription(name="walker.walk", topic="steps", ordered=True)
        await (await place.broker()).declare([TopicSpec("steps", "key")], [subscription])
        await publisher.publish_many([StepTaken(f"slow-{number}", 0, 0.3) for number in range(3)])
        await publisher.publish(poison)

        async def over() -> bool:
            return process.poll() is not None or (await place.status("walker.walk")).backlog == 0

        for _ in range(6):
            process = workers.spawn(CONSUME, "--dies-at", 7, "--attempts", 5)
            await place.until(over, "the process dies, or all is handled")
        (letter,) = await (await place.broker()).dead_letters("walker.walk")
        assert (letter.message.key, letter.attempts) == ("poison", 5)
        assert all(failure.died for failure in letter.history)
        assert [failure.attempt for failure in letter.history] == [1, 2, 3, 4, 5]
        assert len(workers.ended()) == 3
        assert max(fact.attempt for fact in workers.ended()) <= 3


@promise("G12", needs=("processes", "durable"))
async def who_lost_its_lease_is_told(place: Place) -> None:
    """A process is stopped past its lease while its handlers run. When it goes on they are cancelled, and can see why;
    none of what it had fetched begins."""
    async with Workers(place) as workers, publishing(place) as publisher:
        options = ("--lease", 1.0, "--concurrency", 4)
        paused = await workers.start(CONSUME, *options)
        await publisher.publish_many([StepTaken(f"slow-{number}", 0, 30.0) for number in range(4)])
        await publisher.publish_many(steps(8, 0, 1))
        await place.until(lambda: len(running_in(workers, paused.pid)) == 4, "four handlers run")
        probes = await pause_between_writes(paused, publisher)
        other = await workers.start(CONSUME, "--lease", 1.0, "--concurrency", 16)
        await place.until(lambda: workers.ended_by(other) >= 8 + probes, "another process has its slots")
        began = len([fact for fact in workers.history.of("began") if fact.pid == paused.pid])
        paused.send_signal(signal.SIGCONT)
        await workers.wait_for("lost", 4, by=paused)
        assert len([fact for fact in workers.history.of("began") if fact.pid == paused.pid]) == began
        await asyncio.gather(workers.stop(paused), workers.stop(other))


@promise("G7", "G6", needs=("processes", "durable"))
async def a_drain_hands_over_while_handlers_still_run(place: Place) -> None:
    """On SIGTERM with 16 handlers at work and a thousand events fetched behind them: each of the 16 finishes, once;
    meanwhile another process handles the rest, uncharged and in order; exit code 0."""
    async with Workers(place) as workers, publishing(place) as publisher:
        old = await workers.start(CONSUME, "--concurrency", 16)
        # Fast ones first, so that much is fetched at once.
        for number in range(0, 100, 10):
            await publisher.publish_many(steps(32, number, number + 10))
        await place.handled("walker.walk")
        slow = [StepTaken(f"slow-{number}", 0, 1.5) for number in range(16)]
        await publisher.publish_many([*slow, *steps(32, 100, 132)])
        await place.until(lambda: len(running_in(workers, old.pid)) >= 16, "sixteen handlers run")
        new = await workers.start(CONSUME, "--concurrency", 16)
        old.send_signal(signal.SIGTERM)
        await place.until(lambda: old.poll() is not None, "the old process has drained")
        ended = time.monotonic()
        assert old.returncode == 0
        await place.handled("walker.walk")
        assert time.monotonic() - ended < 2.0
        facts = workers.ended()
        assert Counter((fact.key, fact.number) for fact in facts).most_common(1)[0][1] == 1
        assert len(facts) == 3200 + 16 + 1024
        assert {fact.attempt for fact in workers.history.of("began")} == {1}
        assert sum(fact.key.startswith("slow") for fact in facts if fact.pid == old.pid) == 16
        stopping = min(fact.at for fact in workers.history.of("draining") if fact.pid == old.pid)
        last = max(fact.at for fact in facts if fact.pid == old.pid)
        assert any(stopping < fact.at < last for fact in facts if fact.pid == new.pid), "handed over before the end"
        await workers.stop(new)

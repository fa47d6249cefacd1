"""Several consumers on one file, thousands of random steps, and a model that says what may be delivered when.

The model knows the promises, not the implementation: what is published is delivered until it is settled, what is
settled never comes again, attempts are exact, and of a key nothing is delivered while an earlier event of it waits or
is with somebody else. What had begun when its consumer died, or lost its lease, is charged, and nothing else is. Who
holds a slot, and since when, it reads from the file.

More seeds by hand: TIDEMILL_SEEDS=5000 pytest tests/brokers/sqlite/test_model.py
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tidemill.broker import Subscription, TopicSpec
from tidemill.brokers.sqlite import broker as broker_module
from tidemill.brokers.sqlite import writer
from tidemill.brokers.sqlite.broker import SqliteBroker
from tidemill.brokers.sqlite.feed import SqliteFeed
from tidemill.brokers.sqlite.file import connect
from tidemill.brokers.sqlite.rows import slot_of
from tidemill.errors import BrokerError
from tidemill.message import Delivery, Failure
from tidemill.outcome import ACK, RELEASE, Ack, DeadLetter, Outcome, Release, Retry

from .rig import MAX_BYTES, Commits, ManualClock, broker_at, expire, kill, message, rows

SEEDS = int(os.environ.get("TIDEMILL_SEEDS", "150"))
FIRST = int(os.environ.get("TIDEMILL_FIRST_SEED", "0"))


class Event:
    """What the model knows of one event."""

    def __init__(self, number: int, key: str | None) -> None:
        self.number = number
        self.key = key
        # How often it has failed, and whether the next attempt has been begun by one that died: more than one answer
        # where a process died while settling.
        self.states = {(0, False)}
        self.due = 0
        self.settled = False
        self.maybe_settled = False
        self.dead = False
        self.parked = False
        self.replayed = False

    @property
    def done(self) -> bool:
        return (self.settled and not self.parked) or self.maybe_settled

    def __repr__(self) -> str:
        return f"#{self.number}({self.key})"


class Held:
    """A delivery that a consumer has and has not settled."""

    def __init__(self, event: Event, delivery: Delivery, epoch: int) -> None:
        self.event = event
        self.delivery = delivery
        self.epoch = epoch
        self.back = False  # an earlier event of its key failed: it can only be given back
        self.begun = False  # and not ended, or recorded as failed


class Worker:
    """A feed, and what it has in hand: by the discipline of a consumer, which handles a key's events in order."""

    def __init__(self, broker: SqliteBroker, feed: SqliteFeed) -> None:
        self.broker = broker
        self.feed = feed
        self.held: list[Held] = []
        self.overslept = False
        self.leaving = False
        self.told: list[Delivery] = []
        feed.watch(self)

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        self.told += deliveries

    def paused(self, paused: bool) -> None:
        raise AssertionError("nobody pauses anything here")


class LoopWriter(writer.Writer):
    """A writer without a thread: it commits, and answers, after some turns of the loop drawn from the seed."""

    random: random.Random

    def start(self) -> None:
        self._connection = connect(self._path, synchronous="OFF")
        self._busy = False

    def submit(self, job: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        future = super().submit(job)
        if self._jobs and not self._busy:
            self._busy = True
            self._later(self._turn)
        return future

    def _later(self, call: Callable[[], None], turns: int | None = None) -> None:
        left = self.random.choice((0, 0, 1, 3)) if turns is None else turns
        self._loop.call_soon(*((self._later, call, left - 1) if left else (call,)))

    def _turn(self) -> None:
        batch = [self._jobs.popleft() for _ in range(len(self._jobs))]
        answers = self._commit(self._connection, [job for job, _ in batch])
        waiting = [(future, answer) for (_, future), answer in zip(batch, answers, strict=True) if future]
        self._later(partial(writer._answer, waiting))
        self._busy = bool(self._jobs)
        if self._busy:
            self._later(self._turn)

    async def close(self) -> bool:
        self._closing = True
        while self._busy:  # noqa: ASYNC110  a turn of the loop is what it waits for
            await asyncio.sleep(0)
        self._connection.close()
        return True


class World:
    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.commits = Commits()
        self.ordered = self.random.random() < 0.7
        self.parks = self.ordered and self.random.random() < 0.5
        self.spec = Subscription(
            name="shop.handle", topic="orders", ordered=self.ordered, start="beginning", parks=self.parks
        )
        self.retain = self.random.choice((0.0, 0.0, 7 * 86400.0))
        self.keys = [f"k{n}" for n in range(self.random.choice((1, 3, 12)))]
        self.failing = self.random.choice((0.0, 0.0, 0.03, 0.15))
        self.events: dict[str, Event] = {}
        self.by_key: dict[str, list[Event]] = {}
        self.workers: list[Worker] = []
        self.publisher: SqliteBroker
        self.positions: dict[int, str] = {}
        self.log: list[str] = []

    # ------------------------------------------------------------------ steps

    async def run(self, steps: int) -> None:
        self.publisher = await self.open_broker()
        await self.publisher.declare([TopicSpec("orders", "customer", self.retain)], [self.spec])
        self.commits.how = self.how_commits_end
        moves = {
            self.publish: 14,
            self.fetch: 30,
            self.begin: 20,
            self.settle: 26,
            self.both: 6,
            self.start: 4,
            self.close: 3,
            self.die: 3,
            self.die_settling: 1,
            self.pause: 3,
            self.beat: 5,
            self.leave: 1,
            self.wait: 10,
            self.purge: 3,
            self.give_up_fetching: 2,
            self.resolve: 4,
        }
        await self.start()
        for _ in range(steps):
            move = self.random.choices(list(moves), list(moves.values()))[0]
            await move()
        self.commits.how = lambda: ""
        await self.finish()

    def how_commits_end(self) -> str:
        return self.random.choice(("full", "lost", "gone")) if self.random.random() < self.failing else ""

    def note(self, *what: object) -> None:
        self.log.append(" ".join(str(each) for each in what))

    def worker(self) -> Worker | None:
        return self.random.choice(self.workers) if self.workers else None

    async def open_broker(self) -> SqliteBroker:
        broker = broker_at(self.path, self.clock, synchronous="normal")
        broker._spread = 0  # or it begins anywhere
        await broker.open()
        return broker

    async def again(self, what: object) -> object:
        """Repeat until it does not fail, as publishers and consumers do."""
        while True:
            try:
                return await what()  # type: ignore[operator]
            except (BrokerError, writer.Unconfirmed) as error:
                self.note("  failed:", type(error).__name__)

    async def publish(self) -> None:
        messages = []
        due = self.clock.now() + self.random.randrange(1, 20) * 10**9 if self.random.random() < 0.1 else None
        for _ in range(self.random.choice((1, 2, 5, 20))):
            # An event with a delay has its place in the order of its key when it appears: a key of its own here.
            key = None if due or self.random.random() < 0.2 else self.random.choice(self.keys)
            event = Event(len(self.events), key)
            messages.append(message(key))
            self.events[messages[-1].id] = event
            if key is not None:
                self.by_key.setdefault(key, []).append(event)
        self.note("publish", [self.events[m.id] for m in messages], due)
        receipts = await self.again(lambda: self.publisher.publish(messages, due=due))
        assert all(receipt.ok for receipt in receipts)  # type: ignore[attr-defined]

    async def start(self) -> None:
        if len(self.workers) > 5:
            return
        shared = [worker.broker for worker in self.workers]
        broker = self.random.choice(shared) if shared and self.random.random() < 0.3 else await self.open_broker()
        await self.again(lambda: broker.declare([], [self.spec]))
        feed = await self.again(lambda: broker.subscribe(self.spec))
        assert isinstance(feed, SqliteFeed)
        self.workers.append(Worker(broker, feed))
        self.note("start", feed.owner[-6:])

    async def close(self) -> None:
        if worker := self.worker():
            self.note("close", worker.feed.owner[-6:])
            self.notice()
            self.workers.remove(worker)
            await worker.feed.close()
            if not any(other.broker is worker.broker for other in self.workers):
                await worker.broker.close()

    async def die(self) -> None:
        if worker := self.worker():
            self.note("die", worker.feed.owner[-6:])
            await self.end_process(worker.broker)

    async def die_settling(self) -> None:
        """The process dies with a settlement under way: whether it was written nobody knows."""
        worker = self.worker()
        if worker is None:
            return
        choices = self.choose(worker)
        self.notice()
        self.prepare(worker, choices)
        valid = [(held, outcome) for held, outcome in choices if self.owns(worker, held)]
        self.note("die settling", worker.feed.owner[-6:], [(held.event, outcome) for held, outcome in choices])
        task = asyncio.ensure_future(worker.feed.settle([(held.delivery, outcome) for held, outcome in choices]))
        for _ in range(self.random.randrange(3)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.end_process(worker.broker)
        for held, outcome in valid:
            self.maybe(held, outcome)

    async def end_process(self, broker: SqliteBroker) -> None:
        """kill -9: whatever it runs is charged as soon as somebody takes over, and nothing that it merely holds."""
        self.notice()
        for worker in [worker for worker in self.workers if worker.broker is broker]:
            self.workers.remove(worker)
            for held in worker.held:
                if held.begun and self.owns(worker, held):
                    self.charge(held)
        await kill(broker)

    def charge(self, held: Held) -> None:
        self.note("  charged:", held.event, held.delivery.attempt)
        held.event.states = {(held.delivery.attempt - 1, True)}

    def notice(self) -> None:
        """What a consumer ran in slots that are another's now was charged when they were taken."""
        owners = self.owners()
        for worker in self.workers:
            for held in worker.held:
                if held.begun and owners[held.delivery.token] != (worker.feed.owner, held.epoch):
                    held.begun = False
                    self.charge(held)

    def owners(self) -> dict[object, tuple[object, object]]:
        found = rows(self.path, "select slot, owner, epoch from tidemill_slot")
        return {slot: (owner, epoch) for slot, owner, epoch in found}

    def maybe(self, held: Held, outcome: Outcome) -> None:
        """Whether an outcome was recorded is not known."""
        match outcome:
            case Ack() | DeadLetter():
                held.event.maybe_settled = True
                held.event.dead = held.event.dead or isinstance(outcome, DeadLetter)
            case Retry():
                held.event.states = held.event.states | {(held.delivery.attempt, False)}
                held.event.due = 0
            case _:
                pass

    async def pause(self) -> None:
        """A process stands still for longer than its lease, and then goes on."""
        if worker := self.worker():
            self.note("pause", worker.feed.owner[-6:])
            expire(self.path, worker.feed)
            worker.feed.lease.until = min(worker.feed.lease.until, 0)
            worker.overslept = True

    async def beat(self) -> None:
        """The writer's thread renews a lease, or learns that it is over."""
        if worker := self.worker():
            until = await self.again(lambda: worker.broker.write(worker.feed.lease.renew))
            assert isinstance(until, int)
            self.note("beat", worker.feed.owner[-6:], until > 0)
            worker.feed.lease.renewed(until)
            await asyncio.sleep(0)
            worker.overslept = worker.overslept and not until

    async def leave(self) -> None:
        """It begins to drain: it takes nothing more, and settles what it has."""
        if worker := self.worker():
            self.note("leave", worker.feed.owner[-6:])
            worker.leaving = True
            await worker.feed.leave()

    async def begin(self) -> None:
        """Handlers begin, of each key one at a time, and some end."""
        worker = self.worker()
        if worker is None:
            return
        self.notice()
        keys = {held.event.key for held in worker.held if held.begun and self.ordered} - {None}
        for held in tuple(worker.held):
            key = held.event.key if self.ordered else None
            if held.begun:
                if self.random.random() < 0.2:  # handled, or given back, and not recorded yet
                    worker.feed.end(held.delivery)
                    held.begun = False
            elif self.random.random() < 0.5 and not held.back and not held.delivery.died and key not in keys:
                self.try_to_begin(worker, held)
            keys |= {key} - {None}
        self.note("begun", worker.feed.owner[-6:], [held.event for held in worker.held if held.begun])

    def try_to_begin(self, worker: Worker, held: Held) -> None:
        owned = self.owns(worker, held)
        held.begun = worker.feed.begin(held.delivery)
        assert owned or not held.begun, f"{held.event} began, and is another's"
        assert held.begun or not owned or worker.overslept, f"{held.event} cannot begin"

    def prepare(self, worker: Worker, choices: list[tuple[Held, Outcome]]) -> None:
        """What comes before an outcome is settled: what failed had begun, and what did not fail counts no more."""
        for held, outcome in choices:
            if isinstance(outcome, Ack | Release):
                worker.feed.end(held.delivery)
                held.begun = False
            elif not held.begun and not held.delivery.died and self.random.random() < 0.7:
                self.try_to_begin(worker, held)
            if held.begun:
                delivery = held.delivery
                delivery.history = (*delivery.history, Failure(delivery.attempt, self.clock.now(), "no"))

    async def wait(self) -> None:
        self.clock.advance(self.random.choice((0.001, 1, 5, 30)))

    async def purge(self) -> None:
        self.note("purge")
        await self.again(lambda: self.publisher.write(self.publisher._retention.purge))

    async def resolve(self) -> None:
        """Somebody replays or discards some dead letters."""
        letters = await self.publisher.dead_letters()
        if not letters:
            return
        chosen = self.random.sample(letters, self.random.randint(1, len(letters)))
        action = self.random.choice(("replay", "discard"))
        self.note(action, [self.events[letter.message.id] for letter in chosen])
        await self.again(lambda: self.publisher.resolve(action, [letter.number for letter in chosen], by="me"))
        for letter in chosen:
            event = self.events[letter.message.id]
            event.dead = event.parked = event.maybe_settled = False
            event.settled = action == "discard"
            if action == "replay":
                event.replayed = True
                event.states = {(0, False)}
                event.due = 0

    async def give_up_fetching(self) -> None:
        """A fetch is cancelled wherever it stands, as a drain does."""
        if worker := self.worker():
            task = asyncio.ensure_future(worker.feed.fetch(10, 0.0, MAX_BYTES))
            for _ in range(self.random.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            self.note("give up fetching", worker.feed.owner[-6:], type(result).__name__)
            if isinstance(result, list):
                self.receive(worker, result)

    async def fetch(self) -> None:
        if worker := self.worker():
            limit = self.random.choice((1, 3, 10, 100))
            try:
                taken = await worker.feed.fetch(limit, 0.0, self.random.choice((1, 50, MAX_BYTES)))
            except (BrokerError, writer.Unconfirmed) as error:
                self.note("fetch failed", type(error).__name__)
                return
            assert len(taken) <= limit
            self.receive(worker, taken)

    async def settle(self) -> None:
        if worker := self.worker():
            choices = self.choose(worker)
            if choices:
                expected = [held.delivery for held, _ in choices if not self.owns(worker, held)]
                late = await self.record(worker, choices)
                assert {id(each) for each in late} == {id(each) for each in expected}, (late, expected)

    async def both(self) -> None:
        """A fetch and a settlement at the same time, as in a consumer, and another consumer's besides."""
        worker, other = self.worker(), self.worker()
        if worker is None or other is None:
            return
        choices = self.choose(worker)
        before = {held.event for held in worker.held}
        returned = {held.event.key for held, outcome in choices if self.goes_back(outcome)}
        taking = [worker] if worker is other else [worker, other]
        results = await asyncio.gather(
            self.record(worker, choices),
            *(each.feed.fetch(10, 0.0, MAX_BYTES) for each in taking),
            return_exceptions=True,
        )
        if isinstance(results[0], BaseException):
            raise results[0]
        for each, taken in zip(taking, results[1:], strict=True):
            if isinstance(taken, list):
                # It may have come before the settlement was done, or after.
                self.receive(each, taken, before if each is worker else set())
                for held in each.held:
                    held.back = held.back or (each is worker and self.ordered and held.event.key in returned - {None})
            elif not isinstance(taken, BrokerError | writer.Unconfirmed):
                raise taken

    # ------------------------------------------------------------------ model

    def owns(self, worker: Worker, held: Held) -> bool:
        return self.owners()[held.delivery.token] == (worker.feed.owner, held.epoch)

    def receive(self, worker: Worker, taken: list[Delivery], before: set[Event] | None = None) -> None:
        feed = worker.feed
        self.note("fetch", feed.owner[-6:], [(self.events[d.message.id], d.attempt) for d in taken])
        self.notice()
        owners = self.owners()
        for each in self.workers:
            for held in each.held:
                told = any(delivery is held.delivery for delivery in each.told)
                assert not told or owners[held.delivery.token] != (each.feed.owner, held.epoch), "not lost at all"
        valid = {
            held.event
            for each in self.workers
            for held in each.held
            if owners[held.delivery.token] == (each.feed.owner, held.epoch)
        }
        own = {held.event for held in worker.held if owners[held.delivery.token] == (feed.owner, held.epoch)}
        own |= before or set()
        for delivery in taken:
            event = self.events[delivery.message.id]
            assert self.positions.setdefault(delivery.position, delivery.message.id) == delivery.message.id, (
                "seq reused"
            )
            assert not event.settled, f"{event} is settled and was delivered again"
            state = (delivery.attempt - 1, delivery.died)
            assert state in event.states, f"{event}: attempt {delivery.attempt}, {delivery.died}, not {event.states}"
            event.states = {state}
            if delivery.died:
                assert (delivery.history[-1].died, delivery.history[-1].attempt) == (True, delivery.attempt)
            assert event.due <= self.clock.now(), f"{event} came before its time"
            epoch = feed._slots.held.get(delivery.token)
            if epoch is None or owners[delivery.token] != (feed.owner, epoch):
                assert before is not None, f"{event} is of a slot that is another's"
                epoch = -1
            else:
                assert event not in valid, f"{event} is with somebody already"
            if self.ordered and event.key is not None and epoch >= 0:
                assert slot_of(event.key) == delivery.token
                for earlier in self.by_key[event.key]:
                    if earlier is event:
                        break
                    assert earlier.done or earlier in own, f"{event} came while {earlier} waits or is with another"
            held = Held(event, delivery, epoch)
            if self.ordered and event.key is not None:
                held.back = any(other.back for other in worker.held if other.event.key == event.key)
            worker.held.append(held)
            own.add(event)

    def choose(self, worker: Worker) -> list[tuple[Held, Outcome]]:
        chosen: list[tuple[Held, Outcome]] = []
        if not self.ordered:
            for held in self.random.sample(worker.held, self.random.randint(0, len(worker.held))):
                chosen.append((held, self.outcome(held)))
            return chosen
        lanes: dict[object, list[Held]] = {}
        for held in worker.held:
            lanes.setdefault(held.event.key or held, []).append(held)
        for lane in lanes.values():
            if self.random.random() < 0.3:
                continue
            for held in lane:
                if held.back:
                    if self.random.random() < 0.8:
                        chosen.append((held, RELEASE))
                    continue
                if self.random.random() < 0.3:
                    break
                outcome = self.outcome(held)
                chosen.append((held, outcome))
                if self.goes_back(outcome):
                    for follower in lane[lane.index(held) + 1 :]:
                        follower.back = True
        self.random.shuffle(chosen)
        return chosen

    def goes_back(self, outcome: Outcome) -> bool:
        return isinstance(outcome, (Retry, Release, DeadLetter) if self.parks else (Retry, Release))

    def outcome(self, held: Held) -> Outcome:
        handled = 0 if held.delivery.died else 6
        return self.random.choices(
            (ACK, Retry(self.random.choice((0.0, 0.5, 10.0)), "no"), RELEASE, DeadLetter("never")), (handled, 3, 2, 1)
        )[0]

    async def record(self, worker: Worker, choices: list[tuple[Held, Outcome]]) -> list[Delivery]:
        self.note("settle", worker.feed.owner[-6:], [(held.event, type(outcome).__name__) for held, outcome in choices])
        self.notice()
        self.prepare(worker, choices)
        now = self.clock.now()
        batch = [(held.delivery, outcome) for held, outcome in choices]
        failed = self.commits.failed
        late = await self.again(lambda: worker.feed.settle(batch))
        assert isinstance(late, list)
        repeated = self.commits.failed > failed
        if late:
            self.note("  late:", [self.events[delivery.message.id] for delivery in late])
        missed = {id(delivery) for delivery in late}
        for held, _ in choices:
            held.begun = held.begun and id(held.delivery) in missed
        self.notice()
        for held, outcome in choices:
            worker.held.remove(held)
            event = held.event
            if id(held.delivery) in missed:
                if repeated and not event.settled:
                    self.maybe(held, outcome)  # the commit before took effect, perhaps, and then its slot was lost
                continue
            assert not event.settled, f"{event} was settled twice"
            match outcome:
                case Ack() | DeadLetter():
                    event.settled = True
                    event.dead = isinstance(outcome, DeadLetter)
                    event.parked = event.dead and self.parks and event.key is not None
                case Retry():
                    event.states = {(held.delivery.attempt, False)}
                    event.due = now + round(outcome.after * 1e9)
                case _:
                    event.states = {(held.delivery.attempt - 1, held.delivery.died)}
                    event.due = 0
        if self.ordered:
            for key, events in self.by_key.items():
                # In the order of those that were not replayed after the key had gone on without them.
                done = [event.done for event in events if self.parks or not event.replayed]
                assert done == sorted(done, reverse=True), f"{key}: settled out of order: {events} {done}"
        return late

    async def finish(self) -> None:
        """All but one go; what is left must all come."""
        self.note("finish")
        while worker := self.worker():
            if self.random.random() < 0.5:
                self.notice()
                self.workers.remove(worker)
                await worker.feed.close()
                if not any(other.broker is worker.broker for other in self.workers):
                    await worker.broker.close()
            else:
                await self.end_process(worker.broker)
        self.clock.advance(3600)
        await self.start()
        (worker,) = self.workers
        idle = 0
        while idle < 3 or await self.publisher.dead_letters():
            if idle >= 3:
                await self.check_letters()
                await self.resolve()
            taken = await worker.feed.fetch(100, 0.0, MAX_BYTES)
            idle = 0 if taken else idle + 1
            self.receive(worker, taken)
            if taken:
                assert await self.record(worker, [(held, ACK) for held in worker.held]) == []
            else:
                await asyncio.sleep(0.002)  # what was due appears first
        missing = [event for event in self.events.values() if not event.settled and not event.maybe_settled]
        assert missing == [], "lost"
        (status,) = (await self.publisher.inspect()).subscriptions
        assert status.backlog == 0
        assert rows(self.path, "select * from tidemill_exception") == []
        await self.check_letters()
        if self.retain == 0.0:
            await self.publisher.write(self.publisher._retention.purge)
            assert rows(self.path, "select count(*) from tidemill_log") <= [(1,)], "settled events stay for ever"
        await worker.broker.close()
        await self.publisher.close()

    async def check_letters(self) -> None:
        letters = await self.publisher.dead_letters()
        found = {self.events[letter.message.id]: letter for letter in letters}
        assert len(letters) == len(found)
        for event in self.events.values():
            assert (event in found) == event.dead or event.maybe_settled, f"{event}: dead letter"
            if event in found and not event.maybe_settled:
                assert found[event].parked == event.parked
        (status,) = (await self.publisher.inspect()).subscriptions
        assert status.dead == len(letters)


@pytest.mark.parametrize("part", range(5))
def test_what_is_promised_holds_in_any_order_of_events(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "LOOK_AROUND", 0.0)
    monkeypatch.setattr(broker_module, "Writer", LoopWriter)
    monkeypatch.setattr(writer, "CALM", -1.0)  # injected failures hold up nobody

    async def run() -> None:
        for seed in range(FIRST + part, FIRST + SEEDS, 5):
            world = World(tmp_path / f"{seed}.db", seed)
            monkeypatch.setattr(writer, "_end", world.commits.end)
            LoopWriter.random = world.random
            try:
                await world.run(50)
            except BaseException:
                print("\n".join(world.log[-60:]))
                print(f"seed {seed}, ordered {world.ordered}")
                for worker in world.workers:
                    await kill(worker.broker)
                await kill(world.publisher)
                raise

    asyncio.run(run())

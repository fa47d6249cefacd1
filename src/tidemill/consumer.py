"""The loop of one subscription: fetch what there is room for, keep keys in order, run handlers, settle in batches.

    fetch ──► ready ──► workers ──► outcomes ──► settle
                ▲  lanes (one per key) │
                └──────────────────────┘

A fixed number of long-lived workers takes deliveries from one queue; there is no task, timer or lock per event.
A delivery runs in its own copy of the context. As long as handlers return without waiting for anything, one worker
does everything; when one does wait, the next worker is woken. Whatever happens, every delivery ends in exactly one
outcome, and every outcome is handed to the broker until the broker has it or says that the lease is gone.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from typing import Any, Final

from .attempt import Attempts
from .broker import Feed, Settlement
from .clock import Clock
from .errors import BrokerError
from .gate import Gate
from .handler import HandlerSpec
from .isolation import Isolation, is_suspect
from .lanes import Lanes
from .message import Delivery
from .outcome import ACK, RELEASE, Ack, DeadLetter, Outcome, Release, Retry, describe
from .steps import Rest
from .telemetry import emit
from .watchdog import ABANDON_AFTER, Running, Watchdog

MAX_BUFFER: Final = 64 * 1024 * 1024
"""Most bytes of fetched and unsettled bodies: 64 MiB a subscription."""

MAX_WINDOW: Final = 1024
"""Most deliveries fetched and not settled. Past this a larger batch saves nothing measurable."""

HORIZON: Final = 0.1
"""How many seconds of work to hold: the window follows the handlers' speed. Fast ones get large batches; slow ones
hold little, so that another process finds something to do."""

FETCH_WAIT: Final = 1.0
YIELD_EVERY: Final = 64


class Consumer:
    """Consumes one subscription through one feed. `start`, then `drain`; not to be started again."""

    def __init__(self, spec: HandlerSpec, feed: Feed, clock: Clock, isolation: Isolation | None = None) -> None:
        self.spec = spec
        self.name = spec.subscription.name
        self.handled = 0
        """Deliveries that a handler brought to an outcome."""
        self.released = 0
        """Deliveries given back."""
        self.is_paused = False
        """Whether somebody has paused the subscription."""
        self.asked: dict[str, float] = {}
        """What the broker owes an answer to ("fetch", "settle"), and since when (monotonic)."""
        self.trouble: dict[str, tuple[float, str]] = {}
        """What fails, since when (monotonic), with which error."""
        self._feed = feed
        self._clock = clock
        self._isolation = isolation or Isolation()
        self._isolation.join(lambda: self.running + len(self._outcomes) + self._recording)
        self._gate = Gate(self.name, spec.rate, spec.circuit, self._isolation, clock)
        self._min_window = 2 * spec.concurrency
        self._window = self._min_window
        self._open = 0
        self._open_bytes = 0
        self._ready: deque[Delivery] = deque()
        self._lanes = Lanes(spec.subscription.parks) if spec.subscription.ordered else None
        self._outcomes: list[Settlement] = []
        self._recording = 0
        self._watchdog = Watchdog(clock, spec.timeout, self._abandon)
        self._attempts = Attempts(spec, self._watchdog, clock, lambda: self._stopping)
        self._idle: deque[asyncio.Future[None]] = deque()
        self._wanted: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._stopping = False
        self._force = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._fetcher: asyncio.Task[None] | None = None
        self._settler: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to consume."""
        self._loop = asyncio.get_running_loop()
        self._feed.watch(self)
        for _ in range(self.spec.concurrency):
            self._add_worker()
        self._settler = asyncio.create_task(self._settle_all(), name=f"settle {self.name}")
        self._fetcher = asyncio.create_task(self._fetch_all(), name=f"fetch {self.name}")
        emit(
            "consumer.started",
            subscription=self.name,
            topic=self.spec.topic.name,
            concurrency=self.spec.concurrency,
        )

    @property
    def running(self) -> int:
        """Handlers that are waiting for something right now."""
        return len(self._watchdog.running)

    @property
    def alive(self) -> bool:
        """Whether every task it needs exists."""
        tasks = (self._fetcher, self._settler)
        return len(self._workers) >= self.spec.concurrency and all(task and not task.done() for task in tasks)

    @property
    def at_work(self) -> list[tuple[Delivery, int | None]]:
        """The deliveries of those handlers, each with the time (nanoseconds since 1970) its timeout comes."""
        return [(running.delivery, running.deadline) for running in self._watchdog.running.values()]

    @property
    def held(self) -> bool:
        """Whether events are here that only wait for time to pass: for the rate, or for the circuit's next probe."""
        return self._gate.waiting and bool(self._ready) and not self._watchdog.running

    @property
    def circuit_open_since(self) -> int | None:
        """Since when the circuit is open, in nanoseconds since 1970; None where it is closed."""
        return self._gate.open_since

    def force(self) -> None:
        """Make a drain that is under way cancel what still runs."""
        self._force.set()

    async def drain(self, grace: float) -> None:
        """Stop (G7): fetch no more, let running handlers finish for `grace` seconds, give back all else uncharged.

        Handlers still running then are cancelled and their events given back. Returns when all is settled.
        """
        self._stopping = True
        until = time.monotonic() + grace
        self._gate.wake()
        if self._fetcher is not None:
            self._fetcher.cancel()
            await asyncio.wait([self._fetcher])
        self._give_back()
        # What goes back is for others at once, while handlers still run here. However long the broker takes for that.
        leaving = asyncio.create_task(self._feed.leave(), name=f"leave {self.name}")
        watchdog = self._watchdog
        if not await watchdog.quiet(grace, unless=self._force):
            for running in tuple(watchdog.running.values()):
                running.cancel("drain")
            if not await watchdog.quiet(1.0):
                for running in tuple(watchdog.running.values()):
                    watchdog.give_up(running)
        watchdog.stop()
        for worker in self._workers:
            worker.cancel()
        if self._settler is not None:
            self._wake_settler()
            # A broker that is away must not keep the process: what it has not recorded is delivered again.
            settled, _ = await asyncio.wait([self._settler], timeout=max(1.0, until - time.monotonic()))
            if not settled:
                emit("settle.failed", subscription=self.name, count=self._open, error="the drain did not wait for it")
            self._settler.cancel()
        leaving.cancel()
        await asyncio.wait([leaving])
        await self._feed.close()
        emit("consumer.stopped", subscription=self.name, handled=self.handled, released=self.released)

    def _give_back(self) -> None:
        if self._lanes is not None:
            waiting = self._lanes.empty(self._ready)
        else:
            waiting = list(self._ready)
            self._ready.clear()
        self._release([(delivery, RELEASE) for delivery in waiting])

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """The lease of these is gone (G12): none of them is begun any more, and the handlers that run are told."""
        for delivery in deliveries:
            delivery.lost = True
        waiting = list(self._ready)
        self._ready.clear()
        self._ready.extend(delivery for delivery in waiting if not delivery.lost)
        for delivery in waiting:
            if delivery.lost:
                self._finish(delivery, RELEASE)
        for running in tuple(self._watchdog.running.values()):
            if running.delivery.lost:
                emit("delivery.lost", subscription=self.name, message=running.delivery.message.id)
                running.cancel("lost")

    def paused(self, paused: bool) -> None:
        """The subscription is paused: what runs may end, and what waits goes back. Or it goes on."""
        self.is_paused = paused
        if paused:
            self._give_back()

    def let_go(self) -> None:
        """The event loop is stuck: let others have what is here once the lease ends. From another thread."""
        self._feed.let_go()

    def _release(self, settlements: list[Settlement]) -> None:
        self._outcomes += settlements
        self.released += len(settlements)
        self._wake_settler()

    # ----------------------------------------------------------------- fetch

    @property
    def _full(self) -> bool:
        return self._open * 2 > self._window or self._open_bytes >= MAX_BUFFER

    async def _fetch_all(self) -> None:
        failures = 0
        handled, since = 0, time.perf_counter()
        while True:
            if self._full:
                self._room = self._loop.create_future()
                await asyncio.wait([self._room], timeout=FETCH_WAIT)
            elapsed = time.perf_counter() - since
            done = self.handled - handled
            if done:
                self._window = max(self._min_window, min(MAX_WINDOW, int(done / elapsed * HORIZON)))
            # Where handlers take long, nothing is fetched for long. Others come and go meanwhile, or somebody pauses.
            limit, wait = (0, 0.0) if self._full else (self._window - self._open, FETCH_WAIT)
            self.asked["fetch"] = time.monotonic()
            try:
                deliveries = await self._feed.fetch(limit, wait, MAX_BUFFER - self._open_bytes)
            except BrokerError as error:
                failures += 1
                await self._pause("fetch.failed", failures, error=describe(error))
                continue
            except Exception as error:  # an adapter's bug must not end consumption in silence
                failures += 1
                await self._pause("fetch.failed", failures, error="".join(traceback.format_exception(error)))
                continue
            failures = 0
            self._answered("fetch")
            if limit:
                handled, since = self.handled, time.perf_counter()
            if deliveries:
                self._take(deliveries)

    def _take(self, deliveries: list[Delivery]) -> None:
        self._open += len(deliveries)
        self._open_bytes += sum([len(delivery.message.body) for delivery in deliveries])
        if self._lanes is None:
            self._ready.extend(deliveries)
        elif back := self._lanes.sort(deliveries, self._ready):
            self._release(back)
        self._wake_worker()

    async def _pause(self, event: str, failures: int, **fields: Any) -> None:
        what, now = event.partition(".")[0], time.monotonic()
        since = self.trouble[what][0] if what in self.trouble else self.asked.get(what, now)
        self._answered(what)
        self.trouble[what] = (since, fields["error"].rstrip().rpartition("\n")[2])
        emit(event, subscription=self.name, **fields)
        # Full jitter from 0.1 s up to 30 s: many processes that lost one broker do not come back in step.
        await asyncio.sleep(random.uniform(0.05, min(30.0, 0.1 * 2 ** min(failures, 9))))

    def _answered(self, what: str) -> None:
        self.asked.pop(what, None)
        self.trouble.pop(what, None)

    # ------------------------------------------------------------------ work

    def _add_worker(self) -> None:
        worker = asyncio.create_task(self._work(), name=f"work {self.name}")
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    def _wake_worker(self) -> None:
        if self._ready and self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def _work(self) -> None:
        ready, gate, isolation = self._ready, self._gate, self._isolation
        attempt, begin, end = self._attempts.run, self._feed.begin, self._feed.end
        count = 0
        while True:
            if not ready:
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            entered = gate.shut or isolation.active
            if entered:
                await gate.enter()
                if not ready:
                    gate.unused()
                    continue
            delivery = ready.popleft()
            alone: Callable[[], None] | None = None
            if delivery.history:
                if delivery.died:
                    if entered:
                        gate.unused()
                    self._finish(delivery, self._attempts.died(delivery))
                    continue
                if is_suspect(delivery):
                    alone = await isolation.enter()
            if (alone is not None and (self._stopping or self.is_paused)) or not begin(delivery):
                if alone is not None:
                    alone()
                if entered:
                    gate.unused()
                self._finish(delivery, RELEASE)
                continue
            turn = gate.turn
            variables = copy_context()
            coroutine = attempt(delivery)
            try:
                waiting_for = variables.run(coroutine.send, None)
            except StopIteration as done:
                outcome: Outcome = done.value
            else:
                running = self._watchdog.enter(delivery)
                running.turn = turn
                outcome = await self._continue(running, coroutine, variables, waiting_for)
                if running.abandoned:
                    return  # another worker has taken this one's place, and the delivery is settled
            if alone is not None:
                alone()
            if gate.troubled or outcome is not ACK:
                self._tell_gate(delivery, outcome, turn)
            if outcome is ACK and self._lanes is None:
                self.handled += 1
                end(delivery)
                self._outcomes.append((delivery, ACK))
                if self._wanted is not None:
                    self._wake_settler()
            else:
                self._finish(delivery, outcome)
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _continue(
        self,
        running: Running,
        coroutine: Coroutine[Any, Any, Outcome],
        variables: Variables,
        waiting_for: Any,
    ) -> Outcome:
        self._wake_worker()
        try:
            return await Rest(coroutine, variables, waiting_for)
        finally:
            self._watchdog.leave(running)

    def _finish(self, delivery: Delivery, outcome: Outcome) -> None:
        """Hand an outcome to the settler, and the key's lane to its next event."""
        if isinstance(outcome, Release):
            self.released += 1
        else:
            self.handled += 1
        if isinstance(outcome, Ack | Release):
            self._feed.end(delivery)  # any other outcome charges the attempt, so it stays begun until that is recorded
        self._outcomes.append((delivery, outcome))
        if self._wanted is not None:
            self._wake_settler()
        if outcome is not ACK:
            self._tell(delivery, outcome)
        if self._lanes is not None:
            if back := self._lanes.finish(delivery, outcome, self._ready):
                self._release(back)
            self._wake_worker()

    def _abandon(self, running: Running) -> None:
        self._workers.discard(running.task)
        if self._stopping:
            self._finish(running.delivery, RELEASE)
            return
        delivery = running.delivery
        emit("delivery.abandoned", subscription=self.name, message=delivery.message.id, seconds=ABANDON_AFTER)
        error = TimeoutError(f"the handler did not end within {ABANDON_AFTER:g} s of being cancelled")
        outcome = self._attempts.failed(delivery, error)
        self._tell_gate(delivery, outcome, running.turn)
        self._finish(delivery, outcome)
        self._add_worker()

    def _tell_gate(self, delivery: Delivery, outcome: Outcome, turn: int) -> None:
        # What is given up before its attempts run out (rejected, unreadable, of a kind that is never retried) says
        # nothing of how others will fare, and neither does what a middleware returned.
        charged = isinstance(outcome, Retry) or (
            isinstance(outcome, DeadLetter) and delivery.attempt >= self.spec.retry.attempts
        )
        failure = delivery.history[-1] if charged and delivery.history else None
        failed = failure is not None and failure.attempt == delivery.attempt
        self._gate.ended(outcome, failure.error if failure is not None and failed else None, turn)

    def _tell(self, delivery: Delivery, outcome: Outcome) -> None:
        match outcome:
            case Retry():
                emit(
                    "delivery.retry",
                    subscription=self.name,
                    message=delivery.message.id,
                    attempt=delivery.attempt,
                    after=round(outcome.after, 3),
                    error=outcome.reason,
                )
            case Release() if outcome.after:
                emit(
                    "delivery.postponed",
                    subscription=self.name,
                    message=delivery.message.id,
                    after=round(outcome.after, 3),
                    reason=outcome.reason,
                )
            case DeadLetter():
                emit(
                    "delivery.dead_letter",
                    subscription=self.name,
                    message=delivery.message.id,
                    attempt=delivery.attempt,
                    reason=outcome.reason,
                )
            case _:
                pass

    # ---------------------------------------------------------------- settle

    def _wake_settler(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)
        self._wanted = None  # so that a thousand outcomes in one turn wake it once

    async def _settle_all(self) -> None:
        while True:
            while not self._outcomes:
                if self._stopping and not self._watchdog.running and not self._ready:
                    return
                self._wanted = self._loop.create_future()
                await self._wanted
            batch, self._outcomes = self._outcomes, []
            self._recording = len(batch)
            late = await self._record(batch)
            self._recording = 0
            self._open -= len(batch)
            self._open_bytes -= sum([len(delivery.message.body) for delivery, _ in batch])
            if self._lanes is not None:
                self._lanes.recorded(batch)
            if late:
                self._tell_late(late, batch)
            if self._room is not None and not self._room.done() and self._open * 2 <= self._window:
                self._room.set_result(None)

    def _tell_late(self, late: list[Delivery], batch: list[Settlement]) -> None:
        given_back = {id(delivery) for delivery, outcome in batch if isinstance(outcome, Release)}
        for delivery in late:
            if id(delivery) not in given_back:  # what was not run, or not to its end, is no news
                emit("delivery.late", subscription=self.name, message=delivery.message.id)

    async def _record(self, batch: list[Settlement]) -> list[Delivery]:
        """Hand outcomes to the broker until it has them: a broker that is away for a while loses none."""
        failures = 0
        while True:
            self.asked["settle"] = time.monotonic()
            try:
                late = await self._feed.settle(batch)
                self._answered("settle")
                return late
            except Exception as error:
                failures += 1
                await self._pause("settle.failed", failures, count=len(batch), error=describe(error))

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
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context as Variables
from contextvars import copy_context
from typing import Any, Final

from .broker import Feed, Settlement
from .clock import Clock, Timer
from .context import current
from .errors import BrokerError
from .handler import HandlerSpec
from .message import Delivery, Failure
from .outcome import ACK, RELEASE, Ack, DeadLetter, Outcome, Release, Retry, describe
from .pipeline import compose
from .telemetry import emit

MAX_BUFFER: Final = 64 * 1024 * 1024
"""Most bytes of fetched and unsettled bodies: 64 MiB a subscription."""

MAX_WINDOW: Final = 1024
"""Most deliveries fetched and not settled. Past this a larger batch saves nothing measurable."""

HORIZON: Final = 0.1
"""How many seconds of work to hold: the window follows the handlers' speed. Fast ones get large batches; slow ones
hold little, so that another process finds something to do."""

FETCH_WAIT: Final = 1.0
YIELD_EVERY: Final = 64
ABANDON_AFTER: Final = 10.0
"""Seconds a cancelled handler has to end before it is left to itself."""

_TRACEBACK: Final = 4096


class _Running:
    """A handler that is waiting for something."""

    __slots__ = ("abandoned", "deadline", "delivery", "reason", "task")

    def __init__(self, delivery: Delivery, task: asyncio.Task[Any], deadline: int | None) -> None:
        self.delivery = delivery
        self.task = task
        self.deadline = deadline
        self.reason: str | None = None
        self.abandoned = False


class Consumer:
    """Consumes one subscription through one feed. `start`, then `drain`; not to be started again."""

    def __init__(self, spec: HandlerSpec, feed: Feed, clock: Clock) -> None:
        self.spec = spec
        self.name = spec.subscription.name
        self.handled = 0
        self.released = 0
        self._feed = feed
        self._clock = clock
        # What a user's middleware returns may be anything.
        self._handle: Callable[[Delivery], Awaitable[object]] = compose(spec.use, spec.handle())
        self._timeout = None if spec.timeout is None else round(spec.timeout * 1e9)
        self._min_window = 2 * spec.concurrency
        self._window = self._min_window
        self._open = 0
        self._open_bytes = 0
        self._ready: deque[Delivery] = deque()
        # key -> followers of the event that is ready or running.
        self._lanes: dict[str, deque[Delivery]] | None = {} if spec.subscription.ordered else None
        # key -> events of it on their way back. Whatever else arrives of such a key goes back too, until the broker
        # has recorded them all and holds the key's events in order by itself.
        self._blocked: dict[str, int] = {}
        self._outcomes: list[Settlement] = []
        self._running: dict[int, _Running] = {}
        self._idle: deque[asyncio.Future[None]] = deque()
        self._wanted: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._watchdog: Timer | None = None
        self._watched = 0
        self._stopping = False
        self._force = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._fetcher: asyncio.Task[None] | None = None
        self._settler: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to consume."""
        self._loop = asyncio.get_running_loop()
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
        return len(self._running)

    @property
    def at_work(self) -> list[tuple[Delivery, int | None]]:
        """The deliveries of those handlers, each with the time (nanoseconds since 1970) its timeout comes."""
        return [(running.delivery, running.deadline) for running in self._running.values()]

    def force(self) -> None:
        """Make a drain that is under way cancel what still runs."""
        self._force.set()

    async def drain(self, grace: float) -> None:
        """Stop (G7): fetch no more, let running handlers finish for `grace` seconds, give back all else uncharged.

        Handlers still running then are cancelled and their events given back. Returns when all is settled.
        """
        self._stopping = True
        if self._fetcher is not None:
            self._fetcher.cancel()
            await asyncio.wait([self._fetcher])
        self._give_back()
        if self._running and not await self._finished_within(grace):
            for running in tuple(self._running.values()):
                if running.reason is None:
                    running.reason = "drain"
                    running.task.cancel()
            if not await self._finished_within(1.0, forced=True):
                for running in tuple(self._running.values()):
                    self._abandon(running, RELEASE)
        for worker in self._workers:
            worker.cancel()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._settler is not None:
            self._wake_settler()
            # A broker that is away must not keep the process: what it has not recorded is delivered again.
            await asyncio.wait([self._settler], timeout=max(1.0, grace))
            self._settler.cancel()
        await self._feed.close()
        emit("consumer.stopped", subscription=self.name, handled=self.handled, released=self.released)

    def _give_back(self) -> None:
        waiting = list(self._ready)
        self._ready.clear()
        for followers in (self._lanes or {}).values():
            waiting += followers
            followers.clear()
        self._outcomes += [(delivery, RELEASE) for delivery in waiting]
        self.released += len(waiting)
        self._wake_settler()

    async def _finished_within(self, seconds: float, forced: bool = False) -> bool:
        if not self._running:
            return True
        self._quiet = self._loop.create_future()
        stop = asyncio.ensure_future(self._force.wait())
        await asyncio.wait(
            (self._quiet,) if forced else (self._quiet, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        stop.cancel()
        return not self._running

    # ----------------------------------------------------------------- fetch

    async def _fetch_all(self) -> None:
        failures = 0
        handled, since = 0, time.perf_counter()
        while True:
            if self._open * 2 > self._window or self._open_bytes >= MAX_BUFFER:
                self._room = self._loop.create_future()
                await self._room
            elapsed = time.perf_counter() - since
            done = self.handled - handled
            if done:
                self._window = max(self._min_window, min(MAX_WINDOW, int(done / elapsed * HORIZON)))
            limit = self._window - self._open
            if limit <= 0:
                continue
            try:
                deliveries = await self._feed.fetch(limit, FETCH_WAIT, MAX_BUFFER - self._open_bytes)
            except BrokerError as error:
                failures += 1
                await self._pause("fetch.failed", failures, error=describe(error))
                continue
            except Exception as error:  # an adapter's bug must not end consumption in silence
                failures += 1
                await self._pause("fetch.failed", failures, error="".join(traceback.format_exception(error)))
                continue
            failures = 0
            handled, since = self.handled, time.perf_counter()
            if deliveries:
                self._take(deliveries)

    def _take(self, deliveries: list[Delivery]) -> None:
        self._open += len(deliveries)
        self._open_bytes += sum([len(delivery.message.body) for delivery in deliveries])
        ready = self._ready
        if self._lanes is None:
            ready.extend(deliveries)
        else:
            lanes = self._lanes
            for delivery in deliveries:
                key = delivery.message.key
                if key is None:
                    ready.append(delivery)
                elif key in self._blocked:
                    self._finish(delivery, RELEASE)
                elif key in lanes:
                    lanes[key].append(delivery)
                else:
                    lanes[key] = deque()
                    ready.append(delivery)
        self._wake_worker()

    async def _pause(self, event: str, failures: int, **fields: Any) -> None:
        emit(event, subscription=self.name, **fields)
        # Full jitter from 0.1 s up to 30 s: many processes that lost one broker do not come back in step.
        await asyncio.sleep(random.uniform(0.05, min(30.0, 0.1 * 2 ** min(failures, 9))))

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
        ready = self._ready
        attempt = self._attempt
        count = 0
        while True:
            if not ready:
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            delivery = ready.popleft()
            variables = copy_context()
            coroutine = attempt(delivery)
            try:
                waiting_for = variables.run(coroutine.send, None)
            except StopIteration as done:
                outcome: Outcome = done.value
            else:
                running = _Running(delivery, self._my_task(), self._deadline())
                outcome = await self._continue(running, coroutine, variables, waiting_for)
                if running.abandoned:
                    return  # another worker has taken this one's place, and the delivery is settled
            if outcome is ACK and self._lanes is None:
                self._outcomes.append((delivery, ACK))
                if self._wanted is not None:
                    self._wake_settler()
            else:
                self._finish(delivery, outcome)
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _my_task(self) -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None
        return task

    def _deadline(self) -> int | None:
        return None if self._timeout is None else self._clock.now() + self._timeout

    async def _continue(
        self, running: _Running, coroutine: Coroutine[Any, Any, Outcome], variables: Variables, waiting_for: Any
    ) -> Outcome:
        self._running[id(running.delivery)] = running
        # While a cancelled handler is given time to end, the watchdog sleeps longer than a new one may take.
        if running.deadline is not None and (self._watchdog is None or running.deadline < self._watched):
            self._watch(running.deadline)
        self._wake_worker()
        try:
            return await _Rest(coroutine, variables, waiting_for)
        finally:
            self._running.pop(id(running.delivery), None)
            if running.reason is not None:
                running.task.uncancel()
            if not self._running and self._quiet is not None and not self._quiet.done():
                self._quiet.set_result(None)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        """Run the pipeline once. Total: whatever it returns or raises becomes an outcome."""
        current.set(delivery)
        try:
            outcome = await self._handle(delivery)
        except asyncio.CancelledError as error:
            return self._cancelled(delivery, error)
        except BaseException as error:
            return self._failed(delivery, error)
        if outcome is ACK:
            return ACK
        if isinstance(outcome, Ack | Retry | DeadLetter | Release):
            return outcome
        return self._failed(delivery, TypeError(f"a middleware returned {type(outcome).__name__}, which is no outcome"))

    def _cancelled(self, delivery: Delivery, error: BaseException) -> Outcome:
        running = self._running.get(id(delivery))
        match running and running.reason:
            case "timeout":
                return self._failed(delivery, TimeoutError(f"the handler took longer than {self.spec.timeout:g} s"))
            case "drain":
                return RELEASE
            case _:
                if self._stopping:
                    return RELEASE
                # Nobody here cancelled it: the handler awaited something that was cancelled. That is its failure.
                return self._failed(delivery, error)

    def _failed(self, delivery: Delivery, error: BaseException) -> Outcome:
        trace = "".join(traceback.format_exception(error))[-_TRACEBACK:]
        failure = Failure(delivery.attempt, self._clock.now(), describe(error), trace)
        delivery.history = (*delivery.history, failure)
        return self.spec.retry.outcome_of(error, delivery.attempt)

    def _finish(self, delivery: Delivery, outcome: Outcome) -> None:
        """Hand an outcome to the settler, and the key's lane to its next event."""
        self._outcomes.append((delivery, outcome))
        if self._wanted is not None:
            self._wake_settler()
        if outcome is not ACK:
            self._tell(delivery, outcome)
        key = delivery.message.key
        if self._lanes is None or key is None:
            return
        if isinstance(outcome, Retry | Release):
            followers = self._lanes.pop(key, ())
            self._blocked[key] = self._blocked.get(key, 0) + 1 + len(followers)
            self._outcomes += [(follower, RELEASE) for follower in followers]
        elif followers := self._lanes[key]:
            self._ready.append(followers.popleft())
            self._wake_worker()
        else:
            del self._lanes[key]

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

    # -------------------------------------------------------------- watchdog

    def _watch(self, deadline: int) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watched = deadline
        self._watchdog = self._clock.call_later(max(0, deadline - self._clock.now()) / 1e9, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._watchdog = None
        now = self._clock.now()
        earliest: int | None = None
        for running in tuple(self._running.values()):
            if running.deadline is None:
                continue
            if running.deadline <= now:
                if running.reason is None:
                    running.reason = "timeout"
                    running.task.cancel()
                    running.deadline = now + round(ABANDON_AFTER * 1e9)
                else:
                    emit(
                        "delivery.abandoned",
                        subscription=self.name,
                        message=running.delivery.message.id,
                        seconds=ABANDON_AFTER,
                    )
                    late = TimeoutError(f"the handler did not end within {ABANDON_AFTER:g} s of being cancelled")
                    self._abandon(running, self._failed(running.delivery, late))
                    continue
            earliest = running.deadline if earliest is None else min(earliest, running.deadline)
        if earliest is not None:
            self._watch(earliest)

    def _abandon(self, running: _Running, outcome: Outcome) -> None:
        running.abandoned = True
        del self._running[id(running.delivery)]
        self._workers.discard(running.task)
        self._finish(running.delivery, outcome)
        if not self._stopping:
            self._add_worker()

    # ---------------------------------------------------------------- settle

    def _wake_settler(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)
        self._wanted = None  # so that a thousand outcomes in one turn wake it once

    async def _settle_all(self) -> None:
        while True:
            while not self._outcomes:
                if self._stopping and not self._running and not self._ready:
                    return
                self._wanted = self._loop.create_future()
                await self._wanted
            batch, self._outcomes = self._outcomes, []
            late = await self._record(batch)
            self.handled += len(batch)
            self._open -= len(batch)
            self._open_bytes -= sum([len(delivery.message.body) for delivery, _ in batch])
            if self._blocked:
                for delivery, outcome in batch:
                    if isinstance(outcome, Retry | Release):
                        self._unblock(delivery.message.key)
            for delivery in late:
                emit("delivery.late", subscription=self.name, message=delivery.message.id)
            if self._room is not None and not self._room.done() and self._open * 2 <= self._window:
                self._room.set_result(None)

    def _unblock(self, key: str | None) -> None:
        if key is not None and key in self._blocked:
            self._blocked[key] -= 1
            if not self._blocked[key]:
                del self._blocked[key]

    async def _record(self, batch: list[Settlement]) -> list[Delivery]:
        """Hand outcomes to the broker until it has them: a broker that is away for a while loses none."""
        failures = 0
        while True:
            try:
                return await self._feed.settle(batch)
            except Exception as error:
                failures += 1
                await self._pause("settle.failed", failures, count=len(batch), error=describe(error))


class _Rest:
    """Awaits the rest of a coroutine that has begun, step by step inside its own context."""

    __slots__ = ("_coroutine", "_run", "_waiting_for")

    def __init__(self, coroutine: Coroutine[Any, Any, Outcome], variables: Variables, waiting_for: Any) -> None:
        self._coroutine = coroutine
        self._run: Callable[..., Any] = variables.run
        self._waiting_for = waiting_for

    def __await__(self) -> Generator[Any, Any, Outcome]:
        run, coroutine, waiting_for = self._run, self._coroutine, self._waiting_for
        while True:
            try:
                try:
                    value = yield waiting_for
                except BaseException as error:
                    waiting_for = run(coroutine.throw, error)
                else:
                    waiting_for = run(coroutine.send, value)
            except StopIteration as done:
                return done.value

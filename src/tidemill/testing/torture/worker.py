"""The processes of a torture run. They publish and consume as any service does, and write down all of it.

What a handler did, it says itself. What became of it, the feed says: a stand-in before the real one writes down what
the broker accepted and what it refused as too late.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ...broker import Broker, Feed, Settlement, Subscription, connect
from ...clock import SystemClock
from ...context import Context, current
from ...errors import BrokerError, PublishError
from ...message import Delivery
from ...outcome import Ack, DeadLetter, Outcome, Release, Retry
from ...runtime import run_until_signal
from ...service import Service
from ...stand_in import BrokerStandIn, FeedStandIn
from ...telemetry import listen
from ..history import Fact, Log
from .plan import POISON, RAW, FaultKind, Kind, Plan, id_of, parts
from .steps import code, message

DIED: Final = 77
"""The exit code of a process that an event has ended."""

NO_START: Final = 3
"""The exit code of a process that could not start, as the broker failed."""

BLOCK: Final = 0.3
"""Seconds for which the event loop is stopped: longer than any handler should, shorter than any timeout."""

AHEAD: Final = 0.15
"""The share of all events that is published in bursts, all bursts together."""

_WORDS: Final[dict[type[Outcome], str]] = {Ack: "acked", Retry: "retried", DeadLetter: "dead", Release: "released"}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is to be."""

    plan: Plan
    url: str
    log: str
    consumes: bool
    version: int
    """Of the code."""
    serial: int
    """The how manyth process of the run it is."""
    began: int = 0
    """When publishing began: nanoseconds since 1970."""
    left: dict[str, tuple[int, int]] = {}
    """What it publishes: key -> the next number, and the one to stop before."""


def run(job: Job) -> int:
    """Be that process. Returns its exit code."""
    log = Log(job.log)
    try:
        asyncio.run(consume(job, log) if job.consumes else publish(job, log))
    except BrokerError as error:
        log.tell("no start", text=str(error))
        return NO_START
    return 0


# --------------------------------------------------------------------- consume


async def consume(job: Job, log: Log) -> None:
    """Handle events until SIGTERM."""
    plan = job.plan
    draw = random.Random(f"{plan.seed}/{job.serial}")
    service: Service[None] = Service(plan.name)
    handlers = _Handlers(plan, log, draw)
    topic = code(job.version, plan.topic).topic
    for name, ordered in plan.subscriptions.items():
        service.on(
            topic,
            name=name.rpartition(".")[2],
            ordered=ordered,
            start="beginning",
            timeout=plan.timeout,
            retry=plan.retry,
            concurrency=draw.choice((2, 8, 16)),
        )(handlers.handle)
    for spec in service.handlers:
        spec.subscription = msgspec.structs.replace(spec.subscription, lease=plan.lease)
    listen(lambda event, _: log.tell("future") if event == "delivery.future" else None)
    witness = Witness(connect(job.url, SystemClock()), log)
    await run_until_signal(
        [service],
        witness,
        grace=5.0,
        ready=lambda _: log.tell("ready"),
        draining=lambda _: log.tell("draining"),
    )


class _Handlers:
    """What is done with an event: what its kind says."""

    def __init__(self, plan: Plan, log: Log, draw: random.Random) -> None:
        self._plan = plan
        self._log = log
        self._draw = draw

    async def handle(self, step: Any, ctx: Context) -> None:
        delivery = current.get()
        assert delivery is not None
        known: dict[str, Any] = {
            "id": delivery.message.id,
            "key": step.key,
            "number": step.number,
            "attempt": delivery.attempt,
            "subscription": delivery.subscription,
            "run": runs.get(id(delivery), 0),
        }
        self._log.tell("began", **known)
        try:
            await self._do(self._plan.kind_for(delivery.subscription, step.key, step.number), ctx)
        except asyncio.CancelledError:
            self._log.tell("cut", **known)
            raise
        except RuntimeError as error:
            self._log.tell("failed", text=str(error), **known)
            raise
        self._log.tell("ended", **known)

    async def _do(self, kind: Kind, ctx: Context) -> None:
        match kind:
            case Kind.EXITS:
                self._log.tell("exits")
                os._exit(DIED)
            case Kind.HANGS:
                await asyncio.Event().wait()
            case Kind.BLOCKS:
                time.sleep(BLOCK)  # noqa: ASYNC251  that is what it is for
            case _:
                seconds = self._draw.uniform(-self._plan.longest, self._plan.longest)  # half of them wait for nothing
                if seconds > 0:
                    await asyncio.sleep(seconds)
        if kind in POISON or (kind is Kind.FLAKY and ctx.attempt == 1):
            raise RuntimeError(f"{kind}, on purpose")


runs: dict[int, int] = {}
"""By the identity of a delivery that is being run: which run of this process it is."""


class Witness(BrokerStandIn):
    """Writes down what the broker says of settlements."""

    def __init__(self, real: Broker, log: Log) -> None:
        super().__init__(real)
        self._log = log

    async def subscribe(self, subscription: Subscription) -> Feed:
        return _WitnessedFeed(await self.real.subscribe(subscription), self._log)


class _WitnessedFeed(FeedStandIn):
    _count = 0

    def __init__(self, real: Feed, log: Log) -> None:
        super().__init__(real)
        self._log = log

    def begin(self, delivery: Delivery) -> bool:
        _WitnessedFeed._count += 1
        runs[id(delivery)] = _WitnessedFeed._count
        # Before it is so: of a process that is killed in between the broker knows that it had begun.
        self._log.write([self._fact("begins", delivery)])
        return self.real.begin(delivery)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        late = await self.real.settle(settlements)
        lost = {id(delivery) for delivery in late}
        self._log.write(
            [
                self._fact("late" if id(delivery) in lost else _WORDS[type(outcome)], delivery)
                for delivery, outcome in settlements
            ]
        )
        for delivery, _ in settlements:
            runs.pop(id(delivery), None)
        return late

    def _fact(self, what: str, delivery: Delivery) -> Fact:
        key, number = parts(delivery.message.id)
        return self._log.fact(
            what,
            id=delivery.message.id,
            key=key,
            number=number,
            attempt=delivery.attempt,
            subscription=delivery.subscription,
            run=runs.get(id(delivery), 0),
        )


# --------------------------------------------------------------------- publish


async def publish(job: Job, log: Log) -> None:
    """Publish events at an even pace until all are confirmed, or SIGTERM. SIGUSR1 makes a burst."""
    plan = job.plan
    draw = random.Random(f"{plan.seed}/{job.serial}")
    broker = connect(job.url, SystemClock())
    service: Service[None] = Service(plan.name)
    stop = asyncio.Event()
    ahead = 0.0

    def burst() -> None:
        nonlocal ahead
        ahead += AHEAD / max(1, plan.planned(FaultKind.BURST))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, burst)
    left = dict(job.left)
    batch = draw.choice((1, 8, 16))
    async with service.running(broker, consume=False):
        log.tell("ready")
        while left and not stop.is_set():
            passed = (time.time_ns() - job.began) / 1e9 / (0.95 * plan.duration) + ahead
            due = [key for key, (number, last) in left.items() if number < math.ceil(last * passed)]
            if not due:
                await asyncio.sleep(0.01)
                continue
            chosen = draw.sample(due, min(len(due), batch))
            done = await asyncio.gather(*(_publish(job, log, service, broker, key, left[key][0]) for key in chosen))
            for key, confirmed in zip(chosen, done, strict=True):
                number, last = left[key]
                if confirmed and number + 1 == last:
                    del left[key]
                elif confirmed:
                    left[key] = number + 1, last
            if not all(done):
                await asyncio.sleep(draw.uniform(0.02, 0.2))
        if not left:
            log.tell("done")


async def _publish(job: Job, log: Log, service: Service[None], broker: Broker, key: str, number: int) -> bool:
    """Publish one event. Whether it is confirmed."""
    identity = id_of(key, number)
    try:
        if job.plan.kind(key, number) in RAW:
            (receipt,) = await broker.publish([message(job.plan, job.version, key, number)])
            confirmed, why = receipt.ok, receipt.error
        else:
            await service.publish(code(job.version, job.plan.topic).make(key, number), id=identity)
            confirmed, why = True, ""
    except (PublishError, BrokerError) as error:
        confirmed, why = False, str(error)
    log.tell("confirmed" if confirmed else "refused", id=identity, key=key, number=number, text=why)
    return confirmed

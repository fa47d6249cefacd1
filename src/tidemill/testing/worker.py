"""The child process of scenarios with real processes: `python -m tidemill.testing.worker consume|publish URL LOG …`.

It writes what it did to LOG; see `tidemill.testing.history`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from collections.abc import Sequence

import msgspec

from ..broker import connect
from ..clock import SystemClock
from ..context import Context
from ..event import Topic, event
from ..message import Message
from ..outcome import RetryPolicy
from ..runtime import run_until_signal
from ..service import Service
from .history import Log

steps = Topic("steps", key="key")


@event("step.taken", topic=steps)
class StepTaken:
    """Number `number` of its key; numbers of a key begin with 0 and have no gaps."""

    key: str
    number: int
    seconds: float = 0.0
    """How long its handler takes, at least."""


class _Log(Log):
    def step(self, what: str, message: Message, step: StepTaken, attempt: int = 0) -> None:
        self.tell(what, id=message.id, key=step.key, number=step.number, attempt=attempt, published=message.time)


async def consume(url: str, log: _Log, options: argparse.Namespace) -> None:
    """Handle steps until SIGTERM."""
    service = Service("walker")
    low, high = options.slow
    policy = RetryPolicy(attempts=options.attempts, immediate=0, base=0.02, factor=1, cap=0.02)

    @service.on(StepTaken, name="walk", start="beginning", concurrency=options.concurrency, retry=policy)
    async def walk(step: StepTaken, ctx: Context) -> None:
        log.step("began", ctx.message, step, ctx.attempt)
        if step.number in options.dies_at:
            os._exit(77)
        if step.number >= options.hangs_from:
            await asyncio.Event().wait()
        try:
            if high or step.seconds:
                await asyncio.sleep(max(step.seconds, random.uniform(low, high)))
        except asyncio.CancelledError:
            if ctx.lost:
                log.step("lost", ctx.message, step, ctx.attempt)
            raise
        log.step("ended", ctx.message, step, ctx.attempt)

    (spec,) = service.handlers
    spec.subscription = msgspec.structs.replace(spec.subscription, lease=options.lease)
    await run_until_signal(
        [service],
        url,
        grace=options.grace,
        ready=lambda _: log.tell("ready"),
        draining=lambda _: log.tell("draining"),
    )


async def publish(url: str, log: _Log, options: argparse.Namespace) -> None:
    """Publish the steps of each key up to `last`, in batches, and tell of each once it is confirmed.

    Ids follow from key and number, so that a publisher that is started again repeats what is not known to be stored.
    """
    clock = SystemClock()
    broker = connect(url, clock)
    service = Service("walker-feet")
    draw = random.Random(options.seed)
    left = {name: int(first or 0) for name, _, first in (key.partition("=") for key in options.keys)}
    async with service.running(broker, consume=False):
        log.tell("ready")
        while left:
            batch = draw.sample(sorted(left), min(len(left), options.batch))
            publishing: list[tuple[StepTaken, asyncio.Task[Message]]] = []
            for key in batch:
                step = StepTaken(key, left[key])
                identity = f"{key}-{step.number}"
                publishing.append((step, asyncio.create_task(service.publish(step, id=identity))))
            for step, task in publishing:
                log.step("confirmed", await task, step)
                left[step.key] += 1
                if left[step.key] > options.last:
                    del left[step.key]
            if options.pace:
                await asyncio.sleep(options.pace)
        log.tell("done")


def main(arguments: Sequence[str]) -> None:
    """Be the process that the arguments describe."""
    parser = argparse.ArgumentParser(prog="tidemill.testing.worker")
    commands = parser.add_subparsers(dest="command", required=True)
    consumer = commands.add_parser("consume")
    publisher = commands.add_parser("publish")
    for command in (consumer, publisher):
        command.add_argument("url")
        command.add_argument("log")
    consumer.add_argument("--concurrency", type=int, default=16)
    consumer.add_argument("--attempts", type=int, default=8)
    consumer.add_argument("--slow", type=float, nargs=2, default=(0.0, 0.0), help="seconds a handler takes")
    consumer.add_argument("--hangs-from", type=int, default=sys.maxsize, help="the number whose handler hangs")
    consumer.add_argument("--dies-at", type=int, nargs="*", default=(), help="numbers that end the process")
    consumer.add_argument("--lease", type=float, default=30.0)
    consumer.add_argument("--grace", type=float, default=5.0)
    publisher.add_argument("--keys", nargs="+", default=["a"], help="each with its first number: a b=17")
    publisher.add_argument("--last", type=int, default=sys.maxsize)
    publisher.add_argument("--batch", type=int, default=8)
    publisher.add_argument("--pace", type=float, default=0.0)
    publisher.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    asyncio.run((consume if options.command == "consume" else publish)(options.url, _Log(options.log), options))


if __name__ == "__main__":
    main(sys.argv[1:])

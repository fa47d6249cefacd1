# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The hand-written limit in memory: the least that is still a bus.

An id (UUID version 7) and an envelope per event, JSON there and back, a queue and an in-flight table per
subscription, a worker that calls the handler through two middleware closures with the delivery in a context
variable, an acknowledgement, a retry heap. No keys, no timeout, no duplicates, no bounds, no batches, no retry policy.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from .events import PlainOrder

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(PlainOrder).decode


class Envelope(msgspec.Struct):
    id: str
    source: str
    type: str
    topic: str
    time: int
    body: bytes
    correlation_id: str


class Attempt(msgspec.Struct):
    envelope: Envelope
    number: int = 1


handling: contextvars.ContextVar[Attempt] = contextvars.ContextVar("handling")
Step = Callable[[Any, Attempt], Awaitable[None]]


def id_maker() -> Callable[[], str]:
    last, prefix, count = -1, "", 0
    bits = random.Random(os.urandom(32)).getrandbits
    clock = time.time_ns

    def make() -> str:
        nonlocal last, prefix, count
        now = clock() // 1_000_000
        if now > last:
            text = f"{now:012x}"
            last, prefix, count = now, f"{text[:8]}-{text[8:]}-7", 0
        else:
            count += 1
        return "%s%03x-%04x-%012x" % (prefix, count >> 14, 0x8000 | count & 0x3FFF, bits(48))  # noqa: UP031

    return make


new_id = id_maker()


def closure(call_next: Step) -> Step:
    async def call(event: Any, attempt: Attempt) -> None:
        await call_next(event, attempt)

    return call


class Bus:
    """One topic and one subscription of it."""

    def __init__(self, handler: Step) -> None:
        self.ready: deque[Attempt] = deque()
        self.in_flight: dict[str, Attempt] = {}
        self.later: list[tuple[int, str, Attempt]] = []
        self.settled = 0
        self.sleeper: asyncio.Future[None] | None = None
        self.handler = closure(closure(handler))

    async def publish(self, event: PlainOrder) -> None:
        id = new_id()
        envelope = Envelope(id, "bench", "order.placed", "orders", time.time_ns(), encode(event), id)
        self.ready.append(Attempt(envelope))
        if self.sleeper is not None and not self.sleeper.done():
            self.sleeper.set_result(None)

    async def work(self) -> None:
        count = 0
        while True:
            if not self.ready:
                self.sleeper = asyncio.get_running_loop().create_future()
                await self.sleeper
                continue
            await self.attempt(self.ready.popleft())
            count += 1
            if count % 64 == 0:
                await asyncio.sleep(0)

    async def attempt(self, attempt: Attempt) -> None:
        envelope = attempt.envelope
        self.in_flight[envelope.id] = attempt
        token = handling.set(attempt)
        try:
            await self.handler(decode(envelope.body), attempt)
        except Exception:
            attempt.number += 1
            heapq.heappush(self.later, (time.time_ns() + 1_000_000_000, envelope.id, attempt))
        else:
            self.settled += 1
        finally:
            del self.in_flight[envelope.id]
            handling.reset(token)

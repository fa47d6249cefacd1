# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The event every case moves: six fields, 256 bytes of JSON; on a topic with a key and on one without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tidemill import Circuit, Context, Outcome, Rate, RetryAfter, RetryPolicy, Service, Topic, event
from tidemill.message import Delivery
from tidemill.pipeline import Handle
from tidemill.telemetry import listen

orders = Topic("orders")
keyed_orders = Topic("keyed-orders", key="customer")

KEYS = 100
# 142 characters of text, as a field of repeated letters would be searched and compressed unlike any other.
_NOTE = (
    "Please leave the parcel with the neighbours at number 12 if nobody answers the d"
    "oor, and ring twice, because the bell is hard to hear upstairs"
)


@event("order.placed", topic=orders)
class OrderPlaced:
    order_id: str
    customer: str
    amount: float
    quantity: int
    express: bool
    note: str


@event("keyed.order.placed", topic=keyed_orders)
class KeyedOrderPlaced:
    order_id: str
    customer: str
    amount: float
    quantity: int
    express: bool
    note: str


class PlainOrder(msgspec.Struct, frozen=True):
    """The same fields for whoever does without Tidemill."""

    order_id: str
    customer: str
    amount: float
    quantity: int
    express: bool
    note: str


def make(cls: Any, number: int, express: bool = True) -> Any:
    return cls(f"ord-{number:012d}", customer(number % KEYS), 129.95, 3, express, _NOTE)


def stamped(cls: Any, number: int, keys: int = KEYS, at: int | None = None) -> Any:
    """An event that carries when it was made (or is due), on a clock that all processes of a machine share."""
    at = time.monotonic_ns() if at is None else at
    return cls(f"ord-{number:012d}", customer(number % keys), 129.95, at, True, _NOTE)


def customer(number: int) -> str:
    return f"customer-{number:06d}"


def batches(cls: Any, count: int, size: int) -> Iterator[list[Any]]:
    for start in range(0, count, size):
        yield [make(cls, number) for number in range(start, min(start + size, count))]


EVERYTHING: dict[str, Any] = {
    "retry": RetryPolicy(attempts=5, base=0.5),
    "timeout": 30.0,
    "rate": Rate(1_000_000),
    "circuit": Circuit(failures=50),
}
"""Every policy a handler can have, with the rate far above what is reached."""

BRIEFLY = RetryPolicy(base=0.05, factor=2, cap=0.2)
"""The default policy in a hurry: eight attempts in about a second."""


async def pass_on(call_next: Handle, delivery: Delivery) -> Outcome:
    """A middleware of a user's that finds nothing to do."""
    return await call_next(delivery)


class Tally:
    """A service whose only handler counts. With `ages` it also keeps how many seconds old each event was.

    policies  whether the handler has every policy there is, a middleware, and somebody who listens to telemetry.
    fails     the customer whose events fail at each attempt. They are counted in `failed`.
    postpone  seconds after which each event asks to come again. With `ages` it does so once, and its age is how late
              it came.
    nap       seconds that it takes to handle an event that is not express.
    """

    def __init__(
        self,
        *,
        keyed: bool = False,
        context: bool = False,
        concurrency: int = 16,
        pause: bool = False,
        ages: list[float] | None = None,
        policies: bool = False,
        fails: str | None = None,
        postpone: float | None = None,
        nap: float | None = None,
    ) -> None:
        self.cls: Any = KeyedOrderPlaced if keyed else OrderPlaced
        self.seen = self.failed = self.last = 0
        self.service = Service("bench")
        self.stop_listening: Callable[[], None] = listen(lambda name, fields: None) if policies else lambda: None
        options: dict[str, Any] = EVERYTHING | {"use": [pass_on]} if policies else {}
        if fails is not None:
            options["retry"] = BRIEFLY
        if postpone is not None:
            options["circuit"] = None
        declare = self.service.on(self.cls, name="count", concurrency=concurrency, **options)
        if postpone is not None and ages is not None:
            asked: dict[str, float] = {}

            @declare
            async def come_again_once(event: Any) -> None:
                now = time.monotonic()
                if event.order_id not in asked:
                    asked[event.order_id] = now + postpone
                    raise RetryAfter(postpone)
                ages.append(now - asked[event.order_id])
                self.seen += 1

        elif postpone is not None:

            @declare
            async def come_again(event: Any) -> None:
                raise RetryAfter(postpone)

        elif nap is not None:

            @declare
            async def take_time(event: Any) -> None:
                if nap and not event.express:
                    await asyncio.sleep(nap)
                self.seen += 1
                self.last = time.monotonic_ns()

        elif ages is not None:

            @declare
            async def note_age(event: Any) -> None:
                if event.customer == fails:
                    self.failed += 1
                    raise ConnectionError("the customer's shop is away")
                ages.append((time.monotonic_ns() - event.quantity) / 1e9)
                self.seen += 1

        elif pause:

            @declare
            async def count_after_a_turn(event: Any) -> None:
                self.seen += 1
                await asyncio.sleep(0)

        elif context:

            @declare
            async def count_with_context(event: Any, ctx: Context) -> None:
                if ctx.attempt == 1:
                    self.seen += 1

        else:

            @declare
            async def count(event: Any) -> None:
                self.seen += 1

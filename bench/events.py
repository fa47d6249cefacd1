# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""The event every case moves: six fields, 256 bytes of JSON; on a topic with a key and on one without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from tidemill import Context, Service, Topic, event

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


def make(cls: Any, number: int) -> Any:
    return cls(f"ord-{number:012d}", f"customer-{number % KEYS:06d}", 129.95, 3, True, _NOTE)


def stamped(cls: Any, number: int) -> Any:
    """An event that carries when it was made, on a clock that all processes of a machine share."""
    return cls(f"ord-{number:012d}", f"customer-{number % KEYS:06d}", 129.95, time.monotonic_ns(), True, _NOTE)


def batches(cls: Any, count: int, size: int) -> Iterator[list[Any]]:
    for start in range(0, count, size):
        yield [make(cls, number) for number in range(start, min(start + size, count))]


class Tally:
    """A service whose only handler counts. With `ages` it also keeps how many seconds old each event was."""

    def __init__(
        self,
        *,
        keyed: bool = False,
        context: bool = False,
        concurrency: int = 16,
        pause: bool = False,
        ages: list[float] | None = None,
    ) -> None:
        self.cls: Any = KeyedOrderPlaced if keyed else OrderPlaced
        self.seen = 0
        self.service = Service("bench")
        declare = self.service.on(self.cls, name="count", concurrency=concurrency)
        if ages is not None:

            @declare
            async def note_age(event: Any) -> None:
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

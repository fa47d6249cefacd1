"""Middlewares: the first is outermost, each may answer for the rest."""

from __future__ import annotations

import asyncio

import pytest

from tidemill.message import Delivery, Message
from tidemill.outcome import ACK, Ack, Outcome, Retry
from tidemill.pipeline import Handle, Middleware, compose

DELIVERY = Delivery(Message("1", "shop", "order.placed", "orders", 0, b"{}"), "mail.send", 1, 1)


def noting(name: str, notes: list[str]) -> Middleware:
    async def middleware(call_next: Handle, delivery: Delivery) -> Outcome:
        notes.append(f"> {name}")
        outcome = await call_next(delivery)
        notes.append(f"< {name}")
        return outcome

    return middleware


def test_the_first_middleware_is_outermost() -> None:
    notes: list[str] = []

    async def handle(delivery: Delivery) -> Outcome:
        notes.append(delivery.subscription)
        return ACK

    composed = compose([noting("a", notes), noting("b", notes)], handle)

    assert asyncio.run(_run(composed)) == Ack()
    assert notes == ["> a", "> b", "mail.send", "< b", "< a"]


def test_without_middlewares_it_is_the_handler_itself() -> None:
    async def handle(delivery: Delivery) -> Outcome:
        return ACK

    assert compose([], handle) is handle


def test_a_middleware_may_answer_without_calling_on() -> None:
    async def closed(call_next: Handle, delivery: Delivery) -> Outcome:
        return Retry(5, "closed")

    async def handle(delivery: Delivery) -> Outcome:
        raise AssertionError("not reached")

    assert asyncio.run(_run(compose([closed], handle))) == Retry(5, "closed")


def test_a_middleware_sees_what_the_handler_raises() -> None:
    async def handle(delivery: Delivery) -> Outcome:
        raise ValueError("boom")

    async def guard(call_next: Handle, delivery: Delivery) -> Outcome:
        with pytest.raises(ValueError, match="boom"):
            await call_next(delivery)
        return ACK

    assert asyncio.run(_run(compose([guard], handle))) == ACK


async def _run(handle: Handle) -> Outcome:
    return await handle(DELIVERY)

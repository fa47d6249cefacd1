"""Handlers that share a limit begin in turn, at its pace, by the clock of whoever runs them."""

from __future__ import annotations

import asyncio

from tidemill import Rate, RetryPolicy, Service
from tidemill.clock import ticking
from tidemill.middleware import throttle
from tidemill.testing import running

from .events import OrderCancelled, OrderPlaced

SECOND = 1_000_000_000


def test_handlers_share_one_limit_and_keep_their_turn() -> None:
    gateway = throttle(Rate(2, burst=1))
    service = Service("shop")
    began: list[tuple[int, int]] = []

    @service.on(OrderPlaced, use=[gateway])
    async def ship(event: OrderPlaced) -> None:
        began.append((ticking.get().now(), event.number))

    @service.on(OrderCancelled, use=[gateway])
    async def stop(event: OrderCancelled) -> None:
        began.append((ticking.get().now(), event.number))

    async def scenario() -> None:
        async with running(service) as mill:
            for number in range(10):
                await mill.publish(OrderPlaced(number) if number % 2 else OrderCancelled(number))
            await mill.settled()

    for _ in range(2):  # a limit outlives those who keep it, and an event loop
        began.clear()
        asyncio.run(scenario())
        assert sorted(number for _, number in began) == list(range(10))
        times = [at for at, _ in began]
        assert times == [times[0] + SECOND // 2 * turn for turn in range(10)]
        for parity in (0, 1):
            numbers = [number for _, number in began if number % 2 == parity]
            assert numbers == sorted(numbers)


def test_a_burst_begins_at_once() -> None:
    service = Service("shop")
    when: list[int] = []

    @service.on(OrderPlaced, use=[throttle(Rate(1, burst=3))])
    async def ship(event: OrderPlaced) -> None:
        when.append(ticking.get().now())

    async def scenario() -> None:
        async with running(service) as mill:
            for number in range(5):
                await mill.publish(OrderPlaced(number))
            await mill.settled()

    asyncio.run(scenario())
    assert [(at - when[0]) / SECOND for at in when] == [0, 0, 0, 1, 2]


def test_who_gives_up_waiting_leaves_its_turn_to_others() -> None:
    """A timeout cuts the wait short: what waits too long is a failed attempt, and nobody waits for ever behind it."""
    service = Service("shop")

    @service.on(
        OrderPlaced, use=[throttle(Rate(1, per=10, burst=1))], timeout=25, retry=RetryPolicy(attempts=9), circuit=None
    )
    async def ship(event: OrderPlaced) -> None: ...

    async def scenario() -> None:
        async with running(service) as mill:
            for number in range(8):
                await mill.publish(OrderPlaced(number))
            await mill.advance(25.5)
            assert len(mill.handled(ship)) == 3
            await mill.settled()
            assert sorted(event.number for event in mill.handled(ship)) == list(range(8))

    asyncio.run(scenario())


def test_in_real_time_the_rate_is_kept_and_reached() -> None:
    service = Service("shop")
    began: list[float] = []

    @service.on(OrderPlaced, use=[throttle(Rate(500, burst=10))])
    async def ship(event: OrderPlaced) -> None:
        began.append(asyncio.get_running_loop().time())
        if len(began) == 210:
            done.set()

    done = asyncio.Event()

    async def scenario() -> None:
        async with service.running("memory:"):
            await service.publish_many([OrderPlaced(number) for number in range(210)])
            async with asyncio.timeout(60):
                await done.wait()

    asyncio.run(scenario())
    assert began[-1] - began[0] >= 199 / 500

"""G1, G4: rates, outages, and subscriptions that somebody pauses."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from ... import Circuit, ConfigurationError, Context, Rate, Service
from ...telemetry import listen
from .events import NoteTaken, OrderPlaced, soon
from .place import Place
from .scenario import promise


@promise("G4")
async def a_handler_that_always_fails_is_no_hot_loop(place: Place) -> None:
    """With the policy as it ships: at most three runs in the first second, whatever else there is to do."""
    service = Service("shop")
    runs: list[float] = []

    @service.on(NoteTaken)
    async def note(event: NoteTaken) -> None:
        if event.number == 0:
            runs.append(time.monotonic())
            raise OSError("always")

    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(50))
        await place.until(lambda: runs, "it has run")
        await asyncio.sleep(1.0)
        assert 2 <= sum(at - runs[0] < 1.0 for at in runs) <= 3
        await place.handled("shop.note", 1)


@promise("G4")
async def a_rate_is_kept(place: Place) -> None:
    """No more handlers begin in a time than the rate says, however many events wait and however many may run."""
    service = Service("shop")
    began: list[float] = []

    @service.on(NoteTaken, rate=Rate(50, burst=1))
    async def note(event: NoteTaken) -> None:
        began.append(time.monotonic())

    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(20))
        await place.handled("shop.note")
    assert len(began) == 20
    assert began[-1] - began[0] >= 0.37, "nineteen intervals of 20 ms"


@promise("G4", "G1", needs=("delay",))
async def an_outage_costs_next_to_no_attempts(place: Place) -> None:
    """Everything fails for a while: after some failures in a row one event at a time is tried, and the others wait
    uncharged. When it is over all are handled, and none was given up."""
    service = Service("shop")
    down = True
    runs = 0
    attempts: dict[int, int] = {}
    said: list[str] = []

    @service.on(NoteTaken, retry=soon(4), circuit=Circuit(failures=10, base=0.1, cap=0.2), concurrency=8)
    async def note(event: NoteTaken, ctx: Context) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        if down:
            raise ConnectionError("down")
        attempts[event.number] = ctx.attempt

    stop = listen(lambda name, fields: said.append(name))
    try:
        async with place.running(service):
            await service.publish_many(NoteTaken(number) for number in range(200))
            await place.until(lambda: "circuit.opened" in said, "the circuit opens")
            before = runs
            await asyncio.sleep(0.5)
            assert runs - before <= 10, "probes, one at a time"
            down = False
            await place.handled("shop.note")
            status = await place.status("shop.note")
    finally:
        stop()
    assert said.count("circuit.opened") == 1
    assert said.count("circuit.closed") == 1
    assert (status.acked, status.dead) == (200, 0)
    assert sum(attempt - 1 for attempt in attempts.values()) <= 40


@promise("G6", "G4", needs=("order", "delay"))
async def order_holds_through_an_outage(place: Place) -> None:
    """Events that wait for a circuit to close are handled in the order of their key."""
    service = Service("shop")
    began = time.monotonic()
    handled: dict[str, list[int]] = {}

    @service.on(OrderPlaced, retry=soon(100), circuit=Circuit(failures=3, base=0.05, cap=0.05))
    async def place_order(event: OrderPlaced) -> None:
        if time.monotonic() < began + 0.5:
            raise ConnectionError("down")
        handled.setdefault(event.customer, []).append(event.number)

    async with place.running(service):
        await service.publish_many(OrderPlaced(str(key), number) for number in range(10) for key in range(8))
        await place.handled("shop.place_order")
    assert handled == {str(key): list(range(10)) for key in range(8)}


@promise("G1", "G4")
async def a_paused_subscription_waits(place: Place) -> None:
    """Nothing more begins, what waited here goes back uncharged, what comes meanwhile waits; it shows in `inspect`, and
    others go on. Resumed, everything is handled at its first attempt."""
    service = Service("shop")
    go_on = asyncio.Event()
    seen: list[tuple[int, int]] = []
    others: list[int] = []

    @service.on(NoteTaken, concurrency=2)
    async def note(event: NoteTaken, ctx: Context) -> None:
        seen.append((event.number, ctx.attempt))
        await go_on.wait()

    @service.on(NoteTaken)
    async def other(event: NoteTaken) -> None:
        others.append(event.number)

    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(20))
        await place.until(lambda: len(seen) == 2, "two handlers run")
        await service.pause("note")
        await service.pause("note")
        go_on.set()
        await place.handled("shop.note", 18)
        await service.publish(NoteTaken(20))
        await place.until(lambda: len(others) == 21, "the other subscription goes on")
        status = await place.status("shop.note")
        assert (len(seen), status.paused, status.backlog, status.retried) == (2, True, 19, 0)
        await service.resume("note")
        await place.handled("shop.note")
        assert not (await place.status("shop.note")).paused
        with pytest.raises(ConfigurationError, match="no handler 'notes'"):
            await service.pause("notes")
        with pytest.raises(ConfigurationError, match=r"no subscription 'shop\.notes'"):
            await (await place.broker()).pause("shop.notes", True)
    assert sorted(seen) == [(number, 1) for number in range(21)]


@promise("G1", "G6", needs=("order",))
async def a_pause_keeps_keys_in_order(place: Place) -> None:
    """Paused and resumed again and again while events of keys are fetched, running and published: every key goes on, in
    its order, and nothing is charged."""
    service = Service("shop")
    handled: dict[str, list[int]] = {}
    attempts: set[int] = set()

    @service.on(OrderPlaced, concurrency=3)
    async def note(event: OrderPlaced, ctx: Context) -> None:
        await asyncio.sleep(0.002)
        attempts.add(ctx.attempt)
        handled.setdefault(event.customer, []).append(event.number)

    async with place.running(service):
        for number in range(0, 30, 3):
            await service.publish_many(OrderPlaced(str(key), n) for n in range(number, number + 3) for key in range(6))
            await service.pause("note")
            await asyncio.sleep(0.005)
            await service.resume("note")
        await place.handled("shop.note")
    assert handled == {str(key): list(range(30)) for key in range(6)}
    assert attempts == {1}


@promise("G1", needs=("durable",))
async def a_pause_survives_a_restart(place: Place) -> None:
    """Until it is resumed, whoever starts meanwhile and whoever resumes it."""
    service = Service("shop")
    handled: list[int] = []

    @service.on(NoteTaken)
    async def note(event: NoteTaken) -> None:
        handled.append(event.number)

    async with place.running(service):
        await service.pause("note")
        await service.publish(NoteTaken(1))
    broker = await place.reopened()
    async with place.running(service):
        await service.publish(NoteTaken(2))
        await asyncio.sleep(0.2)
        assert handled == []
        await (await place.another()).pause("shop.note", False)
        await place.handled("shop.note")
    assert sorted(handled) == [1, 2]
    assert not (await place.status("shop.note", broker)).paused


@promise("G4", needs=("delay",))
async def waiting_for_a_rate_is_no_time_of_the_handler(place: Place) -> None:
    """Events that wait for their turn are not timed out, and none is charged."""
    service = Service("shop")
    began: list[float] = []

    @service.on(NoteTaken, rate=Rate(10, burst=1), timeout=0.08, concurrency=8)
    async def note(event: NoteTaken) -> None:
        began.append(time.monotonic())
        await asyncio.sleep(0.01)

    async with place.running(service):
        await service.publish_many(NoteTaken(number) for number in range(6))
        await place.handled("shop.note")
        status = await place.status("shop.note")
    assert (status.acked, status.retried) == (6, 0)
    assert all(after - before >= 0.09 for before, after in pairwise(began))

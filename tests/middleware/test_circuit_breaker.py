"""Handlers that depend on one thing stop together, cost its events no attempt, and go on when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tidemill import Circuit, Release, RetryPolicy, Service
from tidemill.middleware import circuit_breaker
from tidemill.telemetry import listen
from tidemill.testing import running

from .events import OrderCancelled, OrderPlaced


@pytest.fixture
def told() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    stop = listen(lambda name, fields: events.append((name, fields)))
    yield events
    stop()


class Shop:
    """Two handlers that need one mail server."""

    def __init__(self, **options: Any) -> None:
        self.up = True
        self.error: BaseException = ConnectionError("mail server is down")
        self.runs = 0
        self.most_at_once = self.at_once = 0
        self.service = service = Service("shop")
        guard = circuit_breaker(Circuit(failures=5), **options)

        @service.on(OrderPlaced, use=[guard], retry=RetryPolicy(attempts=8, immediate=0, base=10), circuit=None)
        async def confirm(event: OrderPlaced) -> None:
            await self.send()

        @service.on(OrderCancelled, use=[guard], retry=RetryPolicy(attempts=8, immediate=0, base=10), circuit=None)
        async def regret(event: OrderCancelled) -> None:
            await self.send()

        self.confirm, self.regret = confirm, regret

    async def send(self) -> None:
        self.runs += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if not self.up:
                raise self.error
        finally:
            self.at_once -= 1


def test_an_outage_costs_a_backlog_no_attempts(told: list[tuple[str, dict[str, Any]]]) -> None:
    shop = Shop()
    shop.up = False

    async def scenario() -> None:
        async with running(shop.service) as mill:
            for number in range(200):
                await mill.publish(OrderPlaced(number) if number % 2 else OrderCancelled(number))
            await mill.advance(30)
            shop.most_at_once = 0
            await mill.advance(1770)
            assert shop.most_at_once == 1  # one asks, and the others wait
            assert shop.runs < 32 + 1800 / 15 + 10
            assert mill.dead_letters() == []
            shop.up = True
            await mill.advance(120)
            assert len(mill.handled(shop.confirm) + mill.handled(shop.regret)) > 180  # all but what waits for a retry
            await mill.settled()
            assert len(mill.handled(shop.confirm)) == len(mill.handled(shop.regret)) == 100

    asyncio.run(scenario())
    circuit = [(name, fields) for name, fields in told if name.startswith("circuit.")]
    assert [name for name, _ in circuit] == ["circuit.opened", "circuit.closed"]
    opened = circuit[0][1]
    assert opened.pop("subscription") in ("shop.confirm", "shop.regret")
    assert opened == {"failures": 5, "error": "ConnectionError: mail server is down"}


def test_a_handler_that_hangs_means_that_it_is_down_too() -> None:
    service = Service("shop")
    runs = 0

    @service.on(OrderPlaced, use=[circuit_breaker(Circuit(failures=3))], timeout=5, concurrency=4, circuit=None)
    async def confirm(event: OrderPlaced) -> None:
        nonlocal runs
        runs += 1
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with running(service) as mill:
            for number in range(50):
                await mill.publish(OrderPlaced(number))
            await mill.advance(60, within=30)
            assert 4 < runs <= 4 + 60 / 5

    asyncio.run(scenario())


def test_other_errors_say_nothing_of_it() -> None:
    shop = Shop()
    shop.up, shop.error = False, ValueError("no such address")

    async def scenario() -> None:
        async with running(shop.service) as mill:
            for number in range(20):
                await mill.publish(OrderPlaced(number))
            await mill.settled()
            assert shop.runs == 20 * 8
            assert len(mill.dead_letters()) == 20

    asyncio.run(scenario())


def test_a_group_of_its_errors_is_one() -> None:
    shop = Shop(on=(ConnectionError, OSError))
    shop.up, shop.error = False, ExceptionGroup("both", [ConnectionError("one"), OSError("two")])

    async def scenario() -> None:
        async with running(shop.service) as mill:
            for number in range(20):
                await mill.publish(OrderPlaced(number))
            await mill.advance(0.5)
            assert shop.runs < 20

    asyncio.run(scenario())


def test_what_is_given_back_says_why() -> None:
    guard = circuit_breaker(Circuit(failures=1))

    async def down(_: Any) -> Any:
        raise ConnectionError("refused")

    async def scenario() -> None:
        delivery: Any = type("D", (), {"subscription": "shop.confirm"})()
        with pytest.raises(ConnectionError):
            await guard(down, delivery)
        outcome = await guard(down, delivery)
        assert isinstance(outcome, Release)
        assert outcome.reason == "what it depends on is down: ConnectionError: refused"
        assert 0 < outcome.after <= 2

    asyncio.run(scenario())


@pytest.mark.parametrize("on", [ConnectionError, (), ("ConnectionError",), [ConnectionError], None], ids=str)
def test_on_takes_a_tuple_of_exceptions(on: Any) -> None:
    with pytest.raises(TypeError, match=r"circuit_breaker\(on=.*tuple of exception classes"):
        circuit_breaker(on=on)

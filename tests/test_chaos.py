"""Under faults dealt on purpose an idempotent service loses nothing and has every effect once; each fault happens."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from tidemill import ConfigurationError, Context, PublishError, Service, Topic, event
from tidemill.broker import Status, connect
from tidemill.chaos import Chaos
from tidemill.clock import SystemClock
from tidemill.ids import new_id
from tidemill.runtime import Runtime, chaos_asked_for, run_until_signal
from tidemill.telemetry import listen

orders = Topic("orders", key="customer")


@event("order.placed", topic=orders)
class OrderPlaced:
    customer: str
    number: int


FAULTS = {
    "publish.delay",
    "publish.refuse",
    "publish.forget",
    "fetch.delay",
    "settle.delay",
    "settle.refuse",
    "settle.forget",
    "ack.duplicate",
}


class Hasty(SystemClock):
    """Delays happen, but take next to no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(seconds / 100)


class Shop:
    """Books every order once, by the message's id, and notes each run."""

    def __init__(self) -> None:
        self.service = service = Service("shop")
        self.runs: Counter[str] = Counter()
        self.effects: dict[str, list[str]] = defaultdict(list)
        self.order: dict[str, list[int]] = defaultdict(list)

        @service.on(OrderPlaced)
        async def book(event: OrderPlaced, ctx: Context) -> None:
            await asyncio.sleep(0)
            self.order[event.customer].append(event.number)
            self.runs[ctx.message.id] += 1
            if ctx.message.id not in self.effects:
                self.effects[ctx.message.id].append(f"{event.customer} {event.number}")

    async def place(self, event: OrderPlaced) -> Counter[str]:
        """Publish until it is known to be stored. What became of each try."""
        id, tries = new_id(), Counter[str]()
        while True:
            try:
                await self.service.publish(event, id=id)
            except PublishError as error:
                ((_, receipt),) = error.failed
                tries[receipt.status.value] += 1
            else:
                tries["stored"] += 1
                return tries


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/chaos.db"


def test_an_idempotent_service_loses_nothing_and_has_every_effect_once(url: str) -> None:
    shop = Shop()
    placed: set[str] = set()
    tries: Counter[str] = Counter()

    async def place(customer: str, numbers: range) -> None:
        for number in numbers:
            tries.update(await shop.place(OrderPlaced(customer, number)))
            placed.add(f"{customer} {number}")

    async def scenario() -> None:
        clock = Hasty()
        chaos = Chaos(0.25, 7, clock)
        runtime = Runtime([shop.service], connect(url, clock), clock, chaos=chaos)
        await runtime.start()
        try:
            await asyncio.gather(*(place(f"c{number}", range(20)) for number in range(20)))
            await wait_until(lambda: len(shop.effects) >= len(placed), seconds=60)
            extra = 0
            while set(chaos.dealt) < FAULTS and extra < 200:  # how many operations there are depends on the machine
                await place("late", range(extra, extra + 1))
                extra += 1
                await wait_until(lambda: len(shop.effects) >= len(placed), seconds=60)
            for _ in range(3000):
                (status,) = (await runtime.broker.inspect()).subscriptions
                if not status.backlog:
                    break
                await asyncio.sleep(0.02)
        finally:
            await runtime.close(1.0)

        assert (status.backlog, status.dead, status.acked) == (0, 0, len(placed))
        assert sorted(effect for effects in shop.effects.values() for effect in effects) == sorted(placed)
        # In order per key: an event comes again before the next of its key, or not at all.
        assert {customer: numbers for customer, numbers in shop.order.items() if numbers != sorted(numbers)} == {}
        assert set(chaos.dealt) == FAULTS
        assert chaos.dealt["ack.duplicate"] == sum(count - 1 for count in shop.runs.values()) > 0
        assert max(shop.runs.values()) == 2  # once per message at most
        assert tries[Status.UNKNOWN.value] >= 1 <= tries[Status.NOT_STORED.value]
        assert all(0 <= seconds <= 0.5 for seconds in clock.slept)

    asyncio.run(scenario())


def test_the_same_seed_deals_the_same_faults() -> None:
    def dealt(seed: int) -> list[str | None]:
        chaos = Chaos(0.2, seed, SystemClock())
        # Kinds of operations come in another order in every run; each is counted for itself.
        mixed = [chaos.draw(("settle", "publish")[index % 2], "refuse", "forget") for index in range(200)]
        return [*mixed[::2], *(chaos.draw("fetch", "delay") for _ in range(100))]

    assert dealt(1) == dealt(1) != dealt(2)
    chaos = Chaos(0.2, 1, SystemClock())
    assert [chaos.draw("fetch", "delay") for _ in range(100)] == dealt(1)[100:]


def test_it_happens_as_often_as_asked_for() -> None:
    chaos = Chaos(0.1, 3, SystemClock())
    for _ in range(10_000):
        chaos.draw("settle", "delay", "refuse", "forget")
    assert 800 < chaos.dealt.total() < 1200
    assert min(chaos.dealt.values()) > 200


@pytest.fixture
def told() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    stop = listen(lambda name, fields: events.append((name, fields)))
    yield events
    stop()


def test_it_is_told_loudly_at_the_start(
    monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setenv("TIDEMILL_CHAOS", "0.5")
    monkeypatch.setenv("TIDEMILL_CHAOS_SEED", "42")
    shop = Shop()

    async def scenario() -> None:
        async with shop.service.running("memory:"):
            seen: Counter[str] = Counter()
            for number in range(8):
                seen.update(await shop.place(OrderPlaced("c", number)))
            assert seen["unknown"] + seen["not_stored"] > 0
            await wait_until(lambda: len(shop.effects) == 8, seconds=60)

    asyncio.run(scenario())
    assert [fields for name, fields in told if name == "chaos.enabled"] == [{"probability": 0.5, "seed": 42}]


@pytest.mark.parametrize("value", ["", "0", "0.0"])
def test_off_nothing_is_wrapped(
    value: str, monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setenv("TIDEMILL_CHAOS", value)
    if not value:
        monkeypatch.delitem(sys.modules, "tidemill.chaos")
    clock = SystemClock()
    assert chaos_asked_for(clock) is None
    assert ("tidemill.chaos" in sys.modules) == bool(value)
    broker = connect("memory:", clock)
    assert Runtime([], broker, clock).broker is broker

    async def scenario() -> None:
        async with Shop().service.running("memory:"):
            pass

    asyncio.run(scenario())
    assert "chaos.enabled" not in [name for name, _ in told]


def test_a_broker_that_is_handed_in_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, dict[str, Any]]]
) -> None:
    monkeypatch.setenv("TIDEMILL_CHAOS", "0.5")

    async def scenario() -> None:
        async with Shop().service.running(connect("memory:", SystemClock())):
            pass

    asyncio.run(scenario())
    assert "chaos.enabled" not in [name for name, _ in told]


@pytest.mark.parametrize("value", ["2", "-1", "0.51", "often", "nan", "inf", "1%", " "])
def test_values_that_make_no_sense_are_refused_with_what_to_write(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CHAOS", value)
    with pytest.raises(ConfigurationError, match=r"TIDEMILL_CHAOS='.*'.*Write TIDEMILL_CHAOS=0\.01"):
        chaos_asked_for(SystemClock())
    with pytest.raises(ConfigurationError, match="TIDEMILL_CHAOS"):
        asyncio.run(run_until_signal([Shop().service], "memory:"))


@pytest.mark.parametrize("seed", ["x", "1.5", "nan"])
def test_seeds_are_whole_numbers(seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CHAOS", "0.01")
    monkeypatch.setenv("TIDEMILL_CHAOS_SEED", seed)
    with pytest.raises(ConfigurationError, match="TIDEMILL_CHAOS_SEED"):
        chaos_asked_for(SystemClock())


def test_without_a_seed_every_run_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_CHAOS", "0.01")
    monkeypatch.delenv("TIDEMILL_CHAOS_SEED", raising=False)
    found = [chaos_asked_for(SystemClock()) for _ in range(3)]
    assert len({chaos.seed for chaos in found if chaos}) == 3

"""Live and ready are what they say: every subscription really consumes, and everything else has its reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from waiting import wait_until

from tidemill import BrokerError, Circuit, Health, Service, Topic, event
from tidemill.broker import Feed, Settlement, Subscription, connect
from tidemill.clock import SystemClock
from tidemill.health import health_of
from tidemill.message import Delivery
from tidemill.runtime import Runtime
from tidemill.stand_in import BrokerStandIn, FeedStandIn

things = Topic("things")


@event("thing.happened", topic=things)
class ThingHappened:
    number: int


class Faulty(BrokerStandIn):
    """A broker whose feeds fail, or give no answer, while a test says so. The connection is there all the time."""

    failing: str = ""
    silent = False

    async def subscribe(self, subscription: Subscription) -> Feed:
        return FaultyFeed(await self.real.subscribe(subscription), self)


class FaultyFeed(FeedStandIn):
    def __init__(self, real: Feed, broker: Faulty) -> None:
        super().__init__(real)
        self.broker = broker

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        if self.broker.failing == "fetch":
            raise BrokerError("the server is away")
        await wait_until(lambda: not self.broker.silent)
        return await self.real.fetch(limit, min(wait, 0.01), max_bytes)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        if self.broker.failing == "settle":
            raise BrokerError("the disk is full")
        return await self.real.settle(settlements)


def shop() -> Service[None]:
    service: Service[None] = Service("shop")

    @service.on(ThingHappened)
    async def handle(event: ThingHappened) -> None: ...

    @service.on(ThingHappened)
    async def other(event: ThingHappened) -> None: ...

    return service


def faulty() -> Faulty:
    return Faulty(connect("memory:", SystemClock()))


def states(health: Health) -> dict[str, str]:
    return {each.name: each.state for each in health.subscriptions}


def test_a_service_is_ready_while_every_subscription_consumes() -> None:
    service = shop()

    async def main() -> None:
        assert (service.health().live, service.health().ready, service.health().why) == (True, False, "not running")
        async with service.running("memory:"):
            assert service.health() == health_of(service._runtime)
            health = service.health()
            assert (health.live, health.ready, health.why) == (True, True, "")
            assert states(health) == {"shop.handle": "consuming", "shop.other": "consuming"}
        assert not service.health().ready

    asyncio.run(main())


@pytest.mark.parametrize(("what", "text"), [("fetch", "the server is away"), ("settle", "the disk is full")])
def test_a_broker_that_fails_makes_it_unready_but_not_dead(what: str, text: str) -> None:
    service, broker = shop(), faulty()

    async def main() -> None:
        async with service.running(broker):
            broker.failing = what
            await service.publish(ThingHappened(1))
            await wait_until(lambda: states(service.health())["shop.handle"] == "failing")
            health = service.health()
            assert (health.live, health.ready) == (True, False)
            assert text in health.subscriptions[0].why
            assert "shop.handle" in health.why
            broker.failing = ""
            await wait_until(lambda: service.health().ready)

    asyncio.run(main())


def test_a_broker_that_does_not_answer_makes_it_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.health.SILENT", 0.1)
    service, broker = shop(), faulty()

    async def main() -> None:
        async with service.running(broker):
            assert service.health().ready
            broker.silent = True
            await wait_until(lambda: not service.health().ready)
            assert "the broker has not answered for" in service.health().subscriptions[0].why
            broker.silent = False
            await wait_until(lambda: service.health().ready)

    asyncio.run(main())


def test_handlers_that_are_all_busy_are_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.health.SILENT", 0.05)
    service: Service[None] = Service("shop")
    go_on = asyncio.Event()

    @service.on(ThingHappened, concurrency=1)
    async def handle(event: ThingHappened) -> None:
        await go_on.wait()

    async def main() -> None:
        async with service.running("memory:"):
            await service.publish_many(ThingHappened(number) for number in range(10))
            [consumer] = service._runtime.consumers  # type: ignore[union-attr]
            await wait_until(lambda: not consumer.asked and consumer.running)  # there is no room to fetch for
            await asyncio.sleep(0.1)
            assert service.health().ready
            go_on.set()

    asyncio.run(main())


def test_starting_and_draining_are_live_and_not_ready() -> None:
    entered, go_on, handling, leave = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def resources() -> AsyncGenerator[None]:
        entered.set()
        await go_on.wait()
        yield

    service: Service[None] = Service("shop", resources=resources)

    @service.on(ThingHappened)
    async def handle(event: ThingHappened) -> None:
        handling.set()
        await leave.wait()

    async def main() -> None:
        clock = SystemClock()
        runtime = Runtime([service], connect("memory:", clock), clock)
        starting = asyncio.create_task(runtime.start())
        await entered.wait()
        assert (health_of(runtime).live, health_of(runtime).ready) == (True, False)
        assert states(health_of(runtime)) == {"shop.handle": "starting"}
        go_on.set()
        await starting
        assert health_of(runtime).ready
        await service.publish(ThingHappened(1))
        await handling.wait()
        closing = asyncio.create_task(runtime.close())
        await wait_until(lambda: not health_of(runtime).ready)
        assert states(health_of(runtime)) == {"shop.handle": "draining"}
        assert health_of(runtime).live, "it ends by itself, and nobody shall kill it"
        leave.set()
        await closing
        assert states(health_of(runtime)) == {"shop.handle": "stopped"}

    asyncio.run(main())


def test_a_task_that_has_ended_is_dead() -> None:
    service = shop()

    async def main() -> None:
        async with service.running("memory:"):
            [task] = [task for task in asyncio.all_tasks() if task.get_name() == "fetch shop.handle"]
            task.cancel()
            await wait_until(lambda: not service.health().live)
            health = service.health()
            assert not health.ready
            assert states(health) == {"shop.handle": "failing", "shop.other": "consuming"}
            assert health.subscriptions[0].why == "a task of it has ended"

    asyncio.run(main())


def test_a_service_that_publishes_only_is_ready_when_it_has_started() -> None:
    service = shop()

    async def main() -> None:
        async with service.running("memory:", consume=False):
            assert (service.health().live, service.health().ready) == (True, True)
        silent: Service[None] = Service("silent")
        async with silent.running("memory:"):
            assert silent.health().ready

    asyncio.run(main())


@pytest.mark.parametrize("url", ["memory:", "sqlite:///tidemill.db"])
def test_a_paused_subscription_is_shown_and_counts_as_ready(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    service = shop()

    async def main() -> None:
        async with service.running(url):
            await service.pause("handle")
            await wait_until(lambda: states(service.health())["shop.handle"] == "paused")
            assert service.health().ready
            await service.resume("handle")
            await wait_until(lambda: states(service.health())["shop.handle"] == "consuming")

    asyncio.run(main())


def test_an_open_circuit_is_shown() -> None:
    service: Service[None] = Service("shop")

    @service.on(ThingHappened, circuit=Circuit(failures=1))
    async def handle(event: ThingHappened) -> None:
        raise OSError("the mail server is away")

    async def main() -> None:
        async with service.running("memory:"):
            await service.publish(ThingHappened(1))
            await wait_until(lambda: "its circuit is open" in service.health().subscriptions[0].why)
            assert service.health().ready

    asyncio.run(main())

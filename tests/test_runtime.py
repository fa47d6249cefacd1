"""Starting services: all of it, or nothing."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tidemill import BrokerError, Service, Topic, Unsupported, event
from tidemill.broker import Capabilities, Inspection, connect
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime
from tidemill.stand_in import BrokerStandIn

things = Topic("things")


@event("thing.happened", topic=things)
class ThingHappened:
    number: int


class CannotInspect(BrokerStandIn):
    """Fails at the last thing that a start asks for."""

    async def inspect(self) -> Inspection:
        raise BrokerError("away")


def test_a_start_that_fails_late_leaves_nothing_running() -> None:
    service = Service("s")

    @service.on(ThingHappened)
    async def handle(event: ThingHappened) -> None: ...

    async def main() -> None:
        clock = SystemClock()
        runtime = Runtime([service], CannotInspect(connect("memory:", clock)), clock)
        with pytest.raises(BrokerError, match="away"):
            await runtime.start()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        async with service.running("memory:"):
            pass  # and the service can be started anew

    asyncio.run(main())


class TakesBack(BrokerStandIn):
    """Takes events away from handlers that run for longer than half a minute."""

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self.real.capabilities, longest_run=30.0)


@pytest.mark.parametrize(("timeout", "what"), [(31.0, "a timeout of 31 s"), (None, "no timeout")])
def test_a_timeout_beyond_what_the_broker_allows_is_refused(timeout: float | None, what: str) -> None:
    service = Service("s")

    @service.on(ThingHappened, timeout=timeout)
    async def handle(event: ThingHappened) -> None: ...

    async def main() -> None:
        clock = SystemClock()
        runtime = Runtime([service], TakesBack(connect("memory:", clock)), clock)
        with pytest.raises(Unsupported) as caught:
            await runtime.start()
        assert str(caught.value) == (
            f"s.handle has {what}, and memory: takes events away from handlers that run for longer than 30 s: "
            "they would run twice at once. Nothing was started. Give @service.on(timeout=30) or less."
        )

    asyncio.run(main())


def test_a_timeout_that_the_broker_allows_is_taken() -> None:
    service = Service("s")

    @service.on(ThingHappened, timeout=30)
    async def handle(event: ThingHappened) -> None: ...

    async def main() -> None:
        async with service.running(TakesBack(connect("memory:", SystemClock()))):
            pass

    asyncio.run(main())

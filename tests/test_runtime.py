"""Starting services: all of it, or nothing."""

from __future__ import annotations

import asyncio

import pytest

from tidemill import BrokerError, Service, Topic, event
from tidemill.broker import Inspection, connect
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

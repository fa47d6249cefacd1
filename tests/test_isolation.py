"""What may have killed a process runs alone, for a moment, and holds up nobody for longer."""

from __future__ import annotations

import asyncio
import time

import pytest
from waiting import wait_until

from tidemill import isolation
from tidemill.isolation import Isolation


def test_it_waits_until_nothing_runs_and_keeps_the_others_waiting() -> None:
    running = 2
    order: list[str] = []

    async def main() -> None:
        nonlocal running
        gate = Isolation()
        gate.join(lambda: running)

        async def suspect() -> None:
            end = await gate.enter()
            order.append("alone")
            end()

        async def other() -> None:
            await gate.over()
            order.append("other")

        first = asyncio.create_task(suspect())
        await wait_until(lambda: gate.active)
        second = asyncio.create_task(other())
        await asyncio.sleep(0.02)
        assert order == []
        running = 0
        await asyncio.gather(first, second)
        assert not gate.active

    asyncio.run(main())
    assert order == ["alone", "other"]


def test_one_suspect_at_a_time() -> None:
    async def main() -> int:
        gate, inside, most = Isolation(), 0, 0

        async def suspect() -> None:
            nonlocal inside, most
            end = await gate.enter()
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            end()

        await asyncio.gather(*(suspect() for _ in range(5)))
        return most

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("hangs", ["the others", "the suspect"])
def test_nobody_is_held_up_for_long(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "QUIET", 0.05)
    monkeypatch.setattr(isolation, "ALONE", 0.05)

    async def main() -> None:
        gate = Isolation()
        gate.join(lambda: int(hangs == "the others"))
        end = await gate.enter()
        await asyncio.wait_for(gate.over(), 5)  # though nobody has called end()
        again = await asyncio.wait_for(gate.enter(), 5)
        end()  # of the first, long over
        assert gate.active
        again()
        assert not gate.active

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 5


def test_a_cancelled_suspect_makes_room() -> None:
    async def main() -> None:
        gate = Isolation()
        gate.join(lambda: 1)
        task = asyncio.create_task(gate.enter())
        await wait_until(lambda: gate.active)
        task.cancel()
        await asyncio.wait([task])
        assert not gate.active

    asyncio.run(main())

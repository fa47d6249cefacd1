"""Whether a handler may begin: rates, circuits, and who is told what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from waiting import wait_until

from tidemill.circuit import Circuit
from tidemill.gate import Gate
from tidemill.isolation import Isolation
from tidemill.outcome import ACK, RELEASE, Retry
from tidemill.rate import Rate
from tidemill.telemetry import listen
from tidemill.testing.clock import VirtualClock

POLICY = Circuit(failures=3, base=1.0, factor=2.0, cap=4.0)
FAILED = Retry(1.0, "no")


def gate(clock: VirtualClock, *, rate: Rate | None = None, circuit: Circuit | None = POLICY) -> Gate:
    return Gate("s.h", rate, circuit, Isolation(), clock)


async def entered(task: asyncio.Task[None], clock: VirtualClock) -> float:
    """Let time pass until a task is through; how many seconds did."""
    begun = clock.now()
    while not task.done():
        await asyncio.sleep(0)
        due = clock.next_due()
        if due is not None and not task.done():
            clock.move_to(due)
            await asyncio.sleep(0)
    return (clock.now() - begun) / 1e9


@pytest.fixture
def heard() -> Any:
    found: list[tuple[str, dict[str, Any]]] = []
    stop = listen(lambda name, fields: found.append((name, fields)))
    yield found
    stop()


def test_open_it_lets_everything_through() -> None:
    one = gate(VirtualClock())
    assert not one.shut
    one.ended(ACK, None, one.turn)
    assert not one.troubled


def test_failures_in_a_row_shut_it_and_one_probe_opens_it_again(heard: list[tuple[str, dict[str, Any]]]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        one = gate(clock)
        for _ in range(3):
            assert not one.shut
            one.ended(FAILED, "OSError: down", one.turn)
        assert one.shut
        assert one.troubled
        tasks = [asyncio.create_task(one.enter()) for _ in range(4)]
        await asyncio.sleep(0)
        assert one.waiting
        clock.move_to(clock.now() + round(1.01e9))
        await wait_until(lambda: sum(task.done() for task in tasks) == 1, what="one probe")
        clock.move_to(clock.now() + round(0.4e9))
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in tasks) == 1, "one at a time"
        one.ended(ACK, None, one.turn)
        assert not one.shut
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert [name for name, _ in heard] == ["circuit.opened", "circuit.closed"]
    assert heard[0][1] == {"subscription": "s.h", "failures": 3, "error": "OSError: down"}


def test_a_probe_that_fails_makes_it_wait_longer_and_says_nothing_more(heard: list[tuple[str, dict[str, Any]]]) -> None:
    async def main() -> list[float]:
        clock = VirtualClock()
        one = gate(clock)
        for _ in range(3):
            one.ended(FAILED, "OSError", one.turn)
        waits = []
        for _ in range(4):
            waits.append(await entered(asyncio.create_task(one.enter()), clock))
            one.ended(FAILED, "OSError", one.turn)
        return waits

    waits = asyncio.run(main())
    assert 0.5 <= waits[0] <= 1.0
    assert 1.0 <= waits[1] <= 2.0
    assert all(2.0 <= wait <= 4.0 for wait in waits[2:])
    assert [name for name, _ in heard] == ["circuit.opened"]


def test_a_probe_without_an_answer_lets_the_next_one_try() -> None:
    async def main() -> None:
        clock = VirtualClock()
        one = gate(clock)
        for _ in range(3):
            one.ended(FAILED, "OSError", one.turn)
        for unanswered in (one.unused, lambda: one.ended(RELEASE, None, one.turn)):
            await entered(asyncio.create_task(one.enter()), clock)
            unanswered()
            assert await entered(asyncio.create_task(one.enter()), clock) < 0.01
            one.unused()

    asyncio.run(main())


def test_what_began_before_says_nothing_about_now() -> None:
    async def main() -> None:
        clock = VirtualClock()
        one = gate(clock)
        early = one.turn
        for _ in range(3):
            one.ended(FAILED, "OSError", early)
        one.ended(ACK, None, early)  # it began when the circuit was closed, and took long
        assert one.shut

    asyncio.run(main())


def test_a_rate_is_kept() -> None:
    async def main() -> float:
        clock = VirtualClock()
        one = gate(clock, rate=Rate(10, burst=1))
        assert one.shut, "each handler has to ask"
        return sum([await entered(asyncio.create_task(one.enter()), clock) for _ in range(21)])

    assert asyncio.run(main()) == pytest.approx(2.0, abs=0.01)


def test_without_a_circuit_nothing_shuts_it() -> None:
    one = gate(VirtualClock(), circuit=None)
    for _ in range(1000):
        one.ended(FAILED, "OSError", one.turn)
    assert not one.shut


def test_who_waited_for_the_rate_waits_for_a_suspect_too() -> None:
    async def main() -> None:
        clock = VirtualClock()
        isolation = Isolation()
        one = Gate("s.h", Rate(1, burst=1), POLICY, isolation, clock)
        await one.enter()
        waiting = asyncio.create_task(one.enter())
        await wait_until(lambda: one.waiting)
        end = await isolation.enter()
        clock.move_to(clock.now() + 10**9)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done(), "it runs beside a suspect"
        end()
        await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_who_waited_for_the_rate_waits_for_the_circuit_too() -> None:
    async def main() -> None:
        clock = VirtualClock()
        one = gate(clock, rate=Rate(1, burst=1))
        await one.enter()
        waiting = [asyncio.create_task(one.enter()) for _ in range(3)]
        await wait_until(lambda: one.waiting)
        for _ in range(3):
            one.ended(FAILED, "OSError: down", one.turn)
        for _ in range(10):
            clock.move_to(clock.now() + 10**9)
            for _ in range(10):
                await asyncio.sleep(0)
        assert sum(each.done() for each in waiting) == 1, "one probe at a time"
        for each in waiting:
            each.cancel()

    asyncio.run(main())

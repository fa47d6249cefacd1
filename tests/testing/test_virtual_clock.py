from __future__ import annotations

import asyncio
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from tidemill.clock import Clock
from tidemill.testing.clock import START, VirtualClock

SECOND = 1_000_000_000


def test_it_is_a_clock_that_begins_at_a_fixed_date_and_stands_still() -> None:
    clock: Clock = VirtualClock()
    assert clock.now() == VirtualClock().now() == clock.now()
    assert datetime.fromtimestamp(clock.now() / SECOND, START.tzinfo) == START


def test_each_call_is_made_at_its_own_time() -> None:
    clock = VirtualClock()
    made: list[float] = []
    for seconds in (3, 0.5, 2):
        clock.call_later(seconds, lambda: made.append((clock.now() - clock.start) / SECOND))
    clock.move_to(clock.start + 2 * SECOND)
    assert made == [0.5, 2]
    assert clock.next_due() == clock.start + 3 * SECOND
    clock.move_to(clock.start + 10 * SECOND)
    assert made == [0.5, 2, 3]
    assert clock.now() == clock.start + 10 * SECOND
    assert clock.next_due() is None


def test_calls_due_at_once_are_made_in_the_order_they_were_scheduled() -> None:
    clock = VirtualClock()
    made: list[int] = []
    for number in range(5):
        clock.call_later(1, lambda number=number: made.append(number))
    clock.move_to(clock.start + SECOND)
    assert made == [0, 1, 2, 3, 4]


def test_a_cancelled_call_is_not_made() -> None:
    clock = VirtualClock()
    made: list[str] = []
    first = clock.call_later(1, lambda: made.append("first"))
    clock.call_later(1, lambda: made.append("second"))
    last = clock.call_later(2, lambda: made.append("last"))
    first.cancel()
    first.cancel()
    clock.move_to(clock.start + SECOND)
    last.cancel()
    assert made == ["second"]
    assert clock.next_due() is None


def test_a_call_made_on_the_way_can_schedule_another_one() -> None:
    clock = VirtualClock()
    made: list[int] = []

    def tick() -> None:
        made.append((clock.now() - clock.start) // SECOND)
        clock.call_later(1, tick)

    clock.call_later(1, tick)
    clock.move_to(clock.start + 4 * SECOND)
    assert made == [1, 2, 3, 4]


def test_what_is_due_at_once_is_called_by_the_loop_without_time_passing() -> None:
    async def main() -> None:
        clock = VirtualClock()
        called = asyncio.Event()
        clock.call_later(0, called.set)
        assert not called.is_set(), "never while it is being scheduled"
        await asyncio.wait_for(called.wait(), 5)
        assert clock.now() == clock.start

    asyncio.run(main())


def test_time_never_goes_back() -> None:
    clock = VirtualClock()
    clock.move_to(clock.start + SECOND)
    clock.move_to(clock.start)
    assert clock.now() == clock.start + SECOND


@given(st.lists(st.tuples(st.floats(0.001, 1e6), st.booleans())), st.lists(st.floats(0, 1e5)))
def test_however_time_passes_calls_come_in_order_and_never_early(
    calls: list[tuple[float, bool]], steps: list[float]
) -> None:
    clock = VirtualClock()
    made: list[tuple[int, int]] = []
    timers = []
    for number, (seconds, keep) in enumerate(calls):
        timer = clock.call_later(seconds, lambda number=number: made.append((clock.now(), number)))
        timers.append((clock.now() + round(seconds * 1e9), number, keep))
        if not keep:
            timer.cancel()
    for step in [*steps, 1e6]:
        clock.move_to(clock.now() + round(step * 1e9))
        assert made == sorted((due, number) for due, number, keep in timers if keep and due <= clock.now())

"""Event ids: UUID version 7 (RFC 9562 §5.7). Ordered by time, which keeps the brokers' id indexes append-only.

They are unique over threads, processes and forks, and in order within a thread. They are no secrets: whoever knows
some can guess others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count
from threading import Lock

_COUNTED = tuple(f"{number:x}-" for number in range(0x8000, 0x8400))


def _generator() -> tuple[Callable[[], str], Callable[[], None]]:
    # What changes once a millisecond is kept as text, the counter's texts are made beforehand and the random parts a
    # few hundred at a time: a sixth of the cost of str(uuid4()). `serial` is the time in milliseconds and rand_a; a
    # counter of 14 bits begins rand_b, right after the variant, which is the 0x8000. When it is used up, rand_a
    # counts on.
    clock = time.time_ns
    lock = Lock()
    random: list[str] = []
    # One tuple, so that a thread that was interrupted never sees half of a change.
    state: tuple[int, str, Callable[[], int]] = (-1, "", count().__next__)

    def new_id() -> str:
        serial, start, step = state
        now = clock() // 1_000_000 << 12
        if now > serial:  # false as well where the clock was set back: it then stands until it has caught up
            serial, start, step = begin(now)
        number = step()
        while number > 0x3FFF:
            serial, start, step = begin(serial + 1)
            number = step()
        try:
            rest = random.pop()
        except IndexError:
            rest = refill()
        return start + (_COUNTED[number] if number < 0x400 else f"{number | 0x8000:x}-") + rest

    def begin(serial: int) -> tuple[int, str, Callable[[], int]]:
        nonlocal state
        with lock:
            if serial > state[0]:
                digits = f"{serial:015x}"
                start = f"{digits[:8]}-{digits[8:12]}-7{digits[12:]}-"
                state = (serial, start, count().__next__)
            return state

    def refill() -> str:
        digits = os.urandom(6 * 256).hex()
        random.extend([digits[at : at + 12] for at in range(12, len(digits), 12)])
        return digits[:12]

    def after_fork() -> None:
        # A child must neither repeat its parent's random parts nor wait for a thread that it does not have.
        nonlocal lock
        random.clear()
        lock = Lock()

    return new_id, after_fork


new_id, _after_fork = _generator()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

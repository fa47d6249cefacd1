"""Event ids: UUID version 7 (RFC 9562 §5.7). Ordered by time, which keeps the brokers' id indexes append-only.

They are unique over threads, processes and forks, and in order within a thread. They are no secrets: whoever knows
some can guess others.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from itertools import count
from threading import Lock


def _generator() -> tuple[Callable[[], str], Callable[[], None]]:
    # What changes once a millisecond is kept as text, and the random part comes from one seeded generator: a third of
    # the cost of str(uuid4()). `serial` is the time in milliseconds and rand_a; a counter of 14 bits begins rand_b,
    # right after the variant, which is the 0x8000. When it is used up, rand_a counts on.
    bits = random.Random(os.urandom(32)).getrandbits
    clock = time.time_ns
    lock = Lock()
    # One tuple, so that a thread that was interrupted never sees half of a change.
    state: tuple[int, str, Callable[[], int]] = (-1, "", count().__next__)

    def new_id() -> str:
        serial, start, step = state
        now = clock() // 1_000_000 << 12
        if now > serial:  # false as well where the clock was set back: it then stands until it has caught up
            serial, start, step = begin(now)
        number = step()
        while number > 0xBFFF:
            serial, start, step = begin(serial + 1)
            number = step()
        return "%s%x-%012x" % (start, number, bits(48))  # noqa: UP031  two thirds of the cost of an f-string

    def begin(serial: int) -> tuple[int, str, Callable[[], int]]:
        nonlocal state
        with lock:
            if serial > state[0]:
                digits = f"{serial:015x}"
                start = f"{digits[:8]}-{digits[8:12]}-7{digits[12:]}-"
                state = (serial, start, count(0x8000).__next__)
            return state

    def after_fork() -> None:
        # A child must neither repeat its parent's random sequence nor wait for a thread that it does not have.
        nonlocal bits, lock
        bits = random.Random(os.urandom(32)).getrandbits
        lock = Lock()

    return new_id, after_fork


new_id, _after_fork = _generator()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

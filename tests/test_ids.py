"""Ids are UUIDs version 7: valid, unique, in order; over threads, and over forks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tidemill import ids
from tidemill.ids import new_id


def test_an_id_is_a_uuid_of_version_7_made_now() -> None:
    before = time.time_ns() // 1_000_000
    texts = [new_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    for text in texts:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert before <= parsed.int >> 80 <= after + 1


def test_ids_are_in_order() -> None:
    made = [new_id() for _ in range(100_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_threads_make_no_id_twice_and_each_sees_its_own_in_order() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as many interruptions as there can be
    try:
        with ThreadPoolExecutor(8) as pool:
            runs = list(pool.map(lambda _: [new_id() for _ in range(5000)], range(16)))
    finally:
        sys.setswitchinterval(interval)
    assert all(run == sorted(run) for run in runs)
    assert len({one for run in runs for one in run}) == 16 * 5000


def test_ids_stay_in_order_when_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000_000
    clock = [now * 1_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    fresh, _ = ids._generator()  # pyright: ignore[reportPrivateUsage]

    made = [fresh() for _ in range(40_000)]  # more than the 14 bits of the counter's lower part
    clock[0] -= 3_600_000_000_000
    made += [fresh() for _ in range(40_000)]
    clock[0] += 3_600_001_000_000
    made.append(fresh())

    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(uuid.UUID(one).version == 7 and uuid.UUID(one).variant == uuid.RFC_4122 for one in made)
    assert uuid.UUID(made[0]).int >> 80 == now
    assert uuid.UUID(made[-1]).int >> 80 == now + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_makes_other_ids() -> None:
    # In a process of its own: forking this one, which has threads, is no good.
    program = """
import os, sys, time
from tidemill.ids import new_id
moment = time.time_ns()
time.time_ns = lambda: moment
new_id()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, "\\n".join(new_id() for _ in range(500)).encode())
    os._exit(0)
mine = [new_id() for _ in range(500)]
os.close(write)
theirs = b""
while part := os.read(read, 65536):
    theirs += part
os.wait()
print(len(set(mine) | set(theirs.decode().split())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "1000", done.stderr

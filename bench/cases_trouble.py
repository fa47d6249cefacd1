# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""What trouble costs those who have none: a key that fails, a hundred thousand delays, a process that is stopped."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from . import cases_sqlite as sqlite
from .cases_sqlite import running, url
from .events import OrderPlaced, Tally, customer, make, stamped
from .latency import publish_at_rate
from .measure import Case, Figures
from .places import folder
from .processes import child

CALM = "sqlite latency at 500/s, 64 keys"
ONE_FAILS = f"{CALM}, one fails all the time"
PUBLISH_PENDING = f"{sqlite.PUBLISH_MANY}, delays pending"
CONSUME_PENDING = f"{sqlite.CONSUME_OTHER}, delays pending"
IDLE_PENDING = f"{sqlite.IDLE}, delays pending"
DUE = "sqlite delays that end, others pending"
RETRIED = "sqlite retries that are due, others pending"
DRAIN = "sqlite drain, 16 running for 0.5 s"
DRAIN_LONG = "sqlite drain, 16 running for 4 s"

PENDING = 100_000
"""Publishes that are delayed, and as many retries."""

KEYS = 64
AHEAD = 1.0
"""Seconds from now until the first of the delays ends: all have been published by then."""

PER_SECOND = 500


async def _one_key_fails(count: int, fails: str | None = None) -> Figures:
    """Latency of the keys that do not fail."""
    tally = Tally(keyed=True)
    of_one = len(range(0, count, KEYS))
    with folder() as place:
        path = place / "log.db"
        expected = count - of_one if fails else count
        async with (
            running(path, tally, consume=False),
            child("measure_ages", url=url(path), count=expected, keyed=True, fails=fails) as other,
        ):
            await other.hear()
            late = await publish_at_rate(tally.service, tally.cls, count, PER_SECOND, KEYS)
            said = await other.hear()
            assert (said.pop("failed") > 0) is (fails is not None)
            return said | {"late ms": late}


async def _due(count: int) -> Figures:
    """How late events are that become due one by one, while many others wait for an hour."""
    tally = Tally()
    with folder() as place:
        path = place / "log.db"
        await sqlite.prepare(path, count * PENDING // 1000)
        async with (
            running(path, tally, consume=False),
            child("measure_ages", url=url(path), count=count) as other,
        ):
            await other.hear()
            now, monotonic = datetime.now(UTC), time.monotonic_ns()
            offsets = [AHEAD + number / PER_SECOND for number in range(count)]
            await asyncio.gather(
                *(
                    tally.service.publish(
                        stamped(OrderPlaced, number, at=monotonic + round(offset * 1e9)),
                        at=now + timedelta(seconds=offset),
                    )
                    for number, offset in enumerate(offsets)
                )
            )
            assert time.monotonic_ns() - monotonic < AHEAD * 1e9, "the first was due before the last was published"
            said = await other.hear()
            return {"p50 ms": said["p50 ms"], "p99 ms": said["p99 ms"]}


async def _retried(count: int) -> Figures:
    """How late retries are, each a second after its event failed, while many others wait for an hour."""
    tally = Tally()
    with folder() as place:
        path = place / "log.db"
        await sqlite.prepare(path, count * PENDING // 1000)
        async with (
            running(path, tally, consume=False),
            child("measure_ages", url=url(path), count=count, postpone=1.0) as other,
        ):
            await other.hear()
            await publish_at_rate(tally.service, OrderPlaced, count, PER_SECOND)
            said = await other.hear()
            return {"p50 ms": said["p50 ms"], "p99 ms": said["p99 ms"]}


async def _drain(count: int, nap: float) -> Figures:
    """Two processes share a backlog, of which one has handlers that take their time. It is stopped in the middle.

    From SIGTERM until the other has handled whatever did not run, and until the stopped one has ended as well.
    """
    tally = Tally()
    with folder() as place:
        path = place / "log.db"
        async with running(path, tally, consume=False) as runtime, child("serve", url=url(path), nap=nap) as stopped:
            await stopped.hear()
            async with child("serve", url=url(path), nap=0.0) as other:
                await other.hear()
                # Quick ones first, so that it fetches as much at once as it ever does.
                publish = tally.service.publish_many
                await publish([make(OrderPlaced, number) for number in range(count)])
                await publish([make(OrderPlaced, number, express=False) for number in range(count)])
                await stopped.hear()
                await asyncio.sleep(nap / 2)
                began = time.monotonic_ns()
                stopped.stop()
                first: dict[str, Any] = await stopped.hear()
                ended = time.monotonic_ns()
                while True:
                    (status,) = (await runtime.broker.inspect()).subscriptions
                    if not status.backlog:
                        break
                    await asyncio.sleep(0.05)
                other.stop()
                second = await other.hear()
    assert first["handled"] + second["handled"] == 2 * count, (first, second)
    return {
        "rest ms": (second["last"] - began) / 1e6,
        "all ms": (max(ended, second["last"]) - began) / 1e6,
        "given back": first["released"],
    }


def cases() -> list[Case]:
    run = sqlite.run
    fails = customer(0)
    pending = "SQLite: 100,000 publishes and 100,000 retries pending"
    # Twice as many delays as events: fewer events, as with --quick, meet fewer of them.
    events = PENDING // 2
    return [
        Case(CALM, "SQLite: one key fails", run(_one_key_fails), 20 * PER_SECOND),
        Case(ONE_FAILS, "SQLite: one key fails", run(_one_key_fails, fails=fails), 20 * PER_SECOND),
        Case(PUBLISH_PENDING, pending, lambda count: run(sqlite.publish_many, pending=2 * count)(count), events),
        Case(CONSUME_PENDING, pending, lambda count: run(sqlite.consume_there, pending=2 * count)(count), events),
        Case(IDLE_PENDING, pending, run(sqlite.idle, pending=PENDING), 60, fixed=True),
        Case(DUE, pending, run(_due), 1000),
        Case(RETRIED, pending, run(_retried), 1000),
        Case(DRAIN, "SQLite: drain", run(_drain, nap=0.5), 2000, fixed=True),
        Case(DRAIN_LONG, "SQLite: drain", run(_drain, nap=4.0), 2000, fixed=True),
    ]

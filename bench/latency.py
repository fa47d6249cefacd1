# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""From the call of `publish` to the first line of the handler, at a fixed rate."""

from __future__ import annotations

import asyncio
from typing import Any

from tidemill import Service

from .events import KEYS, stamped


def percentiles(ages: list[float]) -> dict[str, float]:
    """Median and 99th percentile of seconds, in milliseconds."""
    ordered = sorted(ages)
    return {
        "p50 ms": ordered[len(ordered) // 2] * 1e3,
        "p99 ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e3,
    }


async def publish_at_rate(service: Service[Any], cls: Any, count: int, per_second: int, keys: int = KEYS) -> float:
    """Publish on schedule, whether or not earlier ones are confirmed; the most milliseconds one started late.

    The clock that events carry starts when their `publish` is called. That the loop is late to call it, because the
    process is busy, is reported beside the latency and not within it.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    latest = 0.0
    pending: set[asyncio.Task[object]] = set()
    number = 0
    while number < count:
        now = loop.time()
        due = min(count, int((now - began) * per_second) + 1)
        if due > number:
            latest = max(latest, now - began - number / per_second)
        while number < due:
            task = asyncio.create_task(_publish(service, cls, number, keys))
            pending.add(task)
            task.add_done_callback(pending.discard)
            number += 1
        await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
    await asyncio.gather(*pending)
    return latest * 1e3


async def _publish(service: Service[Any], cls: Any, number: int, keys: int) -> None:
    await service.publish(stamped(cls, number, keys))

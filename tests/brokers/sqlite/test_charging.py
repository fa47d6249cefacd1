"""What was running when a process died is charged, and keeps its place."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidemill.outcome import ACK, RELEASE, Retry

from .rig import brokers, kill, message, reader, store, subscribe, take_all


def test_what_is_charged_comes_before_the_later_events_of_its_key(tmp_path: Path) -> None:
    """They had waited behind a retry, and then been let go all together."""

    async def scenario() -> list[tuple[str, bool]]:
        async with brokers(tmp_path / "a.db", 2) as (one, other):
            feed = await subscribe(one, reader(ordered=True))
            await store(one, *(message("k", id=f"{number}") for number in range(5)))
            held = await take_all(feed, 5)
            await feed.settle([(held[0], Retry(0, "no")), *((each, RELEASE) for each in held[1:])])
            await feed.settle([(each, ACK) for each in await take_all(feed, 1)])
            held = await take_all(feed, 4)
            assert feed.begin(held[1])
            await kill(one)
            survivor = await subscribe(other, reader(ordered=True))
            return [(each.message.id, each.died) for each in await take_all(survivor, 4)]

    assert asyncio.run(scenario()) == [("1", False), ("2", True), ("3", False), ("4", False)]

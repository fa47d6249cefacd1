"""A scenario: one promise, proved on one broker. `SCENARIOS` is the suite as data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import msgspec

from ...broker import Capabilities, Support
from .place import Place

PROMISES: dict[str, str] = {
    "G1": "At least once",
    "G2": "Publish tells the truth",
    "G3": "Settlement is total",
    "G4": "Everything is bounded",
    "G5": "Poison blocks nobody",
    "G6": "Order per key",
    "G7": "Drain",
    "G8": "Effects once",
    "G9": "Outbox",
    "G10": "Dead letters are kept",
    "G11": "Old events stay readable",
    "G12": "A lease is kept alive",
}
"""What Tidemill promises on every broker. The guarantees page of the documentation states each in full."""

Need: TypeAlias = Literal["durable", "processes", "delay", "order", "deduplication", "history"]
"""What a scenario asks of a broker: to outlive `close`, to be shared by processes, or a feature of `Capabilities`."""

TIME_LIMIT = 60.0
"""Seconds a scenario may take before it counts as failed. The whole suite takes about that long."""

Run: TypeAlias = Callable[[Place], Awaitable[None]]


class Scenario(msgspec.Struct, frozen=True):
    """One scenario of the suite."""

    name: str
    """A sentence with underscores: what is true where it passes."""
    promises: tuple[str, ...]
    """The promises it proves a part of: keys of `PROMISES`."""
    needs: tuple[Need, ...]
    text: str
    run: Run


SCENARIOS: dict[str, Scenario] = {}
"""Every scenario by name, in the order of the files they are in."""


class CannotRun(Exception):
    """The broker declares that it lacks what a scenario needs. The text says what."""


def promise(*promises: str, needs: tuple[Need, ...] = ()) -> Callable[[Run], Run]:
    """Declare a scenario: an async function that takes a `Place` and fails unless the promises hold there."""
    unknown = [name for name in promises if name not in PROMISES]
    if unknown or not promises:
        raise ValueError(f"@promise{promises!r}: name the promises it proves, of {', '.join(PROMISES)}")

    def declare(run: Run) -> Run:
        name = getattr(run, "__name__", "")
        if name in SCENARIOS:
            raise ValueError(f"two scenarios are named {name!r}")
        if not run.__doc__:
            raise ValueError(f"scenario {name!r} does not say what it proves")
        SCENARIOS[name] = Scenario(name, promises, needs, " ".join(run.__doc__.split()), run)
        return run

    return declare


def missing(needs: tuple[Need, ...], capabilities: Capabilities) -> list[str]:
    """What of `needs` a broker with these capabilities lacks."""
    found: list[str] = []
    for need in needs:
        match need:
            case "durable":
                there = capabilities.durability != "memory"
            case "processes":
                there = capabilities.processes
            case _:
                there = getattr(capabilities, need) != Support.NONE
        if not there:
            found.append(need)
    return found


def perform(scenario: Scenario, place: Place) -> None:
    """Run one scenario. Raises `CannotRun` where the broker lacks what it needs, and what the scenario raises."""

    async def main() -> None:
        async with place, asyncio.timeout(TIME_LIMIT):
            lacks = missing(scenario.needs, (await place.broker()).capabilities)
            if lacks:
                raise CannotRun(f"this broker declares that it has no {' and no '.join(lacks)}")
            await scenario.run(place)

    asyncio.run(main())


def table() -> str:
    """The suite as a Markdown table, for the documentation: one row a scenario, grouped by promise."""
    lines = ["| promise | scenario | needs |", "|---|---|---|"]
    for key, title in PROMISES.items():
        for scenario in SCENARIOS.values():
            if scenario.promises[0] == key:
                also = f" (also {', '.join(scenario.promises[1:])})" if scenario.promises[1:] else ""
                lines.append(f"| {key} {title} | {scenario.text}{also} | {', '.join(scenario.needs)} |")
    return "\n".join(lines) + "\n"

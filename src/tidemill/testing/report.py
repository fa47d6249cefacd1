"""Why a mill did not settle: what still runs, and what a test can do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from ..message import Delivery
from .story import MAX_LINES, cut, event_name, moment

_MOST: Final = 10
"""Running handlers that are named one by one; what hangs is usually one handler, many times."""


def unsettled(
    *,
    within: float,
    working: Sequence[tuple[Delivery, int | None]],
    active: int,
    delayed: int,
    begun: int,
    now: int,
    start: int,
    story: str,
) -> str:
    """The text of a `NotSettled`.

    working  the deliveries whose handlers wait for something, each with the time of its timeout.
    active   how many deliveries are ready or in flight; `delayed` wait for time to pass.
    begun    when the waiting began by the mill's clock, which began at `start`.
    """
    lines = [f"not settled within {within:g} s of real time."]
    for delivery, deadline in working[:_MOST]:
        message = delivery.message
        key = "" if message.key is None else f", key {message.key!r}"
        lines.append(
            f"  {delivery.subscription} is still running: attempt {delivery.attempt} of "
            f"{event_name(message)}{key} (id {message.id}). {_way_out(deadline, now)}"
        )
    if len(working) > _MOST:
        lines.append(f"  {len(working) - _MOST:,} more handlers are still running.")
    if (rest := active - len(working)) > 0:
        lines.append(
            f"  {_deliveries(rest)} ready behind {'it' if len(working) == 1 else 'them'}."
            if working
            else f"  {_deliveries(rest)} ready, and no handler hangs. Do services cause each other's events for ever?"
        )
    if delayed:
        lines.append(f"  {_deliveries(delayed)} waiting for time to pass.")
    if now > begun:
        lines.append(
            f"  Meanwhile the clock jumped from {moment(begun - start)} to {moment(now - start)}. A service that "
            "schedules its next event whenever it handles one never settles: use `await mill.advance(seconds)`."
        )
    return "\n".join([*lines, "", "What happened:", cut(story, MAX_LINES // 2)])


def _way_out(deadline: int | None, now: int) -> str:
    if deadline is None:
        return "It has no timeout, so nothing but itself ends it."
    return f"`await mill.advance({max(1, math.ceil((deadline - now) / 1e9))})` reaches its timeout."


def _deliveries(count: int) -> str:
    return "1 delivery is" if count == 1 else f"{count:,} deliveries are"

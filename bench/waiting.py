# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Waiting for the last event to be settled, in the same way whatever is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], pause: float = 0.0) -> None:
    """Look every turn of the loop, or every `pause` seconds where a turn would cost what is measured its CPU."""
    while not condition():  # noqa: ASYNC110  nothing tells when, and what did would be measured as well
        await asyncio.sleep(pause)

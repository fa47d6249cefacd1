"""`memory:` — the whole semantics inside one process: for component tests, and services that may forget.

Nothing outlives the process. Per topic the last 20,000 messages, at most 64 MiB of bodies, stay readable, and
duplicates are recognised among them; what a subscription has not settled is never dropped.
"""

from __future__ import annotations

from ...broker import BrokerUrl
from ...clock import Clock
from .broker import MemoryBroker

__all__ = ["MemoryBroker", "connect"]


def connect(url: BrokerUrl, clock: Clock) -> MemoryBroker:
    """The entry point for `memory:`."""
    url.refuse_options()
    return MemoryBroker(clock)

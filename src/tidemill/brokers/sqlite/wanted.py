"""Which event types a subscription wants. In a rolling deployment that is more than one consumer's code knows: what its
newer code takes, older code must neither handle nor pass by.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from ...outcome import Release
from .sql import SQL

LATER: Final = Release(5.0, "newer code takes this event")
"""How older code gives back what newer code takes: until then that may have taken over, or this process may be gone."""

_types = msgspec.json.Decoder(tuple[str, ...]).decode


class Everything:
    """Contains every type."""

    def __contains__(self, type: object) -> bool:
        return True


def wanted(connection: sqlite3.Connection, subscription: int) -> frozenset[str] | Everything:
    """What the subscription was last declared with, and what its consumers take."""
    found: set[str] = set()
    for (types,) in connection.execute(SQL["wanted"], {"subscription": subscription}):
        if types is None:
            return Everything()
        found.update(_types(types))
    return frozenset(found)

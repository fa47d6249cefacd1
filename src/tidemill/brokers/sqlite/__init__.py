"""The embedded broker: `sqlite:///file`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...broker import BrokerUrl
from ...clock import Clock
from ...errors import Unsupported

if TYPE_CHECKING:
    from .broker import SqliteBroker


def connect(url: BrokerUrl, clock: Clock) -> SqliteBroker:
    """The entry point for `sqlite:`."""
    try:
        from .broker import SqliteBroker
    except ImportError as error:
        raise Unsupported(
            f"sqlite: needs Python's sqlite3 module and POSIX file locks, and {error.name!r} is missing here. "
            "Use a Python with both (Linux, macOS), or memory: for tests."
        ) from error
    return SqliteBroker(url, clock)

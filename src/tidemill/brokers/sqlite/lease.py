"""How long one consumer may act on what it holds, as far as this process can know, and how that is prolonged.

Renewed by the thread that writes, so that a blocked event loop costs no lease.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final

from .sharing import Member, Shared, share_out

UNKNOWN: Final = -1
"""In place of the end: a renewal says nothing of the slots that were held before."""


class Lease:
    """The lease of one consumer.

    member  whose it is.
    soon    has something called on the event loop, from any thread.
    gone    called on the event loop once others have thought the consumer dead.
    """

    def __init__(
        self, member: Member, soon: Callable[[Callable[[], object]], object], gone: Callable[[], object]
    ) -> None:
        self.until = 0
        """When it ends, by the monotonic clock."""
        self.is_let_go = False
        """Whether it is not to be renewed."""
        self._member = member
        self._soon = soon
        self._gone = gone

    @property
    def is_over(self) -> bool:
        """Whether it has ended, as far as is known here: others may have what was held."""
        return time.monotonic_ns() >= self.until

    def renew(self, connection: sqlite3.Connection) -> int:
        """Say that this consumer lives."""
        return self._member.renew(connection)

    def renewed(self, until: int) -> None:
        """That is recorded, or, with 0, it was too late."""
        if until and self.until != UNKNOWN:
            self.until = until
        elif not until:
            self._soon(self._gone)

    def share_out(self, known: dict[int, int], connection: sqlite3.Connection) -> Shared:
        """Share the slots out. Whoever joined anew begins nothing before it knows which of the `known` ones it lost."""
        shared = share_out(self._member, known, connection)
        if shared.joined:
            self.until = UNKNOWN
        return shared

    def let_go(self) -> None:
        """Renew it no more, until the event loop lives again; the next renewal then tells whether others took over."""
        self.is_let_go = True
        self._soon(self._take_up)

    def _take_up(self) -> None:
        self.is_let_go = False

"""Every error Tidemill raises, in one tree.

    TidemillError
    ├── DefinitionError          an event, topic, upcaster or handler is declared wrongly (at import)
    ├── ConfigurationError       what was asked for cannot be set up (at start)
    │   ├── BrokerUrlError       the broker's URL is mistyped or its scheme is unknown
    │   ├── MissingExtra         an optional dependency is not installed
    │   └── Unsupported          this broker cannot do what was declared
    ├── BrokerError              the broker failed while running
    │   ├── NotTidemillStorage   the file or database belongs to something else
    │   └── StorageFull          no room, or no permission to write: nothing was stored
    ├── InvalidMessage           refused before it left: too large, a bad header, no key
    ├── PublishError             some messages are not stored, or it is not known whether they are
    ├── ProcessDied              the process that ran the handler ended before it did
    ├── DecodeError              a message could not be turned into its event
    │   ├── UnknownEvent         no class is declared for its type
    │   └── FutureVersion        it is newer than this code
    └── Directive                raised by handlers to say how a delivery ends
        ├── Reject               give up on this event now
        └── RetryAfter           try again after a delay

Each message says what happened, what is true now, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .broker import Receipt
    from .message import Message

MAX_DELAY: Final = 366 * 86400.0
"""Longest delay there is, in seconds: a year. A longer one is a slip of units, and overflows brokers' clocks."""


class TidemillError(Exception):
    """The root: `except TidemillError` catches everything Tidemill raises."""


class DefinitionError(TidemillError):
    """An event, topic, upcaster or handler is declared wrongly. Raised at import, never later."""


class ConfigurationError(TidemillError):
    """What was asked for cannot be set up. Raised at start, before anything is consumed."""


class BrokerUrlError(ConfigurationError):
    """The broker's URL is mistyped or names a scheme no installed adapter serves."""


class MissingExtra(ConfigurationError):
    """An optional dependency is not installed; the text has the `pip install` that adds it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs an optional dependency, which is not installed. Nothing was started. "
            f'Install it with: pip install "tidemill[{extra}]"'
        )
        self.what = what
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.extra)


class Unsupported(ConfigurationError):
    """This broker cannot do what was declared; the text names the feature, the broker and the way out."""


class BrokerError(TidemillError):
    """The broker failed while running. What `publish` had confirmed before is still stored."""


class NotTidemillStorage(BrokerError):
    """The file or database belongs to something else, or to another version of Tidemill. It was not touched."""


class StorageFull(BrokerError):
    """The storage takes no writes (full, read-only, no permission). Nothing of this batch was stored."""


class InvalidMessage(TidemillError, ValueError):
    """A message was refused before it left: too large, a bad header, a missing key. Nothing was stored."""


class PublishError(TidemillError):
    """Not every message is stored. `failed` pairs each such message with its receipt.

    A receipt's status is `not_stored` (publish it again) or `unknown` (publish it again **with the same id**: a
    broker that deduplicates stores it once). Messages not listed are stored.
    """

    def __init__(self, text: str, failed: Sequence[tuple[Message, Receipt]]) -> None:
        super().__init__(text)
        self.failed = list(failed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.failed)


class ProcessDied(TidemillError):
    """The process that ran the handler ended, or was paused until its lease was over. Never raised: the reason of an
    attempt that failed so, which counts like any other (G5)."""


class DecodeError(TidemillError):
    """A message could not be turned into its event. The message is kept, byte for byte, as a dead letter."""


class UnknownEvent(DecodeError):
    """No class is declared for the message's type on this topic."""


class FutureVersion(DecodeError):
    """The event's version is newer than this code. It waits, uncharged, as a newer consumer may be on its way."""


class Directive(TidemillError):
    """Base of what handlers raise on purpose to say how a delivery ends."""


class Reject(Directive):
    """Raised in a handler: give up on this event now. It becomes a dead letter and is never retried.

    `raise Reject(error) from error` is fine: the reason is its text.
    """

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
        self.reason = reason if isinstance(reason, str) else str(reason)


class RetryAfter(Directive):
    """Raised in a handler: try this event again after `delay`, in seconds or as a timedelta. It counts as an attempt.

    Raises `ValueError` unless the delay is between 0 seconds and a year.
    """

    def __init__(self, delay: float | timedelta, reason: object = "asked to be retried later") -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not 0 <= seconds <= MAX_DELAY:
            raise ValueError(f"RetryAfter needs a delay between 0 seconds and a year, not {delay!r}")
        super().__init__(reason)
        self.delay = seconds
        self.reason = reason if isinstance(reason, str) else str(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        # A handler's work may run in another process, and what it raises there comes back pickled.
        return type(self), (self.delay, self.reason)

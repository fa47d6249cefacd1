"""What Tidemill says about itself: every event it emits, when, and with which fields. A contract.

| event | level | when | fields |
|---|---|---|---|
| `consumer.started` | info | a subscription begins to consume | subscription, topic, concurrency |
| `consumer.stopped` | info | it has drained | subscription, handled, released |
| `delivery.retry` | warning | a handler failed and runs again | subscription, message, attempt, after, error |
| `delivery.future` | warning | an event is newer than this code, and waits | subscription, message, reason |
| `delivery.postponed` | info | given back uncharged, to come again later | subscription, message, after, reason |
| `delivery.dead_letter` | error | a message was given up | subscription, message, attempt, reason |
| `delivery.lost` | warning | a running handler lost its lease: it is cancelled | subscription, message |
| `delivery.late` | warning | a lease was lost: the outcome did not count | subscription, message |
| `delivery.abandoned` | error | a handler did not end after it was cancelled | subscription, message, seconds |
| `circuit.opened` | error | everything fails: one at a time is tried, the rest waits | subscription, failures, error |
| `circuit.closed` | warning | one of them succeeded: all goes on | subscription |
| `settle.failed` | error | outcomes could not be recorded; it is tried again, or, in a drain, what they are of is delivered again | subscription, count, error |
| `fetch.failed` | error | nothing could be fetched; it is tried again | subscription, error |
| `chaos.enabled` | warning | faults happen on purpose: `$TIDEMILL_CHAOS` is set | probability, seed |
| `subscription.orphaned` | warning | a durable subscription with a backlog has no handler | subscription, backlog |
| `loop.blocked` | warning | the event loop stands still; the handler in its way, if it is one, and where it is | seconds, subscription, message, stack |
| `loop.unblocked` | warning | it goes on, after having stood still (by whatever, SIGSTOP too) for at least so long | seconds |
| `loop.stuck` | error | it has stood still for longer than any timeout; `tidemill run` ends | seconds, subscription, message, stack |
| `drain.overdue` | error | a drain took 15 seconds longer than its grace; `tidemill run` ends. For how long the loop has stood still, and where | seconds, subscription, message, stack |

Acknowledged deliveries emit nothing: what happens a hundred thousand times a second is counted, not told.
By default events go to the logger `tidemill`. `listen` adds a listener. Of a loop that stands still the log hears at
once, from a thread; listeners, which are promised to run on the loop, hear of it when it goes on.
"""  # noqa: E501  a table's rows are lines

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

Listener: TypeAlias = Callable[[str, dict[str, Any]], object]

LEVELS: dict[str, int] = {
    "consumer.started": logging.INFO,
    "consumer.stopped": logging.INFO,
    "delivery.retry": logging.WARNING,
    "delivery.future": logging.WARNING,
    "delivery.postponed": logging.INFO,
    "delivery.dead_letter": logging.ERROR,
    "delivery.lost": logging.WARNING,
    "delivery.late": logging.WARNING,
    "delivery.abandoned": logging.ERROR,
    "circuit.opened": logging.ERROR,
    "circuit.closed": logging.WARNING,
    "settle.failed": logging.ERROR,
    "fetch.failed": logging.ERROR,
    "chaos.enabled": logging.WARNING,
    "subscription.orphaned": logging.WARNING,
    "loop.blocked": logging.WARNING,
    "loop.unblocked": logging.WARNING,
    "loop.stuck": logging.ERROR,
    "drain.overdue": logging.ERROR,
}

_logger = logging.getLogger("tidemill")
_listeners: list[tuple[Listener]] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(name, fields)` for every event from now on. Returns the function that ends it.

    A listener runs on the event loop and must not block; what it raises is logged and goes no further.
    """
    entry = (listener,)
    _listeners.append(entry)

    def stop() -> None:
        # By identity: somebody else may have registered the same listener.
        _listeners[:] = [each for each in _listeners if each is not entry]

    return stop


def emit(name: str, **fields: Any) -> None:
    """Tell the log and the listeners. Never raises: to report must not break what is reported."""
    _log(name, fields)
    _tell(name, fields)


def emit_from_thread(loop: asyncio.AbstractEventLoop, name: str, **fields: Any) -> None:
    """The same from another thread than the loop's: to the log at once, to the listeners when the loop has its turn."""
    _log(name, fields)
    try:
        loop.call_soon_threadsafe(_tell, name, fields)
    except RuntimeError:  # it was closed: nobody listens any more
        pass


def _log(name: str, fields: dict[str, Any]) -> None:
    level = LEVELS.get(name, logging.ERROR)
    if _logger.isEnabledFor(level):
        try:
            text = " ".join(f"{key}={value}" for key, value in fields.items())
            _logger.log(level, "%s %s", name, text, extra={"tidemill": fields})
        except Exception as error:
            _complain("%s could not be logged", name, error)


def _tell(name: str, fields: dict[str, Any]) -> None:
    for (listener,) in tuple(_listeners):
        try:
            listener(name, fields)
        except Exception as error:
            _complain("a telemetry listener failed on %s", name, error)


def _complain(text: str, name: str, error: Exception) -> None:
    try:
        _logger.error(text, name, exc_info=error)
    except Exception:  # logging itself is broken: a filter that raises, say
        pass

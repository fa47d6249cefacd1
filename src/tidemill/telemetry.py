"""What Tidemill says about itself: every event it emits, when, and with which fields. A contract.

| event | level | when | fields |
|---|---|---|---|
| `consumer.started` | info | a subscription begins to consume | subscription, topic, concurrency |
| `consumer.stopped` | info | it has drained | subscription, handled, released |
| `delivery.retry` | warning | a handler failed and runs again | subscription, message, attempt, after, error |
| `delivery.dead_letter` | error | a message was given up | subscription, message, attempt, reason |
| `delivery.late` | warning | a lease was lost: the outcome did not count | subscription, message |
| `delivery.abandoned` | error | a handler did not end after it was cancelled | subscription, message, seconds |
| `settle.failed` | error | outcomes could not be recorded; it is tried again | subscription, count, error |
| `fetch.failed` | error | nothing could be fetched; it is tried again | subscription, error |
| `subscription.orphaned` | warning | a durable subscription with a backlog has no handler | subscription, backlog |

Acknowledged deliveries emit nothing: what happens a hundred thousand times a second is counted, not told.
By default events go to the logger `tidemill`. `listen` adds a listener.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

Listener: TypeAlias = Callable[[str, dict[str, Any]], object]

LEVELS: dict[str, int] = {
    "consumer.started": logging.INFO,
    "consumer.stopped": logging.INFO,
    "delivery.retry": logging.WARNING,
    "delivery.dead_letter": logging.ERROR,
    "delivery.late": logging.WARNING,
    "delivery.abandoned": logging.ERROR,
    "settle.failed": logging.ERROR,
    "fetch.failed": logging.ERROR,
    "subscription.orphaned": logging.WARNING,
}

_logger = logging.getLogger("tidemill")
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener(name, fields)` for every event from now on. Returns the function that ends it.

    A listener runs on the event loop and must not block; what it raises is logged and goes no further.
    """
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return stop


def emit(name: str, **fields: Any) -> None:
    """Tell the log and the listeners. Never raises."""
    level = LEVELS[name]
    if _logger.isEnabledFor(level):
        _logger.log(level, "%s %s", name, " ".join(f"{key}={value}" for key, value in fields.items()), extra={"tidemill": fields})
    for listener in tuple(_listeners):
        try:
            listener(name, fields)
        except Exception:
            _logger.exception("a telemetry listener failed on %s", name)

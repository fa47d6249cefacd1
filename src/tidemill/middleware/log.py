"""A line per attempt, for those who want to read along. Without it Tidemill tells only what goes wrong."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from ..message import Delivery
from ..outcome import Outcome, describe
from ..pipeline import Handle, Middleware

MAX_BODY: Final = 1000
"""Most bytes of a body in a line, as lines are read by people."""


def log(
    logger: logging.Logger | str = "tidemill.attempt", level: int = logging.INFO, *, body: bool = False
) -> Middleware:
    """Log every attempt: subscription, type, id, key, attempt, how it ended and after how many milliseconds.

    logger  where to (default the logger `tidemill.attempt`).
    level   of every line (default info). `tidemill run --json-log` shows info, with the fields as fields; without
            it, configure logging in the service's module to see them.
    body    whether a line has the body too, its first 1000 bytes (default no: bodies hold what is nobody's business,
            and logs are read by many).
    """
    target = logging.getLogger(logger) if isinstance(logger, str) else logger

    async def middleware(call_next: Handle, delivery: Delivery) -> Outcome:
        if not target.isEnabledFor(level):
            return await call_next(delivery)
        message = delivery.message
        fields: dict[str, Any] = {
            "subscription": delivery.subscription,
            "type": message.type,
            "id": message.id,
            "key": message.key,
            "attempt": delivery.attempt,
        }
        if body:
            fields["body"] = message.body[:MAX_BODY].decode("utf-8", "backslashreplace")
        began = time.perf_counter()
        try:
            outcome = await call_next(delivery)
            fields["outcome"] = type(outcome).__name__
            return outcome
        except BaseException as error:
            fields["error"] = describe(error)
            raise
        finally:
            fields["ms"] = round((time.perf_counter() - began) * 1000, 3)
            _write(target, level, fields)

    return middleware


def _write(logger: logging.Logger, level: int, fields: dict[str, Any]) -> None:
    try:
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        logger.log(level, "attempt %s", text, extra={"tidemill": fields})
    except Exception:  # a filter that raises, say: what is logged must not fail for it
        pass

"""What `tidemill run` writes to standard error: lines for people, or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import click

Say: TypeAlias = Callable[[str], None]
"""Tells people one thing about the run."""


def configure(as_json: bool, worker: int | None) -> Say:
    """Set up logging, unless the services did, and return what the run itself speaks with.

    as_json   one JSON object a line, in which an event of Tidemill's has its fields; it replaces the services' own
              set-up, as somebody asked for it.
    worker    the number lines are marked with among several workers.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if worker is None else f"worker {worker}: "
    if as_json:
        handler.setFormatter(_JsonFormatter(worker))
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        return logging.getLogger("tidemill.run").info
    handler.setFormatter(logging.Formatter(f"{prefix}%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # nothing where there are handlers already
    return lambda text: click.echo(f"{prefix}{text}", err=True)


class _JsonFormatter(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if self._worker is not None:
            line["worker"] = self._worker
        fields: dict[str, Any] | None = getattr(record, "tidemill", None)
        message = record.getMessage()
        if fields is None:
            line["message"] = message
        else:
            line |= {"event": message.partition(" ")[0], **fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)

"""What commands share: the `--broker` option, an opened broker, and running a coroutine."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import click

from ..broker import DEFAULT_URL, Broker, connect, parse_url
from ..clock import SystemClock
from ..errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def broker_option(command: F) -> F:
    """`--broker URL`, handed on as `broker`."""
    return click.option(
        "--broker",
        metavar="URL",
        envvar="TIDEMILL_BROKER",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="Where messages are stored.",
    )(command)


def parse_since(text: str) -> int:
    """`beginning`, `now`, an age such as `90s` or `1h`, or a date and time (local unless it says) in nanoseconds."""
    text = text.strip()
    if text == "beginning":
        return 0
    if text == "now":
        return time.time_ns()
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text)
    try:
        if ago:
            return max(time.time_ns() - int(float(ago[1]) * _UNITS[ago[2]] * 1e9), 0)
        return max(int(datetime.fromisoformat(text).astimezone().timestamp() * 1_000_000) * 1000, 0)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{text!r} is no time. Write beginning, now, an age (90s, 15m, 1h, 7d) or 2026-01-31T12:00."
        ) from None


def when(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """An option's callback: a point in time, as `parse_since` takes it."""
    return None if value is None else parse_since(value)


def examples(*lines: str) -> str:
    """The end of a command's help: lines to copy, not wrapped."""
    title = "Example" if len(lines) == 1 else "Examples"
    return "\n".join(("\b", f"{title}:", *(f"  {line}" for line in lines)))


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end. Ctrl-C cancels it."""
    return asyncio.run(work)


@asynccontextmanager
async def opened(url: str, *, create: bool = False) -> AsyncGenerator[Broker]:
    """The broker at `url`, open. Raises `ConfigurationError` where another process could never see it.

    create   whether an embedded broker's file may come into being (default no: looking must leave no trace).
    """
    refuse_private(url)
    broker = connect(url, SystemClock())
    if not create:
        _refuse_missing(url)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def refuse_private(url: str) -> None:
    """Raise `ConfigurationError` for a broker that lives and dies within one process."""
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        raise ConfigurationError(
            f"{parsed.text} lives inside one process, so no other process can share it. "
            "Use a broker on disk, such as sqlite:///tidemill.db."
        )


def _refuse_missing(url: str) -> None:
    parsed = parse_url(url)
    if parsed.scheme == "sqlite":
        file = Path(unquote(parsed.path[1:]))
        if not file.exists():
            raise ConfigurationError(
                f"there is no file {file.absolute()} ({parsed.text}). Nothing was created. Services and "
                "`tidemill publish` create it; name another with --broker or $TIDEMILL_BROKER."
            )

"""What commands share: the `--broker` option, an opened broker, and running a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import click

from ..broker import DEFAULT_URL, Broker, connect, parse_url
from ..clock import SystemClock
from ..errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


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

"""`tidemill run`: services, in this process or in several workers, until they are told to stop."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..broker import parse_url
from ..errors import MissingExtra
from ..runtime import GRACE
from .log import configure
from .options import broker_option, examples, refuse_private, run_async
from .supervise import Supervisor, watch
from .worker import run_services


@click.command(
    "run",
    epilog=examples(
        "tidemill run notifications:service payments:service",
        "tidemill run shop.mail:service --workers 4 --broker sqlite:////var/lib/shop.db",
    ),
)
@click.argument("services", nargs=-1, required=True, metavar="MODULE:SERVICE...")
@broker_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run N processes, and start again those that die.",
)
@click.option("--reload", is_flag=True, help="Drain and start again when a Python file below this directory changes.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=GRACE,
    show_default=True,
    metavar="SECONDS",
    help="How long a drain waits for running handlers. Kubernetes kills after 30.",
)
@click.option("--json-log", is_flag=True, help="Log one JSON object a line.")
@click.option("--worker", type=int, hidden=True, help="This process is that worker of a supervisor.")
def command(
    services: tuple[str, ...],
    broker: str,
    workers: int | None,
    reload: bool,
    grace: float,
    json_log: bool,
    worker: int | None,
) -> None:
    """Run services until SIGTERM or Ctrl-C, then drain.

    A drain fetches no more, finishes what runs within --grace and gives the rest back. A second signal cancels what
    still runs (with --workers: kills the workers); it is delivered again.

    Exit codes: 0 drained; 1 a worker did not drain; 2 usage, configuration or declaration; 3 the broker failed.
    """
    if worker is not None or not (workers or reload):
        run_services(services, broker, grace, json_log, worker)
        return
    parse_url(broker)
    if (workers or 1) > 1:
        refuse_private(broker)
    files = _watchfiles() if reload else None
    arguments = [sys.executable, "-m", "tidemill", "run", *services, "--grace", str(grace)]
    # The URL may hold a password, and other users see command lines, but not environments.
    environment = {**os.environ, "TIDEMILL_BROKER": broker}
    code = run_async(
        _supervise(
            [*arguments, *(["--json-log"] if json_log else [])],
            environment,
            workers or 1,
            grace,
            json_log,
            files,
        )
    )
    click.get_current_context().exit(code)


async def _supervise(
    arguments: list[str], environment: dict[str, str], count: int, grace: float, json_log: bool, files: Any
) -> int:
    say = configure(json_log, None)
    supervisor = Supervisor(arguments, environment, count=count, grace=grace, say=say)
    return await supervisor.run(watch(os.getcwd(), files) if files is not None else None)


def _watchfiles() -> Any:
    try:
        import watchfiles
    except ImportError:
        raise MissingExtra("--reload", "reload") from None
    return watchfiles

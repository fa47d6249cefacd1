"""`tidemill run`: services, in this process or in several workers, until they are told to stop."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import click

from ..broker import parse_url
from ..errors import MissingExtra
from ..runtime import GRACE
from .log import configure
from .options import broker_option, examples, refuse_private, run_async
from .probes import answering, bind, url_of
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
@click.option(
    "--health",
    metavar="[HOST:]PORT",
    help="Answer /livez and /readyz over HTTP there. Without HOST only this machine reaches it; in a container write "
    "0.0.0.0:PORT.",
)
@click.option(
    "--recycle-after",
    type=click.IntRange(min=1),
    metavar="EVENTS",
    help="Replace each worker, one at a time, when it has handled so many (give or take a tenth): for handlers that "
    "leak memory. Needs --workers.",
)
@click.option("--json-log", is_flag=True, help="Log one JSON object a line.")
@click.option("--worker", type=int, hidden=True, help="This process is that worker of a supervisor.")
@click.option("--report-to", type=int, hidden=True, help="The pipe on which the supervisor hears how it is.")
def command(
    services: tuple[str, ...],
    broker: str,
    workers: int | None,
    reload: bool,
    grace: float,
    health: str | None,
    recycle_after: int | None,
    json_log: bool,
    worker: int | None,
    report_to: int | None,
) -> None:
    """Run services until SIGTERM or Ctrl-C, then drain.

    A drain fetches no more, finishes what runs within --grace and gives the rest back. A second signal cancels what
    still runs (with --workers: kills the workers); it is delivered again.

    Exit codes: 0 drained; 1 it, or a worker, did not drain; 2 usage, configuration or declaration; 3 the broker
    failed; 70 a handler blocked the event loop for longer than any timeout.
    """
    if recycle_after and not workers:
        raise click.UsageError("--recycle-after needs --workers: somebody has to start the next one.")
    listening = bind(health) if health is not None else None
    if worker is not None or not (workers or reload):
        run_services(services, broker, grace, json_log, worker=worker, report_to=report_to, listening=listening)
        return
    parse_url(broker)
    if (workers or 1) > 1:
        refuse_private(broker)
    files = _watchfiles() if reload else None
    arguments = [sys.executable, "-m", "tidemill", "run", *services, "--grace", str(grace)]
    # The URL may hold a password, and other users see command lines, but not environments.
    environment = {**os.environ, "TIDEMILL_BROKER": broker}
    say = configure(json_log, None)
    if listening is not None:
        say(f"health on {url_of(listening)}/livez and /readyz")
    supervisor = Supervisor(
        [*arguments, *(["--json-log"] if json_log else [])],
        environment,
        count=workers or 1,
        grace=grace,
        say=say,
        recycle_after=recycle_after,
    )
    code = run_async(_supervise(supervisor, listening, files))
    click.get_current_context().exit(code)


async def _supervise(supervisor: Supervisor, listening: socket.socket | None, files: Any) -> int:
    async with answering(listening, supervisor.answers):
        return await supervisor.run(watch(os.getcwd(), files) if files is not None else None)


def _watchfiles() -> Any:
    try:
        import watchfiles
    except ImportError:
        raise MissingExtra("--reload", "reload") from None
    return watchfiles

"""`tidemill pause`: let the events of subscriptions wait."""

from __future__ import annotations

import click

from .options import broker_option, examples, run_async
from .pausing import set_paused


@click.command("pause", epilog=examples("tidemill pause notifications.send_receipt"))
@click.argument("subscriptions", nargs=-1, required=True, metavar="SUBSCRIPTION...")
@broker_option
def command(subscriptions: tuple[str, ...], broker: str) -> None:
    """Let the consumers of subscriptions, in all processes, begin nothing more.

    What runs finishes, what waits goes back uncharged, and new events wait; nothing is lost, and it survives
    restarts. `tidemill resume` lets them go on.
    """
    run_async(set_paused(broker, subscriptions, True))
    for name in subscriptions:
        click.echo(f"{name} is paused; `tidemill resume {name}` lets it go on")

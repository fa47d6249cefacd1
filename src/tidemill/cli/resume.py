"""`tidemill resume`: let paused subscriptions go on."""

from __future__ import annotations

import click

from .options import broker_option, examples, run_async
from .pausing import set_paused


@click.command("resume", epilog=examples("tidemill resume notifications.send_receipt"))
@click.argument("subscriptions", nargs=-1, required=True, metavar="SUBSCRIPTION...")
@broker_option
def command(subscriptions: tuple[str, ...], broker: str) -> None:
    """Let subscriptions that `tidemill pause` has stopped go on, in all processes, at once."""
    run_async(set_paused(broker, subscriptions, False))
    for name in subscriptions:
        click.echo(f"{name} goes on")

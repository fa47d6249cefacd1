"""`tidemill diagram`: sequence diagrams as Mermaid text, of what is declared or of what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import TidemillError
from .load import load
from .options import broker_option, examples, opened, run_async


@click.command(
    "diagram",
    epilog=examples(
        "tidemill diagram shop:payments shop:notifications --output docs/events.mmd",
        "tidemill diagram --correlation 0198d3a1-7f1c-7000-8000-5b6f3c1d2e4f",
    ),
)
@click.argument("services", nargs=-1, metavar="[MODULE:SERVICE]...")
@click.option("--correlation", metavar="ID", help="Draw what happened in the flow with this correlation id.")
@broker_option
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write to FILE.")
def command(services: tuple[str, ...], correlation: str | None, broker: str, output: Path | None) -> None:
    """Draw a sequence diagram, as Mermaid text (GitHub, GitLab and mermaid.live show it).

    With services: what they declare, that is, each topic's events and the handlers that get them, with their retries.

    With --correlation: what happened in one flow, that is, who published what, every attempt of every handler, and
    what the handlers published in turn. The id is that of the event that began the flow; `tidemill tail` shows it.
    """
    if correlation is not None and services:
        raise click.UsageError("give either services, to draw what is declared, or --correlation, not both.")
    if correlation is None and not services:
        raise click.UsageError(
            "what to draw? Name services (such as shop:payments) to draw what is declared, "
            "or give --correlation ID to draw what happened."
        )
    text = _declared(services) if correlation is None else run_async(_happened(correlation, broker))
    _warn_of_size(text)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="ascii", newline="\n")
    except OSError as error:
        raise click.ClickException(f"{output} could not be written: {error.strerror or error}.") from None


def _declared(targets: tuple[str, ...]) -> str:
    from ..describe.model import application_of
    from ..describe.sequence import declared
    from ..service import Service

    services: dict[int, Service[Any]] = {}
    for target in targets:
        found: Service[Any] = load(target, "a Service", lambda thing: isinstance(thing, Service))
        services[id(found)] = found
    return declared(application_of(services.values()))


async def _happened(correlation: str, url: str) -> str:
    from ..describe.sequence import happened

    async with opened(url) as broker:
        trace = await broker.trace(correlation)
        where = broker.url
    if not trace.messages:
        raise TidemillError(
            f"nothing with the correlation id {correlation!r} is at {where}: the id is another, or the events are "
            "no longer kept. `tidemill tail TOPIC --from 1h --broker URL` shows the ids of what is there."
        )
    return happened(trace)


def _warn_of_size(text: str) -> None:
    from ..describe.mermaid import MAX_TEXT

    if len(text) > MAX_TEXT:
        click.echo(
            f"{click.style('warning:', fg='yellow', bold=True)} the diagram has {len(text):,} characters, and Mermaid "
            f"draws at most {MAX_TEXT:,} unless its maxTextSize is raised.",
            err=True,
        )

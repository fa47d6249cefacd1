"""The command line: one file a command, loaded when it is called, so that `tidemill --help` answers at once.

Nothing here may import what is slow to import; a test looks.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("tidemill.cli.run", "Run services until they are told to stop, then drain."),
    "publish": ("tidemill.cli.publish", "Publish events from JSON Lines."),
    "tail": ("tidemill.cli.tail", "Show the messages of a topic without consuming them."),
    "status": ("tidemill.cli.status", "Show topics and how far each subscription is."),
    "pause": ("tidemill.cli.pause", "Let the events of subscriptions wait."),
    "resume": ("tidemill.cli.resume", "Let paused subscriptions go on."),
    "dead-letters": ("tidemill.cli.dead_letters", "Look at what subscriptions gave up on, replay or discard it."),
    "diagram": ("tidemill.cli.diagram", "Draw how services, topics and handlers connect."),
    "torture": ("tidemill.cli.torture", "Kill and pause processes on a broker; check what is left."),
}
"""Every command: the module whose `command` it is, and its line in the list of commands."""


EXIT_CODES = """\b
Exit codes:
  0    done
  1    some of it was refused, or did not drain
  2    wrong usage, configuration or declaration
  3    the broker failed
  130  interrupted
"""


class _Commands(click.Group):
    """Loads commands when they are called, and turns Tidemill's errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except BrokenPipeError:
            _forget_stdout()
            ctx.exit(0)
        except Exception as error:
            code = _exit_code(error)
            if code is None:
                raise
            click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
            ctx.exit(code)


def _exit_code(error: Exception) -> int | None:
    from ..errors import BrokerError, ConfigurationError, DefinitionError, TidemillError

    match error:
        case ConfigurationError() | DefinitionError():
            return 2
        case BrokerError():
            return 3
        case TidemillError():
            return 1
        case _:
            return None


def _forget_stdout() -> None:
    """Whoever read the output is gone: point it at nothing, or flushing it at exit fails once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stand-in for stdout without a file descriptor
        pass


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="tidemill", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Event-driven services that lose nothing.

    Without --broker, commands use $TIDEMILL_BROKER, or else sqlite:///tidemill.db in the working directory.
    NO_COLOR turns colours off.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> None:
    """What the `tidemill` script calls."""
    cli(prog_name="tidemill")

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tidemill import errors
from tidemill.cli import COMMANDS, cli

# What takes long to import and has no business in `tidemill --help`.
HEAVY = {
    "pydantic",
    "watchfiles",
    "sqlite3",
    "multiprocessing",
    "inspect",
    "msgspec",
    "asyncio",
    "ssl",
    "logging",
}


def test_help_lists_every_command_and_the_exit_codes() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert f"{name} " in result.output
        assert text in result.output
    for code in ("0 ", "1 ", "2 ", "3 ", "130"):
        assert f"\n    {code}" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_its_help_has_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"tidemill {name} " in result.output.partition("Example")[2] + " "


@pytest.mark.parametrize("name", ["run", "publish", "tail", "status"])
def test_the_default_broker_is_shown(name: str) -> None:
    help_text = " ".join(CliRunner().invoke(cli, [name, "--help"]).output.split())
    assert "env var: TIDEMILL_BROKER; default: sqlite:///tidemill.db" in help_text


def test_help_imports_no_command_and_nothing_slow() -> None:
    """Beyond what importing the package costs, `--help` loads Click and the group."""
    script = (
        "import sys, tidemill, click, click.testing\n"
        "before = set(sys.modules)\n"
        "from tidemill.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "print('|'.join(sorted(set(sys.modules) - before)), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stderr.strip().split("|"))
    assert "Commands:" in result.stdout
    assert "tidemill.cli" in loaded, "the script measures something else than it means to"
    assert not {name for name in loaded if name.startswith("tidemill.") and name != "tidemill.cli"}
    assert not {name for name in loaded if name.partition(".")[0] in HEAVY}


def test_help_answers_soon() -> None:
    def measure() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tidemill", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    best = min(measure() for _ in range(3))
    assert best < 0.6, f"{best:.3f} s; 0.15 s is the aim on an idle machine"


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command("status")
    def command() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "failing", SimpleNamespace(command=command))  # type: ignore[arg-type]
    monkeypatch.setitem(COMMANDS, "status", ("failing", ""))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("it is so"), 2),
        (errors.BrokerUrlError("it is so"), 2),
        (errors.DefinitionError("it is so"), 2),
        (errors.BrokerError("it is so"), 3),
        (errors.StorageFull("it is so"), 3),
        (errors.InvalidMessage("it is so"), 1),
    ],
)
def test_errors_of_tidemill_are_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    _failing(monkeypatch, error)
    result = CliRunner().invoke(cli, ["status"], catch_exceptions=False)
    assert (result.exit_code, result.stderr, result.stdout) == (code, "error: it is so\n", "")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 0)])
def test_ctrl_c_and_a_closed_pipe_end_quietly(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    _failing(monkeypatch, error)
    result = CliRunner().invoke(cli, ["status"], catch_exceptions=False)
    assert (result.exit_code, result.output) == (code, "")


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(cli, ["status"], catch_exceptions=False)


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, errors.BrokerError("it is so"))

    def invoke(**environment: Any) -> str:
        return CliRunner(env=environment).invoke(cli, ["status"], color=True).stderr

    assert "\x1b[" in invoke(NO_COLOR=None)
    assert "\x1b[" not in invoke(NO_COLOR="1")


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["statsu"])
    assert result.exit_code == 2
    assert "statsu" in result.stderr


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"], prog_name="tidemill").output.startswith("tidemill ")

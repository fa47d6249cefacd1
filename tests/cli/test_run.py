from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Project


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_and_the_exit_code_is_0(project: Project, number: signal.Signals) -> None:
    project.publish("slow", "EUR")
    running = project.start("run", "shop:service")
    running.says(r"^consuming mail\.send from \S*tidemill\.db\n")
    wait_until(lambda: list(project.directory.glob("running-*")), "a running handler")
    running.send(number)
    running.says("finishing 1 running, press again to force")
    assert (running.process.pid, "p1") not in project.handled()
    (project.directory / "go").touch()
    assert running.ends() == 0
    assert (running.process.pid, "p1") in project.handled()
    assert "Traceback" not in running.output


def test_pressing_again_forces(project: Project) -> None:
    project.publish("hang")
    running = project.start("run", "shop:service", "--grace", "300")
    wait_until(lambda: list(project.directory.glob("running-*")), "a running handler")
    running.send(signal.SIGINT)
    running.says("finishing 1 running")
    running.send(signal.SIGINT)
    assert running.ends() == 0
    found = json.loads(project("status", "--json").stdout)["subscriptions"][0]
    assert (found["backlog"], found["retrying"], found["dead"]) == (1, 0, 0), "given back untouched"


def test_the_grace_is_kept(project: Project) -> None:
    project.publish("hang")
    running = project.start("run", "shop:service", "--grace", "0.2")
    wait_until(lambda: list(project.directory.glob("running-*")), "a running handler")
    running.send(signal.SIGTERM)
    assert running.ends(10) == 0


def test_a_signal_while_services_are_loaded_ends_it(project: Project) -> None:
    Path("long.py").write_text("import time\nopen('loading', 'w').close()\ntime.sleep(60)\n")
    running = project.start("run", "long:service")
    wait_until(lambda: Path("loading").exists(), "the module being imported")
    running.send(signal.SIGTERM)
    assert (running.ends(), running.output) == (0, "")


def test_several_services_of_which_one_is_named_twice(project: Project) -> None:
    Path("other.py").write_text("from tidemill import Service\nservice = Service('other')\n")
    running = project.start("run", "shop:service", "other:service", "shop:service", "--broker", "memory:")
    running.says("consuming mail.send from memory:")
    running.send(signal.SIGTERM)
    assert running.ends() == 0


def test_a_service_without_handlers(project: Project) -> None:
    Path("other.py").write_text("from tidemill import Service\nservice = Service('other')\n")
    running = project.start("run", "other:service", "--broker", "memory:")
    running.says("running other on memory:; there are no handlers")
    running.send(signal.SIGTERM)
    assert running.ends() == 0


def test_json_log(project: Project) -> None:
    project.publish("EUR")
    running = project.start("run", "shop:service", "--json-log")
    running.says("consuming")
    wait_until(project.handled, "the payment")
    running.send(signal.SIGTERM)
    assert running.ends() == 0
    lines = [json.loads(line) for line in running.output.splitlines()]
    assert any(line.get("message", "").startswith("consuming mail.send") for line in lines)
    [started] = [line for line in lines if line.get("event") == "consumer.started"]
    assert (started["subscription"], started["level"], started["logger"]) == ("mail.send", "info", "tidemill")


def test_logging_that_services_set_up_is_left_alone(project: Project) -> None:
    (project.directory / "logs.py").write_text(
        "import logging\nlogging.basicConfig(level=logging.INFO, format='mine %(message)s')\nfrom shop import service\n"
    )
    running = project.start("run", "logs:service", "--broker", "memory:")
    running.says("mine consumer.started")
    running.send(signal.SIGTERM)
    assert running.ends() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nope:service"], 2, "there is no module 'nope'"),
        (["shop:service", "--broker", "nope:"], 2, "no broker is installed for 'nope'"),
        (["shop:service", "--broker", "nope"], 2, "is not a broker URL"),
        (["shop:service", "--workers", "2", "--broker", "memory:"], 2, "memory: lives inside one process"),
        (["shop:service", "--workers", "0"], 2, "--workers"),
        (["shop:service", "--grace", "-1"], 2, "--grace"),
        ([], 2, "Missing argument"),
    ],
)
def test_errors_before_anything_runs(project: Project, arguments: list[str], code: int, text: str) -> None:
    running = project.start("run", *arguments)
    assert running.ends() == code
    assert text in running.output
    assert "Traceback" not in running.output


def test_reload_needs_its_extra(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    result = project("run", "shop:service", "--reload")
    assert result.exit_code == 2
    assert 'pip install "tidemill[reload]"' in result.stderr

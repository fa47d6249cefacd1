from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import sys
import time
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
        (["shop:service", "--health", "nope"], 2, "--health nope: that is no [HOST:]PORT. Nothing was started."),
        (["shop:service", "--health", "nope", "--workers", "2"], 2, "--health nope: that is no [HOST:]PORT."),
        (["shop:service", "--recycle-after", "9"], 2, "--recycle-after needs --workers"),
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


def test_health(project: Project) -> None:
    project.publish("slow")
    running = project.start("run", "shop:service", "--health", "0")
    running.says("consuming mail.send")
    assert running.probe("/readyz") == (
        200,
        {
            "live": True,
            "ready": True,
            "why": "",
            "subscriptions": [{"name": "mail.send", "state": "consuming", "why": ""}],
        },
    )
    assert running.probe("/livez")[0] == 200
    wait_until(lambda: list(project.directory.glob("running-*")), "a running handler")
    running.send(signal.SIGTERM)
    running.says("finishing 1 running")
    status, body = running.probe("/readyz")
    assert (status, body["why"]) == (503, "draining")
    assert running.probe("/livez")[0] == 200
    (project.directory / "go").touch()
    assert running.ends() == 0
    assert "Traceback" not in running.output


def test_a_port_that_is_taken_is_an_error_before_anything_is_imported(project: Project) -> None:
    Path("loud.py").write_text("print('imported')\nfrom shop import service\n")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        running = project.start("run", "loud:service", "--health", address)
        assert running.ends() == 2
    assert f"error: --health {address}: that address cannot be taken" in running.output
    assert "imported" not in running.output
    assert not Path("tidemill.db").exists()


OPENING = """
import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from tidemill import Service
from contracts import PaymentConfirmed

@asynccontextmanager
async def resources():
    try:
        async with asyncio.TaskGroup():
            Path("opening").touch()
            if not Path("open").exists():
                await asyncio.Event().wait()
            yield
    finally:
        Path("closed").touch()

service = Service("mail", resources=resources)

@service.on(PaymentConfirmed)
async def send(event: PaymentConfirmed) -> None: ...
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it_and_closes_what_was_opened(project: Project, number: signal.Signals) -> None:
    Path("opening_.py").write_text(OPENING)
    running = project.start("run", "opening_:service", "--health", "0")
    wait_until(lambda: Path("opening").exists(), "resources being opened")
    status, body = running.probe("/readyz")
    assert (status, body["why"], body["live"]) == (503, "starting", True)
    running.send(number)
    assert running.ends() == 0
    assert Path("closed").exists()
    assert "Traceback" not in running.output
    assert "consuming" not in running.output


def test_signals_at_any_moment_of_the_start_end_it_cleanly(project: Project) -> None:
    """From before anything is imported until everything consumes; the interpreter alone, before its first line of
    ours, ends as the signal says."""
    Path("opening_.py").write_text(OPENING)
    Path("open").touch()
    for delay in range(12):
        running = project.start("run", "opening_:service")
        time.sleep(delay * 0.04)
        running.send(signal.SIGTERM)
        code = running.ends()
        assert code == 0 or (code == -signal.SIGTERM and not running.output), (delay, running.output)
        assert "Traceback" not in running.output
        assert "rror" not in running.output


def test_a_signal_that_is_swallowed_while_services_are_loaded_is_remembered(project: Project) -> None:
    """What signals raise is an exception like any other, and Python's own compiler is known to swallow some."""
    Path("greedy.py").write_text(
        "import os, signal, time\nfrom shop import service\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(10)\nexcept BaseException:\n    pass\n"
    )
    running = project.start("run", "greedy:service")
    assert (running.ends(), running.output) == (0, "")


SHORT = "import tidemill.loop_watch as w, tidemill.runtime as r\nw.LIMIT = 0.1\nw.TICK = 0.02\n"


def test_a_loop_that_is_stuck_ends_the_process(project: Project) -> None:
    Path("short.py").write_text(f"{SHORT}r.LEAST_STUCK = 0.5\nr.ABANDON_AFTER = -60\nfrom shop import service\n")
    project.publish("block")
    running = project.start("run", "short:service")
    assert running.ends() == 70
    blocked, stuck = (running.says(f"tidemill: {name} .*")[0] for name in ("loop.blocked", "loop.stuck"))
    for line in (blocked, stuck):
        assert re.search(r"seconds=\S+ subscription=mail.send message=\S+ stack=", line)
        assert "shop.py" in line
        assert "in send: " in line
    found = json.loads(project("status", "--json").stdout)["subscriptions"][0]
    assert (found["backlog"], found["dead"]) == (1, 0)
    Path("go").touch()
    another = project.start("run", "shop:service")
    wait_until(project.handled, "the payment, in another process")
    another.send(signal.SIGTERM)
    assert another.ends() == 0


def test_a_blocked_loop_does_not_outlive_the_grace(project: Project) -> None:
    Path("short.py").write_text(f"{SHORT}r.MARGIN = 0.3\nfrom shop import service\n")
    project.publish("block")
    running = project.start("run", "short:service", "--grace", "0.1")
    wait_until(lambda: list(project.directory.glob("running-*")), "a running handler")
    running.send(signal.SIGTERM)
    assert running.ends(10) == 1
    assert "drain.overdue seconds=" in running.output
    assert "in send: " in running.output


def test_a_second_signal_ends_a_blocked_loop_whatever_the_grace(project: Project) -> None:
    Path("short.py").write_text(f"{SHORT}r.MARGIN = 0.3\nfrom shop import service\n")
    project.publish("block")
    running = project.start("run", "short:service", "--grace", "300")
    running.says("loop.blocked")
    running.send(signal.SIGINT)
    running.send(signal.SIGTERM)
    assert running.ends(10) == 1


def test_a_loop_that_goes_on_in_time_drains(project: Project) -> None:
    Path("short.py").write_text(f"{SHORT}from shop import service\n")
    project.publish("block")
    running = project.start("run", "short:service")
    running.says("loop.blocked")
    running.send(signal.SIGTERM)
    Path("go").touch()
    assert running.ends() == 0
    assert "loop.unblocked seconds=" in running.output
    assert len(project.handled()) == 1
    found = json.loads(project("status", "--json").stdout)["subscriptions"][0]
    assert found["backlog"] == 0


@pytest.mark.slow
def test_a_broker_that_takes_no_writes_does_not_keep_the_process(project: Project) -> None:
    """Another process holds the file's write lock during the drain: what was handled cannot be recorded, and is handled
    again later. The end does not wait for that longer than the grace and a moment."""
    project.publish("slow")
    running = project.start("run", "shop:service", "--grace", "2")
    wait_until(lambda: list(project.directory.glob("running-*")), "a running handler")
    with sqlite3.connect("tidemill.db", isolation_level=None) as other:
        other.execute("begin immediate")
        running.send(signal.SIGTERM)
        running.says("finishing 1 running")
        (project.directory / "go").touch()
        assert running.ends(2 + 15) == 0
        other.execute("rollback")
    assert "Traceback" not in running.output
    again = project.start("run", "shop:service")
    wait_until(lambda: len(project.handled()) == 2, "the payment again")
    again.send(signal.SIGTERM)
    assert again.ends() == 0
    found = json.loads(project("status", "--json").stdout)["subscriptions"][0]
    assert (found["backlog"], found["dead"]) == (0, 0)

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from waiting import wait_until as until

from tidemill.cli.supervise import FIRST_DELAY, LONGEST_DELAY, Supervisor, delay

from .conftest import Running, wait_until

if TYPE_CHECKING:
    from .conftest import Project


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state != "Z"


def workers(project: Project, count: int) -> set[int]:
    """The processes of that many handlers that are running."""
    return wait_until(
        lambda: found if len(found := {int(file.name[8:]) for file in Path().glob("running-*")}) == count else None,
        f"{count} processes with a running handler",
    )


def start(project: Project, *arguments: str) -> Running:
    return project.start("run", "shop:service", "--workers", "2", *arguments)


def test_delays_grow_from_a_tenth_of_a_second_to_half_a_minute() -> None:
    lows = [delay(failures, lambda low, high: low) for failures in range(1, 40)]
    highs = [delay(failures, lambda low, high: high) for failures in range(1, 40)]
    assert lows[0] == FIRST_DELAY
    assert lows == sorted(lows)
    assert highs[-1] == LONGEST_DELAY
    assert all(low < high for low, high in zip(lows, highs, strict=True))
    assert len({delay(3) for _ in range(20)}) > 10


def test_all_workers_consume_drain_and_end_with_0(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_BROKER", "sqlite:///shop.db")  # for what runs in this process: publish
    running = start(project, "--broker", "sqlite:///shop.db")
    running.says(r"worker 1: consuming mail.send from \S*shop\.db")
    running.says("worker 2: consuming mail.send")
    project.publish(*["slow"] * 40)
    busy = workers(project, 2)
    for pid in busy:
        assert os.getpgid(pid) == pid, "Ctrl-C must reach the supervisor alone"
        assert "shop.db" not in " ".join(psutil.Process(pid).cmdline()), "the URL may hold a password"
    running.send(signal.SIGTERM)
    running.says("draining 2 workers, press again to kill")
    running.says(r"worker 1: finishing \d+ running\n")
    running.says(r"worker 2: finishing \d+ running\n")
    assert not project.handled()
    Path("go").touch()
    assert running.ends() == 0
    assert {pid for pid, _ in project.handled()} == busy
    assert not any(alive(pid) for pid in busy)
    assert "Traceback" not in running.output


def test_a_signal_to_the_whole_group_is_one_signal(project: Project) -> None:
    """systemd and others signal every process: a worker hears of it twice, which must not force its drain."""
    running = start(project)
    running.says("worker 1: consuming")
    running.says("worker 2: consuming")
    project.publish(*["slow"] * 40)
    busy = workers(project, 2)
    for pid in (*busy, running.process.pid):
        os.kill(pid, signal.SIGTERM)
    running.says("worker 1: finishing")
    running.says("worker 2: finishing")
    for pid in busy:
        os.kill(pid, signal.SIGTERM)
    Path("go").touch()
    assert running.ends() == 0
    started = {int(file.name[8:]) for file in Path().glob("running-*")}
    assert {pid for pid, _ in project.handled()} == started == busy


def test_a_worker_that_dies_is_started_again(project: Project) -> None:
    running = project.start("run", "shop:service", "--workers", "1")
    running.says("worker 1: consuming")
    project.publish("crash")
    found = running.says(r"worker 1 \(process (\d+)\) ended with exit code 9; starting another in 0\.[12] s")
    wait_until(project.handled, "the payment, by the next worker", 60)
    [(pid, _)] = project.handled()
    assert pid != int(found[1])
    os.kill(pid, signal.SIGKILL)
    running.says("was ended by SIGKILL; starting another in")
    wait_until(lambda: len(re.findall("worker 1: consuming", running.output)) == 3, "a third worker")
    running.send(signal.SIGTERM)
    assert running.ends() == 0


def test_a_second_signal_kills(project: Project) -> None:
    running = start(project, "--grace", "300")
    running.says("worker 1: consuming")
    running.says("worker 2: consuming")
    project.publish(*["hang"] * 40)
    busy = workers(project, 2)
    running.send(signal.SIGINT)
    running.says("worker 1: finishing")
    running.send(signal.SIGINT)
    assert running.ends(10) == 1
    assert "killing the workers" in running.output
    assert "did not drain: was ended by SIGKILL" in running.output
    assert not any(alive(pid) for pid in busy)


def test_workers_do_not_outlive_a_supervisor_that_is_killed(project: Project) -> None:
    running = start(project)
    running.says("worker 1: consuming")
    running.says("worker 2: consuming")
    project.publish(*["slow"] * 40)
    busy = workers(project, 2)
    running.send(signal.SIGKILL)
    running.process.wait(10)
    wait_until(lambda: running.output.count(" running\n") == 2, f"both draining: {running.output}")
    Path("go").touch()
    wait_until(lambda: not any(alive(pid) for pid in busy), "the end of the workers")
    assert {pid for pid, _ in project.handled()} == busy, "they drained"


def test_a_worker_whose_loop_is_blocked_does_not_outlive_its_supervisor_either(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("blocked.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "import tidemill.cli.worker\ntidemill.cli.worker.MARGIN = 0.1\n"
        "from contracts import PaymentConfirmed\nfrom tidemill import Service\nservice = Service('mail')\n"
        "@service.on(PaymentConfirmed, start='beginning')\n"
        "async def send(event: PaymentConfirmed) -> None:\n"
        "    Path(f'running-{os.getpid()}').touch()\n    time.sleep(600)\n"
    )
    project.publish("EUR")
    running = project.start("run", "blocked:service", "--workers", "1", "--grace", "0.1")
    [pid] = workers(project, 1)
    running.send(signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the end of the worker")


def test_a_configuration_error_at_start_stops_all_with_2(project: Project) -> None:
    Path("picky.py").write_text(
        "import os\nfrom tidemill import ConfigurationError\nfrom shop import service\n"
        "try:\n    os.mkdir('first')\n"
        "except FileExistsError:\n    raise ConfigurationError('only one of me')\n"
    )
    running = project.start("run", "picky:service", "--workers", "2")
    assert running.ends() == 2
    assert "error: only one of me" in running.output
    assert "starting another" not in running.output


def test_reload_drains_and_starts_again(project: Project) -> None:
    Path("value.py").write_text("value = 1\n")
    Path("app.py").write_text("import value\nfrom shop import service\nprint('value', value.value, flush=True)\n")
    running = project.start("run", "app:service", "--reload")
    running.says("value 1\n")
    running.says("worker 1: consuming")
    project.publish("slow")
    workers(project, 1)

    written = 0.0

    def noticed() -> bool:
        # Watching begins at a moment that cannot be seen from here: write again until it has been noticed.
        nonlocal written
        if "value.py changed: starting again" in running.output:
            return True
        if time.monotonic() > written + 0.5:
            Path("value.py").write_text("value = 2\n")
            written = time.monotonic()
        return False

    wait_until(noticed, "the change")
    running.says("worker 1: finishing 1 running")
    assert not project.handled()
    Path("go").touch()
    running.says("value 2\n")
    assert len(project.handled()) == 1, "what ran was finished before the start"
    Path("value.py").write_text("value = (\n")
    running.says("waiting for a change")
    assert "SyntaxError" in running.output
    Path("value.py").write_text("value = 3\n")
    running.says("(?s)value 3\n.*worker 1: consuming")
    running.send(signal.SIGINT)
    assert running.ends() == 0


def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    async def scenario() -> int:
        supervisor = Supervisor(["/nowhere/at/all"], {}, count=1, grace=1.0, say=say)
        monkeypatch.setattr("tidemill.cli.supervise.delay", lambda failures: 0.001)
        return await supervisor.run()

    assert asyncio.run(scenario()) == 0
    assert "worker 1 cannot be started (" in said[0]


def test_all_workers_drain_at_once(project: Project) -> None:
    """Four workers with a handler of a second each take a second, not four."""
    Path("second.py").write_text(
        "import asyncio, os\nfrom pathlib import Path\n"
        "from contracts import PaymentConfirmed\nfrom tidemill import Service\nservice = Service('mail')\n"
        "@service.on(PaymentConfirmed, start='beginning', concurrency=1)\n"
        "async def send(event: PaymentConfirmed) -> None:\n"
        "    Path(f'running-{os.getpid()}').touch()\n"
        "    while not Path('go').exists():\n        await asyncio.sleep(0.01)\n"
        "    await asyncio.sleep(1)\n"
        "    with open('handled', 'a') as file:\n        file.write(f'{os.getpid()} {event.payment_id}\\n')\n"
    )
    running = project.start("run", "second:service", "--workers", "4")
    for number in range(1, 5):
        running.says(f"worker {number}: consuming")
    project.publish(*["EUR"] * 80)
    workers(project, 4)
    running.send(signal.SIGTERM)
    for number in range(1, 5):
        running.says(f"worker {number}: finishing 1 running")
    Path("go").touch()
    began = time.monotonic()
    assert running.ends() == 0
    assert time.monotonic() - began < 2.5
    assert len(project.handled()) == 4


@pytest.mark.slow
def test_health_of_workers(project: Project) -> None:
    running = start(project, "--health", "0")
    running.says("worker 1: consuming")
    running.says("worker 2: consuming")
    wait_until(lambda: all(worker["ready"] for worker in running.probe("/readyz")[1]["workers"]), "both being ready")
    status, body = running.probe("/readyz")
    one, two = body["workers"]
    assert (status, body["live"], body["ready"]) == (200, True, True)
    assert one["subscriptions"] == [{"name": "mail.send", "state": "consuming", "why": ""}]
    os.kill(one["process"], signal.SIGSTOP)
    try:
        wait_until(lambda: not running.probe("/livez")[1]["workers"][0]["live"], "one being silent")
        status, body = running.probe("/readyz")
        assert "nothing was heard of it for" in body["workers"][0]["why"]
        assert (status, body["live"], body["ready"]) == (200, True, True), "the other one does its work"
        os.kill(two["process"], signal.SIGSTOP)
        wait_until(lambda: running.probe("/livez")[0] == 503, "nobody being alive")
        assert running.probe("/readyz")[0] == 503
    finally:
        for worker in (one, two):
            os.kill(worker["process"], signal.SIGCONT)
    wait_until(lambda: running.probe("/readyz")[0] == 200 == running.probe("/livez")[0], "both going on")
    assert "loop.blocked" not in running.output, "a process that is stopped is not blocked"
    project.publish(*["slow"] * 40)
    workers(project, 2)
    os.kill(one["process"], signal.SIGKILL)
    wait_until(lambda: running.probe("/readyz")[1]["workers"][0].get("process") != one["process"], "its end being seen")
    assert running.probe("/readyz")[0] == 200, "one is enough"
    running.send(signal.SIGTERM)
    running.says("worker 2: finishing")
    status, body = running.probe("/readyz")
    assert (status, body["live"]) == (503, True)
    wait_until(lambda: running.probe("/readyz")[1]["workers"][1]["why"] == "draining", "the drain being reported")
    Path("go").touch()
    assert running.ends() == 0


def test_workers_that_have_handled_enough_are_replaced_one_at_a_time(project: Project) -> None:
    running = start(project, "--recycle-after", "30", "--health", "0")
    running.says("worker 1: consuming")
    running.says("worker 2: consuming")
    count = 0

    def replaced() -> bool:
        nonlocal count
        if count < 2000:
            lines = "".join(
                f'{{"payment_id": "p{number}", "amount": "1", "currency": "EUR"}}\n'
                for number in range(count, count + 40)
            )
            assert project("publish", "contracts:PaymentConfirmed", input=lines).exit_code == 0
            count += 40
        return all(len(re.findall(f"worker {number}: consuming", running.output)) >= 2 for number in (1, 2))

    wait_until(replaced, "both being replaced", 60)
    assert re.search(r"worker [12] has handled \d+ events: replacing it", running.output)
    assert "starting another in" not in running.output, "that is no failure"
    between = re.findall(r"worker (\d) has handled|worker (\d): consuming", running.output)
    waiting: set[str] = set()
    for leaves, comes in between:
        if leaves:
            assert not waiting, "the next one goes when the last one's successor is ready"
            waiting.add(leaves)
        waiting.discard(comes)
    wait_until(lambda: len(project.handled()) >= count, "all being handled")
    running.send(signal.SIGTERM)
    assert running.ends() == 0
    handled = [payment for _, payment in project.handled()]
    assert len(handled) == len(set(handled)) == count, "nothing is handled twice for it"
    assert len({pid for pid, _ in project.handled()}) >= 3


def test_a_worker_of_which_nothing_is_heard_is_killed_in_the_end(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own watch ends it sooner, but where C code keeps Python's lock, or the process is stopped, no thread runs."""
    Path("short.py").write_text(
        "import tidemill.runtime as r\nr.LEAST_STUCK = 0.5\nr.ABANDON_AFTER = -60\nfrom shop import service\n"
    )
    said: list[str] = []

    async def scenario() -> int:
        command = [sys.executable, "-m", "tidemill", "run", "short:service"]
        supervisor = Supervisor(command, project.environment, count=1, grace=5.0, say=said.append)
        running = asyncio.create_task(supervisor.run())
        await until(lambda: supervisor.answers()[1], seconds=30)
        [worker] = supervisor.answers()[2]["workers"]  # type: ignore[index]
        os.kill(worker["process"], signal.SIGSTOP)
        await until(lambda: any("starting another in" in line for line in said), seconds=30)
        await until(lambda: supervisor.answers()[1], seconds=30)
        os.kill(os.getpid(), signal.SIGTERM)
        return await running

    monkeypatch.setattr("tidemill.cli.supervise.MARGIN", 2.0)
    assert asyncio.run(scenario()) == 0
    assert re.match(r"nothing was heard of worker 1 for \d s: killing it", said[0])

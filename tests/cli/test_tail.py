from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click
import pytest

from tidemill.cli import tail
from tidemill.cli.options import parse_since
from tidemill.cli.tail import body_text
from tidemill.message import Message

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Project

HOUR = 3600 * 10**9


def test_when_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000 * 10**9
    monkeypatch.setattr(tail.time, "time_ns", lambda: now)
    assert parse_since("beginning") == 0
    assert parse_since("now") == now
    assert parse_since("1h") == now - HOUR
    assert parse_since("1.5h") == now - HOUR * 3 // 2
    assert parse_since("90s") == now - 90 * 10**9
    assert parse_since("7d") == now - 7 * 24 * HOUR
    assert parse_since("2026-01-02T03:04:05Z") == 1_767_323_045 * 10**9
    assert parse_since("2026-01-02T03:04:05.000006+00:00") == 1_767_323_045 * 10**9 + 6000
    local = datetime(2026, 1, 2).astimezone()
    assert parse_since("2026-01-02") == int(local.timestamp()) * 10**9
    assert parse_since("100000w") == 0
    for wrong in ("yesterday", "1y", "-1h", "", "h", "2026-13-01", "9" * 400 + "w"):
        with pytest.raises(click.BadParameter, match="is no time"):
            parse_since(wrong)


def test_lines_for_people(project: Project) -> None:
    project.publish("EUR", "USD")
    result = project("tail", "payments")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first[:4] == str(datetime.now().astimezone().year)[:4]
    assert "  payment.confirmed v2  p1  " in first
    assert first.endswith('  {"payment_id":"p1","amount":"1","currency":"EUR"}')
    assert '"USD"' in second
    assert "flow" not in first, "an event that began its flow need not say so"


def test_a_flow_that_another_event_began_is_shown(project: Project) -> None:
    line = '{"specversion":"1.0","data":{"payment_id":"p1","amount":"1"},"correlationid":"0198-flow-7d2f"}'
    assert project("publish", "contracts:PaymentConfirmed", input=line).exit_code == 0
    assert "  flow low-7d2f  " in project("tail", "payments").stdout


def test_filters_and_limit(project: Project) -> None:
    project.publish("EUR", "USD", "CHF")
    failed = '{"specversion":"1.0","type":"payment.failed","data":{"payment_id":"p2"}}'
    assert project("publish", "contracts:payments", input=failed).exit_code == 0

    def ids(*options: str) -> list[str]:
        result = project("tail", "payments", "--json", *options)
        assert result.exit_code == 0, result.output
        return [json.loads(line)["data"]["payment_id"] for line in result.stdout.splitlines()]

    assert ids() == ["p1", "p2", "p3", "p2"]
    assert ids("--type", "payment.failed") == ["p2"]
    assert ids("--type", "payment.failed", "--type", "payment.confirmed") == ["p1", "p2", "p3", "p2"]
    assert ids("--key", "p2") == ["p2", "p2"]
    assert ids("--key", "p2", "--limit", "1") == ["p2"]
    assert ids("--limit", "2") == ["p1", "p2"]
    assert ids("--from", "1h") == ["p1", "p2", "p3", "p2"]
    assert ids("--from", "now") == []
    later = (datetime.now().astimezone() + timedelta(hours=1)).isoformat()
    assert ids("--from", later) == []


def test_an_unknown_topic_names_those_there_are(project: Project) -> None:
    project.publish("EUR")
    result = project("tail", "payment")
    assert result.exit_code == 2
    assert "there is no topic 'payment' on " in result.stderr
    assert "Did you mean 'payments'? The topics there are: payments." in result.stderr


def test_no_file_comes_into_being(project: Project) -> None:
    for command in (
        ["tail", "payments"],
        ["status"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "x"],
    ):
        result = project(*command)
        assert result.exit_code == 2
        assert f"there is no file {project.directory}/tidemill.db" in result.stderr
        assert "Nothing was created" in result.stderr
    assert not list(project.directory.glob("*.db*"))


def test_follow_begins_now_and_goes_on_until_ctrl_c(project: Project) -> None:
    project.publish("EUR")
    running = project.start("tail", "payments", "-f", "--json")
    wait_until(lambda: _try(project, running), "a message that came while following")
    running.send(signal.SIGINT)
    assert running.ends() == 130
    lines = running.output.splitlines()
    assert all(json.loads(line)["source"] == "live" for line in lines), "and nothing else, no traceback"


def _try(project: Project, running: object) -> bool:
    # Following begins at a moment that cannot be seen from here: publish until one arrives.
    line = '{"payment_id": "p1", "amount": "1", "currency": "EUR"}\n'
    assert project("publish", "contracts:PaymentConfirmed", "--source", "live", input=line).exit_code == 0
    return bool(running.output)  # type: ignore[attr-defined]


def test_a_closed_pipe_ends_it_quietly_even_on_a_quiet_topic(project: Project) -> None:
    project.publish("EUR")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tidemill", "tail", "payments", "-f", "--from", "beginning"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=project.environment,
    )
    try:
        os.close(writing)
        assert b"payment.confirmed" in os.read(reading, 65536)
        os.close(reading)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, b"")


def test_a_pipe_closed_while_it_writes_ends_it_quietly(project: Project) -> None:
    project.publish(*["EUR"] * 3000)
    shell = f"{sys.executable} -m tidemill tail payments | head -n 1"
    done = subprocess.run(
        shell, check=False, shell=True, capture_output=True, text=True, env=project.environment, timeout=30
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_bodies_on_a_terminal_are_cut_to_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    message = Message("i", "s", "t", "topic", 10**18, b'{ "a": "' + b"x" * 500 + b'" }', key="k")
    tail._human(True)(message)
    tail._human(False)(message)
    cut, whole = capsys.readouterr().out.splitlines()
    assert len(cut) == 110
    assert cut.endswith("x…")
    assert whole.endswith('x"}')


def test_a_body_cannot_act_on_the_terminal() -> None:
    def text(body: bytes) -> str:
        return body_text(Message("i", "s", "t", "topic", 0, body))

    assert text(b'{ "a": [1, 2] }') == '{"a":[1,2]}'
    assert text('{"a": "\x9b2J"}'.encode()) == '{"a":"\\x9b2J"}'
    assert text(b"\x1b[2J\xff") == "\\x1b[2J\\xff"

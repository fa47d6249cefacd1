from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tidemill.broker import DeadLettered
from tidemill.cli import dead_letters
from tidemill.message import Failure, Message

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Project


def letter(subscription: str = "mail.send", id: str = "0198-aaaa", body: bytes = b'{"a":1}') -> DeadLettered:
    message = Message(id, "shop", "payment.confirmed", "payments", 10**18, body, 2, "p1")
    failure = Failure(1, 10**18, "ValueError: bad\x1b[2J", "Traceback:\n  line")
    return DeadLettered(
        subscription=subscription,
        message=message,
        reason="bad",
        attempts=1,
        at=2 * 10**18,
        history=(failure,),
    )


def given(monkeypatch: pytest.MonkeyPatch, *letters: DeadLettered) -> None:
    async def fetch(url: str, subscription: str | None) -> list[DeadLettered]:
        return [one for one in letters if subscription in (None, one.subscription)]

    monkeypatch.setattr(dead_letters, "_fetch", fetch)


def test_from_a_service_that_gave_up(project: Project) -> None:
    project.publish("EUR", "bad")
    running = project.start("run", "shop:service")
    wait_until(lambda: project.handled() and _letters(project), "a dead letter")
    running.send(signal.SIGTERM)
    assert running.ends() == 0
    [found] = _letters(project)
    assert found["subscription"] == "mail.send"
    assert found["reason"] == "no such currency"
    assert found["event"]["data"]["payment_id"] == "p2"
    listed = project("dead-letters", "list", "--subscription", "mail.send")
    assert listed.exit_code == 0
    assert listed.stdout.splitlines()[0].split() == [
        "GIVEN",
        "UP",
        "SUBSCRIPTION",
        "TYPE",
        "KEY",
        "ID",
        "ATTEMPTS",
        "REASON",
    ]
    assert "no such currency" in listed.stdout.splitlines()[1]
    shown = project("dead-letters", "show", found["event"]["id"])
    assert '"payment_id": "p2"' in shown.stdout
    assert "no such currency" in shown.stdout
    wrong = project("dead-letters", "list", "--subscription", "mail.sent")
    assert wrong.exit_code == 2
    assert "There are: mail.send." in wrong.stderr


def _letters(project: Project) -> list[dict[str, object]]:
    result = project("dead-letters", "list", "--json")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_none(project: Project) -> None:
    project.publish("EUR")
    assert project("dead-letters", "list").stdout == "no dead letters\n"
    assert project("dead-letters", "list", "--json").stdout == ""


def test_show_has_everything_and_nothing_a_terminal_would_act_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, letter())
    text = project("dead-letters", "show", "0198-aaaa").stdout
    for part in (
        "mail.send",
        "payments",
        "bad",
        "payment.confirmed",
        "p1",
        "shop",
        "attempt 1",
        "ValueError",
        "line",
    ):
        assert part in text
    assert text.endswith('{\n  "a": 1\n}\n')
    assert "\x1b" not in text
    found = json.loads(project("dead-letters", "show", "0198-aaaa", "--json").stdout)
    assert found["event"]["data"] == {"a": 1}
    assert found["history"][0]["error"].startswith("ValueError")


def test_a_body_that_is_no_json_is_shown_as_it_is(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, letter(body=b"\xff\x1bnope"), letter(id="0198-empty", body=b""))
    assert project("dead-letters", "show", "0198-aaaa").stdout.endswith("\\xff\\x1bnope\n")
    assert project("dead-letters", "show", "0198-empty").stdout.endswith("(no body)\n")


def test_ids_may_be_shortened_at_either_end(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, letter(), letter(id="0198-bbbb"), letter("stock.take"))
    assert project("dead-letters", "show", "0198-b").stdout.count("subscription ") == 1
    assert project("dead-letters", "show", "aaaa").stdout.count("subscription ") == 2
    assert project("dead-letters", "show", "aaaa", "--subscription", "stock.take").stdout.count("subscription ") == 1
    several = project("dead-letters", "show", "0198")
    assert several.exit_code == 2
    assert "fits 2 dead letters: 0198-aaaa, 0198-bbbb" in several.stderr
    nothing = project("dead-letters", "show", "x")
    assert nothing.exit_code == 2
    assert "there is no dead letter with the id 'x'" in nothing.stderr

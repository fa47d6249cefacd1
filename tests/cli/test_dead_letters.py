from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from tidemill.broker import Subscription, TopicSpec, connect
from tidemill.cli import resolving
from tidemill.clock import SystemClock
from tidemill.message import Failure, Message
from tidemill.outcome import DeadLetter

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Project

pytestmark = pytest.mark.usefixtures("project")


def letter(id: str = "0198-aaaa", body: bytes = b'{"a":1}', **fields: object) -> Message:
    values: dict[str, object] = {"version": 2, "key": "p1"} | fields
    return Message(id, "shop", "payment.confirmed", "payments", 10**18, body, **values)  # type: ignore[arg-type]


def given(*messages: Message, by: Sequence[str] = ("mail.send",), reason: str = "bad {}", parks: bool = False) -> None:
    """Let subscriptions give messages up, all of them, in this order."""

    async def run() -> None:
        broker = connect("sqlite:///tidemill.db", SystemClock())
        await broker.open()
        specs = [
            Subscription(name=name, topic="payments", start="beginning", ordered=parks, parks=parks) for name in by
        ]
        await broker.declare([TopicSpec("payments")], specs)
        await broker.publish(messages)
        for spec in specs:
            feed = await broker.subscribe(spec)
            for delivery in await feed.fetch(1000, 1, 10**9):
                delivery.history = (Failure(1, 10**18, "ValueError: bad\x1b[2J", "Traceback:\n  line"),)
                await feed.settle([(delivery, DeadLetter(reason.format(delivery.message.id)))])
        await broker.close()

    asyncio.run(run())


def letters(project: Project, *options: str) -> list[dict[str, object]]:
    result = project("dead-letters", "list", "--json", *options)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def ids(project: Project, *options: str) -> list[object]:
    return [found["event"]["id"] for found in letters(project, *options)]  # type: ignore[index]


# ----------------------------------------------------------------------- looking


def test_from_a_service_that_gave_up_to_its_replay(project: Project) -> None:
    project.publish("EUR", "bad")
    running = project.start("run", "shop:service")
    wait_until(lambda: project.handled() and letters(project), "a dead letter")
    [found] = letters(project)
    assert found["subscription"] == "mail.send"
    assert found["reason"] == "no such currency"
    assert found["event"]["data"]["payment_id"] == "p2"  # type: ignore[index]
    listed = project("dead-letters", "list", "--subscription", "mail.send")
    assert listed.exit_code == 0
    assert re.split(r"  +", listed.stdout.splitlines()[0].strip()) == [
        "GIVEN UP",
        "SUBSCRIPTION",
        "TYPE",
        "KEY",
        "ID",
        "ATTEMPTS",
        "REASON",
    ]
    assert "no such currency" in listed.stdout.splitlines()[1]
    identity = found["event"]["id"]  # type: ignore[index]
    shown = project("dead-letters", "show", identity)
    assert '"payment_id": "p2"' in shown.stdout
    assert "no such currency" in shown.stdout
    wrong = project("dead-letters", "list", "--subscription", "mail.sent")
    assert wrong.exit_code == 2
    assert "There are: mail.send." in wrong.stderr
    replayed = project("dead-letters", "replay", identity, "--by", "zoe")
    assert replayed.stdout == "replayed 1 dead letter\n"
    # It fails again, as nobody has corrected the cause, and has both attempts in its history.
    wait_until(lambda: [len(each["history"]) for each in letters(project)] == [2], "given up again")  # type: ignore[arg-type]
    assert letters(project)[0]["attempts"] == 1
    running.send(signal.SIGTERM)
    assert running.ends() == 0


def test_none(project: Project) -> None:
    project.publish("EUR")
    assert project("dead-letters", "list").stdout == "no dead letters\n"
    assert project("dead-letters", "list", "--by-error").stdout == "no dead letters\n"
    assert project("dead-letters", "list", "--json").stdout == ""
    assert project("dead-letters", "log").stdout == "nobody has replayed or discarded anything\n"
    for action in ("replay", "discard"):
        result = project("dead-letters", action, "--all")
        assert (result.exit_code, result.stdout) == (0, "no dead letter matches\n")


def test_filters(project: Project) -> None:
    given(letter("m1"), letter("m2", key="p2"), by=("mail.send", "stock.take"))
    assert ids(project) == ["m1", "m2", "m1", "m2"]
    assert ids(project, "--subscription", "mail.send", "--key", "p2") == ["m2"]
    assert ids(project, "--type", "payment.failed") == []
    assert ids(project, "--error", "BAD M1") == ["m1", "m1"]
    assert ids(project, "--error", "valueerror") == ["m1", "m2", "m1", "m2"]
    assert ids(project, "--since", "1h", "--limit", "2") == ["m1", "m2"]
    assert ids(project, "--before", "1h") == []
    assert ids(project, "--parked") == []
    assert project("dead-letters", "list", "--before", "1h").stdout == "no dead letter matches\n"
    wrong = project("dead-letters", "list", "--since", "1h", "--before", "2h")
    assert wrong.exit_code == 2
    assert "fit no dead letter together" in wrong.stderr
    assert project("dead-letters", "list", "--since", "yesterday").exit_code == 2


def test_many_are_not_all_shown(project: Project) -> None:
    given(*(letter(f"m{number}") for number in range(103)))
    result = project("dead-letters", "list")
    assert len(result.stdout.splitlines()) == 101
    assert result.stderr == "and 3 more: narrow it down, or see them with --limit, --by-error or --json\n"
    assert len(project("dead-letters", "list", "--limit", "102").stdout.splitlines()) == 103
    assert len(letters(project)) == 103


def test_by_error(project: Project) -> None:
    given(*(letter(f"m{number}") for number in range(3)))
    heading, line = project("dead-letters", "list", "--by-error").stdout.splitlines()
    assert heading.split() == ["COUNT", "SUBSCRIPTION", "OLDEST", "NEWEST", "EXAMPLE", "CAUSE"]
    assert line.startswith("3      mail.send     ")
    assert line.endswith("  m2       bad …")
    [group] = map(json.loads, project("dead-letters", "list", "--by-error", "--json").stdout.splitlines())
    assert (group["count"], group["cause"], group["example"]) == (3, "bad …", "m2")


def test_show_has_everything_and_nothing_a_terminal_would_act_on(project: Project) -> None:
    given(letter(), parks=True)
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
        "later events of its key wait",
    ):
        assert part in text
    assert text.endswith('{\n  "a": 1\n}\n')
    assert "\x1b" not in text
    found = json.loads(project("dead-letters", "show", "0198-aaaa", "--json").stdout)
    assert found["event"]["data"] == {"a": 1}
    assert found["history"][0]["error"].startswith("ValueError")
    assert found["parked"] is True
    assert "(its key waits)" in project("dead-letters", "list").stdout


def test_a_body_that_is_no_json_is_shown_as_it_is(project: Project) -> None:
    given(letter(body=b"\xff\x1bnope"), letter("0198-empty", body=b""))
    assert project("dead-letters", "show", "0198-aaaa").stdout.endswith("\\xff\\x1bnope\n")
    assert project("dead-letters", "show", "0198-empty").stdout.endswith("(no body)\n")


def test_ids_may_be_shortened_at_either_end(project: Project) -> None:
    given(letter(), letter("0198-bbbb"), by=("mail.send", "stock.take"))
    assert project("dead-letters", "show", "0198-b").stdout.count("subscription ") == 2
    assert project("dead-letters", "show", "aaaa").stdout.count("subscription ") == 2
    assert project("dead-letters", "show", "aaaa", "--subscription", "stock.take").stdout.count("subscription ") == 1
    several = project("dead-letters", "show", "0198")
    assert several.exit_code == 2
    assert "fits 2 dead letters: 0198-aaaa, 0198-bbbb" in several.stderr
    for action in ("show", "replay", "discard"):
        nothing = project("dead-letters", action, "x")
        assert nothing.exit_code == 2
        assert "there is no dead letter with the id 'x'" in nothing.stderr


def test_export(project: Project) -> None:
    given(letter(body=b"\xff\x00", extensions={"tenant": "x"}), letter("m2", body=b'{ "a": 1.0 }'))
    before = letters(project)
    lines = [json.loads(line) for line in project("dead-letters", "export").stdout.splitlines()]
    assert [base64.b64decode(line["body_base64"]) for line in lines] == [b"\xff\x00", b'{ "a": 1.0 }']
    assert lines[0]["event"]["tenant"] == "x"
    assert lines[0]["history"][0]["traceback"] == "Traceback:\n  line"
    result = project("dead-letters", "export", "--error", "bad m2", "--output", "out.jsonl")
    assert result.stderr == "exported 1 dead letter to out.jsonl\n"
    assert json.loads((project.directory / "out.jsonl").read_text()) == lines[1]
    assert letters(project) == before
    missing = project("dead-letters", "export", "--output", "no/such/out.jsonl")
    assert missing.exit_code == 2
    assert "cannot be written" in missing.stderr


def test_an_export_that_fails_leaves_what_was_there(project: Project) -> None:
    given(letter())
    file = project.directory / "out.jsonl"
    file.write_text("before")
    result = project("dead-letters", "export", "--subscription", "no.such", "--output", "out.jsonl")
    assert result.exit_code == 2
    assert file.read_text() == "before"
    assert [each for each in os.listdir(project.directory) if "out.jsonl" in each] == ["out.jsonl"]


# --------------------------------------------------------------------- resolving


def test_discard_and_the_log(project: Project) -> None:
    given(letter("m1"), letter("m2"), by=("mail.send", "stock.take"))
    assert project("dead-letters", "discard", "m1", "--by", "zoe").stdout == "discarded 2 dead letters\n"
    assert ids(project) == ["m2", "m2"]
    result = project("dead-letters", "replay", "m2", "--subscription", "stock.take", "--json")
    report = json.loads(result.stdout)
    assert (report["action"], report["matched"], report["resolved"], report["gone"]) == ("replay", 1, 1, 0)
    assert report["by"] == resolving.somebody()
    lines = project("dead-letters", "log").stdout.splitlines()
    assert re.split(r"  +", lines[0]) == [
        "WHEN",
        "BY",
        "DID",
        "SUBSCRIPTION",
        "TYPE",
        "KEY",
        "ID",
        "ATTEMPTS",
        "REASON",
    ]
    assert [re.split(r"  +", line)[2:4] for line in lines[1:]] == [
        ["discard", "mail.send"],
        ["discard", "stock.take"],
        ["replay", "stock.take"],
    ]
    assert "zoe" in lines[1]
    [last] = map(json.loads, project("dead-letters", "log", "--limit", "1", "--json").stdout.splitlines())
    assert (last["action"], last["message_id"], last["reason"]) == ("replay", "m2", "bad m2")


def test_a_dry_run_changes_nothing(project: Project) -> None:
    given(*(letter(f"m{number}") for number in range(3)))
    for action in ("replay", "discard"):
        result = project("dead-letters", action, "--all", "--dry-run")
        assert result.stdout.endswith(f"would {action} 3 dead letters; nothing was changed\n")
        assert "bad …" in result.stdout
        report = json.loads(project("dead-letters", action, "--error", "m1", "--dry-run", "--json").stdout)
        assert (report["matched"], report["resolved"], report["dry_run"]) == (1, 0, True)
    assert len(letters(project)) == 3
    assert "nobody" in project("dead-letters", "log").stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "every dead letter there is. Nothing was done."),
        (("--limit", "1"), "every dead letter there is. Nothing was done."),
        (("m1", "--all"), "either an ID or options"),
        (("m1", "--error", "x"), "either an ID or options"),
        (("--all", "--by", ""), "say who decides"),
        (("--all", "--limit", "0"), "--limit"),
        (("--subscription", "mail.sned"), "There are: mail.send."),
    ],
)
@pytest.mark.parametrize("action", ["replay", "discard"])
def test_what_makes_no_sense_is_refused(
    project: Project, action: str, arguments: tuple[str, ...], complaint: str
) -> None:
    given(letter("m1"))
    result = project("dead-letters", action, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert ids(project) == ["m1"]


@pytest.mark.parametrize("rate", ["0", "-1", "many"])
def test_a_rate_is_a_number_above_zero(project: Project, rate: str) -> None:
    given(letter("m1"))
    assert project("dead-letters", "replay", "--all", "--rate", rate).exit_code == 2
    assert ids(project) == ["m1"]


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_at_a_terminal_it_asks_before_it_discards_several(
    project: Project, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    given(letter("m1"), letter("m2"))
    monkeypatch.setattr(resolving, "_interactive", lambda: True)
    result = project("dead-letters", "discard", "--all", input=answer)
    assert result.exit_code == 0
    assert "Discard these 2 dead letters for good? [y/N]" in result.stderr
    assert len(letters(project)) == left
    assert project("dead-letters", "discard", "--all", "--yes").exit_code == 0
    assert letters(project) == []


def test_ctrl_c_says_what_was_done(project: Project) -> None:
    given(*(letter(f"m{number}") for number in range(200)))
    running = project.start("dead-letters", "replay", "--all", "--rate", "5")
    wait_until(lambda: len(letters(project)) < 200, "the first is replayed")
    running.send(signal.SIGINT)
    assert running.ends() == 130
    said = re.findall(r"^(?:replayed )?(\d+) dead letters?", running.output, re.MULTILINE)
    done, left = map(int, said)
    assert done + left == 200
    assert left == len(letters(project))


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(resolving.getpass, "getuser", nobody)
    assert resolving.somebody().startswith(f"{os.getuid()}@")

from __future__ import annotations

import json
import re
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from tidemill.broker import Inspection, SubscriptionStatus, TopicStatus
from tidemill.cli import status

if TYPE_CHECKING:
    from .conftest import Project

BROKER: Any = SimpleNamespace(url="sqlite:///x.db")


def subscription(**changes: Any) -> SubscriptionStatus:
    usual = {
        "name": "mail.send",
        "topic": "payments",
        "types": None,
        "backlog": 0,
        "retrying": 0,
        "dead": 0,
        "oldest": None,
        "consumers": 1,
        "acked": 1_234_567,
        "retried": 0,
    }
    return SubscriptionStatus(**(usual | changes))


def test_the_tables() -> None:
    found = Inspection(
        [
            TopicStatus(name="z", key=None, messages=12345, scheduled=1),
            TopicStatus(name="payments", key="payment_id", messages=0, scheduled=0),
        ],
        [
            subscription(name="stock.reserve", backlog=12, retrying=3, dead=1, oldest=time.time_ns() - 125 * 10**9),
            subscription(),
        ],
    )
    text = status._text(BROKER, found)
    assert click.style("1", fg="red", bold=True) in text, "dead letters are red"
    assert click.style("3", fg="yellow", bold=True) in text
    assert click.unstyle(text).splitlines() == [
        "sqlite:///x.db",
        "",
        "TOPIC     KEY         MESSAGES  SCHEDULED",
        "payments  payment_id         0          0",
        "z         -             12,345          1",
        "",
        "SUBSCRIPTION   TOPIC     BACKLOG  RETRYING  DEAD  OLDEST  CONSUMERS      ACKED  RETRIED",
        "mail.send      payments        0         0     0       -          1  1,234,567        0",
        "stock.reserve  payments       12         3     1      2m          1  1,234,567        0",
    ]


def test_nothing_is_red_without_dead_letters() -> None:
    assert "\x1b[31m" not in status._text(BROKER, Inspection([], [subscription()]))


def test_topics_without_subscriptions_and_nothing_at_all() -> None:
    one = TopicStatus(name="payments", key=None, messages=0, scheduled=0)
    assert status._text(BROKER, Inspection([one], [])).endswith("\n\nno subscriptions")
    assert "nothing is declared here yet" in status._text(BROKER, Inspection([], []))


def test_json(project: Project) -> None:
    project.publish("EUR", "USD")
    result = project("status", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["topics"] == [{"name": "payments", "key": "payment_id", "messages": 2, "scheduled": 0}]
    assert found["subscriptions"] == []
    assert found["broker"].endswith("tidemill.db")
    [one] = json.loads(status._json(BROKER, Inspection([], [subscription(oldest=time.time_ns() - 5 * 10**9)])))[
        "subscriptions"
    ]
    assert 5 <= one["oldest_age"] < 60


def test_colours_are_for_terminals_and_not_with_no_color(project: Project, monkeypatch: Any) -> None:
    project.publish("EUR")
    assert "\x1b[" not in project("status").stdout
    assert "\x1b[" in project("status", color=True).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in project("status", color=True).stdout


def test_watch_looks_again_until_ctrl_c(project: Project) -> None:
    project.publish("EUR")
    running = project.start("status", "--watch")
    running.says(r"payments +payment_id +1\b")
    project.publish("EUR")
    running.says(r"payments +payment_id +2\b")
    running.send(signal.SIGINT)
    assert running.ends() == 130
    assert "Traceback" not in running.output
    assert len(re.findall("SCHEDULED", running.output)) >= 2


def test_the_environment_names_the_broker(project: Project, monkeypatch: Any) -> None:
    monkeypatch.setenv("TIDEMILL_BROKER", "sqlite:///elsewhere.db")
    project.publish("EUR")
    assert (project.directory / "elsewhere.db").exists()
    assert "elsewhere.db" in project("status").stdout
    assert "there is no file" in project("status", "--broker", "sqlite:///tidemill.db").stderr

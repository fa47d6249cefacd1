"""`tidemill pause` and `tidemill resume`: a subscription that waits, and goes on, in a process that runs meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Project


def subscription(project: Project) -> dict[str, Any]:
    (found,) = json.loads(project("status", "--json").stdout)["subscriptions"]
    return dict(found)


def test_a_running_service_waits_and_goes_on(project: Project) -> None:
    running = project.start("run", "shop:service")
    running.says("consuming mail.send")
    project.publish("EUR")
    wait_until(lambda: len(project.handled()) == 1, "one event is handled")
    paused = project("pause", "mail.send")
    assert (paused.exit_code, paused.output) == (
        0,
        "mail.send is paused; `tidemill resume mail.send` lets it go on\n",
    )
    assert subscription(project)["paused"] is True
    assert "  paused  " in project("status").output
    project.publish("EUR", "EUR")
    wait_until(lambda: subscription(project)["backlog"] == 2, "the events wait")
    resumed = project("resume", "mail.send")
    assert (resumed.exit_code, resumed.output) == (0, "mail.send goes on\n")
    wait_until(lambda: len(project.handled()) == 3, "what waited is handled")
    assert subscription(project)["paused"] is False


def test_a_wrong_name_changes_nothing(project: Project) -> None:
    project.start("run", "shop:service").says("consuming")
    wrong = project("pause", "mail.send", "mail.sent")
    assert wrong.exit_code == 2
    assert "there is no subscription 'mail.sent' on sqlite:///tidemill.db. Nothing changed. There are: mail.send." in (
        wrong.stderr
    )
    assert subscription(project)["paused"] is False

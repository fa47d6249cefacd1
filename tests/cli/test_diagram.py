from __future__ import annotations

import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Project


def test_what_is_declared(project: Project) -> None:
    result = project("diagram", "shop:service")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("sequenceDiagram\n    participant topic_payments as payments (topic)\n")
    assert "    topic_payments->>service_mail: payment.confirmed v2\n" in result.stdout
    assert "payment.failed v1" in result.stdout
    assert not (project.directory / "tidemill.db").exists(), "no broker is needed"


def test_a_service_named_twice_is_drawn_once(project: Project) -> None:
    assert project("diagram", "shop:service", "shop:service").stdout == project("diagram", "shop:service").stdout


def test_output_goes_to_a_file(project: Project) -> None:
    text = project("diagram", "shop:service").stdout
    result = project("diagram", "shop:service", "--output", "events.mmd")
    assert (result.exit_code, result.output) == (0, "")
    assert (project.directory / "events.mmd").read_bytes() == text.encode()
    result = project("diagram", "shop:service", "--output", "no/such/place.mmd")
    assert result.exit_code == 1
    assert "no/such/place.mmd could not be written: No such file or directory" in result.stderr


def test_a_flow_that_happened(project: Project) -> None:
    project.publish("bad")
    running = project.start("run", "shop:service")
    found = re.search(r'"id":"([^"]+)"', project("tail", "payments", "--json").stdout)
    assert found
    running.says("dead_letter")
    running.send(signal.SIGTERM)
    assert running.ends() == 0
    result = project("diagram", "--correlation", found[1])
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "topic_payments->>service_mail: payment.confirmed v2 to mail.send, attempt 1" in lines
    assert "service_mail--xtopic_payments: failed#58; Reject#58; no such currency" in lines
    assert "Note over service_mail: dead letter after 1 attempt<br/>no such currency" in lines


def test_an_unknown_flow_is_an_error_that_says_where_it_looked(project: Project) -> None:
    project.publish("EUR")
    result = project("diagram", "--correlation", "nobody; knows", "--output", "x.mmd")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "nothing with the correlation id 'nobody; knows' is at sqlite:///tidemill.db" in result.stderr
    assert "tidemill tail" in result.stderr
    assert not (project.directory / "x.mmd").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ((), 2, "what to draw?"),
        (("shop:service", "--correlation", "x"), 2, "not both"),
        (("shop:nothing",), 2, "Did you mean shop:service?"),
        (("contracts:payments",), 2, "not a Service"),
        (("--correlation", "x"), 2, "there is no file"),
        (("--correlation", "x", "--broker", "memory:"), 2, "lives inside one process"),
        (("--correlation", "x", "--broker", "nonsense:"), 2, "no broker is installed for 'nonsense'"),
    ],
)
def test_errors(project: Project, arguments: tuple[str, ...], code: int, error: str) -> None:
    result = project("diagram", *arguments)
    assert result.exit_code == code
    assert error in result.stderr
    assert result.stdout == ""
    assert not (project.directory / "tidemill.db").exists()


def test_a_diagram_too_large_for_mermaid_is_written_with_a_warning(project: Project) -> None:
    handlers = "".join(
        f"""
@service.on(PaymentConfirmed, name="handler-{number}")
async def handler_{number}(event: PaymentConfirmed) -> None: ...
"""
        for number in range(250)
    )
    (project.directory / "large.py").write_text(
        f"from tidemill import Service\nfrom contracts import PaymentConfirmed\nservice = Service('large')\n{handlers}"
    )
    result = project("diagram", "large:service")
    assert result.exit_code == 0
    assert len(result.stdout) > 50_000
    assert "Mermaid draws at most 50,000 unless its maxTextSize is raised" in result.stderr


def test_help_comes_without_the_machinery() -> None:
    code = (
        "import sys; from tidemill.cli.diagram import command; command.main(['--help'], standalone_mode=False); "
        "print([name for name in sys.modules if name.startswith(('tidemill.describe', 'tidemill.brokers'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.endswith("[]\n")
    assert "--correlation" in found.stdout

"""A small project in a directory of its own, the commands in this process, and real processes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tidemill.cli import cli

CONTRACTS = """
from decimal import Decimal

from tidemill import Json, Topic, event, upcast

payments = Topic("payments", key="payment_id")


@event("payment.confirmed", version=2, topic=payments)
class PaymentConfirmed:
    payment_id: str
    amount: Decimal
    currency: str


@upcast(PaymentConfirmed, from_version=1)
def add_currency(v1: Json) -> Json:
    return v1 | {"currency": "EUR"}


@event("payment.failed", topic=payments)
class PaymentFailed:
    payment_id: str | None
"""

SHOP = """
import asyncio
import os
import time
from pathlib import Path

from tidemill import Reject, Service

from contracts import PaymentConfirmed

service = Service("mail")


@service.on(PaymentConfirmed, start="beginning")
async def send(event: PaymentConfirmed) -> None:
    if event.currency == "bad":
        raise Reject("no such currency")
    if event.currency == "slow":
        Path(f"running-{os.getpid()}").touch()
        while not Path("go").exists():
            await asyncio.sleep(0.01)
    if event.currency == "hang":
        Path(f"running-{os.getpid()}").touch()
        await asyncio.Event().wait()
    if event.currency == "block":
        Path(f"running-{os.getpid()}").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    if event.currency == "crash":
        try:
            Path("crashed").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os._exit(9)
    with open("handled", "a") as file:
        file.write(f"{os.getpid()} {event.payment_id}\\n")
"""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """What `condition` returns once that is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.01)
    return found


class Running:
    """A command in a process of its own, whose output is read as it comes."""

    def __init__(self, directory: Path, *arguments: str, stdin: int | None = None, environment: dict[str, str]) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidemill", *arguments],
            cwd=directory,
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65536):
            self.output += data.decode()

    def says(self, pattern: str, seconds: float = 20.0) -> re.Match[str]:
        """Wait until the output matches."""
        found: re.Match[str] = wait_until(
            lambda: re.search(pattern, self.output) or self._ended(pattern),
            f"{pattern!r} in {self.output!r}",
            seconds,
        )
        return found

    def _ended(self, pattern: str) -> re.Match[str] | None:
        if self.process.poll() is None:
            return None
        self._reader.join(5)
        found = re.search(pattern, self.output)
        assert found, f"ended with {self.process.returncode} and never said {pattern!r}:\n{self.output}"
        return found

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """What the health endpoint it has announced answers."""
        url = self.says(r"health on (http://\S+)/livez and /readyz")[1]
        try:
            with urllib.request.urlopen(f"{url}{path}", timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self, seconds: float = 20.0) -> int:
        """Wait for its end; returns the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.output}") from None
        self._reader.join(5)
        return code

    def stop(self) -> None:
        """Kill it and what it started, and wait."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        if self.process.stdout:
            self.process.stdout.close()
        if self.process.stdin:
            self.process.stdin.close()


class Project:
    """A directory with `contracts.py` and `shop.py`, and what can be run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[Running] = []
        (directory / "contracts.py").write_text(CONTRACTS)
        (directory / "shop.py").write_text(SHOP)
        self.environment = {
            name: value for name, value in os.environ.items() if name not in ("TIDEMILL_BROKER", "NO_COLOR")
        } | {"PYTHONDONTWRITEBYTECODE": "1"}

    def __call__(self, *arguments: str, input: str | bytes | None = None, **options: Any) -> Result:
        """Run a command in this process."""
        return CliRunner().invoke(cli, arguments, input=input, catch_exceptions=False, prog_name="tidemill", **options)

    def start(self, *arguments: str, stdin: int | None = None) -> Running:
        """Run a command in a process of its own."""
        running = Running(self.directory, *arguments, stdin=stdin, environment=self.environment)
        self.running.append(running)
        return running

    def publish(self, *currencies: str) -> None:
        """Publish a payment for each; `payment_id` is its number from 1."""
        lines = "".join(
            f'{{"payment_id": "p{number}", "amount": "1", "currency": "{currency}"}}\n'
            for number, currency in enumerate(currencies, 1)
        )
        result = self("publish", "contracts:PaymentConfirmed", input=lines)
        assert result.exit_code == 0, result.output

    def handled(self) -> list[tuple[int, str]]:
        """What `shop.send` handled: process and payment, in order."""
        file = self.directory / "handled"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    for name in ("TIDEMILL_BROKER", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    made = Project(tmp_path)
    yield made
    for running in made.running:
        running.stop()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]

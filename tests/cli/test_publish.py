from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tidemill import BrokerError
from tidemill.broker import DUPLICATE, STORED, Receipt, Status
from tidemill.cli import publish
from tidemill.cli.entry import EntryReader
from tidemill.cli.lines import CHUNK, MAX_LINE
from tidemill.cli.load import load
from tidemill.event import is_event
from tidemill.message import MAX_BODY, Message

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Project

EVENT = "contracts:PaymentConfirmed"


def line(number: int, **changes: object) -> str:
    return json.dumps({"payment_id": f"p{number}", "amount": "1.50", "currency": "EUR"} | changes) + "\n"


def stored(project: Project, topic: str = "payments") -> list[dict[str, Any]]:
    result = project("tail", topic, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(one) for one in result.stdout.splitlines()]


class FakeBroker:
    """Answers each publish with what it was given to answer; then with `STORED`."""

    def __init__(self, *answers: Exception | Receipt) -> None:
        self.answers = list(answers)
        self.batches: list[list[Message]] = []

    async def declare(self, topics: object, subscriptions: object) -> None: ...

    async def publish(self, messages: Sequence[Message]) -> list[Receipt]:
        self.batches.append(list(messages))
        answer = self.answers.pop(0) if self.answers else STORED
        if isinstance(answer, Exception):
            raise answer
        return [*[STORED] * (len(messages) - 1), answer]


def fake(monkeypatch: pytest.MonkeyPatch, *answers: Exception | Receipt) -> FakeBroker:
    broker = FakeBroker(*answers)

    @asynccontextmanager
    async def opened(url: str, *, create: bool) -> AsyncIterator[FakeBroker]:
        yield broker

    monkeypatch.setattr(publish, "opened", opened)
    return broker


def test_good_lines_are_published_and_bad_ones_reported_with_their_number(project: Project) -> None:
    result = project("publish", EVENT, input=line(1) + "\n{nope\n" + line(2, amount=[]) + line(3) + "[]")
    assert result.exit_code == 1
    assert result.stdout == "published 2, duplicates 0, refused 3\n"
    assert [text.partition(": ")[0] for text in result.stderr.splitlines()] == ["line 3", "line 4", "line 6"]
    assert "malformed JSON at column 2" in result.stderr
    assert "`$.amount`" in result.stderr
    events = stored(project)
    assert [event["data"]["payment_id"] for event in events] == ["p1", "p3"]
    assert [event["partitionkey"] for event in events] == ["p1", "p3"]
    assert {event["source"] for event in events} == {"cli"}


def test_from_a_file_with_a_json_summary(project: Project) -> None:
    Path("payments.jsonl").write_text("".join(map(line, range(2500))))
    result = project("publish", EVENT, "payments.jsonl", "--json", "--source", "import")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "published": 2500,
        "duplicates": 0,
        "refused": 0,
        "not_stored": 0,
        "unknown": 0,
        "valid": 2500,
    }
    assert [event["data"]["payment_id"] for event in stored(project)] == [f"p{number}" for number in range(2500)]


def test_repeating_with_ids_is_safe(project: Project) -> None:
    lines = line(1) + line(2)
    assert project("publish", EVENT, "--id-field", "payment_id", input=lines).exit_code == 0
    result = project("publish", EVENT, "--id-field", "payment_id", input=lines + line(3))
    assert (result.exit_code, result.stdout) == (0, "published 1, duplicates 2, refused 0\n")
    assert [event["id"] for event in stored(project)] == ["p1", "p2", "p3"]


def test_a_topic_can_be_copied(project: Project) -> None:
    failed = '{"specversion": "1.0", "type": "payment.failed", "data": {"payment_id": "p2"}}\n'
    old = '{"specversion": "1.0", "dataversion": 1, "data": {"payment_id": "p9", "amount": "1"}}\n'
    assert project("publish", EVENT, input=line(1) + old).exit_code == 0
    assert project("publish", "contracts:payments", input=failed).exit_code == 0
    original = project("tail", "payments", "--json").stdout
    assert len(original.splitlines()) == 3
    copy = ("--broker", "sqlite:///copy.db")
    assert project("publish", "contracts:payments", *copy, input=original).exit_code == 0
    assert project("tail", "payments", "--json", *copy).stdout == original


def test_dry_run_publishes_nothing(project: Project) -> None:
    result = project("publish", EVENT, "--dry-run", input=line(1) + line(2, amount="x"))
    assert (result.exit_code, result.stdout) == (1, "valid 1, refused 1; nothing was published\n")
    assert not list(project.directory.glob("*.db*"))
    assert project("publish", EVENT, "--dry-run", input=line(1)).exit_code == 0


def test_batches_are_bounded_in_number_and_bytes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = fake(monkeypatch)
    Path("many.jsonl").write_text("".join(map(line, range(3000))))
    Path("large.jsonl").write_text(line(1, note="x" * (MAX_BODY - 100)) * 30)
    assert project("publish", EVENT, "many.jsonl").exit_code == 0
    assert sum(map(len, broker.batches)) == 3000
    assert max(map(len, broker.batches)) <= publish.BATCH
    assert len(broker.batches) < 20, "batches are the unit"
    broker.batches.clear()
    assert project("publish", EVENT, "large.jsonl").exit_code == 0
    assert sum(map(len, broker.batches)) == 30
    assert max(sum(len(one.body) for one in batch) for batch in broker.batches) <= CHUNK + MAX_LINE


def test_a_broker_that_fails_is_told_with_what_is_surely_stored(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "BATCH", 2)
    fake(monkeypatch, STORED, BrokerError("the disk is gone."))
    result = project("publish", EVENT, input=line(1) + "{\n" + line(2) + line(3) + line(4) + line(5))
    assert result.exit_code == 3
    assert "error: the disk is gone.\n2 events are surely stored, among them all before line 4 that" in result.stderr
    assert "from line 4 on again once the broker works.\n" in result.stderr
    assert result.stdout == "published 2, duplicates 0, refused 1, not stored 2, unknown 0\n"


@pytest.mark.parametrize(
    ("status", "text", "summary"),
    [
        (Status.NOT_STORED, "line 2: not stored: no room", "not stored 1, unknown 0"),
        (Status.UNKNOWN, "line 2: perhaps stored: no room", "not stored 0, unknown 1"),
    ],
)
def test_receipts_that_are_not_good_end_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, status: Status, text: str, summary: str
) -> None:
    monkeypatch.setattr(publish, "BATCH", 2)
    broker = fake(monkeypatch, Receipt(status, "no room"))
    result = project("publish", EVENT, input="".join(map(line, range(6))))
    assert result.exit_code == 3
    assert text in result.stderr
    assert "error: 1 event is surely stored, among them all before line 2" in result.stderr
    assert "--id-field" in result.stderr, "lines of the batch after the second may be stored too"
    assert result.stdout == f"published 1, duplicates 0, refused 0, {summary}\n"
    assert len(broker.batches) == 1


def test_duplicates_are_counted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, DUPLICATE)
    result = project("publish", EVENT, input=line(1) + line(2))
    assert (result.exit_code, result.stdout) == (0, "published 1, duplicates 1, refused 0\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["contracts:payment"], "Did you mean contracts:payments?"),
        (
            ["contracts:add_currency"],
            "not an event class or a Topic. It has: PaymentConfirmed, PaymentFailed, payments.",
        ),
        ([EVENT, "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        ([EVENT, "."], "Is a directory"),
        ([EVENT, "--broker", "memory:"], "memory: lives inside one process"),
        ([EVENT, "--broker", "nats"], "is not a broker URL"),
    ],
)
def test_usage_and_configuration_errors(project: Project, arguments: list[str], text: str) -> None:
    result = project("publish", *arguments, input=line(1))
    assert result.exit_code == 2
    assert text in result.stderr


def test_an_upcaster_that_is_missing_is_told_before_anything_is_read(project: Project) -> None:
    Path("gap.py").write_text(
        "from tidemill import Topic, event\n@event('e', version=2, topic=Topic('t'))\nclass E:\n    a: int\n"
    )
    result = project("publish", "gap:E", input='{"a": 1}\n')
    assert result.exit_code == 2
    assert "no upcaster from 1 to 2" in result.stderr


def test_a_huge_line_is_refused_in_constant_memory(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """50 MB in one line: memory does not grow by it, and the lines around it are taken."""
    huge = 50 * 1024 * 1024

    class Stream:
        def __init__(self) -> None:
            self.left = huge
            self.first: bytes | None = (line(1) + '{"payment_id": "').encode()
            self.last: bytes | None = ('"}\n' + line(2)).encode()

        def read(self, size: int, /) -> bytes | None:
            if self.first is not None:
                data, self.first = self.first, None
            elif self.left:
                data = b"x" * min(size, self.left)
                self.left -= len(data)
            else:
                data, self.last = self.last or b"", None
            return data

    tally = publish.Tally()
    reader = EntryReader(load(EVENT, "an event class", is_event), source="cli")
    tracemalloc.start()
    try:
        asyncio.run(publish._check(reader, Stream(), tally))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tally.valid, tally.refused) == (2, 1)
    assert f"line 2: the line is {huge + 18:,} bytes long and the limit is {MAX_LINE:,}." in capsys.readouterr().err
    assert peak < 3 * MAX_LINE, f"{peak:,} bytes"


def test_a_pipe_that_stays_open_does_not_hold_back_what_it_gave(project: Project) -> None:
    running = project.start("publish", EVENT, "--json", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(line(1).encode())
    running.process.stdin.flush()
    wait_until(lambda: (project.directory / "tidemill.db").exists() and _messages(project) == 1, "one message")
    running.process.stdin.write(line(2).encode())
    running.process.stdin.close()
    assert running.ends() == 0
    assert json.loads(running.output)["published"] == 2


def _messages(project: Project) -> int:
    result = project("status", "--json")
    topics = json.loads(result.stdout)["topics"] if result.exit_code == 0 else []
    return sum(topic["messages"] for topic in topics)


def test_ctrl_c_while_waiting_for_input_ends_with_the_summary(project: Project) -> None:
    running = project.start("publish", EVENT, stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(("{\n" + line(1)).encode())
    running.process.stdin.flush()
    running.says("line 1: malformed")
    wait_until(lambda: (project.directory / "tidemill.db").exists() and _messages(project) == 1, "one message")
    running.send(signal.SIGINT)
    assert running.ends() == 130
    assert "published 1, duplicates 0, refused 1" in running.output
    assert "Traceback" not in running.output


def test_progress_is_for_terminals_only(project: Project) -> None:
    if not hasattr(os, "openpty"):
        pytest.skip("there are no pseudo-terminals here")
    Path("payments.jsonl").write_text("".join(map(line, range(10))) + "{\n")
    ours, theirs = os.openpty()
    shown = bytearray()

    def collect() -> None:
        while True:
            try:
                shown.extend(os.read(ours, 1024))
            except OSError:
                return

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    command = [sys.executable, "-m", "tidemill", "publish", EVENT, "payments.jsonl", "--dry-run"]
    done = subprocess.run(
        command, check=False, env=project.environment, stderr=theirs, stdout=subprocess.PIPE, timeout=30
    )
    os.close(theirs)
    reader.join(5)
    os.close(ours)
    assert b"10 lines, 1 refused" in shown
    assert b"line 11: malformed" in shown
    assert done.stdout == b"valid 10, refused 1; nothing was published\n"
    quiet = subprocess.run(command, check=False, env=project.environment, capture_output=True, timeout=30)
    assert b"10 lines" not in quiet.stderr

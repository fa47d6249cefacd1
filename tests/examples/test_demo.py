"""The demo, run for real: its exit code, its table, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

SHOP = Path(__file__).parents[2] / "examples" / "shop"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SHOP)
    before = set(sys.modules)
    import demo

    yield demo
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"demo", "input", "outside"}:
            del sys.modules[name]


def test_every_figure_is_right_and_the_first_payment_is_drawn() -> None:
    done = subprocess.run(
        [sys.executable, str(SHOP / "demo.py")],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    out = done.stdout
    assert done.returncode == 0, out + done.stderr
    rows = re.findall(r"^  (.{16})(.{28}) *(\d+) +(\d+)  (.)$", out, re.MULTILINE)
    assert len(rows) == 23, out
    assert all(counted == wanted and mark == "✓" for _, _, counted, wanted, mark in rows), out
    # Added up from make_input.py by hand, so that the table and the expectation cannot be wrong together:
    # 461 plain payments, 14 to addresses that bounce for a while, 4 with odd but good fields.
    figures = {(section.strip(), row.strip()): int(counted) for section, row, counted, _, _ in rows}
    assert figures["payments.jsonl", "lines"] == 544
    assert figures["arrived", "e-mails"] == 479
    assert "sequenceDiagram" in out
    assert "ended with exit code 0" in out


def test_a_wrong_figure_is_named(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    expected = demo.figures(demo.PAYMENTS, demo.SITES)
    assert demo.show_table(Counter(expected), expected)
    capsys.readouterr()

    lost = Counter(expected)
    lost["arrived", "e-mails"] -= 1
    assert not demo.show_table(lost, expected)
    assert "WRONG  arrived, e-mails: 478 instead of 479" in capsys.readouterr().out

    unheard_of = Counter(expected)
    unheard_of["handled", "somebody.else"] += 1
    assert not demo.show_table(unheard_of, expected)


def test_a_service_that_cannot_start_is_reported_with_its_log(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "SERVICES", ("payments", "no_such_service"))
    with pytest.raises(demo.Failed, match=r"no_such_service ended early \(exit code 2\)[\s\S]*no module"):
        asyncio.run(demo.demo(tmp_path))
    assert psutil.Process().children(recursive=True) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as stream:
        run = subprocess.Popen(
            [sys.executable, "-u", str(SHOP / "demo.py")],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
    try:
        until(lambda: b"Publishing" in output.read_bytes() or run.poll() is not None)
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 6
        run.send_signal(number)
        assert run.wait(30) == 130, output.read_text()
    finally:
        run.kill()
        run.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert list(tmp_path.iterdir()) == [output]


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

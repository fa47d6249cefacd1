"""The events Tidemill emits are exactly those the table in the module promises."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tidemill
from tidemill import telemetry
from tidemill.telemetry import LEVELS, emit, listen

EMITS = ("emit", "emit_from_thread")
SOURCE = Path(tidemill.__file__).parent


def promised() -> dict[str, tuple[str, set[str]]]:
    """Per event of the table: its level and its fields."""
    rows = [line.strip("| ").split(" | ") for line in (telemetry.__doc__ or "").splitlines() if line.startswith("| `")]
    return {name.strip("`"): (level, set(fields.split(", "))) for name, level, _, fields in rows}


def emitted() -> Iterator[tuple[str, str, set[str] | None]]:
    """Every call of emit in the source: where, the event, its fields (None where they are passed on)."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EMITS:
                name = node.args[EMITS.index(node.func.id)]
                if isinstance(name, ast.Constant):
                    fields = [keyword.arg for keyword in node.keywords]
                    yield (
                        f"{path.name}:{node.lineno}",
                        str(name.value),
                        None if None in fields else {field for field in fields if field},
                    )


def test_the_table_names_every_event_and_its_level() -> None:
    assert {name: level for name, (level, _) in promised().items()} == {
        name: logging.getLevelName(level).lower() for name, level in LEVELS.items()
    }


def test_every_emit_in_the_source_keeps_the_table() -> None:
    calls = list(emitted())
    assert calls, "no call of emit was found: this test looks in the wrong place"
    for where, name, fields in calls:
        assert name in promised(), where
        assert fields is None or fields == promised()[name][1], where


def test_every_promised_event_is_emitted_somewhere() -> None:
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "telemetry.py")
    assert [name for name in LEVELS if f'"{name}"' not in source] == []


def test_an_event_is_logged_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tidemill"):
        emit("delivery.late", subscription="mail.send", message="1")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "delivery.late subscription=mail.send message=1"
    assert record.tidemill == {"subscription": "mail.send", "message": "1"}  # type: ignore[attr-defined]


def test_listeners_hear_events_until_they_stop() -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    def listener(name: str, fields: dict[str, Any]) -> None:
        heard.append((name, fields))

    stop_one, stop_two = listen(listener), listen(listener)
    try:
        emit("delivery.late", subscription="a", message="1")
        stop_one()
        stop_one()  # twice does nothing, and takes nobody else away
        emit("delivery.late", subscription="a", message="2")
    finally:
        stop_one()
        stop_two()
    emit("delivery.late", subscription="a", message="3")
    assert [fields["message"] for _, fields in heard] == ["1", "1", "2"]


def test_nothing_that_goes_wrong_while_telling_goes_further(caplog: pytest.LogCaptureFixture) -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def broken(name: str, fields: dict[str, Any]) -> None:
        raise ValueError("listener")

    heard: list[str] = []
    stops = [listen(broken), listen(lambda name, fields: heard.append(name))]
    try:
        emit("delivery.late", subscription=Unprintable(), message="1")
        emit("no.such.event", message="2")
    finally:
        for stop in stops:
            stop()
    assert heard == ["delivery.late", "no.such.event"]
    assert "a telemetry listener failed on delivery.late" in caplog.text
    assert "delivery.late could not be logged" in caplog.text


def test_a_logger_whose_filter_raises_is_survived() -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("filter")

    logger = logging.getLogger("tidemill")
    logger.addFilter(broken)
    heard: list[str] = []
    stop = listen(lambda name, fields: heard.append(name))
    try:
        emit("fetch.failed", subscription="a", error="x")
    finally:
        logger.removeFilter(broken)
        stop()
    assert heard == ["fetch.failed"]

from __future__ import annotations

import click
import pytest

from tidemill.cli.output import age, cut, local_time, table, visible, width


def test_a_table_is_aligned_whatever_is_coloured_or_wide() -> None:
    lines = table(
        ["NAME", "COUNT"],
        [("a", "1,000"), ("日本", click.style("7", fg="red")), ("éé", "12"), ("e\u0301", "3")],
    )
    assert [click.unstyle(line) for line in lines] == [
        "NAME  COUNT",
        "a     1,000",
        "日本      7",
        "éé       12",
        "e\u0301         3",
    ]
    assert {width(line) for line in lines} == {11}


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("ab", 1, "…"),
    ],
)
def test_cut(text: str, columns: int, expected: str) -> None:
    assert cut(text, columns) == expected
    assert width(expected) <= columns


def test_what_a_terminal_would_act_on_is_shown_as_an_escape() -> None:
    assert visible("a\x1b[2Jb\x9b\u202e") == "a\\x1b[2Jb\\x9b\\u202e"
    assert visible("schön 日本") == "schön 日本"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (0.9, "0s"), (59, "59s"), (61, "1m"), (7200, "2h"), (200_000, "2d")]
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    text = local_time(1_767_225_600_123_999_999)
    assert text.startswith("202")
    assert text.endswith(".123")
    assert local_time(1_767_225_600_123_999_999, date=False) == text[11:]

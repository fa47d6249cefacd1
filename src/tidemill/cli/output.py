"""Text for people: tables, ages, times, and what a terminal may be shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime

import click


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Aligned lines, two spaces apart: the first `left` columns to the left, the others, being numbers, to the right.

    Cells may be styled: only what is visible counts.
    """
    widths = [max(width(cell) for cell in column) for column in zip(headers, *rows, strict=True)]
    return [
        "  ".join(
            cell + _space(cell, size) if at < left else _space(cell, size) + cell
            for at, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headers, *rows)
    ]


def heading(text: str) -> str:
    """A table's header cell, dimmed where colours are on."""
    return click.style(text, dim=True)


def warn_if(count: int, colour: str, number: Callable[[int], str] = "{:,}".format) -> str:
    """A count that is coloured unless it is zero."""
    return click.style(number(count), fg=colour, bold=True) if count else number(count)


def width(text: str) -> int:
    """Terminal columns that `text` takes: escape sequences none, wide characters two."""
    text = click.unstyle(text)
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else not unicodedata.combining(one) for one in text)


def cut(text: str, columns: int) -> str:
    """`text` in at most `columns` columns, with an ellipsis where something is missing."""
    if width(text) <= columns:
        return text
    kept = text[: max(columns - 1, 0)]
    while kept and width(kept) > columns - 1:
        kept = kept[:-1]
    return f"{kept}…"


def visible(text: str) -> str:
    """`text` without characters a terminal would act on: control characters are written as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def age(seconds: float) -> str:
    """A duration in its largest unit: 12s, 5m, 3h, 2d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def local_time(time: int, *, date: bool = True) -> str:
    """Nanoseconds since 1970 in local time, to the millisecond."""
    moment = datetime.fromtimestamp(time // 1_000_000_000).astimezone()
    text = f"{moment:%H:%M:%S}.{time // 1_000_000 % 1000:03d}"
    return f"{moment:%Y-%m-%d} {text}" if date else text


def _space(cell: str, size: int) -> str:
    return " " * (size - width(cell))

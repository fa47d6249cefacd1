"""The statements of `queries.sql`, by name."""

from __future__ import annotations

import re
from importlib.resources import files


def load(file: str) -> str:
    """The text of an SQL file of this folder."""
    return (files(__name__.rpartition(".")[0]) / file).read_text(encoding="utf-8")


def _named(text: str) -> dict[str, str]:
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    # Comments are for readers of the file; without them the driver's statement cache hashes shorter texts.
    return {
        name: re.sub(r"\s*--[^\n]*", "", statement).strip()
        for name, statement in zip(parts[1::2], parts[2::2], strict=True)
    }


SQL = _named(load("queries.sql"))

_COLUMNS = (
    "topic, slot, id, source, type, version, time, stored, key, correlation, causation, content_type, extensions, body"
)

CHUNK = 64
"""Rows per INSERT statement. A statement per row costs a fifth more; larger ones gain nothing."""


def insert_events(rows: int) -> str:
    """The INSERT of that many events; those that are there already are passed over."""
    values = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    return f"insert into tidemill_log ({_COLUMNS}) values {values} on conflict do nothing"

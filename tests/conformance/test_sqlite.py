"""The conformance suite on `sqlite:`."""

from __future__ import annotations

from pathlib import Path

from tidemill.testing.conformance import Conformance


class TestSqlite(Conformance):
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/conformance.db"

    def unreachable(self, tmp_path: Path) -> str | None:
        return f"sqlite:///{tmp_path}/no/such/folder/conformance.db"

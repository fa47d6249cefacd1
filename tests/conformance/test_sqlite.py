"""The conformance suite on `sqlite:`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.testing.conformance import Conformance

not_yet = pytest.mark.xfail(
    strict=True,
    reason="what was running when a process died is not charged with an attempt: a crash loop has no end",
)


class TestSqlite(Conformance):
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/conformance.db"

    def unreachable(self, tmp_path: Path) -> str | None:
        return f"sqlite:///{tmp_path}/no/such/folder/conformance.db"

    @not_yet
    def test_an_event_that_kills_its_process_is_given_up(self, tmp_path: Path) -> None:
        super().test_an_event_that_kills_its_process_is_given_up(tmp_path)

"""The conformance suite on `memory:`."""

from __future__ import annotations

from pathlib import Path

from tidemill.testing.conformance import Conformance


class TestMemory(Conformance):
    def url(self, tmp_path: Path) -> str:
        return "memory:"

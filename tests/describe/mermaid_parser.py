"""Mermaid's own parser, asked about many texts in one go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "mermaid"


def refused(texts: Sequence[str]) -> dict[str, str]:
    """The texts that Mermaid does not take for sequence diagrams, and why. See `verdicts`."""
    return {
        text: answer.get("error", answer.get("type", ""))
        for text, answer in zip(texts, verdicts(texts), strict=True)
        if not (answer["ok"] and answer["type"] == "sequence")
    }


def verdicts(texts: Sequence[str]) -> list[dict[str, Any]]:
    """What Mermaid says of each text: `ok`, and the diagram's `type` or the `error`.

    Skips the test where Node.js or the parser is not installed; in CI it fails instead.
    """
    node = shutil.which("node")
    if node is None:
        _unavailable("Node.js is not installed. Install version 20 or newer")
    if not (TOOL / "node_modules" / "mermaid").is_dir():
        _unavailable("the Mermaid parser is not installed. Run `npm ci` in tests/tools/mermaid")
    found = subprocess.run(
        [str(node), str(TOOL / "check.mjs")],
        input=json.dumps(list(texts)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    answers: list[dict[str, Any]] = json.loads(found.stdout)
    assert len(answers) == len(texts)
    return answers


def _unavailable(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}: in CI no test is skipped.")
    pytest.skip(f"NOT TESTED: {why}, to have diagrams read by the real parser.")

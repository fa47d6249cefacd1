"""What the pages take from the code is what the code says now."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys

import pytest

from tidemill.testing.conformance import PROMISES, SCENARIOS

from .pages import PAGES, ROOT

GENERATE = ROOT / "docs" / "generate.py"


def test_the_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_page_that_is_out_of_date_is_noticed() -> None:
    generated = runpy.run_path(str(GENERATE))["generated"]
    for page in PAGES:
        text = page.read_text()
        parts = re.findall(r"<!-- generated: .*? -->\n(.*?)<!-- /generated -->", text, re.DOTALL)
        assert text.count("<!-- generated: ") == text.count("<!-- /generated -->") == len(parts)
        for part in parts:
            assert part.strip(), f"{page.name} has an empty part"
            assert generated(text.replace(part, "stale\n", 1)) == text


def test_a_name_that_means_nothing_is_an_error() -> None:
    generated = runpy.run_path(str(GENERATE))["generated"]
    with pytest.raises(KeyError, match="nonsense"):
        generated("<!-- generated: nonsense -->\n<!-- /generated -->")


def test_every_promise_and_every_scenario_is_on_the_page() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    for key, title in PROMISES.items():
        assert f"\n## {key} {title}\n" in page
        assert f"<!-- generated: scenarios {key} -->" in page
    for name in SCENARIOS:
        assert f"`{name}`" in page

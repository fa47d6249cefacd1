"""The shop's own tests pass, the way its reader would run them, and its input is what its script writes."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

SHOP = Path(__file__).parents[2] / "examples" / "shop"


def test_the_tests_of_the_shop_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=SHOP,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^1\d passed", done.stdout, re.MULTILINE), done.stdout


def test_the_input_is_what_its_script_writes() -> None:
    made = runpy.run_path(str(SHOP / "input" / "make_input.py"))
    assert (SHOP / "input" / "payments.jsonl").read_text().splitlines() == made["payments"]()
    assert (SHOP / "input" / "sites.jsonl").read_text().splitlines() == made["sites"]()

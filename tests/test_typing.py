"""Types are a feature: mypy and pyright, both strict, accept and refuse exactly what tests/typing/ says they do.

A line that must be refused ends in `# E`; in `# E mypy` or `# E pyright` where only that checker does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tidemill

FOLDER = Path(__file__).parent / "typing"
SOURCE = Path(tidemill.__file__).parent.parent

Lines = set[tuple[str, int]]


def expected(checker: str) -> Lines:
    marks = re.compile(rf"# E(?: {checker})?$")
    return {
        (path.name, number)
        for path in FOLDER.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    }


def require(checker: str) -> None:
    if importlib.util.find_spec(checker) is None:
        install = f"pip install {checker}" if checker == "mypy" else 'pip install "pyright[nodejs]"'
        text = f"{checker} is missing, so that what it says is NOT TESTED. Install it: {install}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


def compare(checker: str, found: dict[tuple[str, int], str]) -> None:
    wanted = expected(checker)
    accepted = sorted(wanted - set(found))
    refused = [f"{name}:{line}: {text}" for (name, line), text in sorted(found.items()) if (name, line) not in wanted]
    assert not accepted, f"{checker} accepts what it must refuse: {accepted}"
    assert not refused, f"{checker} refuses what it must accept:\n" + "\n".join(refused)


def test_the_folder_expects_errors_of_both() -> None:
    assert len(expected("mypy")) > 30
    assert len(expected("pyright")) > 30


def test_mypy(tmp_path: Path) -> None:
    require("mypy")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--follow-imports", "silent"),
            *("--no-error-summary", "--hide-error-context", "--no-pretty", "--no-color-output"),
            *("--cache-dir", str(tmp_path), str(FOLDER)),
        ],
        env=os.environ | {"MYPYPATH": str(SOURCE)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # 2 is mypy's own failure
    found: dict[tuple[str, int], str] = {}
    for line in done.stdout.splitlines():
        if parts := re.fullmatch(r"(.*?\.py):(\d+): error: (.*)", line):
            found[Path(parts[1]).name, int(parts[2])] = parts[3]
    compare("mypy", found)


def test_pyright(tmp_path: Path) -> None:
    require("pyright")
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        json.dumps(
            {
                "include": [os.path.relpath(FOLDER, tmp_path)],
                "extraPaths": [str(SOURCE)],
                "pythonVersion": "3.11",
                "typeCheckingMode": "strict",
                "reportUnusedExpression": False,  # the lines that are refused are often nothing else
            }
        )
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson", "--project", str(config)),
            *("--pythonpath", sys.executable),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    found = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): str(each["message"])
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    }
    compare("pyright", found)

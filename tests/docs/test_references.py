"""What a page names is there: files, pages, headings, commands, diagrams that Mermaid can draw, the demo's table."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from describe.mermaid_parser import verdicts

from tidemill.cli import COMMANDS

from .pages import PAGES, ROOT, Block, blocks, matches

PLACES = [ROOT, ROOT / "docs", ROOT / "src" / "tidemill"]

FILE = re.compile(r"`([\w./-]+\.(?:py|sql|mjs|toml|md))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    own = {block.words for block in blocks(page)}
    named = set(FILE.findall(prose(page))) - own
    if page.name == "how-it-works.md":
        assert len(named) > 20
    missing = [name for name in named if not any((place / name).is_file() for place in PLACES)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in headings(target.resolve()), f"{page.name}: {link}"


def test_the_front_page_leads_to_every_page() -> None:
    linked = set(LINK.findall(prose(ROOT / "README.md")))
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"(?:`|\$ |^)tidemill ([a-z][a-z-]+)", page.read_text(), re.MULTILINE):
        assert name in COMMANDS, f"{page.name}: tidemill {name}"
    for name in re.findall(r"`make ([a-z-]+)", page.read_text()):
        assert re.search(rf"^{name}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page.name}: make {name}"


def test_mermaid_can_draw_every_diagram() -> None:
    found: list[Block] = [block for page in PAGES for block in blocks(page) if block.language == "mermaid"]
    assert len(found) >= 5
    wrong = {
        block.where: verdict["error"]
        for block, verdict in zip(found, verdicts([block.text for block in found]), strict=True)
        if not verdict["ok"]
    }
    assert wrong == {}


def test_the_table_of_the_demo_is_the_one_the_demo_prints() -> None:
    """`tests/examples` runs the demo and finds each figure to be what the input says; here is what the input says."""
    [shown] = [block for block in blocks(ROOT / "README.md") if "the demo's table" in block.above]
    table = shown.text.splitlines()
    table = table[table.index(next(line for line in table if "counted" in line)) : -1]
    program = "import demo; found = demo.figures(demo.PAYMENTS, demo.SITES); demo.show_table(found, found)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "examples" / "shop",
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(table) > 10
    assert matches(["", *table], done.stdout), done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_speaks_of_the_project_alone(page: Path) -> None:
    assert not re.search(r"/(?:home|root|Users|work)/|localhost:\d|pypi\.org", page.read_text())

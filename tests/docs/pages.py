"""Pages that run. What a page shows is what its reader gets, because a test does what the page says.

A block's language says what happens to it, words after the language refine that:

    ```python shop.py        written to that file; a Python file is imported once, so that it cannot be wrong
    ```json orders.jsonl     written to that file
    ```console               commands after `$ `, each followed by its output; `…` stands for anything on a line,
                             and on a line of its own for any lines; an exit code other than 0 is shown by `echo $?`
    ```console running       the same, but the last command goes on running, as in a terminal left open
    ```console meanwhile     what that command has printed since; where it begins with `^C`, Ctrl-C ends it first
    ```console eventually    repeated until its output is as shown: for what takes a moment
    ```mermaid               read by the real parser (`test_diagrams.py`), as every diagram of every page
    ```text                  shown, and not run

Any other block is an error: nothing is passed over in silence. `<!-- output of: COMMAND -->` above a block of any
language says that the block is what this command prints.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PATIENCE = 15.0
"""Seconds to wait for what must come."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    words: str
    text: str
    above: str
    """The prose between the block before and this one."""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    above: list[str] = []
    inside: list[str] = []
    opened: tuple[int, str, str] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is not None:
            if line.rstrip() == "```":
                text = "".join(f"{each}\n" for each in inside)
                yield Block(page.name, *opened, text, "\n".join(above))
                above, opened = [], None
            else:
                inside.append(line)
        elif line.startswith("```"):
            language, _, words = line.removeprefix("```").strip().partition(" ")
            opened, inside = (number, language, words.strip()), []
        else:
            above.append(line)
    assert opened is None, f"{page.name}:{opened[0] if opened else 0}: a block that does not end"


class Reader:
    """Somebody who does what a page says, in an empty folder, with one terminal left open at most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = 0
        self._code = 0
        self._running: subprocess.Popen[bytes] | None = None
        self._log = folder.with_name(f"{folder.name}.terminal")
        self._seen = 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEMILL_", "PYTEST"))}
        self._environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "NO_COLOR": "1",
            "COLUMNS": "80",
            "TZ": "UTC",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }

    def __enter__(self) -> Reader:
        self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None and self._running.poll() is None:
            self._running.kill()
            self._running.wait()

    def read(self, page: Path) -> None:
        """Do everything the page says."""
        files: list[str] = []
        for block in blocks(page):
            output_of = re.search(r"<!-- output of: (.+) -->\s*\Z", block.above)
            if output_of:
                text = re.sub(r"[\d.]+ s later", "… s later", block.text)  # how long something took is never the same
                self._compare(block, output_of[1], text.splitlines())
            elif block.language == "console":
                if files:
                    self._import(block, files)
                    files = []
                self._terminal(block)
            elif block.language in ("python", "json") and block.words:
                assert f"`{block.words}`" in block.above, f"{block.where}: the text above does not name the file"
                (self.folder / block.words).write_text(block.text, encoding="utf-8")
                # A file that is written again within a second, at the same size, would meet its old bytecode.
                shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
                if block.language == "python":
                    files.append(block.words.removesuffix(".py"))
            else:
                assert block.language in ("mermaid", "text"), f"{block.where}: no test knows what to do with this"
            last = block.where
        if files:
            self._import(block, files)
        assert self._running is None, f"{last}: the command in the open terminal was never ended with ^C"

    def _import(self, block: Block, modules: list[str]) -> None:
        done = self._run(f"python -W error -c 'import {', '.join(dict.fromkeys(modules))}'")
        assert done.returncode == 0, f"before {block.where}:\n{done.stdout}"

    def _terminal(self, block: Block) -> None:
        assert block.words in ("", "running", "meanwhile", "eventually"), f"{block.where}: {block.words}?"
        lines = block.text.splitlines()
        if block.words == "meanwhile":
            self._meanwhile(block, lines)
            return
        commands: list[tuple[str, list[str]]] = []
        for line in lines:
            if line.startswith("$ "):
                commands.append((line.removeprefix("$ "), []))
            else:
                assert commands, f"{block.where}: output before any command"
                commands[-1][1].append(line)
        for number, (command, expected) in enumerate(commands):
            following = commands[number + 1][0] if number + 1 < len(commands) else ""
            if block.words == "running" and not following:
                self._start(block, command, expected)
            else:
                self._compare(block, command, expected, following == "echo $?")

    def _compare(self, block: Block, command: str, expected: list[str], may_fail: bool = False) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            done = self._run(command)
            right = matches(expected, done.stdout) and (done.returncode == 0 or may_fail)
            if right or block.words != "eventually" or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._code = done.returncode
        assert right, _difference(block, command, expected, f"{done.stdout}(exit code {done.returncode})")

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        self.commands += 1
        return subprocess.run(
            ["bash", "-c", f"(exit {self._code}); {command}"],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    def _start(self, block: Block, command: str, expected: list[str]) -> None:
        assert self._running is None, f"{block.where}: one open terminal is enough"
        self.commands += 1
        with self._log.open("wb") as log:
            self._running = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._seen = 0
        self._until_printed(block, command, expected)

    def _meanwhile(self, block: Block, lines: list[str]) -> None:
        assert self._running is not None, f"{block.where}: no terminal is open"
        if lines[0].startswith("^C"):
            # A terminal writes ^C before what the command says to it.
            lines[0] = lines[0].removeprefix("^C")
            self._running.send_signal(signal.SIGINT)
            self._code = self._running.wait(PATIENCE)
            self._until_printed(block, "^C", lines)
            assert self._code == 0, f"{block.where}: ended with exit code {self._code}"
            self._running = None
        else:
            self._until_printed(block, "(meanwhile)", lines)

    def _until_printed(self, block: Block, command: str, expected: list[str]) -> None:
        assert self._running is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self._running.poll() is not None
            printed = self._log.read_bytes()[self._seen :]
            if matches(expected, printed.decode()):
                self._seen += len(printed)
                return
            waiting = not ended and time.monotonic() < deadline
            assert waiting, _difference(block, command, expected, printed.decode())
            time.sleep(0.02)


def matches(expected: list[str], printed: str) -> bool:
    """Whether `printed` is what a page shows, `…` standing for anything. Blanks at line ends and empty lines at the
    end do not count."""
    lines = [line.rstrip() for line in expected]
    while lines and not lines[-1]:
        lines.pop()
    pattern = "".join(map(_pattern, lines))
    text = printed if printed.endswith("\n") or not printed else f"{printed}\n"
    return re.fullmatch(pattern + r"\s*", text) is not None


def _pattern(line: str) -> str:
    if line.strip() == "…":
        return r"(?:[^\n]*\n)*?"
    return "[^\\n]*?".join(map(re.escape, line.split("…"))) + "[ ]*\\n"


def _difference(block: Block, command: str, expected: list[str], printed: str) -> str:
    return f"{block.where}: $ {command}\n--- the page says\n" + "\n".join(expected) + f"\n--- but it is\n{printed}"

"""Every page does what it says: its files work, its commands print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pages import PAGES, ROOT, Reader, matches


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    with Reader(tmp_path / "folder") as reader:
        reader.read(page)


def test_the_pages_with_examples_do_run_them(tmp_path: Path) -> None:
    """A page without a block that runs passes too, so those that teach are named here."""
    shown = {page.name: page.read_text() for page in PAGES}
    for name in ("README.md", "tutorial.md", "middleware.md", "writing-a-broker.md"):
        assert "```console\n$ pytest -q" in shown[name]
        assert "```python test_" in shown[name]


# ------------------------------------------------------- the reader, tested


def read(tmp_path: Path, text: str) -> Reader:
    page = tmp_path / "page.md"
    page.write_text(text)
    with Reader(tmp_path / "folder") as reader:
        reader.read(page)
    return reader


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "but it is\none"),
        ("```console\n$ echo one\n```\n", "but it is\none"),
        ("```console\n$ echo one; false\none\n```\n", "exit code 1"),
        ("```console\n$ false\n$ echo $?\n2\n```\n", "but it is\n1"),
        ("```console\nno command\n```\n", "output before any command"),
        ("```console slowly\n$ true\n```\n", "slowly"),
        ("```python\nx = 1\n```\n", "no test knows"),
        ("```sh\ntrue\n```\n", "no test knows"),
        ("the file:\n```python one.py\nx = 1\n```\n", "does not name the file"),
        ("`one.py`:\n```python one.py\nimport no_such_module\n```\n", "No module named"),
        ("`one.py`:\n```python one.py\nx = 1\n", "does not end"),
        ("<!-- output of: echo one -->\n```text\ntwo\n```\n", "but it is\none"),
        ("```console running\n$ sleep 20\n```\n", "never ended"),
        ("```console running\n$ sleep 0; echo one\ntwo\n```\n", "but it is"),
        ("```console meanwhile\n^C\n```\n", "no terminal is open"),
    ],
)
def test_what_a_page_says_wrongly_is_found(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(AssertionError) as raised:
        read(tmp_path, text)
    assert complaint in str(raised.value)


def test_what_a_page_says_rightly_passes(tmp_path: Path) -> None:
    page = """Put it into `count.py`:

```python count.py
import sys, time
if __name__ == "__main__":
    print("counting", flush=True)
    try:
        time.sleep(20)
    except KeyboardInterrupt:
        print("stopped")
```

```console running
$ python count.py
counting
```

```console
$ ls
count.py
$ echo one; echo two
one
…
$ (exit 3)
$ echo $?
3
```

```console eventually
$ echo x >> log; wc -l < log
3
```

```console meanwhile
^Cstopped
```

<!-- output of: echo 0.5 s later -->
```text
0.007 s later
```
"""
    assert read(tmp_path, page).commands > 6


@pytest.mark.parametrize(
    ("expected", "printed", "right"),
    [
        ([], "", True),
        ([], "x\n", False),
        (["a…c"], "abc\n", True),
        (["a…c"], "ac\n", True),
        (["a…c"], "ab\nc\n", False),
        (["…"], "", True),
        (["a", "…", "c"], "a\nb\nb\nc\n", True),
        (["a", "…", "c"], "a\nb\n", False),
        (["a", ""], "a   \n\n", True),
        (["a.c"], "abc\n", False),
        (["no newline"], "no newline", True),
    ],
)
def test_output_is_compared_with_wildcards(expected: list[str], printed: str, right: bool) -> None:
    assert matches(expected, printed) is right

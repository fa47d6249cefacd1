"""The file list is the architecture: imports point one way, siblings keep apart, and no file grows too large."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tidemill

ROOT = Path(tidemill.__file__).parent

# A module imports from earlier rows only; "" is the public page, `tidemill` itself.
LAYERS = [
    ["errors"],
    ["outcome", "ids", "clock", "value", "rate", "circuit"],
    ["message"],
    ["event"],
    ["codec", "cloudevents"],
    ["telemetry", "broker"],
    ["pipeline", "context", "lanes", "watchdog", "steps", "threads", "isolation"],
    ["gate"],
    ["handler", "stand_in", "loop_watch"],
    ["attempt"],
    ["publisher", "consumer", "dead_letters", "chaos"],
    ["runtime"],
    ["health"],
    ["service"],
    ["", "middleware", "brokers", "sql"],
    ["describe"],
    ["testing"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# What is not in the standard library, and who may import it.
THIRD_PARTY = {
    "msgspec": [""],
    "click": ["cli"],
    "watchfiles": ["cli"],
    "pytest": ["testing.plugin", "testing.conformance"],
}

MAX_LINES = 500


@cache
def modules() -> dict[str, Path]:
    """Every module's name below `tidemill`, and its file."""
    found = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in ROOT.rglob("*.py")}
    return {name.removesuffix("__init__").rstrip("."): path for name, path in found.items()}


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of what a module imports when it runs: all but what is under TYPE_CHECKING."""
    package = ["tidemill", *name.split(".")] if name else ["tidemill"]
    if path.name != "__init__.py":
        package.pop()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
            for each in node.names:
                inside = f"{source}.{each.name}"
                yield node.lineno, inside if inside.removeprefix("tidemill.") in modules() else source
        else:
            waiting += ast.iter_child_nodes(node)


def below(name: str) -> str | None:
    """A module's name below `tidemill`; None for one of somebody else."""
    return name.removeprefix("tidemill").lstrip(".") if name.split(".")[0] == "tidemill" else None


def unit(name: str) -> str:
    return name.split(".")[0]


def is_command(path: Path) -> bool:
    """Whether a module of the command line is one of its commands, rather than what commands share."""
    return any(
        isinstance(node, ast.FunctionDef) and any("command(" in ast.unparse(each) for each in node.decorator_list)
        for node in ast.parse(path.read_text()).body
    )


def faults(name: str, path: Path) -> Iterator[str]:
    for line, imported in imports(name, path):
        where = f"{name or '__init__'}:{line} imports {imported}"
        target = below(imported)
        if target is None:
            top = imported.split(".")[0]
            if top not in sys.stdlib_module_names and not any(
                f"{name}.".startswith(f"{allowed}.") or not allowed for allowed in THIRD_PARTY.get(top, [])
            ):
                yield f"{where}: not a library for this place"
        elif unit(name) != unit(target):
            if RANK[unit(target)] >= RANK[unit(name)]:
                yield f"{where}: imports point the other way"
        elif (
            name != "middleware"
            and unit(name) in ("brokers", "middleware")
            and name.split(".")[1:2] != target.split(".")[1:2]
        ):
            yield f"{where}: siblings keep apart"
        elif unit(name) == "cli" and name != "cli" and target != "cli" and is_command(modules()[target]):
            yield f"{where}: a command is no helper of another"


def test_every_module_has_its_place() -> None:
    assert {unit(name) for name in modules()} - set(RANK) == set()


@pytest.mark.parametrize("name", sorted(modules()), ids=lambda name: name or "tidemill")
def test_imports_point_one_way(name: str) -> None:
    assert list(faults(name, modules()[name])) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("event", "from .service import Service", "imports point the other way"),
        ("codec", "from . import cloudevents", "imports point the other way"),
        ("errors", "from tidemill.message import Message", "imports point the other way"),
        ("message", "def late():\n    import tidemill", "imports point the other way"),
        ("consumer", "import click", "not a library for this place"),
        ("testing.mill", "import pytest", "not a library for this place"),
        ("brokers.memory", "from .sqlite import connect", "siblings keep apart"),
        ("cli.tail", "from .publish import publish", "a command is no helper of another"),
        (
            "service",
            "if TYPE_CHECKING:\n    from .cli import x\nelse:\n    from .testing import y",
            "tidemill.testing",
        ),
    ],
)
def test_a_wrong_import_would_be_found(name: str, source: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(source)
    (found,) = faults(name, file)
    assert fault in found


def test_no_file_is_too_large() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}

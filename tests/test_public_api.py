"""The public API is one page, and importing it costs little."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import tidemill

#: Documented in docs/ and promised: a name that goes, or comes, is a decision.
PUBLIC = [
    "Ack",
    "BrokerError",
    "BrokerUrlError",
    "Circuit",
    "ConfigurationError",
    "Context",
    "DeadLetter",
    "DecodeError",
    "DefinitionError",
    "Delivery",
    "Failure",
    "Handle",
    "Health",
    "InvalidMessage",
    "Json",
    "Message",
    "Middleware",
    "MissingExtra",
    "Outcome",
    "PublishError",
    "Rate",
    "Reject",
    "Release",
    "Retry",
    "RetryAfter",
    "RetryPolicy",
    "Service",
    "TidemillError",
    "Topic",
    "Unsupported",
    "event",
    "upcast",
]


def test_the_public_names_are_the_documented_ones() -> None:
    assert tidemill.__all__ == PUBLIC


def test_the_public_names_are_sorted() -> None:
    assert sorted(tidemill.__all__) == tidemill.__all__


def test_there_is_nothing_else_on_the_page() -> None:
    # The function `event` takes the place of the module `tidemill.event`, and is meant to.
    others = {
        name
        for name, value in vars(tidemill).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name not in PUBLIC
        and name != "TYPE_CHECKING"
    }
    assert others == set()
    assert callable(tidemill.event)


def test_every_public_class_and_function_says_what_it_is() -> None:
    for name in tidemill.__all__:
        value = getattr(tidemill, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_names_that_load_when_asked_for_are_the_ones_their_modules_have() -> None:
    program = "import tidemill; print(*(type(getattr(tidemill, name)).__name__ for name in tidemill.__all__))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "module" not in done.stdout.split()
    assert set(tidemill.__all__) <= set(dir(tidemill))


def test_importing_it_loads_neither_adapters_nor_libraries_that_may_not_be_needed() -> None:
    program = "import sys, tidemill; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "tidemill.event" in loaded
    heavy = {
        "asyncio",
        "click",
        "sqlite3",
        "pytest",
        "pydantic",
        "attrs",
        "watchfiles",
        "unittest",
        "multiprocessing",
    }
    assert loaded & heavy == set()
    ours = {name for name in loaded if name.startswith("tidemill.")}
    assert {
        name for name in ours if name.split(".")[1] in ("brokers", "cli", "describe", "middleware", "testing")
    } == set()

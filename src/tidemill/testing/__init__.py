"""Component tests: `running(service)` runs services for real, on the memory broker and a clock that jumps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clock import VirtualClock
    from .mill import Mill, NotSettled, running

__all__ = ["Mill", "NotSettled", "VirtualClock", "running"]

_LAZY = {"Mill": "mill", "NotSettled": "mill", "VirtualClock": "clock", "running": "mill"}
"""Loaded when first asked for: the pytest plugin is here too, and is part of every test run (PEP 562)."""


def __getattr__(name: str) -> object:
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

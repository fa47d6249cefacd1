"""The conformance suite: what Tidemill promises, as scenarios that run on any broker. Needs pytest.

An adapter is done when its suite passes against the real server:

    from tidemill.testing.conformance import Conformance

    class TestMyBroker(Conformance):
        def url(self, tmp_path: Path) -> str:
            return f"mybroker://localhost?namespace={uuid4().hex}"

Native and emulated features meet the same assertions. What a broker declares to lack is skipped, visibly, and one
scenario proves that asking for it raises `Unsupported`. `python -m tidemill.testing.conformance` prints the suite
as a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

FILES = (
    *("publishing", "scheduling", "delivery", "settlement", "order", "dead_letters"),
    *("handlers", "policies", "drain", "history", "processes", "crashes", "versions"),
)
"""The files that hold scenarios: one kind of promise each."""

# Before they are imported: their bare asserts then tell both sides when they fail.
pytest.register_assert_rewrite(f"{__name__}.place", *(f"{__name__}.{file}" for file in FILES))

from .place import Place  # noqa: E402
from .scenario import (  # noqa: E402
    PROMISES,
    SCENARIOS,
    CannotRun,
    Scenario,
    missing,
    perform,
    promise,
    table,
)

for _file in FILES:
    import_module(f"{__name__}.{_file}")

__all__ = [
    "PROMISES",
    "SCENARIOS",
    "CannotRun",
    "Conformance",
    "Place",
    "Scenario",
    "missing",
    "perform",
    "promise",
    "table",
]


class Conformance(ABC):
    """Every scenario as a test. Subclass it, say where the broker is, and run pytest."""

    @abstractmethod
    def url(self, tmp_path: Path) -> str:
        """Where a broker with nothing on it is: a new file, or a namespace of its own. Asked once per scenario."""

    def unreachable(self, tmp_path: Path) -> str | None:
        """A URL of the same kind where no broker can be: a port nobody listens on, a folder that does not exist."""
        return None


def _test(scenario: Scenario) -> Callable[[Conformance, Path], None]:
    def test(self: Conformance, tmp_path: Path) -> None:
        place = Place(self.url(tmp_path), tmp_path, unreachable=self.unreachable(tmp_path))
        try:
            perform(scenario, place)
        except CannotRun as lack:
            pytest.skip(str(lack))

    test.__name__ = f"test_{scenario.name}"
    test.__qualname__ = f"Conformance.test_{scenario.name}"
    test.__doc__ = f"{', '.join(scenario.promises)}: {scenario.text}"
    return test


for _scenario in SCENARIOS.values():
    setattr(Conformance, f"test_{_scenario.name}", _test(_scenario))

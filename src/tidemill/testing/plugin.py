"""For pytest: the fixture `mill`, and the story of what happened in the report of a test that fails.

Part of every test run where Tidemill is installed, so it loads and does nothing until a test runs services.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from .watchers import watchers

if TYPE_CHECKING:
    from .mill import Mill

MillFactory: TypeAlias = "Callable[..., AbstractAsyncContextManager[Mill]]"
"""What the fixture `mill` is: `tidemill.testing.running`."""

_begun: list[Mill] = []


@pytest.fixture(name="mill")
def mill_fixture() -> MillFactory:
    """`async with mill(service) as m:` runs services on the memory broker; see `tidemill.testing.running`."""
    from .mill import running

    return running


# The older kind of wrapper: the newer one is an error to pytest 7, and this is loaded whether or not it is used.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, None]:
    """Notice every mill that begins during the test."""
    watchers.append(_begun.append)
    try:
        yield
    finally:
        watchers.remove(_begun.append)
        _begun.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Add the stories to the report of a test that failed."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed and _begun:
        from .story import cut

        for number, begun in enumerate(_begun, 1):
            title = "tidemill" if len(_begun) == 1 else f"tidemill: mill {number} of {len(_begun)}"
            report.sections.append((title, cut(begun.story()) or "Nothing was published."))

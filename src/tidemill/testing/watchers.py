"""Who is told about every mill that begins. Apart from the mill, so that the pytest plugin need not load it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .mill import Mill

watchers: list[Callable[[Mill], object]] = []
"""Called with every mill that begins. Where there is one, it tells the story of a test that fails."""

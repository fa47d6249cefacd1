"""What `tidemill pause` and `tidemill resume` share: to say so to the broker, after a look that all names are right."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigurationError
from .options import opened


async def set_paused(url: str, names: Sequence[str], paused: bool) -> None:
    """Pause subscriptions, or let them go on. Raises `ConfigurationError` where one does not exist: nothing changed."""
    async with opened(url) as broker:
        known = sorted(one.name for one in (await broker.inspect()).subscriptions)
        for name in names:
            if name not in known:
                raise ConfigurationError(
                    f"there is no subscription {name!r} on {broker.url}. Nothing changed. "
                    f"There are: {', '.join(known) or 'none'}."
                )
        for name in names:
            await broker.pause(name, paused)

"""The site service: publishes which pages are to be watched, and hears how they are."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable

import msgspec
from contracts import SiteAdded, SiteChecked

from tidemill import Service

service = Service("sites")
log = logging.getLogger("sites")


@service.on(SiteChecked)
async def note(event: SiteChecked) -> None:
    if not event.ok:
        log.warning("%s is broken: %s answers %s", event.site_id, event.url, event.status)


async def add(lines: Iterable[str]) -> None:
    """Publish outside any handler, as a web application or a cron job would."""
    async with service.running(consume=False):
        await service.publish_many([msgspec.json.decode(line, type=SiteAdded) for line in lines])


if __name__ == "__main__":  # python sites.py < input/sites.jsonl
    asyncio.run(add(sys.stdin))

"""The monitor: fetches every page that was added, and publishes how it is."""

from __future__ import annotations

import asyncio
from urllib.error import HTTPError
from urllib.request import urlopen

from contracts import SiteAdded, SiteChecked

from tidemill import Context, RetryPolicy, Service

service = Service("monitor")


# Short delays, so that the page that stays down is a dead letter while you watch; the defaults wait longer.
@service.on(SiteAdded, retry=RetryPolicy(attempts=4, base=0.5, factor=2), timeout=20)
async def check(event: SiteAdded, ctx: Context) -> None:
    status = await asyncio.to_thread(fetch, event.url)
    checked = SiteChecked(site_id=event.site_id, url=event.url, status=status, ok=status < 400)
    await service.publish(checked, id=f"checked-{ctx.message.id}")


def fetch(url: str) -> int:
    """The page's status. A server in trouble (5xx) has not answered yet: that raises, and is tried again."""
    try:
        with urlopen(url, timeout=10) as page:
            status: int = page.status
            return status
    except HTTPError as answer:
        with answer:
            if answer.code >= 500:
                raise
            return answer.code

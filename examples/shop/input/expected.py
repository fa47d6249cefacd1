"""What the input says must come out: worked out from its lines alone, with nothing of Tidemill or of the services."""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

Figures: TypeAlias = Counter[tuple[str, str]]
"""Numbers by section and row of the demo's table."""

MAIL_ATTEMPTS = 5  # as notifications.py says
PAGE_ATTEMPTS = 4  # as monitor.py says

FIELDS = ("payment_id", "email", "amount", "currency")
NEWEST = {"payment.received": 1, "payment.confirmed": 2}
FOR_EVER = 1_000_000


def figures(payments: Path, sites: Path) -> Figures:
    count: Figures = Counter()
    emails: list[str] = []
    seen: set[tuple[str, str]] = set()
    confirmed: set[str] = set()
    for line in payments.read_text().splitlines():
        count["payments.jsonl", "lines"] += 1
        event = understood(line)
        if event is None:
            count["payments.jsonl", "refused"] += 1
            continue
        if (event["source"], event["id"]) in seen:
            count["payments.jsonl", "duplicates"] += 1
            continue
        seen.add((event["source"], event["id"]))
        count["published", event["type"]] += 1
        if event["type"] == "payment.received":
            count["handled", "payments.confirm"] += 1
            if event["data"]["payment_id"] in confirmed:
                continue  # the bank reported it under two ids, and the shop confirms it once
            confirmed.add(event["data"]["payment_id"])
            count["published", "payment.confirmed"] += 1
        emails.append(event["data"]["email"])

    for email in emails:
        failures = mail_failures(email)
        if failures < MAIL_ATTEMPTS:
            count["handled", "notifications.send_receipt"] += 1
            count["arrived", "e-mails"] += 1
        else:
            count["dead letters", "notifications.send_receipt"] += 1
        if failures != FOR_EVER:
            count["retries", "notifications.send_receipt"] += min(failures, MAIL_ATTEMPTS - 1)

    for line in sites.read_text().splitlines():
        count["published", "site.added"] += 1
        page = urlsplit(json.loads(line)["url"]).path
        failures = {"/busy": 2, "/down": PAGE_ATTEMPTS}.get(page, 0)
        count["retries", "monitor.check"] += min(failures, PAGE_ATTEMPTS - 1)
        if failures == PAGE_ATTEMPTS:
            count["dead letters", "monitor.check"] += 1
            continue
        count["handled", "monitor.check"] += 1
        count["published", "site.checked"] += 1
        count["handled", "sites.note"] += 1
        count["arrived", "pages broken" if page == "/gone" else "pages fine"] += 1
    return count


def mail_failures(email: str) -> int:
    """How many attempts at an e-mail to this address fail. FOR_EVER: the first is the last."""
    domain = email.rpartition("@")[2]
    if "@" not in email or domain == "nobody.example":
        return FOR_EVER
    if domain == "full.example":
        return MAIL_ATTEMPTS
    grey = re.fullmatch(r"grey(\d+)\.example", domain)
    return int(grey[1]) if grey else 0


def understood(line: str) -> dict[str, Any] | None:
    """The event in a line, or None where it is none that anybody could handle."""
    try:
        event = json.loads(line)
        version = int(event["dataversion"])
        data = event["data"]
        fields = FIELDS[:3] if (event["type"], version) == ("payment.confirmed", 1) else FIELDS
        Decimal(data["amount"])
    except (ValueError, KeyError, TypeError, InvalidOperation):
        return None
    if version > NEWEST.get(event["type"], 0) or any(not isinstance(data.get(name), str) for name in fields):
        return None
    return dict(event)

"""Writes payments.jsonl and sites.jsonl: what happens to the shop in the example, good and bad. Seeded.

    python input/make_input.py

A line of payments.jsonl is one event as a CloudEvent in JSON. What each kind of line is there for is in README.md.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 20260101

NAMES = ("ada", "grace", "alan", "edsger", "barbara", "tony", "frances", "katherine", "radia", "margaret")
CURRENCIES = ("EUR", "USD", "GBP", "CHF")

dice = random.Random(SEED)
events = itertools.count(1)
payment_numbers = itertools.count(1)


def line(type: str, data: Any, version: int = 1, **attributes: Any) -> dict[str, Any]:
    number = next(events)
    source = "old-till" if type == "payment.confirmed" else "bank"
    return {
        "specversion": "1.0",
        "id": f"{source}-{number:04}",
        "source": source,
        "type": type,
        "dataversion": str(version),
        "datacontenttype": "application/json",
        "data": data,
        **attributes,
    }


def payment(domain: str = "post.example", **fields: Any) -> dict[str, Any]:
    number = next(payment_numbers)
    amount = f"{dice.randint(1, 250_00) / 100:.2f}"
    email = f"{dice.choice(NAMES)}.{number}@{domain}"
    currency = dice.choice(CURRENCIES)
    return {"payment_id": f"p-{number:04}", "email": email, "amount": amount, "currency": currency} | fields


def received(domain: str = "post.example", **fields: Any) -> dict[str, Any]:
    return line("payment.received", payment(domain, **fields))


def old(domain: str = "post.example") -> dict[str, Any]:
    data = payment(domain)
    del data["currency"]
    return line("payment.confirmed", data)


def without(name: str, event: dict[str, Any]) -> dict[str, Any]:
    """`event` without an attribute, or without a field of its data."""
    rest = {key: value for key, value in event.items() if key != name}
    return rest | {"data": {key: value for key, value in rest["data"].items() if key != name}}


def payments() -> list[str]:
    first = received()
    good = [received() for _ in range(400)]
    good += [old() for _ in range(60)]
    good += [received(f"grey{times}.example") for times in (1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3)]
    good += [old("grey1.example"), old("grey2.example")]
    good += [received("full.example") for _ in range(4)]
    good += [received("nobody.example") for _ in range(6)]
    good += [old("nobody.example")]
    good += [received(email=address) for address in ("", "ada", "grace.post.example", "-", "n/a")]
    # What consumers must put up with: a field and an attribute they do not know, the largest and smallest amounts.
    good += [received(branch="Delft"), line("payment.received", payment(), tenantid="north")]
    good += [received(amount="0.01"), received(amount="12345678901234567.89")]

    bad = [
        line("payment.refunded", payment()),  # a type nobody declared
        line("payment.confirmed", payment(), version=3),  # a version from the future
        line("payment.received", payment(), version=2),
        received(amount="lots"),
        received(amount=None),
        received(email=["ada@post.example"]),
        received(payment_id=17),
        without("email", received()),
        without("amount", received()),
        without("payment_id", old()),
        without("type", received()),
        line("payment.confirmed", without("currency", received())["data"], version=2),
        line("payment.received", ["p-1", "ada@post.example"]),
        line("payment.received", None),
        line("payment.received", payment(), dataversion="two"),
    ]
    torn = json.dumps(received())
    garbage = [
        torn[: len(torn) // 2],
        torn.replace('"data":', '"data"'),
        "Dear shop, where is my parcel?",
        "[]",
    ]

    lines = [json.dumps(event) for event in good + bad] + garbage
    dice.shuffle(lines)
    lines.insert(0, json.dumps(first))

    # Sent twice: the same id, anywhere later. Reported twice: the same payment under another id.
    for event in dice.sample(good[:460], 24):
        text = json.dumps(event)
        lines.insert(dice.randint(lines.index(text) + 1, len(lines)), text)
    for event in dice.sample(good[:400], 6):
        lines.insert(dice.randint(1, len(lines)), json.dumps(line("payment.received", event["data"])))
    return lines


def sites() -> list[str]:
    pages = [""] * 22 + ["gone"] * 4 + ["busy"] * 5 + ["down"]
    dice.shuffle(pages)
    lines: list[str] = []
    for number, page in enumerate(pages, 1):
        site = f"{dice.choice(NAMES)}-{number:02}"
        lines.append(json.dumps({"site_id": site, "url": f"http://{site}.example/{page}"}))
    return lines


if __name__ == "__main__":
    (HERE / "payments.jsonl").write_text("\n".join(payments()) + "\n")
    (HERE / "sites.jsonl").write_text("\n".join(sites()) + "\n")

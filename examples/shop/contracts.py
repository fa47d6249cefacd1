"""What the services agree on, and nothing else: topics, events and their versions."""

from __future__ import annotations

from decimal import Decimal

from tidemill import Json, Topic, event, upcast

payments = Topic("payments", key="payment_id")  # one payment's events stay in order
sites = Topic("sites", key="site_id")


@event("payment.received", topic=payments)
class PaymentReceived:
    """The bank has the customer's money."""

    payment_id: str
    email: str
    amount: Decimal
    currency: str


@event("payment.confirmed", version=2, topic=payments)
class PaymentConfirmed:
    """The shop has booked the payment and owes the customer an e-mail."""

    payment_id: str
    email: str
    amount: Decimal
    currency: str


@upcast(PaymentConfirmed, from_version=1)
def add_currency(v1: Json) -> Json:
    """Version 1 knew only euros. The old tills still publish it."""
    return v1 | {"currency": "EUR"}


@event("site.added", topic=sites)
class SiteAdded:
    """Somebody wants a page watched."""

    site_id: str
    url: str


@event("site.checked", topic=sites)
class SiteChecked:
    """A page was fetched. That it is broken is a result too."""

    site_id: str
    url: str
    status: int
    ok: bool

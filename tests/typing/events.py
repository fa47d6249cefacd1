"""What type checkers say about events. Lines they must refuse end in `# E`, or name the one checker that does."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import assert_type

import msgspec

from tidemill import Json, Topic, event, upcast

payments = Topic("payments", key="payment_id")
Topic("payments", "payment_id")  # E
Topic("payments", key=5)  # E


@event("payment.confirmed", version=2, topic=payments)
class PaymentConfirmed:
    payment_id: str
    amount: Decimal
    currency: str = "EUR"
    tags: list[str] = dataclasses.field(default_factory=list[str])
    notes: list[str] = msgspec.field(default_factory=list[str])

    def doubled(self) -> Decimal:
        return 2 * self.amount


one = PaymentConfirmed("p-1", Decimal(1))
PaymentConfirmed(payment_id="p-1", amount=Decimal(1), currency="USD", tags=["a"])
PaymentConfirmed("p-1")  # E
PaymentConfirmed("p-1", 1.5)  # E
PaymentConfirmed("p-1", Decimal(1), colour="red")  # E
assert_type(one, PaymentConfirmed)
assert_type(one.amount, Decimal)
assert_type(one.doubled(), Decimal)
one.amount = Decimal(2)  # E
colour = one.colour  # E


@event("payment.refunded", topic=payments)
@dataclasses.dataclass(frozen=True)
class PaymentRefunded:
    payment_id: str


PaymentRefunded("p-1")
PaymentRefunded(5)  # E


@event("payment.failed", topic=payments)
class PaymentFailed(msgspec.Struct, frozen=True):
    payment_id: str


PaymentFailed("p-1")
PaymentFailed(5)  # E


@event("payment.lost", topic="payments")  # E
class PaymentLost:
    payment_id: str


@event("payment.gone", payments)  # E
class PaymentGone:
    payment_id: str


@upcast(PaymentConfirmed, from_version=1)
def add_currency(v1: Json) -> Json:
    return v1 | {"currency": "EUR"}


assert_type(add_currency({}), Json)


@upcast(PaymentConfirmed, from_version=1)  # E
def not_json(v1: str) -> Json:
    return {"text": v1}


@upcast(PaymentConfirmed, from_version=1)  # E
async def asynchronous(v1: Json) -> Json:
    return v1


@upcast(PaymentConfirmed, from_version=1)  # E
def forgetful(v1: Json) -> None:
    v1["currency"] = "EUR"

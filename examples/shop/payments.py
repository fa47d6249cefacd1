"""The payments service: what the bank received, the shop confirms."""

from __future__ import annotations

from contracts import PaymentConfirmed, PaymentReceived

from tidemill import Service

service = Service("payments")


@service.on(PaymentReceived)
async def confirm(event: PaymentReceived) -> None:
    confirmed = PaymentConfirmed(
        payment_id=event.payment_id,
        email=event.email,
        amount=event.amount,
        currency=event.currency,
    )
    # An id made from the payment: if the bank reports it twice, or this handler has to run twice, the broker
    # recognises the second confirmation and keeps one.
    await service.publish(confirmed, id=f"confirmed-{event.payment_id}")

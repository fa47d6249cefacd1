"""What the middlewares' tests publish."""

from __future__ import annotations

from tidemill import Topic, event

orders = Topic("orders", key="number")


@event("order.placed", topic=orders)
class OrderPlaced:
    number: int


@event("order.cancelled", topic=orders)
class OrderCancelled:
    number: int

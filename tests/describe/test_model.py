from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from tidemill import Context, Json, RetryPolicy, Service, Topic, event, upcast
from tidemill.describe.model import Application, EventModel, RetryModel, application_of

orders = Topic("orders", key="order_id", retain=timedelta(days=1))
mails = Topic("mails")


@event("order.placed", version=2, topic=orders)
class OrderPlaced:
    order_id: str


@upcast(OrderPlaced, from_version=1)
def same(v1: Json) -> Json:
    return v1


@event("order.cancelled", topic=orders)
class OrderCancelled:
    order_id: str


@event("mail.sent", topic=mails)
class MailSent:
    to: str


def services() -> tuple[Service[None], Service[None]]:
    shop: Service[None] = Service("shop.front")
    mail: Service[None] = Service("mail")

    @mail.on(
        OrderPlaced,
        OrderCancelled,
        retry=RetryPolicy(attempts=3, never=(ValueError,)),
        timeout=10,
        concurrency=4,
    )
    async def send(event: OrderPlaced | OrderCancelled, context: Context) -> None: ...

    @mail.on(orders, name="all", timeout=None, ordered=False, start=datetime(2030, 1, 1, tzinfo=UTC))
    def everything(event: object) -> None: ...

    @shop.on(MailSent, start="beginning")
    async def note(event: MailSent) -> None: ...

    return shop, mail


def test_everything_declared_is_there() -> None:
    found = application_of(services())
    shop, mail = found.services
    assert (shop.name, mail.name) == ("shop.front", "mail")
    send, everything = mail.subscriptions
    assert (send.name, send.handler, send.topic) == ("mail.send", "send", "orders")
    assert send.events == ("order.cancelled", "order.placed")
    assert send.retry == RetryModel(attempts=3, immediate=1, base=1.0, factor=4.0, cap=900.0, never=("ValueError",))
    assert (send.timeout, send.concurrency, send.ordered, send.start) == (10, 4, True, "now")
    assert send.function.endswith("test_model:services.<locals>.send")
    assert (everything.name, everything.events, everything.timeout) == ("mail.all", None, None)
    assert (everything.ordered, everything.start) == (False, 1893456000 * 10**9)
    assert shop.subscriptions[0].name == "shop.front.note"
    assert shop.subscriptions[0].handler == "note", "the service's name has a dot itself"
    assert shop.subscriptions[0].start == "beginning"
    first, second = found.topics
    assert (first.name, first.key, first.retain) == ("mails", None, 7 * 86400)
    assert (second.name, second.key, second.retain) == ("orders", "order_id", 86400)
    assert second.events == (
        EventModel(name="order.cancelled", version=1, oldest=1, declared_as=f"{__name__}:OrderCancelled"),
        EventModel(name="order.placed", version=2, oldest=1, declared_as=f"{__name__}:OrderPlaced"),
    )


def test_it_is_data() -> None:
    found = application_of(services())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Application) == found
    assert found == application_of(services())


def test_callables_that_are_no_functions_have_a_name_too() -> None:
    service = Service("mail")

    class Handler:
        async def __call__(self, event: MailSent) -> None: ...

    service.on(MailSent, name="send")(Handler())
    [one] = application_of([service]).services[0].subscriptions
    assert one.function.endswith("Handler")


def test_nothing() -> None:
    assert application_of([]) == Application(services=(), topics=())

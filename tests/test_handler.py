"""Handlers: what may be declared, and what is said where it may not."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from tidemill import Context, DefinitionError, Message, Service, Topic, event

orders = Topic("orders", key="order_id")
sites = Topic("sites")


@event("order.placed", topic=orders)
class OrderPlaced:
    order_id: str


@event("order.paid", topic=orders)
class OrderPaid:
    order_id: str


@event("site.added", topic=sites)
class SiteAdded:
    url: str


@event("order.archived", version=3, topic=Topic("archive"))
class OrderArchived:
    order_id: str


def declare(handler: Any, *events: Any, **options: Any) -> Service[None]:
    service = Service("shop")
    assert service.on(*events, **options)(handler) is handler
    return service


def refused(handler: Any, *events: Any, **options: Any) -> str:
    with pytest.raises(DefinitionError) as raised:
        declare(handler, *events, **options)
    return str(raised.value)


async def takes_placed(event: OrderPlaced) -> None: ...
async def takes_paid(event: OrderPaid, ctx: Context) -> None: ...
async def takes_either(event: OrderPlaced | OrderPaid) -> None: ...
async def takes_anything(event: Any) -> None: ...
async def takes_message(message: Message) -> None: ...
def takes_placed_in_a_thread(event: OrderPlaced) -> None: ...


def test_one_event_several_a_union_or_a_topic() -> None:
    subscription = declare(takes_placed, OrderPlaced).handlers[0].subscription
    assert (subscription.name, subscription.topic, subscription.types) == (
        "shop.takes_placed",
        "orders",
        ("order.placed",),
    )
    assert subscription.ordered
    both = ("order.paid", "order.placed")
    assert declare(takes_either, OrderPlaced, OrderPaid).handlers[0].subscription.types == both
    assert declare(takes_either, OrderPlaced | OrderPaid).handlers[0].subscription.types == both
    assert declare(takes_either, orders).handlers[0].subscription.types is None
    assert declare(takes_anything, orders).handlers[0].takes_context is False
    assert declare(takes_paid, OrderPaid).handlers[0].takes_context is True
    assert declare(takes_message, orders).handlers[0].raw is True
    assert not declare(takes_anything, SiteAdded).handlers[0].subscription.ordered


def test_an_annotation_that_disagrees_is_refused_with_both_sides_named() -> None:
    text = refused(takes_paid, OrderPlaced)
    assert "takes_paid" in text
    assert __file__ in text
    assert "annotated to take OrderPaid, but @on gives it OrderPlaced. Make the two agree." in text
    assert "OrderPaid" in refused(takes_placed, OrderPlaced, OrderPaid)
    assert "OrderPaid" in refused(takes_placed, orders)

    async def takes_a_number(event: int) -> None: ...

    assert "annotated to take int (no event class)" in refused(takes_a_number, OrderPlaced)

    async def odd_context(event: OrderPlaced, ctx: int) -> None: ...

    assert "its second parameter" in refused(odd_context, OrderPlaced)


def test_functions_that_cannot_be_handlers() -> None:
    async def nothing() -> None: ...
    async def three(event: OrderPlaced, ctx: Context, more: int) -> None: ...
    async def keyword(event: OrderPlaced, *, more: int) -> None: ...
    async def generator(event: OrderPlaced) -> Any:
        yield event

    for handler in (nothing, three, keyword):
        assert "A handler takes the event and, if it wants one, a Context" in refused(handler, OrderPlaced)
    assert "is a generator" in refused(generator, OrderPlaced)


def test_what_on_takes() -> None:
    assert "names no event" in refused(takes_placed)
    assert "is not an event" in refused(takes_placed, int)
    assert "neither an event class nor a Topic" in refused(takes_placed, "order.placed")
    assert "not both" in refused(takes_anything, OrderPlaced, orders)
    assert "names events of 2 topics (orders, sites)" in refused(takes_anything, OrderPlaced, SiteAdded)
    assert "version 1 cannot be read" in refused(takes_anything, OrderArchived)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "more than 0 seconds"),
        ({"timeout": timedelta(seconds=-1)}, "more than 0 seconds"),
        ({"concurrency": 0}, "at least 1"),
        ({"start": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"name": "a/b"}, "cannot name a subscription"),
        ({"start": "yesterday"}, "start"),
        ({"renamed_from": "shop.takes_placed"}, "renamed_from"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    assert said in refused(takes_placed, OrderPlaced, **options)


def test_order_needs_a_key() -> None:
    assert "no key to be ordered by" in refused(takes_anything, SiteAdded, ordered=True)


def test_two_handlers_of_one_name_are_refused() -> None:
    service = declare(takes_placed, OrderPlaced)
    with pytest.raises(DefinitionError, match=r"both the subscription 'shop\.takes_placed'"):
        service.on(OrderPlaced)(takes_placed)
    service.on(OrderPlaced, name="second")(takes_placed)
    assert [spec.subscription.name for spec in service.handlers] == ["shop.takes_placed", "shop.second"]


def test_names_only_type_checkers_know_are_left_to_them() -> None:
    async def handler(event: OnlyForCheckers) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    declare(handler, OrderPlaced)


def test_a_handler_is_still_a_plain_function() -> None:
    service = Service("shop")
    seen: list[str] = []

    @service.on(OrderPlaced)
    async def remember(event: OrderPlaced) -> None:
        seen.append(event.order_id)

    asyncio.run(remember(OrderPlaced("o1")))
    assert seen == ["o1"]

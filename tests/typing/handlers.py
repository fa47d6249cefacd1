"""What type checkers say about handlers. Lines they must refuse end in `# E`, or name the one checker that does."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from tidemill import (
    Circuit,
    Context,
    Delivery,
    Handle,
    Message,
    Middleware,
    Outcome,
    Rate,
    RetryPolicy,
    Service,
    Topic,
    event,
)
from tidemill.middleware import circuit_breaker, log, throttle
from tidemill.outcome import ACK

topic = Topic("things")


@event("a", topic=topic)
class A:
    value: int


@event("b", topic=topic)
class B:
    value: int


@event("c", topic=topic)
class C:
    value: int


service = Service("service")


@service.on(A)
async def takes_event(event: A) -> None:
    pass


@service.on(A)
async def takes_context(event: A, ctx: Context) -> str:
    return ctx.correlation_id


@service.on(A)
def takes_event_in_a_thread(event: A) -> int:
    return event.value


@service.on(A, B)
async def takes_two(event: A | B) -> None:
    pass


@service.on(A, B, C)
async def takes_three(event: A | B | C, ctx: Context) -> None:
    pass


@service.on(A)
async def takes_more(event: A | B) -> None:
    pass


@service.on(A)
async def takes_anything(event: object) -> None:
    pass


@service.on(topic)
async def takes_the_topic(event: A | B | C) -> None:
    pass


@service.on(topic)
async def takes_messages(message: Message, ctx: Context) -> None:
    pass


# Decorators return the function as it is: a unit test calls it.
called: Coroutine[Any, Any, None] = takes_event(A(1))
assert_type(takes_event_in_a_thread(A(1)), int)
wrong = takes_event(B(1))  # E
empty = takes_event()  # E


async def calls(ctx: Context) -> None:
    assert_type(await takes_context(A(1), ctx), str)
    await takes_context(A(1))  # E


@service.on(A)  # E
async def takes_another(event: B) -> None:
    pass


@service.on(A, B)  # E
async def takes_too_little(event: A) -> None:
    pass


@service.on(A, B, C)  # E
async def takes_still_too_little(event: A | B) -> None:
    pass


@service.on(A)  # E
async def takes_a_number(event: A, number: int) -> None:
    pass


@service.on(A)  # E
async def takes_nothing() -> None:
    pass


@service.on(A)  # E
async def takes_too_much(event: A, ctx: Context, more: int) -> None:
    pass


# Every option is typed.
service.on(A, retry=RetryPolicy(attempts=3, never=(ValueError,)), timeout=timedelta(minutes=1), concurrency=4)
service.on(A, name="x", ordered=False, start=datetime.now(UTC), renamed_from="service.y", timeout=None)
service.on(A, retry=3)  # E
service.on(A, retries=3)  # E
service.on(A, start="yesterday")  # E
service.on(A, concurrency="many")  # E
service.on(A, B, retry=RetryPolicy())
service.on(A, B, retry=3)  # E
service.on(topic, retries=RetryPolicy())  # E
service.on("a")  # E
service.on()  # E
RetryPolicy(attempts="3")  # E
RetryPolicy(only=(ConnectionError,), never=(ValueError,))
RetryPolicy(only=ConnectionError)  # E
service.on(A, use=[log(), throttle(Rate(1)), circuit_breaker(Circuit(failures=3), on=(OSError,))])
throttle(100)  # E
circuit_breaker(on=ConnectionError)  # E
log(body="yes")  # E
RetryPolicy(5)  # E


async def middleware(call_next: Handle, delivery: Delivery) -> Outcome:
    return await call_next(delivery)


async def forgets_the_outcome(call_next: Handle, delivery: Delivery) -> None:
    await call_next(delivery)


async def takes_no_delivery(call_next: Handle) -> Outcome:
    return ACK


fits: Middleware = middleware
service.on(A, use=[middleware])
service.on(A, use=[forgets_the_outcome])  # E
service.on(A, use=[takes_no_delivery])  # E

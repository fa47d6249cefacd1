"""What type checkers say about publishing and running. Lines they must refuse end in `# E`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import assert_type

from tidemill import Ack, DeadLetter, Message, Outcome, PublishError, Release, Retry, Service, Topic, event
from tidemill.broker import Receipt

topic = Topic("things")


@event("a", topic=topic)
class A:
    value: int


class Database:
    name: str = "db"


@asynccontextmanager
async def resources() -> AsyncGenerator[Database, None]:
    yield Database()


service = Service("service", resources=resources)
assert_type(service.resources, Database)
nothing = service.resources.nothing  # E
Service(5)  # E


async def publishes() -> None:
    assert_type(await service.publish(A(1)), Message)
    assert_type(await service.publish_many([A(1), A(2)], delay=5), list[Message])
    await service.publish(A(1), delay=timedelta(hours=1), id="mine", headers={"tenantid": "a"})
    await service.publish(A(1), at=datetime.now(UTC))
    await service.publish(A(1), headers={"tenantid": 5})  # E
    await service.publish(A(1), delay="soon")  # E
    await service.publish(A(1), id=5)  # E
    await service.publish()  # E
    await service.publish_many(A(1))  # E
    print(service.publish(A(1)).id)  # E


async def runs() -> None:
    async with service.running("memory:") as running:
        assert_type(running, Service[Database])
    async with service.running(5):  # E
        pass
    async with service.lifespan() as none:
        assert_type(none, None)


def reads(message: Message, error: PublishError) -> None:
    assert_type(message.key, str | None)
    assert_type(message.when, datetime)
    assert_type(error.failed, list[tuple[Message, Receipt]])
    message.key = "x"  # E


def is_total(outcome: Outcome) -> str:
    match outcome:
        case Ack():
            return "ack"
        case Retry(after=after):
            return f"{after:g}"
        case DeadLetter(reason=reason):
            return reason
        case Release():
            return "release"

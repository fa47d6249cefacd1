"""A line per attempt, with its fields, and without the body."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tidemill import Reject, RetryPolicy, Service
from tidemill.middleware import log
from tidemill.testing import running

from .events import OrderPlaced


def fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["tidemill"] for record in caplog.records if record.name == "tidemill.attempt"]


def test_every_attempt_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    service = Service("shop")

    @service.on(OrderPlaced, retry=RetryPolicy(attempts=2, base=1), use=[log()])
    async def ship(event: OrderPlaced) -> None:
        if event.number == 7:
            raise ValueError("no such address")

    async def scenario() -> str:
        async with running(service) as mill:
            await mill.publish(OrderPlaced(1))
            await mill.publish(OrderPlaced(7))
            await mill.settled()
            return mill.messages()[0].id

    with caplog.at_level(logging.INFO, "tidemill.attempt"):
        id = asyncio.run(scenario())
    first, *failed = fields(caplog)
    assert first.pop("ms") >= 0
    assert first == {
        "subscription": "shop.ship",
        "type": "order.placed",
        "id": id,
        "key": "1",
        "attempt": 1,
        "outcome": "Ack",
    }
    assert [(each["attempt"], each["error"]) for each in failed] == [
        (1, "ValueError: no such address"),
        (2, "ValueError: no such address"),
    ]
    assert "outcome" not in failed[0]
    (line, *_) = [record.getMessage() for record in caplog.records if record.name == "tidemill.attempt"]
    assert line.startswith(f"attempt subscription=shop.ship type=order.placed id={id} key=1 attempt=1 outcome=Ack ms=")


def run(*middlewares: Any) -> None:
    service = Service("shop")

    @service.on(OrderPlaced, use=middlewares)
    async def ship(event: OrderPlaced) -> None:
        raise Reject("no")

    async def scenario() -> None:
        async with running(service) as mill:
            await mill.publish(OrderPlaced(4711))
            await mill.settled()
            assert len(mill.dead_letters()) == 1

    asyncio.run(scenario())


def test_the_body_is_in_it_only_where_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tidemill.attempt"):
        run(log())
        run(log(body=True))
    without, with_body = fields(caplog)
    assert "body" not in without
    assert with_body["body"] == '{"number":4711}'


def test_another_logger_and_level(caplog: pytest.LogCaptureFixture) -> None:
    mine = logging.getLogger("shop.audit")
    with caplog.at_level(logging.DEBUG, "shop.audit"):
        run(log(mine, logging.DEBUG), log("shop.audit", logging.WARNING))
    assert [(record.name, record.levelname) for record in caplog.records if record.name == "shop.audit"] == [
        ("shop.audit", "WARNING"),
        ("shop.audit", "DEBUG"),
    ]


def test_who_does_not_listen_pays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tidemill.attempt"):
        run(log())
    assert fields(caplog) == []


def test_logging_that_is_broken_fails_no_attempt() -> None:
    logger = logging.getLogger("shop.broken")
    logger.setLevel(logging.INFO)

    def raises(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter is broken")

    logger.addFilter(raises)
    service = Service("shop")

    @service.on(OrderPlaced, use=[log(logger)])
    async def ship(event: OrderPlaced) -> None: ...

    async def scenario() -> None:
        async with running(service) as mill:
            await mill.publish(OrderPlaced(1))
            await mill.settled()
            assert mill.handled(ship) == [OrderPlaced(1)]

    asyncio.run(scenario())

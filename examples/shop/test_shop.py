"""The shop's own tests: its handlers in the real pipeline, with a broker in memory and a clock that jumps.

pytest examples/shop/test_shop.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import monitor
import notifications
import payments
import pytest
import sites
from contracts import PaymentConfirmed, PaymentReceived, SiteAdded, SiteChecked
from outside import mail, web

from tidemill.testing import running


def received(payment_id: str = "p-1", email: str = "ada@post.example") -> PaymentReceived:
    return PaymentReceived(payment_id=payment_id, email=email, amount=Decimal("9.50"), currency="USD")


def confirmed(email: str) -> PaymentConfirmed:
    return PaymentConfirmed(payment_id="p-1", email=email, amount=Decimal("9.50"), currency="USD")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of these tests are on loopback, where no proxy of the machine's can reach them."""
    monkeypatch.setenv("no_proxy", "*")


@asynccontextmanager
async def mailbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[dict[str, Any]]]:
    """The e-mails that arrive, while notifications sends to a mailbox of this test's own."""
    arrived: list[dict[str, Any]] = []
    async with mail.serving(mail.Mailbox(arrived.append)) as address:
        monkeypatch.setattr(notifications, "SMTP_SERVER", address)
        yield arrived


def test_a_payment_reported_twice_is_confirmed_once() -> None:
    async def scenario() -> None:
        async with running(payments.service) as mill:
            await mill.publish(received())
            await mill.publish(received())  # another event, with an id of its own
            await mill.settled()
            assert [event.payment_id for event in mill.published(PaymentConfirmed)] == ["p-1"]

    asyncio.run(scenario())


def test_a_payment_becomes_an_email(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with mailbox(monkeypatch) as arrived, running(payments.service, notifications.service) as mill:
            await mill.publish(received())
            await mill.settled()
            assert [(each["to"], each["subject"]) for each in arrived] == [
                ("ada@post.example", "Payment p-1: 9.50 USD")
            ]
            assert mill.dead_letters() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("bounces", [1, 2, 4])
def test_an_address_that_bounces_for_a_while_gets_its_email_once(monkeypatch: pytest.MonkeyPatch, bounces: int) -> None:
    async def scenario() -> None:
        async with mailbox(monkeypatch) as arrived, running(notifications.service) as mill:
            await mill.publish(confirmed(f"ada@grey{bounces}.example"))
            await mill.settled()
            assert [each["times"] for each in arrived] == [1]
            assert mill.dead_letters() == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("email", "attempts", "reason"),
    [
        ("ada", 1, "no address to send to: 'ada'"),
        ("ada@nobody.example", 1, "refused for good: 550"),
        ("ada@full.example", notifications.BOUNCING.attempts, "the mailbox is full"),
    ],
)
def test_an_address_that_takes_no_email_ends_as_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch, email: str, attempts: int, reason: str
) -> None:
    async def scenario() -> None:
        async with mailbox(monkeypatch) as arrived, running(notifications.service) as mill:
            await mill.publish(confirmed(email))
            await mill.settled()
            assert arrived == []
            [dead] = mill.dead_letters()
            assert dead.attempts == attempts
            assert reason in dead.reason

    asyncio.run(scenario())


@pytest.mark.parametrize(("page", "status", "ok"), [("", 200, True), ("gone", 404, False), ("busy", 200, True)])
def test_a_page_is_checked(page: str, status: int, ok: bool) -> None:
    async def scenario() -> None:
        async with running(monitor.service, sites.service) as mill:
            await mill.publish(SiteAdded(site_id="tea", url=url))
            await mill.settled()
            assert mill.published(SiteChecked) == [SiteChecked(site_id="tea", url=url, status=status, ok=ok)]
            assert mill.dead_letters() == []

    with web.serving() as server:
        url = f"http://{server.address}/{page}"
        asyncio.run(scenario())


def test_a_page_that_stays_down_is_given_up() -> None:
    async def scenario() -> None:
        async with running(monitor.service) as mill:
            await mill.publish(SiteAdded(site_id="tea", url=url))
            await mill.settled()
            assert mill.published(SiteChecked) == []
            [dead] = mill.dead_letters()
            assert "503" in dead.reason
            assert server.requests["/down"] == dead.attempts

    with web.serving() as server:
        url = f"http://{server.address}/down"
        asyncio.run(scenario())

from __future__ import annotations

import asyncio
import sys

import pytest

from tidemill import Json, Message, RetryPolicy, Service, Topic, event, upcast
from tidemill.broker import Fate, Trace
from tidemill.describe.model import application_of
from tidemill.describe.sequence import declared, happened
from tidemill.testing import running

from .flows import SECOND, failure, fate, message
from .mermaid_parser import refused

orders = Topic("orders", key="order_id")
mails = Topic("mails")
logs = Topic("logs")


@event("order.placed", version=3, oldest=2, topic=orders)
class OrderPlaced:
    order_id: str


@upcast(OrderPlaced, from_version=2)
def same(v2: Json) -> Json:
    return v2


@event("order.cancelled", topic=orders)
class OrderCancelled:
    order_id: str


@event("mail.sent", topic=mails)
class MailSent:
    order_id: str


def steps(trace: Trace) -> list[str]:
    """The arrows and notes of a flow, without the participants."""
    text = happened(trace)
    head, *lines = text.splitlines()
    assert head == "sequenceDiagram"
    assert text.endswith("\n")
    assert text.isascii()
    return [line.strip() for line in lines if not line.strip().startswith("participant ")]


# -------------------------------------------------------------------- declared


def test_what_is_declared() -> None:
    mail, audit, idle = Service("mail"), Service("audit.log"), Service("idle")

    @mail.on(OrderPlaced, retry=RetryPolicy(attempts=3), timeout=10)
    async def send(event: OrderPlaced) -> None: ...

    @audit.on(orders, retry=RetryPolicy(attempts=1), timeout=None, concurrency=1)
    async def note(event: object) -> None: ...

    @audit.on(logs)
    async def keep(message: Message) -> None: ...

    text = declared(application_of([mail, audit, idle]))
    assert text == (
        "sequenceDiagram\n"
        "    participant topic_logs as logs (topic)\n"
        "    participant topic_orders as orders (topic)\n"
        "    participant service_mail as mail\n"
        "    participant service_audit_log as audit.log\n"
        "    participant service_idle as idle\n"
        "    Note over topic_logs: no events declared<br/>in no order\n"
        "    Note over topic_orders: order.cancelled v1<br/>order.placed v3 (reads v2 and later)<br/>"
        "in order per order_id\n"
        "    topic_orders->>service_mail: order.placed v3\n"
        "    Note over service_mail: send<br/>3 attempts#58; again at once, then after up to 1 s<br/>"
        "then dead letter<br/>each at most 10 s, 16 at once, in order\n"
        "    topic_orders->>service_audit_log: order.cancelled v1\n"
        "    topic_orders->>service_audit_log: order.placed v3\n"
        "    Note over service_audit_log: note<br/>1 attempt, never retried<br/>then dead letter<br/>"
        "no time limit, 1 at once, in order\n"
        "    topic_logs->>service_audit_log: every message\n"
        "    Note over service_audit_log: keep<br/>"
        "8 attempts#58; again at once, then after up to 1 s, 4 s, 16 s, 1 min 4 s, 4 min 16 s, 15 min<br/>"
        "then dead letter<br/>each at most 1 min, 16 at once\n"
        "    Note over service_idle: subscribes to nothing\n"
    )
    assert refused([text]) == {}


# -------------------------------------------------------------------- happened


def test_a_flow_in_the_order_of_its_causes() -> None:
    trace = Trace(
        [
            message("1", source="web"),
            message("3", source="mail", type="mail.sent", topic="mails", causation_id="2", time=5),
            message("2", source="shop", type="order.paid", causation_id="1", version=2, time=4),
        ],
        [fate("1", "shop.pay"), fate("3", "audit.note"), fate("2", "mail.send")],
    )
    text = happened(trace)
    assert text == (
        "sequenceDiagram\n"
        "    participant topic_orders as orders (topic)\n"
        "    participant service_web as web\n"
        "    participant service_shop as shop\n"
        "    participant service_mail as mail\n"
        "    participant topic_mails as mails (topic)\n"
        "    participant service_audit as audit\n"
        "    service_web->>topic_orders: order.placed v1\n"
        "    topic_orders->>service_shop: order.placed v1 to shop.pay, attempt 1\n"
        "    service_shop->>topic_orders: order.paid v2\n"
        "    topic_orders->>service_mail: order.paid v2 to mail.send, attempt 1\n"
        "    service_mail->>topic_mails: mail.sent v1\n"
        "    topic_mails->>service_audit: mail.sent v1 to audit.note, attempt 1\n"
        "    service_audit-->>topic_mails: handled\n"
        "    service_mail-->>topic_orders: handled\n"
        "    service_shop-->>topic_orders: handled\n"
    )
    assert refused([text]) == {}


def test_failed_attempts_with_their_delays_and_what_was_published_in_between() -> None:
    history = (failure(1, 1), failure(2, 1.25, "KeyError: 'x'"), failure(3, 65.25))
    found = steps(
        Trace(
            [
                message("1"),
                message("2", source="mail", type="tried", topic="mails", causation_id="1", time=SECOND // 2),
                message("3", source="mail", type="sent", topic="mails", causation_id="1", time=70 * SECOND),
            ],
            [fate("1", attempts=4, history=history)],
        )
    )
    assert found == [
        "service_shop->>topic_orders: order.placed v1",
        "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 1",
        "service_mail->>topic_mails: tried v1",
        "Note over topic_mails: nobody subscribed to tried v1",
        "service_mail--xtopic_orders: failed#58; OSError#58; no route",
        "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 2",
        "service_mail--xtopic_orders: failed 0.25 s later#58; KeyError#58; 'x'",
        "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 3",
        "service_mail--xtopic_orders: failed 1 min 4 s later#58; OSError#58; no route",
        "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 4",
        "service_mail->>topic_mails: sent v1",
        "Note over topic_mails: nobody subscribed to sent v1",
        "service_mail-->>topic_orders: handled",
    ]


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (
            fate(
                "1",
                state="dead",
                attempts=1,
                history=(failure(1),),
                reason="OSError: no route (attempt 1 of 1)",
            ),
            [
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 1",
                "service_mail--xtopic_orders: failed#58; OSError#58; no route",
                "Note over service_mail: dead letter after 1 attempt<br/>OSError#58; no route (attempt 1 of 1)",
            ],
        ),
        (  # decided by a middleware: nothing was raised
            fate("1", state="dead", attempts=2, history=(failure(1),), reason="too old"),
            [
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 1",
                "service_mail--xtopic_orders: failed#58; OSError#58; no route",
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 2",
                "service_mail--xtopic_orders: too old",
                "Note over service_mail: dead letter after 2 attempts<br/>too old",
            ],
        ),
        (
            fate("1", state="retrying", attempts=2, history=(failure(1),)),
            [
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 1",
                "service_mail--xtopic_orders: failed#58; OSError#58; no route",
                "Note over service_mail: mail.send will get order.placed v1 again, attempt 2",
            ],
        ),
        (
            fate("1", state="pending"),
            ["Note over service_mail: mail.send has not handled order.placed v1 yet"],
        ),
        (  # the process ended during the first two
            fate("1", attempts=4, history=(failure(3),)),
            [
                "Note over service_mail: 2 attempts left no record, such as when a process ends",
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 3",
                "service_mail--xtopic_orders: failed#58; OSError#58; no route",
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 4",
                "service_mail-->>topic_orders: handled",
            ],
        ),
        (
            fate("1", attempts=2),
            [
                "Note over service_mail: 1 attempt left no record, such as when a process ends",
                "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 2",
                "service_mail-->>topic_orders: handled",
            ],
        ),
    ],
    ids=["dead", "dead without an error", "retrying", "pending", "a crash", "a crash without an error"],
)
def test_how_a_handling_can_end(ended: Fate, expected: list[str]) -> None:
    assert steps(Trace([message("1")], [ended]))[1:] == expected


def test_what_several_handlers_of_one_service_published_comes_after_the_last() -> None:
    found = steps(
        Trace(
            [message("1"), message("2", source="mail", type="sent", topic="mails", causation_id="1", time=9)],
            [fate("1", "mail.a"), fate("1", "mail.b"), fate("1", "other.c")],
        )
    )
    at = found.index("service_mail->>topic_mails: sent v1")
    assert found[at - 1].endswith("to mail.b, attempt 1")
    assert found[at + 2] == "service_mail-->>topic_orders: handled"


def test_what_nobody_with_a_fate_published_is_drawn_too() -> None:
    found = steps(Trace([message("1"), message("2", source="cron", causation_id="1")], [fate("1")]))
    assert "service_cron->>topic_orders: order.placed v1" in found
    found = steps(Trace([message("2", source="cron", causation_id="not here")], []))
    assert found[0] == "service_cron->>topic_orders: order.placed v1"


def test_causes_in_circles_end() -> None:
    found = steps(
        Trace(
            [
                message("1", type="a", causation_id="2"),
                message("2", type="b", causation_id="1"),
                message("3", type="c", causation_id="3"),
            ],
            [],
        )
    )
    for name in "abc":
        assert found.count(f"service_shop->>topic_orders: {name} v1") == 1


def test_one_id_of_two_sources_is_two_events() -> None:
    found = steps(
        Trace(
            [message("1", source="a"), message("1", source="b")],
            [fate("1"), fate("1", state="pending"), fate("unknown")],
        )
    )
    assert found == [
        "service_a->>topic_orders: order.placed v1",
        "topic_orders->>service_mail: order.placed v1 to mail.send, attempt 1",
        "service_mail-->>topic_orders: handled",
        "service_b->>topic_orders: order.placed v1",
        "Note over service_mail: mail.send has not handled order.placed v1 yet",
    ]


def test_services_with_dots_in_their_names() -> None:
    found = happened(
        Trace(
            [message("1", source="shop.mail"), message("2", source="shop")],
            [fate("1", "shop.mail.send.now"), fate("2", "a.b.c"), fate("2", "odd")],
        )
    )
    assert "to shop.mail.send.now" in found
    assert "participant service_shop_mail as shop.mail\n" in found
    assert "participant service_shop_mail_send" not in found, "the service that published is believed"
    assert "participant service_a_b as a.b\n" in found
    assert "participant service_odd as odd\n" in found


def test_a_flow_of_thousands_of_events() -> None:
    deep = 3 * sys.getrecursionlimit()
    chain = [message(str(n), source="mail", causation_id=str(n - 1), time=n) for n in range(deep)]
    found = steps(Trace(chain, [fate(str(n)) for n in range(deep)]))
    assert sum(line.startswith("service_mail->>topic_orders") for line in found) == deep


def test_an_empty_trace() -> None:
    text = happened(Trace([], []))
    assert "nothing was published" in text
    assert refused([text]) == {}


def test_the_flow_of_a_real_run() -> None:
    """From the broker, with the services' own correlation."""
    shop, mail = Service("shop"), Service("mail")
    errors = [OSError("down"), OSError("down; #1")]

    @shop.on(OrderPlaced, name="end")
    async def cancel(event: OrderPlaced) -> None:
        await shop.publish(OrderCancelled(event.order_id))

    @mail.on(OrderCancelled)
    async def send(event: OrderCancelled) -> None:
        if event.order_id == "1" and errors:
            raise errors.pop()
        await mail.publish(MailSent(event.order_id))

    async def main() -> str:
        async with running(shop, mail) as mill:
            root = await mill.publish(OrderPlaced("1"))
            await mill.publish(OrderPlaced("another flow"))
            await mill.settled()
            return happened(await mill._broker.trace(root.id))

    text = asyncio.run(main())
    assert [line.strip() for line in text.splitlines() if ">>" in line or "--x" in line or "Note" in line] == [
        "service_test->>topic_orders: order.placed v3",
        "topic_orders->>service_shop: order.placed v3 to shop.end, attempt 1",
        "service_shop->>topic_orders: order.cancelled v1",
        "topic_orders->>service_mail: order.cancelled v1 to mail.send, attempt 1",
        "service_mail--xtopic_orders: failed#58; OSError#58; down#59; #35;1",
        "topic_orders->>service_mail: order.cancelled v1 to mail.send, attempt 2",
        "service_mail--xtopic_orders: failed 0 s later#58; OSError#58; down",
        "topic_orders->>service_mail: order.cancelled v1 to mail.send, attempt 3",
        "service_mail->>topic_mails: mail.sent v1",
        "Note over topic_mails: nobody subscribed to mail.sent v1",
        "service_mail-->>topic_orders: handled",
        "service_shop-->>topic_orders: handled",
    ]
    assert refused([text]) == {}

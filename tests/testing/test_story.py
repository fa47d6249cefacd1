from __future__ import annotations

import asyncio
import sys

import pytest

from tidemill import Context, Delivery, Handle, Message, Outcome, Reject, RetryPolicy, Service, Topic, event
from tidemill.broker import STORED, Subscription
from tidemill.outcome import ACK, RELEASE
from tidemill.testing import running
from tidemill.testing.record import Record
from tidemill.testing.story import cut, moment, tell

orders = Topic("orders", key="order_id")
mails = Topic("mails")


@event("order.placed", topic=orders)
class OrderPlaced:
    order_id: str


@event("order.paid", version=3, oldest=3, topic=orders)
class OrderPaid:
    order_id: str


@event("mail.sent", topic=mails)
class MailSent:
    to: str


LATER = RetryPolicy(attempts=3, immediate=0, base=20, factor=1, cap=20)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_whole_story() -> None:
    shop, mail = Service("shop"), Service("mail")

    @shop.on(OrderPlaced)
    async def pay(event: OrderPlaced) -> None:
        await shop.publish(OrderPaid(event.order_id))

    @mail.on(OrderPaid, retry=RetryPolicy(attempts=3))
    async def send(event: OrderPaid, context: Context) -> None:
        if context.attempt == 1:
            await mail.publish(MailSent("tried"), delay=60)
            raise OSError("no route")
        await mail.publish_many([MailSent("a"), MailSent("b")])

    @mail.on(OrderPaid)
    async def refuse(event: OrderPaid) -> None:
        raise Reject("nobody wants it")

    async def main() -> None:
        async with running(shop, mail) as mill:
            await mill.publish(OrderPlaced("1"))
            await mill.publish(OrderPlaced("1"), id=mill.messages()[0].id)
            await mill.advance(10)
            assert mill.story().splitlines() == [
                "+0 s       test published order.placed, key '1'",
                "+0 s         shop.pay, attempt 1: handled",
                "+0 s           shop published order.paid v3, key '1'",
                f"+0 s             mail.send, attempt 1: OSError: no route (test_story.py:{line}), again at once",
                "+0 s               mail published mail.sent, to appear at +60 s",
                "                     nobody here subscribes to it on topic 'mails'",
                "+0 s             mail.send, attempt 2: handled",
                "+0 s               mail published mail.sent",
                "                     nobody here subscribes to it on topic 'mails'",
                "+0 s               mail published mail.sent",
                "                     nobody here subscribes to it on topic 'mails'",
                f"+0 s             mail.refuse, attempt 1: dead letter: nobody wants it (test_story.py:{line + 5})",
                "+0 s       test published order.placed, key '1', which was there already: nothing happens",
            ]

    line = send.__code__.co_firstlineno + 4
    asyncio.run(main())


def test_what_has_not_ended() -> None:
    service = Service("mail", resources=None)

    @service.on(OrderPlaced, retry=LATER)
    async def fail(event: OrderPlaced) -> None:
        raise OSError

    @service.on(OrderPlaced, concurrency=1)
    async def hang(event: OrderPlaced) -> None:
        await service.publish(MailSent("hello"))
        await asyncio.Event().wait()

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(OrderPlaced("1"))
            await mill.publish(OrderPlaced("2"))
            await mill.publish(OrderPlaced("3"), delay=5)
            await mill.advance(1, patience=0.02)
            story = lines(mill.story())
            assert story[2].startswith("mail.fail, attempt 2: waits until +1")
            assert "mail.hang, attempt 1: is running" in story
            assert "mail.hang, attempt 1: has not begun" in story
            assert story[story.index("mail.hang, attempt 1: is running") + 1] == "+0 s mail published mail.sent"
            assert story[-1] == "+0 s test published order.placed, key '3', to appear at +5 s"
            story_before = story
        after = lines(mill.story())
        assert "mail.hang, attempt 1: was running when the test ended" in after
        assert "mail.hang, attempt 1: had not begun when the test ended" in after
        assert len(after) == len(story_before)

    asyncio.run(main())


def test_what_is_given_back_and_what_middlewares_decide() -> None:
    service = Service("mail")
    seen: list[int] = []

    async def give_back_once(call_next: Handle, delivery: Delivery) -> Outcome:
        seen.append(delivery.attempt)
        return RELEASE if len(seen) == 1 else await call_next(delivery)

    @service.on(OrderPlaced, use=[give_back_once])
    async def send(event: OrderPlaced) -> None:
        await service.publish(MailSent("hello"))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(OrderPlaced("1"))
            await mill.settled()
            assert lines(mill.story())[1:] == [
                "+0 s mail.send, attempt 1: given back",
                "+0 s mail.send, attempt 1: handled",
                "+0 s mail published mail.sent",
                "nobody here subscribes to it on topic 'mails'",
            ]

    asyncio.run(main())


def test_an_outcome_that_came_too_late_ends_nothing() -> None:
    record = Record()
    late, again = (Delivery(Message("1", "test", "mail.sent", "mails", 0, b""), "mail.note", 1, 1) for _ in "ab")
    subscriptions = [Subscription(name="mail.note", topic="mails")]
    record.add_published([late.message], None, [STORED], 0)
    record.add_settled([(late, ACK)], [late], 0)
    assert lines(tell(record, subscriptions, [], 0, 0))[1:] == [
        "+0 s mail.note, attempt 1: handled, too late to count",
        "mail.note, attempt 1: has not begun",
    ]
    record.add_settled([(again, ACK)], [], 0)
    assert lines(tell(record, subscriptions, [], 0, 0))[2:] == ["+0 s mail.note, attempt 1: handled"]


def test_an_error_inside_tidemill_names_no_place_in_it() -> None:
    service = Service("mail")

    @service.on(OrderPlaced)
    async def send(event: OrderPlaced) -> None: ...

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish_message(Message("1", "test", "order.placed", "orders", 0, b"{"))
            await mill.settled()
            assert "DecodeError" in mill.story()
            assert ".py:" not in mill.story()

    asyncio.run(main())


def test_ids_are_those_of_their_sources() -> None:
    """Two foreign producers that both count from 1 are not mixed up."""
    service = Service("mail")

    @service.on(OrderPlaced)
    async def send(event: OrderPlaced) -> None:
        await service.publish(MailSent(event.order_id))

    async def main() -> None:
        async with running(service) as mill:
            for source in "ab":
                await mill.publish_message(
                    Message("1", source, "order.placed", "orders", 0, b'{"order_id": "%s"}' % source.encode())
                )
            await mill.settled()
            kinds = [line.split(" ", 2)[2].split(",")[0] for line in lines(mill.story()) if line.startswith("+")]
            assert kinds == [
                "a published order.placed",
                "mail.send",
                "mail published mail.sent",
                "b published order.placed",
                "mail.send",
                "mail published mail.sent",
            ]

    asyncio.run(main())


def test_what_another_mill_caused_is_told_too() -> None:
    outer, inner = Service("outer"), Service("inner")

    @outer.on(OrderPlaced)
    async def handle(event: OrderPlaced) -> None:
        async with running(inner) as other:
            await inner.publish(MailSent("from inside"))
            stories.append(other.story())

    stories: list[str] = []

    async def main() -> None:
        async with running(outer) as mill:
            await mill.publish(OrderPlaced("1"))
            await mill.settled()

    asyncio.run(main())
    assert "inner published mail.sent" in stories[0]


def test_a_flow_of_thousands_of_events_can_be_told() -> None:
    service = Service("chain")
    deep = 3 * sys.getrecursionlimit()

    @service.on(MailSent)
    async def go_on(event: MailSent) -> None:
        if int(event.to) < deep:
            await service.publish(MailSent(str(int(event.to) + 1)))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(MailSent("1"))
            await mill.settled()
            story = mill.story()
            assert story.count("published mail.sent") == deep
            assert max(map(len, story.splitlines())) < 120, "what is deep is not indented for ever"

    asyncio.run(main())


@pytest.mark.parametrize("number", [1, 199, 200])
def test_short_texts_are_not_cut(number: int) -> None:
    text = "\n".join(map(str, range(number)))
    assert cut(text) == text


def test_long_texts_lose_their_middle() -> None:
    found = cut("\n".join(map(str, range(5000))), 10).splitlines()
    assert found == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "… 4,990 lines left out …",
        "4995",
        "4996",
        "4997",
        "4998",
        "4999",
    ]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "+0 s"), (1_500_000_000, "+1.5 s"), (100 * 10**9, "+100 s"), (86400 * 10**9 * 365, "+31,536,000 s")],
)
def test_moments(nanoseconds: int, text: str) -> None:
    assert moment(nanoseconds) == text


def test_times_stand_in_one_column() -> None:
    service = Service("mail")

    @service.on(MailSent)
    async def note(event: MailSent) -> None: ...

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(MailSent("a"))
            await mill.publish(MailSent("b"), delay=123456.789)
            await mill.settled()
            assert mill.story().splitlines() == [
                "+0 s          test published mail.sent",
                "+0 s            mail.note, attempt 1: handled",
                "+0 s          test published mail.sent, to appear at +123456.789 s",
                "+123456.789 s   mail.note, attempt 1: handled",
            ]

    asyncio.run(main())


def test_an_empty_story() -> None:
    assert tell(Record(), [], [], 0, 0) == ""

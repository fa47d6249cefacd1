from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tidemill import (
    ConfigurationError,
    Context,
    DefinitionError,
    InvalidMessage,
    Json,
    Message,
    Reject,
    RetryAfter,
    RetryPolicy,
    Service,
    Topic,
    event,
    upcast,
)
from tidemill.testing import NotSettled, running
from tidemill.testing.clock import START
from tidemill.testing.watchers import watchers

payments = Topic("payments", key="payment_id")
reports = Topic("reports")
sites = Topic("sites", key="site_id")


@event("payment.confirmed", version=2, topic=payments)
class PaymentConfirmed:
    payment_id: str
    currency: str = "EUR"


@upcast(PaymentConfirmed, from_version=1)
def add_currency(v1: Json) -> Json:
    return v1 | {"currency": "CHF"}


@event("receipt.sent", topic=payments)
class ReceiptSent:
    payment_id: str


@event("report.made", topic=reports)
class ReportMade:
    number: int


@event("site.added", topic=sites)
class SiteAdded:
    site_id: str


class Shop:
    """Two services, and an outside world that can fail."""

    def __init__(self, **options: Any) -> None:
        self.mail = Service("mail")
        self.audit = Service("audit")
        self.failures = 0
        self.attempts = 0
        self.sent: list[str] = []
        self.seen: list[str] = []

        @self.mail.on(PaymentConfirmed, **options)
        async def send(event: PaymentConfirmed) -> None:
            self.attempts += 1
            if self.failures:
                self.failures -= 1
                raise OSError("the mail server is away")
            self.sent.append(event.payment_id)
            await self.mail.publish(ReceiptSent(event.payment_id))

        @self.audit.on(ReceiptSent)
        async def note(event: ReceiptSent) -> None:
            self.seen.append(event.payment_id)

        self.send = send
        self.note = note


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(autouse=True)
def no_time() -> Iterator[None]:
    """Nothing here may take long: whoever waits for virtual time has failed."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 10


def test_events_go_through_all_services(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail, shop.audit) as mill:
            message = await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            assert (shop.sent, shop.seen) == (["1"], ["1"])
            assert mill.published(PaymentConfirmed) == [PaymentConfirmed("1")]
            assert mill.published(ReceiptSent) == [ReceiptSent("1")]
            assert mill.handled(shop.send) == [PaymentConfirmed("1")]
            assert mill.handled("audit.note") == [ReceiptSent("1")]
            assert [each.source for each in mill.messages()] == ["test", "mail"]
            assert mill.messages()[0] == message
            assert mill.messages("reports") == []
            assert mill.dead_letters() == []

    asyncio.run(main())


def test_eight_failures_over_a_quarter_of_an_hour_take_no_time(shop: Shop) -> None:
    async def main() -> None:
        shop.failures = 8
        begun = time.monotonic()
        async with running(shop.mail, shop.audit) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            assert shop.attempts == 8
            [letter] = mill.dead_letters(shop.send)
            assert mill.now - START > timedelta(seconds=310), "the sum of the smallest delays"
        assert time.monotonic() - begun < 2
        assert (letter.subscription, letter.attempts) == ("mail.send", 8)
        assert letter.message.type == "payment.confirmed"
        assert "the mail server is away" in letter.reason
        assert [failure.attempt for failure in letter.history] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert letter.at == letter.history[-1].at
        assert seconds_since_start(letter.at) == pytest.approx((mill.now - START).total_seconds(), abs=1e-5)
        assert mill.dead_letters("mail.send") == mill.dead_letters()
        assert mill.dead_letters(shop.note) == []

    asyncio.run(main())


def seconds_since_start(at: int) -> float:
    return at / 1e9 - START.timestamp()


def test_an_outage_is_survived(shop: Shop) -> None:
    async def main() -> None:
        shop.failures = 3
        async with running(shop.mail) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
        assert shop.sent == ["1"]
        assert shop.attempts == 4

    asyncio.run(main())


def test_nothing_is_kept_between_two_blocks(shop: Shop) -> None:
    async def main() -> None:
        for _ in range(2):
            async with running(shop.mail, shop.audit) as mill:
                assert mill.now == START
                assert mill.messages() == []
                assert mill.story() == ""
                shop.failures = 8
                await mill.publish(PaymentConfirmed("1"), id="the same")
                await mill.settled()
                assert len(mill.dead_letters()) == 1
                assert [each.id for each in mill.messages()] == ["the same"]

    for _ in range(2):  # and on another loop
        asyncio.run(main())


def test_what_was_left_behind_does_not_come_back(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            await mill.publish(PaymentConfirmed("left"), delay=10)
        async with running(shop.mail) as mill:
            await mill.advance(100)
            await mill.settled()
        assert shop.sent == []

    asyncio.run(main())


def test_a_fixture_may_begin_and_end_a_mill_in_different_tasks(shop: Shop) -> None:
    """As pytest-asyncio does with async fixtures."""
    with asyncio.Runner() as runner:
        block = running(shop.mail)
        mill = runner.run(block.__aenter__())

        async def test() -> None:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            await mill.advance(1)

        runner.run(test())
        runner.run(block.__aexit__(None, None, None))
    assert shop.sent == ["1"]


def test_resources_are_entered_and_left() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def resources() -> AsyncGenerator[str, None]:
        steps.append("entered")
        yield "pool"
        steps.append("left")

    service = Service("mail", resources=resources)

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        steps.append(service.resources)

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()

    asyncio.run(main())
    assert steps == ["entered", "pool", "left"]


def test_a_service_can_run_only_once_at_a_time(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            with pytest.raises(ConfigurationError, match="running already"):
                async with running(shop.mail):
                    pass
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
        assert shop.sent == ["1"], "the first one is not disturbed"

    asyncio.run(main())


# ------------------------------------------------------------------ publishing


def test_the_same_id_again_is_a_duplicate(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            for _ in range(2):
                await mill.publish(PaymentConfirmed("1"), id="x")
            await mill.publish(PaymentConfirmed("1"), id="x", delay=5)
            await mill.settled()
            assert shop.sent == ["1"]
            assert mill.published(PaymentConfirmed) == [PaymentConfirmed("1")]
            await mill.publish(PaymentConfirmed("2"), id="y", delay=5)
            await mill.publish(PaymentConfirmed("2"), id="y")
            await mill.settled()
            assert shop.sent == ["1", "2"]
            assert mill.published(PaymentConfirmed) == [PaymentConfirmed("1"), PaymentConfirmed("2")]

    asyncio.run(main())


@pytest.mark.parametrize("delay", [90, timedelta(seconds=90)])
def test_a_delayed_event_waits_for_its_time(shop: Shop, delay: Any) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            await mill.publish(PaymentConfirmed("1"), delay=delay)
            await mill.advance(89)
            assert shop.sent == []
            assert mill.published(PaymentConfirmed) == [PaymentConfirmed("1")], "published it is"
            await mill.advance(1)
            assert shop.sent == ["1"]
            await mill.publish(PaymentConfirmed("2"), delay=delay)
            await mill.settled()
            assert shop.sent == ["1", "2"]
            assert mill.now == START + timedelta(seconds=180)

    asyncio.run(main())


def test_services_publish_delayed_events_by_the_mills_clock() -> None:
    service = Service("reporting")
    times: list[timedelta] = []

    async def main() -> None:
        async with running(service) as mill:

            async def make(event: ReportMade) -> None:
                times.append(mill.now - START)
                if event.number == 0:
                    await service.publish(ReportMade(1), delay=timedelta(hours=1))
                if event.number == 1:
                    await service.publish(ReportMade(2), at=mill.now + timedelta(days=30))

            holder.append(make)
            await mill.publish(ReportMade(0))
            await mill.settled()

    holder: list[Any] = []

    @service.on(ReportMade)
    async def handle(event: ReportMade) -> None:
        await holder[0](event)

    asyncio.run(main())
    assert times == [timedelta(0), timedelta(hours=1), timedelta(days=30, hours=1)]


def test_headers_and_the_sources_of_events(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            message = await mill.publish(PaymentConfirmed("1"), headers={"tenant": "a"})
            assert message.extensions == {"tenant": "a"}
            assert message.correlation_id == message.id
            assert message.causation_id is None
            await shop.mail.publish(PaymentConfirmed("2"))
            await mill.settled()
            assert mill.published(PaymentConfirmed) == [PaymentConfirmed("1"), PaymentConfirmed("2")]
            assert mill.published(PaymentConfirmed, by="test") == [PaymentConfirmed("1")]
            assert mill.published(PaymentConfirmed, by="mail") == [PaymentConfirmed("2")]
            with pytest.raises(InvalidMessage):
                await mill.publish(PaymentConfirmed("3"), headers={"Not Allowed": "x"})

    asyncio.run(main())


def test_a_topic_nobody_subscribes_to_can_be_published_to(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            await mill.publish(ReportMade(1))
            await mill.settled()
            assert mill.published(ReportMade) == [ReportMade(1)]
            await mill.publish(SiteAdded("s"))
            topics = (await mill._broker.inspect()).topics
            assert {each.name: each.key for each in topics} == {
                "payments": "payment_id",
                "reports": None,
                "sites": "site_id",
            }, "declared as they are, and not made up"

    asyncio.run(main())


def raw(**changes: Any) -> Message:
    given = {
        "id": "1",
        "source": "elsewhere",
        "type": "payment.confirmed",
        "topic": "payments",
        "time": 0,
        "body": b'{"payment_id": "1"}',
        "version": 1,
        "key": "1",
    }
    return Message(**(given | changes))


def test_old_versions_and_foreign_messages(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            await mill.publish_message(raw())
            await mill.publish_message(raw(id="2", body=b"not json", version=2))
            await mill.publish_message(raw(id="3", type="payment.lost"), delay=3)
            await mill.settled()
            assert mill.published(PaymentConfirmed) == [PaymentConfirmed("1", "CHF")]
            assert mill.published(PaymentConfirmed, by="elsewhere") == [PaymentConfirmed("1", "CHF")]
            [letter] = mill.dead_letters()
            assert letter.message.body == b"not json"
            assert [each.id for each in mill.messages() if each.source == "elsewhere"] == ["1", "2", "3"]

    asyncio.run(main())


def test_raw_handlers_hand_back_messages() -> None:
    service = Service("archive")

    @service.on(payments)
    async def keep(message: Message) -> None: ...

    async def main() -> None:
        async with running(service) as mill:
            message = await mill.publish_message(raw(body=b"\xff", type="payment.lost"))
            await mill.settled()
            assert mill.handled("archive.keep") == [message]

    asyncio.run(main())


def test_typos_are_errors_and_not_empty_lists(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            for ask in (mill.dead_letters, mill.handled):
                with pytest.raises(ValueError, match=r"mail\.sned.*There is: mail\.send"):
                    ask("mail.sned")
                with pytest.raises(ValueError, match=r"There is: mail\.send"):
                    ask(shop.note)
            with pytest.raises(ValueError, match=r"'mial' runs here.*There is: mail, test"):
                mill.published(PaymentConfirmed, by="mial")
            with pytest.raises(DefinitionError, match="not an event"):
                mill.published(Shop)
            with pytest.raises(ConfigurationError, match=r"'paymnets'.*Known topics: payments"):
                await mill.publish_message(raw(topic="paymnets"))
            for wrong in (-1, float("nan")):
                with pytest.raises(ValueError, match="0 seconds or more"):
                    await mill.publish(PaymentConfirmed("1"), delay=wrong)
                with pytest.raises(ValueError, match="only passes forwards"):
                    await mill.advance(wrong)
            assert mill.messages() == []
        with pytest.raises(ConfigurationError, match="has ended"):
            await mill.publish(PaymentConfirmed("1"))

    asyncio.run(main())


# ------------------------------------------------------------------------ time


def test_settled_returns_at_once_where_nothing_happens(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            await mill.settled(within=0)
            assert mill.now == START

    asyncio.run(main())


def test_the_clock_stands_still_while_a_handler_waits_for_something_real(shop: Shop) -> None:
    async def main() -> None:
        service = Service("slow")
        done: list[datetime] = []

        @service.on(PaymentConfirmed, timeout=0.001)
        async def handle(event: PaymentConfirmed) -> None:
            await asyncio.to_thread(time.sleep, 0.05)
            done.append(mill.now)

        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.publish(PaymentConfirmed("2"), delay=3600)
            await mill.settled()
        assert done == [START, START + timedelta(hours=1)]

    asyncio.run(main())


def test_advance_lets_retries_come_at_their_times() -> None:
    service = Service("mail")
    times: list[float] = []

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        times.append(seconds_since_start(round(mill_now().timestamp() * 1e9)))
        raise RetryAfter(10)

    mills: list[Any] = []

    def mill_now() -> datetime:
        now: datetime = mills[0].now
        return now

    async def main() -> None:
        async with running(service) as mill:
            mills.append(mill)
            await mill.publish(PaymentConfirmed("1"))
            await mill.advance(0)
            assert times == [0]
            await mill.advance(9.999)
            assert times == [0]
            await mill.advance(0.001)
            assert times == [0, 10]
            await mill.advance(timedelta(seconds=25))
            assert times == [0, 10, 20, 30]
            assert mill.now == START + timedelta(seconds=35)

    asyncio.run(main())


def test_time_passes_over_a_handler_that_hangs_until_its_timeout() -> None:
    service = Service("mail")
    starts: list[int] = []

    @service.on(PaymentConfirmed, timeout=60, retry=RetryPolicy(attempts=2, immediate=0, base=1, cap=1))
    async def send(event: PaymentConfirmed, context: Context) -> None:
        starts.append(context.attempt)
        await asyncio.Event().wait()

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.advance(59.9)
            assert starts == [1]
            await mill.advance(0.1)
            assert starts == [1]
            await mill.advance(1)
            assert starts == [1, 2]
            await mill.advance(60)
            [letter] = mill.dead_letters()
            assert letter.reason == "TimeoutError: the handler took longer than 60 s (attempt 2 of 2)"
            await mill.settled()

    asyncio.run(main())


def test_a_handler_that_hangs_costs_patience_once_however_many_timers_pass() -> None:
    service = Service("mail")

    @service.on(PaymentConfirmed, timeout=None)
    async def hang(event: PaymentConfirmed) -> None:
        await asyncio.Event().wait()

    @service.on(ReportMade)
    async def make(event: ReportMade) -> None:
        made.append(event.number)

    made: list[int] = []

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            for number in range(100):
                await mill.publish(ReportMade(number), delay=1 + number)
            begun = time.monotonic()
            await mill.advance(200)
            assert made == list(range(100))
            assert time.monotonic() - begun < 2, "a hundred times 0.1 s would be ten"

    asyncio.run(main())


def test_advance_gives_a_handler_with_real_work_time_to_finish() -> None:
    service = Service("mail")
    done: list[int] = []

    @service.on(PaymentConfirmed, timeout=1)
    async def send(event: PaymentConfirmed) -> None:
        await asyncio.to_thread(time.sleep, 0.3)
        done.append(1)

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.advance(5, patience=5)
            assert done == [1]

    asyncio.run(main())


def test_tasks_that_handlers_leave_behind_are_waited_for_as_long_as_they_get_on() -> None:
    service = Service("mail")
    tasks: list[asyncio.Task[Any]] = []

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        tasks.append(asyncio.create_task(service.publish(ReportMade(1))))

    @service.on(ReportMade)
    async def make(event: ReportMade) -> None:
        if event.number < 5:
            tasks.append(asyncio.create_task(service.publish(ReportMade(event.number + 1))))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            assert [each.number for each in mill.handled(make)] == [1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_task_left_behind_may_take_a_few_steps_before_it_publishes() -> None:
    service = Service("mail")
    tasks: list[asyncio.Task[Any]] = []

    async def publish_soon() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await service.publish(ReportMade(1))

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        tasks.append(asyncio.create_task(publish_soon()))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            assert mill.published(ReportMade) == [ReportMade(1)]

    asyncio.run(main())


def test_order_per_key_holds_through_retries(shop: Shop) -> None:
    async def main() -> None:
        shop.failures = 5
        async with running(shop.mail) as mill:
            for number in range(3):
                await mill.publish(PaymentConfirmed("a", str(number)))
            await mill.publish(PaymentConfirmed("b"))
            await mill.settled()
            assert [each.currency for each in mill.handled(shop.send) if each.payment_id == "a"] == [
                "0",
                "1",
                "2",
            ]

    asyncio.run(main())


def test_many_events_settle_quickly(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail, shop.audit) as mill:
            for number in range(2000):
                await mill.publish(PaymentConfirmed(str(number % 7), str(number)))
            await mill.settled()
            assert len(mill.handled(shop.note)) == 2000

    asyncio.run(main())


# -------------------------------------------------------------------- failures


def test_a_handler_that_hangs_is_named_with_the_way_out() -> None:
    service = Service("mail")

    @service.on(PaymentConfirmed, timeout=60)
    async def send(event: PaymentConfirmed) -> None:
        await asyncio.Event().wait()

    @service.on(ReportMade, timeout=None)
    async def make(event: ReportMade) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with running(service) as mill:
            message = await mill.publish(PaymentConfirmed("p-1"))
            await mill.publish(ReportMade(1))
            await mill.publish(PaymentConfirmed("p-1"))
            await mill.publish(PaymentConfirmed("p-2"), delay=1)
            await mill.advance(0.5)
            with pytest.raises(NotSettled) as failure:
                await mill.settled(within=0.05)
            text = str(failure.value)
            assert text.startswith("not settled within 0.05 s of real time.\n")
            assert (
                "mail.send is still running: attempt 1 of payment.confirmed v2, key 'p-1' "
                f"(id {message.id}). `await mill.advance(60)` reaches its timeout." in text
            )
            assert "mail.make is still running: attempt 1 of report.made" in text
            assert "It has no timeout, so nothing but itself ends it." in text
            assert "1 delivery is ready behind them." in text
            assert "1 delivery is waiting for time to pass." in text
            assert "the clock jumped" not in text
            assert "mail.send, attempt 1: is running" in text
            assert mill.now == START + timedelta(seconds=0.5), "time stood still"
            await mill.advance(60)
            assert "TimeoutError" in mill.story()

    asyncio.run(main())


def test_many_handlers_that_hang_are_counted() -> None:
    service = Service("mail")

    @service.on(ReportMade)
    async def make(event: ReportMade) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with running(service) as mill:
            for number in range(20):
                await mill.publish(ReportMade(number))
            with pytest.raises(NotSettled) as failure:
                await mill.settled(within=0.05)
            text = str(failure.value)
            assert text.count("is still running") == 10
            assert "6 more handlers are still running." in text
            assert "4 deliveries are ready behind them." in text

    asyncio.run(main())


def test_a_service_that_schedules_itself_for_ever_is_found_out() -> None:
    service = Service("reporting")

    @service.on(ReportMade)
    async def daily(event: ReportMade) -> None:
        await service.publish(ReportMade(event.number + 1), delay=timedelta(days=1))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(ReportMade(0))
            with pytest.raises(NotSettled) as failure:
                await mill.settled(within=0.1)
            text = str(failure.value)
            assert "Meanwhile the clock jumped from +0 s to +" in text
            assert "use `await mill.advance(seconds)`" in text
            assert len(text.splitlines()) < 120, "the story is cut"
            assert "lines left out" in text
        async with running(service) as mill:
            await mill.publish(ReportMade(0))
            await mill.advance(timedelta(days=7))
            assert len(mill.handled(daily)) == 8

    asyncio.run(main())


@pytest.mark.parametrize("way", ["settled", "advance"])
def test_services_that_cause_each_others_events_for_ever_are_found_out(way: str) -> None:
    service = Service("reporting")

    @service.on(ReportMade)
    async def again(event: ReportMade) -> None:
        await service.publish(ReportMade(event.number + 1))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(ReportMade(0))
            with pytest.raises(NotSettled, match="Do services cause each other's events for ever"):
                if way == "settled":
                    await mill.settled(within=0.1)
                else:
                    await mill.advance(1, within=0.1)

    asyncio.run(main())


def test_a_failing_block_tells_the_story(shop: Shop) -> None:
    async def main() -> None:
        async with running(shop.mail) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            raise ZeroDivisionError

    kept, watchers[:] = watchers[:], []  # as under unittest, where no plugin watches
    try:
        with pytest.raises(ZeroDivisionError) as failure:
            asyncio.run(main())
    finally:
        watchers[:] = kept
    [note] = failure.value.__notes__
    assert note.startswith("What happened in the mill:\n+0 s")
    assert "mail.send, attempt 1: handled" in note


def test_a_block_that_ends_waits_a_moment_for_running_handlers_and_cancels_them_then() -> None:
    service = Service("mail")
    ended: list[str] = []
    began = asyncio.Event()

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        began.set()
        try:
            await asyncio.to_thread(time.sleep, 0.05)
            ended.append("finished")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def main() -> None:
        begun = time.monotonic()
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await began.wait()
        assert ended == ["finished", "cancelled"]
        assert 0.9 < time.monotonic() - begun < 5
        assert mill.handled(send) == []
        assert "mail.send, attempt 1: was running when the test ended" in mill.story()

    asyncio.run(main())


def test_a_block_that_fails_does_not_wait() -> None:
    service = Service("mail")

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.advance(0, patience=0.01)
            raise ZeroDivisionError

    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert time.monotonic() - begun < 0.9


def test_rejected_events_are_dead_letters_at_once() -> None:
    service = Service("mail")

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        raise Reject("no such customer")

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            [letter] = mill.dead_letters(send)
            assert (letter.reason, letter.attempts) == ("no such customer", 1)
            assert mill.now == START
            broker = mill._broker
            assert await broker.dead_letters() == [letter], "the record agrees with the broker"

    asyncio.run(main())


def test_dead_letters_are_replayed_when_the_cause_is_corrected() -> None:
    service = Service("mail")
    correct = False

    @service.on(PaymentConfirmed)
    async def send(event: PaymentConfirmed) -> None:
        if not correct:
            raise Reject("no such customer")

    @service.on(PaymentConfirmed)
    async def count(event: PaymentConfirmed) -> None: ...

    async def main() -> None:
        nonlocal correct
        async with running(service) as mill:
            await mill.publish(PaymentConfirmed("1"))
            await mill.settled()
            assert await mill.replay(count) == 0
            assert await mill.replay("mail.send") == 1
            await mill.settled()
            [letter] = mill.dead_letters()
            assert [failure.error for failure in letter.history] == ["Reject: no such customer"] * 2
            correct = True
            assert await mill.replay() == 1
            await mill.settled()
            assert mill.dead_letters() == []
            assert mill.handled(send) == mill.handled(count) == [PaymentConfirmed("1")]
            with pytest.raises(ValueError, match=r"mail\.sned"):
                await mill.replay("mail.sned")

    asyncio.run(main())


def test_the_start_is_a_date_with_a_time_zone() -> None:
    assert START.tzinfo is UTC

"""Dead letters from Python: which are meant, what they have in common, and resolving them at a rate."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from tidemill import dead_letters
from tidemill.broker import Broker, DeadLettered, Resolve, Subscription, TopicSpec, connect
from tidemill.clock import SystemClock
from tidemill.dead_letters import Filter, Report, by_error, cause_of, discard, find, replay, survey
from tidemill.errors import BrokerError, ConfigurationError
from tidemill.message import Failure, Message
from tidemill.outcome import DeadLetter
from tidemill.stand_in import BrokerStandIn
from tidemill.testing.clock import VirtualClock

DAY = 86400 * 10**9


@pytest.fixture(params=["memory:", "sqlite:"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    return request.param if request.param == "memory:" else f"sqlite:///{tmp_path}/events.db"


class At(SystemClock):
    """The time of day is what the test says it is."""

    def __init__(self) -> None:
        self.time = 1000 * DAY

    def now(self) -> int:  # type: ignore[override]
        return self.time


@asynccontextmanager
async def dead(url: str, reasons: list[str], *, key: str | None = None) -> AsyncIterator[tuple[Broker, At]]:
    """A broker on which `mail.send` gave up a message for each of these reasons, one a day, and `stock.take` all."""
    clock = At()
    broker = connect(url, clock)
    await broker.open()
    specs = [Subscription(name=name, topic="orders", start="beginning") for name in ("mail.send", "stock.take")]
    await broker.declare([TopicSpec("orders")], specs)
    feed = await broker.subscribe(specs[0])
    for number, reason in enumerate(reasons):
        clock.time += DAY
        sent = Message(f"m{number}", "tests", f"order.{number % 2}", "orders", 0, b"{}", key=key or f"k{number % 3}")
        await broker.publish([sent])
        (delivery,) = await feed.fetch(1, 5, 1000)
        delivery.history = (Failure(1, clock.now(), f"OSError: {number}"),)
        await feed.settle([(delivery, DeadLetter(reason))])
    clock.time += DAY
    other = await broker.subscribe(specs[1])
    for delivery in await other.fetch(1000, 5, 10**6) if reasons else ():
        await other.settle([(delivery, DeadLetter("no stock"))])
    await feed.close()
    await other.close()
    try:
        yield broker, clock
    finally:
        await broker.close()


async def ids(broker: Broker, which: Filter, clock: At) -> list[str]:
    return [letter.message.id async for letter in find(broker, which, clock=clock)]


# ----------------------------------------------------------------------- finding


def test_filters(url: str) -> None:
    async def main() -> None:
        async with dead(url, ["no 0", "no 1", "No address", "no 3"]) as (broker, clock):

            async def found(**given: Any) -> list[str]:
                return await ids(broker, Filter(subscription="mail.send", **given), clock)

            assert await found() == ["m0", "m1", "m2", "m3"]
            assert await found(type="order.1") == ["m1", "m3"]
            assert await found(key="k0") == ["m0", "m3"]
            assert await found(id="m2") == ["m2"]
            assert await found(error="ADDRESS") == ["m2"]
            assert await found(error="oserror: 3") == ["m3"]
            assert await found(error="nothing of the kind") == []
            assert await found(older_than=3 * 86400) == ["m0", "m1"]
            assert await found(newer_than=timedelta(days=2)) == ["m2", "m3"]
            assert await found(older_than=timedelta(days=2), newer_than=timedelta(days=3)) == ["m1", "m2"]
            third = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1003)
            assert await found(before=third) == ["m0", "m1"]
            assert await found(since=third) == ["m2", "m3"]
            assert await found(parked=True) == []
            assert await found(parked=False, key="k1") == ["m1"]
            assert await ids(broker, Filter(id="m1"), clock) == ["m1", "m1"]
            assert len(await ids(broker, Filter(), clock)) == 8
            with pytest.raises(ConfigurationError, match=r"no subscription 'mail\.sned'.*There are: mail\.send, stock"):
                await ids(broker, Filter(subscription="mail.sned"), clock)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"subscription": ""}, "subscription='' fits no dead letter"),
        ({"error": ""}, "error=''"),
        ({"older_than": -1}, "older_than=-1 is no age"),
        ({"newer_than": timedelta(seconds=-1)}, "is no age"),
        ({"older_than": math.inf}, "is no age"),
        ({"older_than": math.nan}, "is no age"),
        ({"older_than": 60, "newer_than": 30}, "fit no dead letter together"),
        ({"before": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"since": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        (
            {"since": datetime(2026, 1, 2, tzinfo=UTC), "before": datetime(2026, 1, 1, tzinfo=UTC)},
            "fit no dead letter together",
        ),
    ],
)
def test_a_filter_that_fits_nothing_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Filter(**given)


def test_more_than_a_page_is_found_page_by_page(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []

    class Pages(BrokerStandIn):
        async def dead_letters(
            self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
        ) -> list[DeadLettered]:
            limits.append(limit)
            return await self.real.dead_letters(subscription, after=after, limit=limit)

    monkeypatch.setattr(dead_letters, "PAGE", 3)

    async def main() -> None:
        async with dead(url, ["no"] * 7) as (broker, clock):
            assert await ids(Pages(broker), Filter(subscription="mail.send"), clock) == [f"m{n}" for n in range(7)]
            assert limits == [3, 3, 3, 3]

    asyncio.run(main())


# ---------------------------------------------------------------------- grouping


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("ValueError: no (attempt 8 of 8)", "ValueError: no"),
        ("order 17 of 0198c0de-7d2f-7000-8000-1f2e3d4c5b6a is gone", "order … of … is gone"),
        ("no address to send to: 'nowhere'", "no address to send to: '…'"),
        ("no \"a b\" and no 'c'", "no '…' and no '…'"),
        ("KeyError: 'currency' (attempt 2 of 2)", "KeyError: 'currency'"),
        ("AttributeError: 'str' object has no attribute 'x1'", "AttributeError: 'str' object has no attribute '…'"),
        ("cannot reach zoe@example.com", "cannot reach …"),
        ("TimeoutError: the handler took longer than 0.5 s", "TimeoutError: the handler took longer than … s"),
        ("", ""),
        ("a" * 200, "a" * 159 + "…"),
    ],
)
def test_a_cause_is_a_reason_without_what_varies(reason: str, cause: str) -> None:
    assert cause_of(reason) == cause


def test_ten_thousand_of_one_cause_are_one_group(url: str) -> None:
    async def main() -> None:
        reasons = [f"ConnectionError: no {number} (attempt 8 of 8)" for number in range(5)] + ["no address: 'x'"] * 2
        async with dead(url, reasons) as (broker, clock):
            groups = await by_error(broker, clock=clock)
            assert [(group.count, group.subscription, group.cause) for group in groups] == [
                (7, "stock.take", "no stock"),
                (5, "mail.send", "ConnectionError: no …"),
                (2, "mail.send", "no address: '…'"),
            ]
            assert (groups[1].oldest, groups[1].newest, groups[1].example) == (1001 * DAY, 1005 * DAY, "m4")

    asyncio.run(main())


# --------------------------------------------------------------------- resolving


def test_a_replay_and_a_discard(url: str) -> None:
    async def main() -> None:
        async with dead(url, ["no 0", "no 1", "bad 2", "no 3"]) as (broker, clock):
            told: list[Report] = []
            report = await replay(
                broker, Filter(subscription="mail.send", error="no"), by="zoe", progress=told.append, clock=clock
            )
            assert (report.action, report.matched, report.resolved, report.gone) == ("replay", 3, 3, 0)
            assert (told[0].matched, told[0].resolved, told[-1]) == (3, 0, report)
            assert await ids(broker, Filter(subscription="mail.send"), clock) == ["m2"]
            report = await discard(broker, Filter(subscription="stock.take"), by="zoe", limit=3, clock=clock)
            assert (report.matched, report.resolved) == (3, 3)
            assert await ids(broker, Filter(subscription="stock.take"), clock) == ["m3"], "the oldest went first"
            report = await discard(broker, Filter(), by="zoe", everything=True, clock=clock)
            assert report.resolved == 2
            assert len(await broker.resolutions()) == 8

    asyncio.run(main())


def test_a_dry_run_changes_nothing(url: str) -> None:
    async def main() -> None:
        async with dead(url, ["no 0", "no 1"]) as (broker, clock):
            for resolve in (replay, discard):
                report = await resolve(broker, Filter(error="no"), by="zoe", dry_run=True, clock=clock)
                assert (report.matched, report.resolved, report.dry_run) == (4, 0, True)
                assert [group.count for group in report.groups] == [2, 2]
            assert len(await ids(broker, Filter(), clock)) == 4
            assert await broker.resolutions() == []

    asyncio.run(main())


@pytest.mark.parametrize("resolve", [replay, discard])
@pytest.mark.parametrize(
    ("which", "given", "complaint"),
    [
        (Filter(), {}, "every dead letter there is. Nothing was done. Say which"),
        (Filter(), {"dry_run": True}, "every dead letter there is"),
        (Filter(key="k1"), {"rate": 0}, "rate=0"),
        (Filter(key="k1"), {"rate": -3}, "rate=-3: give more than 0 a second"),
        (Filter(key="k1"), {"rate": math.nan}, "rate=nan"),
        (Filter(key="k1"), {"limit": 0}, "limit=0"),
        (Filter(key="k1"), {"by": " "}, "say who decides"),
        (Filter(key="k1"), {"by": "two\nlines"}, "say who decides"),
        (Filter(key="k1"), {"by": "x" * 201}, "say who decides"),
        (Filter(subscription="mail.sned"), {}, "no subscription 'mail.sned'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    resolve: Callable[..., Any], which: Filter, given: dict[str, Any], complaint: str
) -> None:
    async def main() -> None:
        async with dead("memory:", ["no 0", "no 1"]) as (broker, clock):
            with pytest.raises(ConfigurationError, match=complaint):
                await resolve(broker, which, **{"by": "zoe", "clock": clock} | given)
            assert len(await ids(broker, Filter(), clock)) == 4

    asyncio.run(main())


def test_what_somebody_else_resolved_meanwhile_is_counted(url: str) -> None:
    async def main() -> None:
        async with dead(url, ["no"] * 4) as (broker, clock):
            found = await survey(broker, Filter(subscription="mail.send"), clock=clock)
            await discard(broker, Filter(subscription="mail.send", id="m1"), by="max", clock=clock)
            report = await replay(broker, found, by="zoe", clock=clock)
            assert (report.matched, report.resolved, report.gone) == (4, 3, 1)
            again = await replay(broker, found, by="zoe", clock=clock)
            assert (again.resolved, again.gone) == (0, 4)

    asyncio.run(main())


def test_a_rate_is_kept() -> None:
    """By the clock that is given, in small batches: never more in a second than asked for."""
    resolved: list[tuple[int, int]] = []
    clock = VirtualClock()

    class Counts(BrokerStandIn):
        async def resolve(self, action: Resolve, numbers: list[int], *, by: str) -> list[int]:  # type: ignore[override]
            resolved.append((clock.now(), len(numbers)))
            return await self.real.resolve(action, numbers, by=by)

    async def main() -> None:
        async with dead("memory:", ["no"] * 95) as (broker, _):
            which = Filter(subscription="mail.send")
            work = asyncio.create_task(replay(Counts(broker), which, by="zoe", rate=30, clock=clock))
            while not work.done():
                for _ in range(20):
                    await asyncio.sleep(0)
                if (due := clock.next_due()) is not None:
                    clock.move_to(due)
            assert (await work).resolved == 95

    asyncio.run(main())
    begun = resolved[0][0]
    took = (resolved[-1][0] - begun) / 1e9
    assert 92 / 30 <= took <= 95 / 30
    for second in range(4):
        start = begun + second * 10**9
        assert sum(count for at, count in resolved if start <= at < start + 10**9) <= 30 + 3
    assert max(count for _, count in resolved) == 3


def test_cancelled_it_keeps_what_was_done_and_says_so(url: str) -> None:
    async def main() -> None:
        async with dead(url, ["no"] * 30) as (broker, clock):
            told: list[Report] = []
            work = asyncio.create_task(
                replay(broker, Filter(subscription="mail.send"), by="zoe", rate=50, progress=told.append, clock=clock)
            )
            await wait_until(lambda: told and told[-1].resolved >= 5)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            left = await ids(broker, Filter(subscription="mail.send"), clock)
            assert 0 < len(left) < 30
            assert told[-1].resolved == 30 - len(left) == len(await broker.resolutions())

    asyncio.run(main())


def test_a_batch_that_is_under_way_when_it_is_cancelled_counts() -> None:
    class Slow(BrokerStandIn):
        async def resolve(self, action: Resolve, numbers: list[int], *, by: str) -> list[int]:  # type: ignore[override]
            begun.set()
            await go.wait()
            return await self.real.resolve(action, numbers, by=by)

    async def main() -> None:
        nonlocal begun, go
        begun, go = asyncio.Event(), asyncio.Event()
        async with dead("memory:", ["no"] * 3) as (broker, clock):
            told: list[Report] = []
            work = asyncio.create_task(
                discard(Slow(broker), Filter(subscription="mail.send"), by="zoe", progress=told.append, clock=clock)
            )
            await begun.wait()
            work.cancel()
            await asyncio.sleep(0)
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert told[-1].resolved == 3

    begun = go = asyncio.Event()
    asyncio.run(main())


def test_a_broker_that_fails_keeps_the_batches_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(BrokerStandIn):
        calls = 0

        async def resolve(self, action: Resolve, numbers: list[int], *, by: str) -> list[int]:  # type: ignore[override]
            self.calls += 1
            if self.calls == 3:
                raise BrokerError("gone")
            return await self.real.resolve(action, numbers, by=by)

    monkeypatch.setattr(dead_letters, "BATCH", 2)

    async def main() -> None:
        async with dead("memory:", ["no"] * 9) as (broker, clock):
            told: list[Report] = []
            with pytest.raises(BrokerError):
                await discard(
                    Fails(broker), Filter(subscription="mail.send"), by="zoe", progress=told.append, clock=clock
                )
            assert told[-1].resolved == 4
            assert len(await ids(broker, Filter(subscription="mail.send"), clock)) == 5

    asyncio.run(main())


def test_many_are_looked_through_in_no_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with dead(f"sqlite:///{tmp_path}/a.db?synchronous=normal", []) as (broker, clock):
            feed = await broker.subscribe(Subscription(name="mail.send", topic="orders"))
            for start in range(0, 5000, 1000):
                await broker.publish(
                    [Message(f"m{n}", "tests", "t", "orders", 0, b"{}") for n in range(start, start + 1000)]
                )
                taken = await feed.fetch(1000, 5, 10**6)
                while len(taken) < 1000:
                    taken += await feed.fetch(1000 - len(taken), 5, 10**6)
                await feed.settle([(each, DeadLetter(f"no {each.position}")) for each in taken])
            begun = time.perf_counter()
            (group,) = await by_error(broker, clock=clock)
            assert group.count == 5000
            assert (await discard(broker, Filter(error="no"), by="zoe", clock=clock)).resolved == 5000
            assert time.perf_counter() - begun < 10
            await feed.close()

    asyncio.run(main())

"""G10, G6: what becomes of dead letters: replayed, discarded, parked, and who decided so."""

from __future__ import annotations

import asyncio
import time

from ... import Context, Reject, Service
from ...broker import DUPLICATE, Broker, DeadLettered, Feed, TopicSpec
from ...message import Delivery
from ...outcome import ACK, RELEASE, DeadLetter, Retry
from .events import OrderPlaced, soon
from .place import Place, ack, failed, message, nothing, numbers, reader, settle, store
from .scenario import promise


async def _give_up(feed: Feed, delivery: Delivery, error: str = "ValueError: no") -> None:
    await settle(feed, [(failed(delivery, error), DeadLetter(error))])


async def _resolve(broker: Broker, action: str, *letters: DeadLettered) -> None:
    numbers = [letter.number for letter in letters]
    done = await broker.resolve("replay" if action == "replay" else "discard", numbers, by="zoe")
    assert done == numbers


@promise("G10", "G1")
async def a_replay_reaches_the_failing_subscription_alone(place: Place) -> None:
    """The very message, with its id, its bytes, its headers and its history; attempts begin again at 1; no other
    subscription gets it again."""
    broker = await place.broker()
    feed = await place.feed(reader())
    other = await place.feed(reader("reader.other"))
    (sent,) = await store(broker, message(body=b"\x00\xffnot JSON", key="Zoë", extensions={"tenant": "Ærø"}))
    await ack(other, await place.take(other, 1))
    (delivery,) = await place.take(feed, 1)
    await settle(feed, [(failed(delivery, "OSError: no"), Retry(0, "no"))])
    (delivery,) = await place.take(feed, 1)
    await _give_up(feed, delivery)
    (letter,) = await broker.dead_letters()
    assert (letter.attempts, letter.parked) == (2, False)
    await _resolve(broker, "replay", letter)
    assert await broker.dead_letters() == []
    status = await place.status("reader.all")
    assert (status.backlog, status.retrying, status.dead) == (1, 0, 0)
    (again,) = await place.take(feed, 1)
    assert again.message == sent
    assert (again.attempt, again.history) == (1, letter.history)
    await ack(feed, [again])
    await nothing(feed)
    await nothing(other)
    status = await place.status("reader.all")
    assert (status.backlog, status.dead, status.acked) == (0, 0, 1)


@promise("G10")
async def a_replayed_event_may_fail_again(place: Place) -> None:
    """It is retried as often as a new one, and what becomes a dead letter again has the attempts of both times."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, message(1))
    for round_ in range(3):
        for attempt in (1, 2):
            (delivery,) = await place.take(feed, 1)
            assert (delivery.attempt, len(delivery.history)) == (attempt, 2 * round_ + attempt - 1)
            outcome = Retry(0, "no") if attempt == 1 else DeadLetter(f"round {round_}")
            await settle(feed, [(failed(delivery, f"{round_}, {attempt}"), outcome)])
        (letter,) = await broker.dead_letters()
        assert (letter.reason, letter.attempts, len(letter.history)) == (f"round {round_}", 2, 2 * round_ + 2)
        await _resolve(broker, "replay", letter)
    assert [line.reason for line in await broker.resolutions()] == ["round 0", "round 1", "round 2"]


@promise("G10", "G1", needs=("durable",))
async def a_replay_survives_a_restart(place: Place) -> None:
    """Replayed while nobody consumes, it is delivered to whoever does next; so is one that nobody had settled."""
    feed = await place.feed(reader())
    sent = await store(await place.broker(), message(1), message(2))
    for delivery in await place.take(feed, 2):
        await _give_up(feed, delivery)
    await feed.close()
    broker = await place.reopened()
    await _resolve(broker, "replay", *await broker.dead_letters())
    for round_ in range(2):
        await place.reopened()
        feed = await place.feed(reader())
        taken = await place.take(feed, 2)
        assert [(each.message, each.attempt, len(each.history)) for each in taken] == [(each, 1, 1) for each in sent]
        if round_:
            await ack(feed, taken)
            await nothing(feed)


@promise("G10", needs=("processes",))
async def a_replay_reaches_who_consumes_elsewhere(place: Place) -> None:
    """Replayed by one process, it is delivered by another that waits for news, within seconds."""
    feed = await place.feed(reader())
    await store(await place.broker(), message(1))
    await _give_up(feed, (await place.take(feed, 1))[0])
    waiting = asyncio.create_task(feed.fetch(10, place.patience, 1000))
    operator = await place.another()
    await _resolve(operator, "replay", *await operator.dead_letters())
    began = time.monotonic()
    await ack(feed, await waiting)
    assert time.monotonic() - began < 2.0
    assert (await place.status("reader.all")).acked == 1


@promise("G10")
async def a_discarded_dead_letter_is_gone(place: Place) -> None:
    """It is in no list and never delivered; the others stay."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, *(message(number) for number in range(3)))
    for delivery in await place.take(feed, 3):
        await _give_up(feed, delivery)
    before = await broker.dead_letters()
    await _resolve(broker, "discard", before[1])
    assert await broker.dead_letters() == [before[0], before[2]]
    assert (await place.status("reader.all")).dead == 2
    await nothing(feed)


@promise("G10")
async def a_dead_letter_is_resolved_once(place: Place) -> None:
    """Of two operators at once, one replays it and the other is told that it was gone; its number is never that of
    another."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, *(message(number) for number in range(4)))
    for delivery in await place.take(feed, 4):
        await _give_up(feed, delivery)
    found = [letter.number for letter in await broker.dead_letters()]
    assert found == sorted(found)
    answers = await asyncio.gather(
        broker.resolve("replay", found, by="zoe"),
        broker.resolve("discard", found, by="max"),
        broker.resolve("replay", [*found, *found, 10**12], by="ann"),
    )
    assert sorted(number for answer in answers for number in answer) == found
    taken = await place.take(feed, len(answers[0]) + len(answers[2]))
    assert len({each.message.id for each in taken}) == len(taken)
    await nothing(feed)
    assert len(await broker.resolutions()) == 4
    if taken:
        await _give_up(feed, taken[0])
        (again,) = await broker.dead_letters()
        assert again.number > max(found)


@promise("G10", "G4")
async def dead_letters_come_in_pages(place: Place) -> None:
    """In the order they were given up, of one subscription or of all, so many after a number."""
    broker = await place.broker()
    feeds = [await place.feed(reader(name)) for name in ("reader.all", "reader.other")]
    await store(broker, *(message(number) for number in range(5)))
    for feed in feeds:
        for delivery in reversed(await place.take(feed, 5)):
            await _give_up(feed, delivery)
    everything = await broker.dead_letters()
    assert [int(letter.message.body) for letter in everything] == [4, 3, 2, 1, 0] * 2
    pages: list[DeadLettered] = []
    while page := await broker.dead_letters(after=pages[-1].number if pages else 0, limit=3):
        assert len(page) <= 3
        pages += page
        assert len(pages) <= len(everything), "what comes after a number has come before"
    assert pages == everything
    assert await broker.dead_letters("reader.other", limit=2) == everything[5:7]
    assert await broker.dead_letters("reader.other", after=everything[6].number) == everything[7:]


@promise("G10")
async def the_trail_says_who_decided_what(place: Place) -> None:
    """A line for each dead letter that was replayed or discarded: who, when, what, and what had been known of it."""
    broker = await place.broker()
    feed = await place.feed(reader())
    sent = await store(broker, message(1, key="a"), message(2), message(3))
    for delivery in await place.take(feed, 3):
        await _give_up(feed, delivery, f"no {delivery.message.body.decode()}")
    letters = await broker.dead_letters()
    before = time.time_ns()
    await broker.resolve("discard", [letters[0].number], by="zoe")
    await broker.resolve("replay", [letters[2].number, letters[1].number], by="max")
    lines = await broker.resolutions()
    assert [(line.action, line.by, line.letter, line.message_id, line.reason) for line in lines] == [
        ("discard", "zoe", letters[0].number, sent[0].id, "no 1"),
        ("replay", "max", letters[2].number, sent[2].id, "no 3"),
        ("replay", "max", letters[1].number, sent[1].id, "no 2"),
    ]
    first = lines[0]
    assert (first.subscription, first.source, first.type) == ("reader.all", sent[0].source, sent[0].type)
    assert (first.key, first.attempts) == ("a", 1)
    assert all(before <= line.at <= time.time_ns() for line in lines)
    assert await broker.resolutions(limit=2) == lines[1:]
    assert await broker.resolutions(before=lines[1].number) == lines[:1]
    assert await broker.resolutions(before=first.number) == []
    if broker.capabilities.durability != "memory":
        assert await (await place.reopened()).resolutions() == lines


@promise("G10", "G1", needs=("deduplication",))
async def a_dead_letter_outlives_its_topics_retention(place: Place) -> None:
    """On a topic that keeps nothing it stays whole, its event published again is a duplicate, and it can be
    replayed."""
    broker = await place.broker()
    await broker.declare([TopicSpec("numbers", retain=0.0)], [reader()])
    feed = await broker.subscribe(reader())
    (sent,) = await store(broker, message(1))
    await _give_up(feed, (await place.take(feed, 1))[0])
    await store(broker, *(message(number) for number in range(2, 20)))
    await ack(feed, await place.take(feed, 18))
    await feed.close()
    if broker.capabilities.durability != "memory":
        broker = await place.reopened()
        await broker.declare([TopicSpec("numbers", retain=0.0)], [])
    assert [letter.message for letter in await broker.dead_letters()] == [sent]
    assert await broker.publish([sent]) == [DUPLICATE]
    feed = await broker.subscribe(reader())
    await nothing(feed)
    await _resolve(broker, "replay", *await broker.dead_letters())
    assert [each.message for each in await place.take(feed, 1)] == [sent]
    await feed.close()


# ------------------------------------------------------------------------- order


@promise("G6", "G10", needs=("order",))
async def a_replayed_event_and_its_key_never_run_at_once(place: Place) -> None:
    """Replayed while later events of its key are handled: one at a time, whoever comes first."""
    service = Service("shop")
    broker = await place.broker()
    running: dict[str, int] = {}
    together: list[str] = []
    handled: list[tuple[str, int]] = []
    refused: set[tuple[str, int]] = set()

    @service.on(OrderPlaced, retry=soon(3), concurrency=8)
    async def pay(event: OrderPlaced, ctx: Context) -> None:
        this = (event.customer, event.number)
        running[event.customer] = running.get(event.customer, 0) + 1
        if running[event.customer] > 1:
            together.append(f"{this}")
        try:
            await asyncio.sleep(0.001)
            if event.number % 5 == 0 and this not in refused:
                refused.add(this)
                raise Reject("not yet")
            if event.number % 7 == 0 and ctx.attempt == 1:
                raise OSError("no")
            handled.append(this)
        finally:
            running[event.customer] -= 1

    async with place.running(service):
        for number in range(40):
            await service.publish_many([OrderPlaced(customer, number) for customer in "abc"])
            letters = await broker.dead_letters()
            await broker.resolve("replay", [letter.number for letter in letters], by="zoe")
        await place.handled("shop.pay")
        letters = await broker.dead_letters()
        await broker.resolve("replay", [letter.number for letter in letters], by="zoe")
        await place.handled("shop.pay")
    assert together == []
    assert sorted(handled) == [(customer, number) for customer in "abc" for number in range(40)]
    for customer in "abc":
        in_order = [number for known, number in handled if known == customer and number % 5]
        assert in_order == sorted(in_order), "what was not replayed stays in order"


@promise("G6", "G10", needs=("order", "delay"))
async def a_replayed_event_waits_behind_an_earlier_retry(place: Place) -> None:
    """As every event of a key does; an event of another key does not."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    await store(broker, message(1, key="a"), message(2, key="a"), message(3, key="b"))
    first, second, third = await place.take(feed, 3)
    await settle(
        feed,
        [
            (failed(first, "no"), Retry(0.4, "no")),
            (failed(second, "no"), DeadLetter("no")),
            (failed(third, "no"), DeadLetter("no")),
        ],
    )
    await _resolve(broker, "replay", *await broker.dead_letters())
    assert numbers(await place.take(feed, 1)) == [3]
    assert numbers(await feed.fetch(10, 0.0, 1000)) == []
    (first,) = await place.take(feed, 1, limit=1)
    assert (int(first.message.body), first.attempt) == (1, 2)
    await ack(feed, [first])
    assert numbers(await place.take(feed, 1)) == [2]


async def _parked(place: Place) -> tuple[Feed, list[Delivery]]:
    """A feed whose key `a` waits for its second event; of `b` and of none two events are in hand."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True, parks=True))
    await store(broker, *(message(number, key="a") for number in range(1, 5)), message(10, key="b"), message(11))
    first, second, third, fourth, *others = await place.take(feed, 6)
    await settle(
        feed,
        [(first, ACK), (failed(second, "no"), DeadLetter("no")), (third, RELEASE), (fourth, RELEASE)],
    )
    return feed, others


@promise("G6", "G10", needs=("order",))
async def a_parked_key_waits_and_others_go_on(place: Place) -> None:
    """Where a subscription parks, later events of a dead letter's key wait, uncharged and in the backlog; other keys
    and events without a key do not."""
    broker = await place.broker()
    feed, others = await _parked(place)
    await ack(feed, others)
    await store(broker, message(5, key="a"), message(12, key="b"), message(13))
    taken = await place.take(feed, 2)
    assert numbers(taken) == [12, 13]
    await _give_up(feed, taken[1])
    await ack(feed, taken[:1])
    await nothing(feed)
    status = await place.status("reader.all")
    assert (status.backlog, status.retrying, status.dead) == (3, 0, 2)
    letters = await broker.dead_letters()
    assert [(int(letter.message.body), letter.parked) for letter in letters] == [(2, True), (13, False)]


@promise("G6", "G10", needs=("order", "durable"))
async def a_parked_key_waits_across_a_restart(place: Place) -> None:
    """Also where the consumer went without a word, and for what is published afterwards."""
    await _parked(place)
    for round_ in range(2):
        broker = await place.reopened()
        feed = await place.feed(reader(ordered=True, parks=True))
        await store(broker, message(5 + round_, key="a"), message(20 + round_, key="b"))
        taken = await place.take(feed, 3 if round_ == 0 else 1)
        assert not {int(each.message.body) for each in taken} & {2, 3, 4, 5, 6}
        await ack(feed, taken)
        await nothing(feed)
        if round_:
            await _resolve(broker, "replay", *await broker.dead_letters())
            assert await _handle_all(place, feed, 5) == [2, 3, 4, 5, 6]


@promise("G6", "G10", needs=("order",))
async def a_replay_frees_a_parked_key_in_order(place: Place) -> None:
    """The parked event comes first, then what waits; where it fails again, that goes on waiting."""
    broker = await place.broker()
    feed, others = await _parked(place)
    await ack(feed, others)
    await store(broker, message(5, key="a"))
    await _resolve(broker, "replay", *await broker.dead_letters())
    (again,) = await place.take(feed, 1, limit=1)
    assert (int(again.message.body), again.attempt, len(again.history)) == (2, 1, 1)
    await settle(feed, [(failed(again, "no"), Retry(0.02, "no"))])
    (again,) = await place.take(feed, 1, limit=1)
    assert (int(again.message.body), again.attempt) == (2, 2)
    await _give_up(feed, again)
    await nothing(feed)
    await _resolve(broker, "replay", *await broker.dead_letters())
    assert await _handle_all(place, feed, 4) == [2, 3, 4, 5]
    assert (await place.status("reader.all")).backlog == 0


@promise("G6", "G10", needs=("order",))
async def a_discard_frees_a_parked_key(place: Place) -> None:
    """Its later events come, in order, with their first attempt."""
    broker = await place.broker()
    feed, others = await _parked(place)
    await ack(feed, others)
    await store(broker, message(5, key="a"))
    await nothing(feed)
    await _resolve(broker, "discard", *await broker.dead_letters())
    assert await _handle_all(place, feed, 3) == [3, 4, 5]
    status = await place.status("reader.all")
    assert (status.backlog, status.dead) == (0, 0)
    await store(broker, message(6, key="a"))
    assert await _handle_all(place, feed, 1) == [6]


@promise("G6", "G10", needs=("order",))
async def a_service_parks_and_goes_on(place: Place) -> None:
    """`after_dead_letter="park"` on a handler: nothing of the key runs until somebody decides, and nothing is lost or
    charged by waiting."""
    service = Service("shop")
    broker = await place.broker()
    handled: list[tuple[str, int, int]] = []
    correct = False

    @service.on(OrderPlaced, after_dead_letter="park", concurrency=4)
    async def pay(event: OrderPlaced, ctx: Context) -> None:
        if event.customer == "a" and event.number == 3 and not correct:
            raise Reject("not yet")
        handled.append((event.customer, event.number, ctx.attempt))

    async with place.running(service):
        await service.publish_many([OrderPlaced(customer, number) for number in range(10) for customer in "ab"])
        await place.handled("shop.pay", 6)
        assert [each for each in handled if each[0] == "a"] == [("a", number, 1) for number in range(3)]
        assert [each for each in handled if each[0] == "b"] == [("b", number, 1) for number in range(10)]
        correct = True
        await _resolve(broker, "replay", *await broker.dead_letters())
        await place.handled("shop.pay")
    assert [each for each in handled if each[0] == "a"] == [("a", number, 1) for number in range(10)]


async def _handle_all(place: Place, feed: Feed, count: int) -> list[int]:
    """Acknowledge the next `count` deliveries one by one, all at their first attempt; their numbers in that order."""
    done: list[int] = []
    while len(done) < count:
        for delivery in await place.take(feed, 1, limit=1):
            assert delivery.attempt == 1
            done += numbers([delivery])
            await ack(feed, [delivery])
    await nothing(feed)
    return done

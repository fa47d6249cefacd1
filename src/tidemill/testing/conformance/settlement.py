"""G3: every delivery ends in one outcome, once; what is not settled comes back, and what was settled does not."""

from __future__ import annotations

import random
import time

from ...broker import Feed, Settlement
from ...message import Delivery, Failure, Message
from ...outcome import ACK, RELEASE, DeadLetter, Release, Retry
from .place import MAX_BYTES, Place, ack, failed, message, nothing, numbers, reader, settle, store
from .scenario import promise


@promise("G3")
async def what_is_acknowledged_is_gone(place: Place) -> None:
    """Not delivered again: not to this feed, nor to one that is opened later."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, *(message(number) for number in range(50)))
    await ack(feed, await place.take(feed, 50))
    await nothing(feed, 0.05)
    await feed.close()
    await nothing(await place.feed(reader()))
    status = await place.status("reader.all")
    assert (status.backlog, status.acked, status.dead) == (0, 50, 0)


@promise("G3")
async def a_retry_comes_back_with_its_history(place: Place) -> None:
    """The attempt is one more, the history holds every failure as it was given, and the message is the same."""
    feed = await place.feed(reader())
    (sent,) = await store(await place.broker(), message(1, extensions={"tenant": "Ærø"}))
    given: tuple[Failure, ...] = ()
    errors = ["ValueError: Grüße 🌊", "OSError: 'quotes' and \\", "KeyError"]
    for attempt, error in enumerate(errors, 1):
        (delivery,) = await place.take(feed, 1)
        assert delivery.attempt == attempt
        await settle(feed, [(failed(delivery, error), Retry(0, error))])
        given = delivery.history
    (delivery,) = await place.take(feed, 1)
    assert delivery.attempt == 4
    assert delivery.message == sent
    assert [failure.error for failure in delivery.history] == errors
    assert delivery.history == given
    assert (await place.status("reader.all")).retried == 3


@promise("G3", "G4", needs=("delay",))
async def a_retry_waits_for_its_delay(place: Place) -> None:
    """Not before, and soon after, while others pass it by; it counts as retrying, and as backlog."""
    feed = await place.feed(reader())
    await store(await place.broker(), message(1), message(2))
    first, second = await place.take(feed, 2)
    began = time.monotonic()
    await settle(feed, [(failed(first, "no"), Retry(0.4, "no"))])
    status = await place.status("reader.all")
    assert (status.backlog, status.retrying) == (2, 1)
    await ack(feed, [second])
    await nothing(feed, 0.1)
    (again,) = await place.take(feed, 1)
    waited = time.monotonic() - began
    assert waited >= 0.39, f"came back after {waited:.3f} s of 0.4"
    assert waited < 0.4 + 2.0, f"came back after {waited:.3f} s of 0.4"
    assert numbers([again]) == [1]
    await ack(feed, [again])
    status = await place.status("reader.all")
    assert (status.backlog, status.retrying, status.acked) == (0, 0, 2)


@promise("G3", needs=("durable", "delay"))
async def attempts_survive_a_restart(place: Place) -> None:
    """Attempts, history and delays are stored: closing and opening again resets nothing and forgets nothing."""
    feed = await place.feed(reader())
    await store(await place.broker(), message(1), message(2), message(3))
    first, second, _ = await place.take(feed, 3)
    began = time.monotonic()
    await settle(feed, [(failed(first, "one"), Retry(0, "one")), (failed(second, "two"), Retry(0.6, "two"))])
    await feed.close()
    await place.reopened()
    feed = await place.feed(reader())
    delivered = sorted(await place.take(feed, 2), key=lambda delivery: delivery.position)
    assert [(int(d.message.body), d.attempt) for d in delivered] == [(1, 2), (3, 1)]
    assert [failure.error for failure in delivered[0].history] == ["one"]
    (last,) = await place.take(feed, 1)
    assert time.monotonic() - began >= 0.59
    assert (int(last.message.body), last.attempt, [failure.error for failure in last.history]) == (
        2,
        2,
        ["two"],
    )


@promise("G10")
async def a_dead_letter_is_kept_whole(place: Place) -> None:
    """With its bytes, its headers, its reason and every attempt; it is not delivered again, it is in no backlog, and
    other subscriptions are not concerned."""
    broker = await place.broker()
    feed = await place.feed(reader())
    other = await place.feed(reader("reader.other"))
    body = b"\x00\xffnot JSON" * 100
    (sent,) = await store(broker, message(body=body, key="Zoë", extensions={"tenant": "Ærø"}))
    (delivery,) = await place.take(feed, 1)
    await settle(feed, [(failed(delivery, "OSError: no"), Retry(0, "no"))])
    (delivery,) = await place.take(feed, 1)
    before = time.time_ns()
    await settle(feed, [(failed(delivery, "OSError: never"), DeadLetter("given up: ünfit"))])
    await nothing(feed)
    (letter,) = await broker.dead_letters()
    assert letter.message == sent
    assert (letter.subscription, letter.reason, letter.attempts) == ("reader.all", "given up: ünfit", 2)
    assert [failure.error for failure in letter.history] == ["OSError: no", "OSError: never"]
    assert letter.history == delivery.history
    assert before <= letter.at <= time.time_ns()
    assert await broker.dead_letters("reader.all") == [letter]
    assert await broker.dead_letters("reader.other") == []
    status = await place.status("reader.all")
    assert (status.backlog, status.dead, status.acked) == (0, 1, 0)
    assert [each.message for each in await place.take(other, 1)] == [sent]


@promise("G10", needs=("durable",))
async def dead_letters_survive_a_restart(place: Place) -> None:
    """In the order they were given up."""
    feed = await place.feed(reader())
    await store(await place.broker(), *(message(number) for number in range(5)))
    for delivery in reversed(await place.take(feed, 5)):
        await settle(feed, [(delivery, DeadLetter(f"reason {delivery.message.body.decode()}"))])
    before = await (await place.broker()).dead_letters()
    after = await (await place.reopened()).dead_letters()
    assert before == after
    assert [letter.reason for letter in after] == [f"reason {number}" for number in (4, 3, 2, 1, 0)]


@promise("G3")
async def a_release_is_not_charged(place: Place) -> None:
    """Given back, a message comes again at once, with the same attempt and the same history."""
    feed = await place.feed(reader())
    await store(await place.broker(), message(1), message(2))
    first, second = await place.take(feed, 2)
    await settle(feed, [(failed(first, "once"), Retry(0, "once")), (second, RELEASE)])
    for _ in range(3):
        delivered = sorted(await place.take(feed, 2), key=lambda delivery: delivery.position)
        assert [delivery.attempt for delivery in delivered] == [2, 1]
        assert [len(delivery.history) for delivery in delivered] == [1, 0]
        await settle(feed, [(delivery, RELEASE) for delivery in delivered])
    status = await place.status("reader.all")
    assert (status.backlog, status.retried, status.acked) == (2, 1, 0)


@promise("G3", "G4", needs=("delay",))
async def a_delayed_release_waits_uncharged(place: Place) -> None:
    """Given back for a while, a message comes again after that and not before, while others pass it by, with the same
    attempt and the same history."""
    feed = await place.feed(reader())
    await store(await place.broker(), message(1), message(2), message(3))
    first, second, third = await place.take(feed, 3)
    await settle(feed, [(failed(first, "once"), Retry(0, "once"))])
    (first,) = await place.take(feed, 1)
    began = time.monotonic()
    await settle(feed, [(first, Release(0.4, "busy")), (second, Release(0.4))])
    await ack(feed, [third])
    await nothing(feed, 0.1)
    again = sorted(await place.take(feed, 2), key=lambda delivery: delivery.position)
    waited = time.monotonic() - began
    assert 0.39 <= waited < 0.4 + 2.0, f"came back after {waited:.3f} s of 0.4"
    assert [(int(d.message.body), d.attempt, len(d.history)) for d in again] == [(1, 2, 1), (2, 1, 0)]
    await ack(feed, again)
    status = await place.status("reader.all")
    assert (status.backlog, status.retried, status.acked) == (0, 1, 3)


@promise("G3", "G6", needs=("order", "delay"))
async def a_key_waits_for_a_delayed_release(place: Place) -> None:
    """While an event that was given back for a while is away, no later event of its key is delivered, old or new, and
    other keys go on. Behind an earlier event of its key it waits for that one, in whatever calls they are settled."""
    broker = await place.broker()
    feed = await place.feed(reader(ordered=True))
    await store(broker, message(1, key="a"), message(2, key="a"), message(3, key="b"))
    first, second, other = await place.take(feed, 3)
    began = time.monotonic()
    await settle(feed, [(second, RELEASE), (first, Release(0.3)), (other, ACK)])
    await store(broker, message(4, key="a"), message(5, key="b"))
    (other,) = await place.take(feed, 1)
    assert numbers([other]) == [5]
    await ack(feed, [other])
    await nothing(feed, 0.1)
    assert await _one_by_one(place, feed, 1) == [(1, 1)]
    waited = time.monotonic() - began
    assert waited >= 0.29, f"came back after {waited:.3f} s of 0.3"
    assert await _one_by_one(place, feed, 2) == [(2, 1), (4, 1)]
    await store(broker, *(message(number, key="a") for number in (6, 7, 8)))
    sixth, seventh, eighth = await place.take(feed, 3)
    await settle(feed, [(seventh, Release(0.05))])
    await settle(feed, [(failed(sixth, "no"), Retry(0.3, "no")), (eighth, Release(0.01))])
    assert await _one_by_one(place, feed, 3) == [(6, 2), (7, 1), (8, 1)]


async def _one_by_one(place: Place, feed: Feed, count: int) -> list[tuple[int, int]]:
    came: list[tuple[int, int]] = []
    while len(came) < count:
        (delivery,) = await place.take(feed, 1)
        came.append((int(delivery.message.body), delivery.attempt))
        await ack(feed, [delivery])
    return came


@promise("G3")
async def closing_gives_back_what_is_not_settled(place: Place) -> None:
    """At once and uncharged, to a feed that is waiting already, and to one that is opened later."""
    feed = await place.feed(reader())
    await store(await place.broker(), *(message(number, key=str(number)) for number in range(10)))
    held = await place.take(feed, 10)
    await settle(feed, [(failed(held[3], "no"), Retry(0, "no"))])
    held[3] = (await place.take(feed, 1))[0]
    waiting = await place.feed(reader())
    began = time.monotonic()
    await feed.close()
    taken = await place.take(waiting, 10)
    assert time.monotonic() - began < 3.0
    assert sorted(numbers(taken)) == list(range(10))
    assert {int(d.message.body): d.attempt for d in taken} == {n: 2 if n == 3 else 1 for n in range(10)}
    await waiting.close()
    later = await place.feed(reader())
    assert sorted(numbers(await place.take(later, 10))) == list(range(10))


@promise("G3", needs=("durable",))
async def a_broker_that_is_closed_gives_back_what_its_feeds_hold(place: Place) -> None:
    """Even where nobody closed the feeds: everything comes again after the restart, uncharged."""
    feed = await place.feed(reader())
    await store(await place.broker(), *(message(number) for number in range(10)))
    held = await place.take(feed, 10)
    await ack(feed, held[::2])
    await place.reopened()
    taken = await place.take(await place.feed(reader()), 5)
    assert sorted(numbers(taken)) == [1, 3, 5, 7, 9]
    assert {delivery.attempt for delivery in taken} == {1}


@promise("G3")
async def settling_a_part_settles_that_part(place: Place) -> None:
    """In any order: what comes back after closing is what was not settled, and nothing else."""
    feed = await place.feed(reader())
    await store(await place.broker(), *(message(number) for number in range(20)))
    held = await place.take(feed, 20)
    seed = random.randrange(1_000_000)
    order = random.Random(seed).sample(range(20), 13)
    for number in order:
        await ack(feed, [held[number]])
    await feed.close()
    again = await place.feed(reader())
    left = sorted(set(range(20)) - set(order))
    assert sorted(numbers(await place.take(again, len(left)))) == left, f"seed {seed}"
    await nothing(again, 0.05)


@promise("G1", "G3")
async def a_takeover_forgets_nothing(place: Place) -> None:
    """A feed takes over what another had, older than what it holds itself, and settles some of it, in any order: what
    it has not settled comes again after it closes, whatever lies before and after in the topic."""
    broker = await place.broker()
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    waiting: set[int] = set()
    count = 0
    for round_ in range(8):
        first, second = await place.feed(reader()), await place.feed(reader())
        held: list[Delivery] = []
        end = time.monotonic() + place.patience
        while len(held) < 10:  # until the two have shared out what there is to share
            assert time.monotonic() < end, f"nothing for the first of two feeds in round {round_}, seed {seed}"
            await store(broker, *(message(number, key=str(number)) for number in range(count, count + 20)))
            waiting.update(range(count, count + 20))
            count += 20
            held += await first.fetch(draw.randint(1, 60), 0.01, MAX_BYTES)
        await second.close()
        held += await place.take(first, len(waiting) - len(held))
        assert sorted(numbers(held)) == sorted(waiting), f"round {round_}, seed {seed}"
        draw.shuffle(held)
        for delivery in held[: draw.choice((1, 1, draw.randint(1, len(held) - 1)))]:
            await ack(first, [delivery])
            waiting.remove(int(delivery.message.body))
        await first.close()
    last = await place.feed(reader())
    assert sorted(numbers(await place.take(last, len(waiting)))) == sorted(waiting), f"seed {seed}"
    await nothing(last, 0.05)


@promise("G3", "G12")
async def a_late_settlement_is_reported_and_does_not_count(place: Place) -> None:
    """What a feed settles after it gave it back, or a second time, is returned as late; the run that holds the
    message now is the one that counts."""
    broker = await place.broker()
    first = await place.feed(reader())
    await store(broker, message(1), message(2), message(3))
    held = await place.take(first, 3)
    await ack(first, held[:1])
    assert _ids(await first.settle([(held[0], ACK)])) == _ids(held[:1])
    await first.close()
    second = await place.feed(reader())
    taken = await place.take(second, 2)
    late = await first.settle([(held[1], ACK), (failed(held[2], "no"), DeadLetter("no"))])
    assert _ids(late) == _ids(held[1:])
    status = await place.status("reader.all")
    assert (status.backlog, status.acked, status.dead) == (2, 1, 0)
    await settle(second, [(failed(taken[0], "again"), Retry(0, "again")), (taken[1], ACK)])
    (again,) = await place.take(second, 1)
    assert (again.message.id, again.attempt) == (held[1].message.id, 2)
    await ack(second, [again])
    assert (await place.status("reader.all")).acked == 3


@promise("G12")
async def a_lease_is_kept_while_a_handler_is_slow(place: Place) -> None:
    """Three times as long as the lease, and with the event loop blocked for longer than it: what is held stays held,
    nobody else gets it, and its settlement counts."""
    broker = await place.broker()
    shared = await place.another() if broker.capabilities.processes else broker
    slow, other = reader(lease=0.4), reader(lease=0.4)
    feed = await place.feed(slow)
    await store(broker, message(1, key="a"), message(2, key="b"))
    held = await place.take(feed, 2)
    waiting = await place.feed(other, shared)
    time.sleep(0.7)  # noqa: ASYNC251  what a handler that blocks the loop does
    await nothing(waiting, 0.5)
    await ack(feed, held)
    assert (await place.status("reader.all")).acked == 2


@promise("G3")
async def a_mixed_batch_settles_each_its_own_way(place: Place) -> None:
    """Acknowledged, retried, given up and released in one call."""
    broker = await place.broker()
    feed = await place.feed(reader())
    await store(broker, *(message(number) for number in range(40)))
    held = await place.take(feed, 40)
    settlements: list[Settlement] = []
    for number, delivery in enumerate(held):
        outcome = (ACK, Retry(0, "no"), DeadLetter("no"), RELEASE)[number % 4]
        settlements.append((failed(delivery, "no") if number % 4 in (1, 2) else delivery, outcome))
    await settle(feed, settlements[::-1])
    again = sorted(await place.take(feed, 20), key=lambda delivery: delivery.position)
    expected = [(number, 2 if number % 4 == 1 else 1) for number in range(40) if number % 4 in (1, 3)]
    assert [(int(delivery.message.body), delivery.attempt) for delivery in again] == expected
    assert sorted(int(letter.message.body) for letter in await broker.dead_letters()) == list(range(2, 40, 4))
    status = await place.status("reader.all")
    assert (status.backlog, status.retrying, status.dead, status.acked, status.retried) == (
        20,
        10,
        10,
        10,
        10,
    )


@promise("G3", "G1")
async def random_outcomes_add_up(place: Place) -> None:
    """A thousand messages, three feeds that are opened and closed at random, outcomes at random, in batches of random
    sizes: each message ends once, in the end, after exactly as many attempts as it was charged."""
    broker = await place.broker()
    seed = random.randrange(1_000_000)
    draw = random.Random(seed)
    total = 1000
    attempts: dict[str, int] = {}
    ended: dict[str, str] = {}
    sent: list[Message] = []
    feeds: list[Feed] = [await place.feed(reader()) for _ in range(3)]
    held: list[list[Delivery]] = [[], [], []]
    end = time.monotonic() + 3 * place.patience
    while len(ended) < total:
        assert time.monotonic() < end, f"{len(ended)} of {total} messages have ended (seed {seed})"
        if len(sent) < total:
            count = min(draw.randint(1, 60), total - len(sent))
            sent += await store(broker, *(message(key=str(draw.randrange(100))) for _ in range(count)))
        which = draw.randrange(3)
        deliveries = await feeds[which].fetch(draw.randint(1, 80), 0.0 if len(sent) < total else 0.01, MAX_BYTES)
        for delivery in deliveries:
            identity = delivery.message.id
            assert identity not in ended, f"delivered after it was {ended.get(identity)} (seed {seed})"
            assert delivery.attempt == attempts.get(identity, 0) + 1, f"wrong attempt (seed {seed})"
            assert len(delivery.history) == attempts.get(identity, 0), f"wrong history (seed {seed})"
        held[which] += deliveries
        draw.shuffle(held[which])
        settlements: list[Settlement] = []
        for delivery in held[which][: draw.randint(0, 60)]:
            identity = delivery.message.id
            roll = draw.random()
            if roll < 0.6:
                ended[identity] = "acked"
                settlements.append((delivery, ACK))
            elif roll < 0.75:
                attempts[identity] = attempts.get(identity, 0) + 1
                settlements.append((failed(delivery, "no"), Retry(draw.choice((0, 0, 0.01)), "no")))
            elif roll < 0.8:
                ended[identity] = "dead"
                settlements.append((failed(delivery, "no"), DeadLetter("no")))
            else:
                settlements.append((delivery, RELEASE))
        held[which] = held[which][len(settlements) :]
        await settle(feeds[which], settlements)
        if draw.random() < 0.05:
            await feeds[which].close()
            held[which] = []
            feeds[which] = await place.feed(reader())
    for feed in feeds:
        await nothing(feed, 0.05)
    status = await place.status("reader.all")
    dead = sorted(letter.message.id for letter in await broker.dead_letters())
    assert dead == sorted(identity for identity, fate in ended.items() if fate == "dead"), f"seed {seed}"
    counted = (status.backlog, status.retrying, status.acked, status.dead, status.retried)
    assert counted == (0, 0, total - len(dead), len(dead), sum(attempts.values())), f"seed {seed}"


def _ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]

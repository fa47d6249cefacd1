"""Order per key inside one consumer, whatever comes back from the broker before its answers do."""

from __future__ import annotations

import random
from collections import deque

import pytest

from tidemill.broker import Settlement
from tidemill.lanes import Lanes
from tidemill.message import Delivery, Message
from tidemill.outcome import ACK, DeadLetter, Retry

RETRY = Retry(0.0, "no")


def delivery(position: int, key: str | None = "k", attempt: int = 1) -> Delivery:
    return Delivery(Message(str(position), "tests", "t", "orders", 0, b"", key=key), "s", attempt, position)


class Consumer:
    def __init__(self, parks: bool = False) -> None:
        self.lanes = Lanes(parks)
        self.ready: deque[Delivery] = deque()
        self.outcomes: list[Settlement] = []

    def take(self, *deliveries: Delivery) -> list[int]:
        """What goes back at once."""
        back = self.lanes.sort(list(deliveries), self.ready)
        self.outcomes += back
        return [each.position for each, _ in back]

    def finish(self, each: Delivery, outcome: object) -> list[int]:
        self.outcomes.append((each, outcome))  # type: ignore[arg-type]
        back = self.lanes.finish(each, outcome, self.ready)  # type: ignore[arg-type]
        self.outcomes += back
        return [follower.position for follower, _ in back]


def test_nothing_runs_ahead_of_an_event_that_is_still_going_back() -> None:
    """15 failed; 16 was fetched before that was recorded, and goes back in a later batch. The broker, which knows the
    first batch only, delivers 15 again and, as far as it knows in order, 17: it must not run before 16."""
    consumer = Consumer()
    first = delivery(15)
    consumer.take(first)
    assert consumer.ready.popleft() is first
    assert consumer.finish(first, RETRY) == []
    batch, consumer.outcomes = consumer.outcomes, []
    assert consumer.take(delivery(16)) == [16]
    consumer.lanes.recorded(batch)
    again = delivery(15, attempt=2)
    assert consumer.take(again) == []
    assert consumer.ready.popleft() is again
    assert consumer.take(delivery(17)) == [17]
    consumer.finish(again, ACK)
    assert not consumer.ready
    consumer.lanes.recorded(consumer.outcomes)
    rest = [delivery(16), delivery(17)]
    assert consumer.take(*rest) == []
    assert consumer.ready.popleft() is rest[0]
    consumer.finish(rest[0], ACK)
    assert consumer.ready.popleft() is rest[1]


def test_the_first_one_going_back_is_let_in_before_the_answer_is_here() -> None:
    """Or the two would never meet: it would be given back again and again."""
    consumer = Consumer()
    events = [delivery(1), delivery(2)]
    consumer.take(*events)
    assert consumer.finish(consumer.ready.popleft(), RETRY) == [2]
    again = delivery(1, attempt=2)
    assert consumer.take(again) == []
    assert consumer.ready.popleft() is again


def test_after_a_first_one_is_done_the_next_is_the_first() -> None:
    consumer = Consumer()
    consumer.take(*(delivery(position) for position in (1, 2, 3)))
    assert consumer.finish(consumer.ready.popleft(), RETRY) == [2, 3]
    consumer.lanes.recorded(consumer.outcomes[:1])
    second = delivery(2)
    assert consumer.take(second) == []
    assert consumer.ready.popleft() is second


def test_other_keys_and_events_without_one_go_on() -> None:
    consumer = Consumer()
    consumer.take(delivery(1), delivery(2, None), delivery(3, "other"))
    assert consumer.finish(consumer.ready.popleft(), RETRY) == []
    assert [each.position for each in consumer.ready] == [2, 3]
    assert consumer.take(delivery(4), delivery(5, "other"), delivery(6, None)) == [4]


@pytest.mark.parametrize("seed", range(300))
def test_a_key_is_handled_in_order_with_answers_that_come_late(seed: int) -> None:
    """A broker that delivers in order as far as it knows: batches are applied there some time before the consumer hears
    of it, and meanwhile it reads on."""
    draw = random.Random(seed)
    consumer = Consumer()
    waiting = list(range(1, 13))  # in the log, or given back
    blocked: set[int] = set()  # given back, as the broker knows
    handled: list[int] = []
    fails = {position: draw.choice((0, 0, 1, 2)) for position in waiting}
    sent: list[Settlement] = []  # on its way to the broker
    applied: list[Settlement] = []  # recorded there, and the answer is on its way back
    for _ in range(5000):
        match draw.randrange(5):
            case 0:  # the broker delivers: never past one that was given back
                for position in sorted(waiting)[: draw.randint(1, 4)]:
                    if any(earlier < position for earlier in blocked):
                        break
                    waiting.remove(position)
                    blocked.discard(position)
                    consumer.take(delivery(position))
            case 1 if consumer.ready:
                each = consumer.ready.popleft()
                if fails[each.position]:
                    fails[each.position] -= 1
                    consumer.finish(each, RETRY)
                else:
                    handled.append(each.position)
                    consumer.finish(each, ACK)
            case 2 if consumer.outcomes and not sent and not applied:
                sent, consumer.outcomes = consumer.outcomes, []
            case 3 if sent:
                for each, outcome in sent:
                    if outcome is not ACK:
                        waiting.append(each.position)
                        blocked.add(each.position)
                sent, applied = [], sent
            case 4 if applied:
                consumer.lanes.recorded(applied)
                applied = []
            case _:
                pass
        if len(handled) == 12:
            break
    assert handled == list(range(1, 13)), f"seed {seed}"


@pytest.mark.parametrize("parks", [True, False])
def test_what_follows_a_dead_letter_goes_back_where_the_subscription_parks(parks: bool) -> None:
    consumer = Consumer(parks)
    first, second = delivery(1), delivery(2)
    consumer.take(first, second)
    assert consumer.ready.popleft() is first
    assert consumer.finish(first, DeadLetter("no")) == ([2] if parks else [])
    assert list(consumer.ready) == ([] if parks else [second])
    # Until that is recorded, what else was fetched of the key goes back too; afterwards the broker keeps it.
    assert consumer.take(delivery(3)) == ([3] if parks else [])
    consumer.lanes.recorded(consumer.outcomes)
    if parks:
        replayed = delivery(1)
        assert consumer.take(replayed) == []
        assert consumer.ready.popleft() is replayed
        assert consumer.finish(replayed, ACK) == []

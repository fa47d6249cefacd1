"""Order per key inside one consumer."""

from __future__ import annotations

from collections import deque

from tidemill import Ack, Delivery, Message, Release, Retry
from tidemill.broker import Settlement
from tidemill.lanes import Lanes


def delivery(position: int, key: str | None = "k", attempt: int = 1) -> Delivery:
    return Delivery(Message(f"id-{position}", "test", "t", "topic", 1, b"", 1, key), "s.h", attempt, position)


def positions(deliveries: deque[Delivery]) -> list[int]:
    return [each.position for each in deliveries]


def released(settlements: list[Settlement]) -> list[int]:
    assert all(outcome == Release() for _, outcome in settlements)
    return [each.position for each, _ in settlements]


def test_one_of_a_key_is_ready_and_the_next_when_it_ends() -> None:
    lanes, ready = Lanes(), deque[Delivery]()
    first = delivery(1)
    assert lanes.sort([first, delivery(2), delivery(3, "other"), delivery(4, None), delivery(5)], ready) == []
    assert positions(ready) == [1, 3, 4]
    assert lanes.finish(first, Ack(), ready) == []
    assert positions(ready) == [1, 3, 4, 2]


def test_what_goes_back_takes_its_followers_along_and_what_arrives_late() -> None:
    lanes, ready = Lanes(), deque[Delivery]()
    first = delivery(1)
    lanes.sort([first, delivery(2), delivery(3)], ready)
    ready.clear()
    back = lanes.finish(first, Retry(1, "failed"), ready)
    assert released(back) == [2, 3]
    assert released(lanes.sort([delivery(4)], ready)) == [4]
    lanes.recorded([(first, Retry(1, "failed")), *back])
    assert released(lanes.sort([delivery(5)], ready)) == [5], "4 is still on its way back"
    lanes.recorded([(delivery(4), Release()), (delivery(5), Release())])
    assert lanes.sort([delivery(1, attempt=2), delivery(2)], ready) == []
    assert positions(ready) == [1]


def test_a_broker_that_is_faster_than_its_answer_does_not_make_an_event_go_round_for_ever() -> None:
    # Delivered again before `settle` returned, it was released once, came back, and was released again: a hot loop.
    lanes, ready = Lanes(), deque[Delivery]()
    first = delivery(1)
    lanes.sort([first, delivery(2)], ready)
    ready.clear()
    back = lanes.finish(first, Retry(0, "failed"), ready)
    again = delivery(1, attempt=2)
    assert lanes.sort([again, delivery(2), delivery(3)], ready) == []
    assert positions(ready) == [1]
    lanes.recorded([(first, Retry(0, "failed")), *back])
    assert lanes.finish(again, Ack(), ready) == []
    assert positions(ready) == [1, 2]


def test_everything_that_waits_can_be_taken_out() -> None:
    lanes, ready = Lanes(), deque[Delivery]()
    first = delivery(1)
    lanes.sort([first, delivery(2), delivery(3)], ready)
    assert [each.position for each in lanes.empty()] == [2, 3]
    assert lanes.finish(first, Ack(), ready) == []
    assert positions(ready) == [1]

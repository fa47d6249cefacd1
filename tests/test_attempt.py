"""One attempt: what an event from the future comes to, and when patience ends. All else is in test_consumer.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidemill import Json, Reject, RetryPolicy, Service, Topic, event, upcast
from tidemill.attempt import Attempts
from tidemill.message import Delivery, Message
from tidemill.outcome import DeadLetter, Outcome, Release
from tidemill.telemetry import listen
from tidemill.testing.clock import VirtualClock
from tidemill.watchdog import Watchdog

letters = Topic("letters")


@event("letter.sent", version=2, topic=letters)
class LetterSent:
    to: str


@upcast(LetterSent, from_version=1)
def add_to(v1: Json) -> Json:
    return v1 | {"to": "?"}


def attempts(clock: VirtualClock, **options: Any) -> Attempts:
    service = Service("post")

    @service.on(LetterSent, **options)
    async def deliver(event: LetterSent) -> None:
        raise Reject("no such street")

    (spec,) = service.handlers
    return Attempts(spec, Watchdog(clock, spec.timeout, lambda running: None), clock, lambda: False)


def from_the_future() -> Delivery:
    message = Message("l-1", "test", "letter.sent", "letters", 1, b'{"street":"?"}', version=3)
    return Delivery(message, "post.deliver", 1, 1)


def test_an_event_from_the_future_comes_again_uncharged_and_ever_more_rarely() -> None:
    async def main() -> list[Outcome]:
        clock = VirtualClock()
        begun = clock.now()
        one = attempts(clock, retry=RetryPolicy(attempts=1))
        delivery = from_the_future()
        outcomes: list[Outcome] = []
        while not outcomes or isinstance(outcomes[-1], Release):
            outcomes.append(await one.run(delivery))
            if isinstance(outcomes[-1], Release):
                clock.move_to(clock.now() + round(outcomes[-1].after * 1e9))
        assert (clock.now() - begun) / 1e9 == pytest.approx(3600)
        assert len(delivery.history) == 2
        # Somebody replays it: it waits anew.
        assert isinstance(await one.run(delivery), Release)
        return outcomes

    heard: list[str] = []
    stop = listen(lambda name, fields: heard.append(name))
    try:
        *waits, last = asyncio.run(main())
    finally:
        stop()
    afters = [wait.after for wait in waits if isinstance(wait, Release)]
    assert afters[0] == 1.0
    assert max(afters) == 30.0
    assert 100 < len(afters) < 200
    assert isinstance(last, DeadLetter)
    assert "newer than this code" in last.reason
    assert "no newer code came within 3600 s" in last.reason
    assert heard == ["delivery.future"] * 2, "it is told once, each time"


def test_without_patience_it_is_given_up_at_once() -> None:
    async def main() -> Outcome:
        return await attempts(VirtualClock(), retry=RetryPolicy(future=0)).run(from_the_future())

    assert isinstance(asyncio.run(main()), DeadLetter)


@pytest.mark.parametrize("future", [-1.0, float("nan"), 1e9])
def test_patience_is_between_nothing_and_a_year(future: float) -> None:
    with pytest.raises(ValueError, match=r"RetryPolicy\(future="):
        RetryPolicy(future=future)

"""The oracle is tested too: brokers and consumers that are wrong in a known way, each of which the suite must catch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidemill.attempt import Attempts
from tidemill.broker import (
    STORED,
    Broker,
    Capabilities,
    DeadLettered,
    Feed,
    Receipt,
    Resolve,
    Settlement,
    Subscription,
    Support,
    TopicSpec,
)
from tidemill.ids import new_id
from tidemill.message import Delivery, Message
from tidemill.outcome import ACK, RELEASE, Ack, Outcome, Release, Retry
from tidemill.stand_in import BrokerStandIn, FeedStandIn
from tidemill.testing.conformance import PROMISES, SCENARIOS, CannotRun, Place, perform, table

PATIENCE = 0.7


class WithFeed(BrokerStandIn):
    """A broker whose feeds are wrong."""

    feed: type[FeedStandIn]

    async def subscribe(self, subscription: Subscription) -> Feed:
        return self.feed(await self.real.subscribe(subscription))


class AcksBeforeHandling(WithFeed):
    class feed(FeedStandIn):
        async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
            deliveries = await self.real.fetch(limit, wait, max_bytes)
            await self.real.settle([(delivery, ACK) for delivery in deliveries])
            return deliveries

        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            return []


class LosesReleases(WithFeed):
    class feed(FeedStandIn):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            return await self.real.settle([(d, ACK if isinstance(o, Release) else o) for d, o in settlements])


class ChargesReleases(WithFeed):
    class feed(FeedStandIn):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            return await self.real.settle(
                [(d, Retry(0, "released") if isinstance(o, Release) else o) for d, o in settlements]
            )


class ReleasesAtOnce(WithFeed):
    class feed(FeedStandIn):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            return await self.real.settle([(d, RELEASE if isinstance(o, Release) else o) for d, o in settlements])


class ForgetsAttempts(WithFeed):
    class feed(FeedStandIn):
        async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
            deliveries = await self.real.fetch(limit, wait, max_bytes)
            for delivery in deliveries:
                delivery.attempt, delivery.history = 1, ()
            return deliveries


class RetriesAtOnce(WithFeed):
    class feed(FeedStandIn):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            return await self.real.settle(
                [(d, Retry(0, o.reason) if isinstance(o, Retry) else o) for d, o in settlements]
            )


class AcksUpTo(WithFeed):
    """One acknowledgement is taken for everything before it, as where offsets are committed carelessly."""

    class feed(FeedStandIn):
        def __init__(self, real: Feed) -> None:
            super().__init__(real)
            self.held: dict[int, Delivery] = {}

        async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
            deliveries = await self.real.fetch(limit, wait, max_bytes)
            self.held.update((delivery.position, delivery) for delivery in deliveries)
            return deliveries

        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            upto = max((d.position for d, o in settlements if isinstance(o, Ack)), default=0)
            given = {d.position for d, _ in settlements}
            more = [(d, ACK) for position, d in self.held.items() if position < upto and position not in given]
            self.held = {p: d for p, d in self.held.items() if p > upto and p not in given}
            return await self.real.settle([*settlements, *more])


class HidesLateness(WithFeed):
    class feed(FeedStandIn):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            await self.real.settle(settlements)
            return []


class KeepsWhatItHeld(WithFeed):
    """Closing forgets to give back."""

    class feed(FeedStandIn):
        async def close(self) -> None:
            pass


class DropsWhatItHeld(WithFeed):
    """Closing acknowledges what was fetched and not settled."""

    class feed(FeedStandIn):
        def __init__(self, real: Feed) -> None:
            super().__init__(real)
            self.held: list[Delivery] = []

        async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
            deliveries = await self.real.fetch(limit, wait, max_bytes)
            self.held += deliveries
            return deliveries

        async def close(self) -> None:
            await self.real.settle([(delivery, ACK) for delivery in self.held])
            await self.real.close()


class IgnoresLimits(WithFeed):
    class feed(FeedStandIn):
        async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
            return await self.real.fetch(limit + 100, wait, max_bytes + 10**9)


class SwallowsAFailedSettle(WithFeed):
    """Every third settlement is lost, and nobody is told."""

    class feed(FeedStandIn):
        count = 0

        async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
            kept = []
            for settlement in settlements:
                self.count += 1
                if self.count % 3:
                    kept.append(settlement)
            return await self.real.settle(kept)


class IgnoresOrder(BrokerStandIn):
    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        plain = [msgspec.structs.replace(subscription, ordered=False) for subscription in subscriptions]
        await self.real.declare(topics, plain)


class IgnoresTypes(BrokerStandIn):
    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        await self.real.declare(topics, [msgspec.structs.replace(each, types=None) for each in subscriptions])


class StartsAtTheBeginning(BrokerStandIn):
    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        await self.real.declare(topics, [msgspec.structs.replace(each, start="beginning") for each in subscriptions])


class ConfirmsWhatItLoses(BrokerStandIn):
    count = 0

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        kept = []
        for message in messages:
            self.count += 1
            if self.count % 20:
                kept.append(message)
        await self.real.publish(kept, due=due)
        return [STORED] * len(messages)


class ConfirmsTooEarly(BrokerStandIn):
    """Answers before anything is stored: what is under way when it closes is lost."""

    def __init__(self, real: Broker) -> None:
        super().__init__(real)
        self.later: list[asyncio.Task[Any]] = []

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        async def store() -> None:
            await asyncio.sleep(0.02)
            await self.real.publish(messages, due=due)

        self.later.append(asyncio.create_task(store()))
        return [STORED] * len(messages)

    async def close(self) -> None:
        for task in self.later:
            task.cancel()
        await self.real.close()


class ForgetsDuplicates(BrokerStandIn):
    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        renamed = [msgspec.structs.replace(each, id=new_id()) for each in messages]
        return await self.real.publish(renamed, due=due)


class IgnoresDelays(BrokerStandIn):
    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        return await self.real.publish(messages)


class MendsDeadLetters(BrokerStandIn):
    """Keeps dead letters as text."""

    async def dead_letters(
        self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[DeadLettered]:
        return [
            msgspec.structs.replace(
                letter,
                message=msgspec.structs.replace(
                    letter.message, body=letter.message.body.decode("utf-8", "replace").encode()
                ),
            )
            for letter in await self.real.dead_letters(subscription, after=after, limit=limit)
        ]


class ForgetsPages(BrokerStandIn):
    async def dead_letters(
        self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[DeadLettered]:
        return await self.real.dead_letters(subscription, limit=limit)


class ReplaysToEverybody(BrokerStandIn):
    """Publishes anew what is replayed."""

    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        letters = {letter.number: letter for letter in await self.real.dead_letters()}
        if action == "replay":
            await self.real.publish(
                [msgspec.structs.replace(letters[n].message, id=new_id()) for n in numbers if n in letters]
            )
        return await self.real.resolve("discard", numbers, by=by)


class ReplaysWithoutRemoving(BrokerStandIn):
    """Two operators at once replay the same dead letters twice."""

    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        await self.real.resolve(action, numbers, by=by)
        return list(numbers)


class NamesNobody(BrokerStandIn):
    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        return await self.real.resolve(action, numbers, by="somebody")


class DropsWhatIsReplayed(BrokerStandIn):
    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        return await self.real.resolve("discard", numbers, by=by)


class NeverParks(BrokerStandIn):
    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        await self.real.declare(topics, [msgspec.structs.replace(spec, parks=False) for spec in subscriptions])

    async def subscribe(self, subscription: Subscription) -> Feed:
        return await self.real.subscribe(msgspec.structs.replace(subscription, parks=False))


class CutsTimes(BrokerStandIn):
    """Keeps times in microseconds."""

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        cut = [msgspec.structs.replace(each, time=each.time // 1000 * 1000) for each in messages]
        return await self.real.publish(cut, due=due)


CAUGHT_BY: list[tuple[type[BrokerStandIn], str]] = [
    (AcksBeforeHandling, "closing_gives_back_what_is_not_settled"),
    (AcksBeforeHandling, "a_failed_handler_runs_again"),
    (AcksBeforeHandling, "a_handler_over_the_grace_is_given_back"),
    (LosesReleases, "a_release_is_not_charged"),
    (LosesReleases, "running_handlers_finish_and_the_rest_is_given_back"),
    (LosesReleases, "stopping_and_starting_repeats_nothing"),
    (ChargesReleases, "a_release_is_not_charged"),
    (ChargesReleases, "running_handlers_finish_and_the_rest_is_given_back"),
    (ChargesReleases, "a_delayed_release_waits_uncharged"),
    (ReleasesAtOnce, "a_delayed_release_waits_uncharged"),
    (ReleasesAtOnce, "a_key_waits_for_a_delayed_release"),
    (IgnoresOrder, "a_key_waits_for_a_delayed_release"),
    (ForgetsAttempts, "a_retry_comes_back_with_its_history"),
    (ForgetsAttempts, "attempts_run_out"),
    (RetriesAtOnce, "a_retry_waits_for_its_delay"),
    (RetriesAtOnce, "retries_back_off"),
    (AcksUpTo, "settling_a_part_settles_that_part"),
    (AcksUpTo, "random_outcomes_add_up"),
    (HidesLateness, "a_late_settlement_is_reported_and_does_not_count"),
    (KeepsWhatItHeld, "closing_gives_back_what_is_not_settled"),
    (DropsWhatItHeld, "settling_a_part_settles_that_part"),
    (IgnoresLimits, "a_fetch_takes_no_more_than_asked_for"),
    (IgnoresLimits, "slow_handlers_bound_what_is_held"),
    (SwallowsAFailedSettle, "what_is_acknowledged_is_gone"),
    (IgnoresOrder, "a_key_waits_for_its_retry"),
    (IgnoresOrder, "order_holds_through_retries"),
    (IgnoresOrder, "a_failing_key_holds_back_no_other"),
    (IgnoresTypes, "types_that_are_not_wanted_pass_by"),
    (StartsAtTheBeginning, "a_new_subscription_starts_now"),
    (ConfirmsWhatItLoses, "concurrent_publishers_lose_nothing"),
    (ForgetsDuplicates, "a_repeated_publish_is_reported_and_delivered_once"),
    (IgnoresDelays, "a_delayed_message_appears_when_it_is_due"),
    (MendsDeadLetters, "a_dead_letter_is_kept_whole"),
    (MendsDeadLetters, "what_cannot_be_read_blocks_nobody"),
    (ForgetsPages, "dead_letters_come_in_pages"),
    (ReplaysToEverybody, "a_replay_reaches_the_failing_subscription_alone"),
    (ReplaysWithoutRemoving, "a_dead_letter_is_resolved_once"),
    (NamesNobody, "the_trail_says_who_decided_what"),
    (DropsWhatIsReplayed, "a_replayed_event_may_fail_again"),
    (DropsWhatIsReplayed, "a_dead_letter_outlives_its_topics_retention"),
    (DropsWhatIsReplayed, "a_replay_frees_a_parked_key_in_order"),
    (ForgetsAttempts, "a_replayed_event_may_fail_again"),
    (IgnoresOrder, "a_replayed_event_waits_behind_an_earlier_retry"),
    (NeverParks, "a_parked_key_waits_and_others_go_on"),
    (NeverParks, "a_discard_frees_a_parked_key"),
    (NeverParks, "a_service_parks_and_goes_on"),
    (CutsTimes, "what_is_published_arrives_unchanged"),
]

CAUGHT_ON_DISK: list[tuple[type[BrokerStandIn], str]] = [
    (ConfirmsTooEarly, "what_was_confirmed_survives_a_restart"),
    (ForgetsAttempts, "attempts_survive_a_restart"),
    (KeepsWhatItHeld, "closing_gives_back_what_is_not_settled"),
    (ForgetsDuplicates, "duplicates_are_known_after_a_restart"),
    (LosesReleases, "order_survives_a_restart"),
    (DropsWhatIsReplayed, "a_replay_survives_a_restart"),
    (NeverParks, "a_parked_key_waits_across_a_restart"),
]


@pytest.mark.parametrize(("mutant", "scenario"), CAUGHT_BY, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_broker_is_caught(mutant: type[BrokerStandIn], scenario: str, tmp_path: Path) -> None:
    assert fails(scenario, "memory:", tmp_path, mutant)


@pytest.mark.parametrize(("mutant", "scenario"), CAUGHT_ON_DISK, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_durable_broker_is_caught(mutant: type[BrokerStandIn], scenario: str, tmp_path: Path) -> None:
    assert fails(scenario, f"sqlite:///{tmp_path}/mutant.db", tmp_path, mutant)


@pytest.mark.parametrize("scenario", ["a_handler_over_the_grace_is_given_back", "whatever_a_handler_raises_is_settled"])
def test_a_consumer_that_takes_cancelling_for_success_is_caught(
    scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = Attempts._raised

    def takes_it_for_success(self: Attempts, delivery: Delivery, error: BaseException) -> Outcome:
        return ACK if isinstance(error, asyncio.CancelledError) else raised(self, delivery, error)

    monkeypatch.setattr(Attempts, "_raised", takes_it_for_success)
    assert fails(scenario, "memory:", tmp_path)


def test_a_consumer_that_loses_what_a_handler_raised_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "failed", lambda *_: ACK)
    for scenario in (
        "whatever_a_handler_raises_is_settled",
        "attempts_run_out",
        "a_handler_that_hangs_is_stopped",
    ):
        assert fails(scenario, "memory:", tmp_path)


@pytest.mark.parametrize("scenario", sorted({name for _, name in CAUGHT_BY}))
def test_the_same_scenarios_pass_on_a_right_broker(scenario: str, tmp_path: Path) -> None:
    assert not fails(scenario, "memory:", tmp_path, BrokerStandIn, patience=10.0)


class HasNoDelay(BrokerStandIn):
    """Declares that it cannot delay, and does so all the same when it is asked to."""

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self.real.capabilities, delay=Support.NONE)


def test_what_a_broker_lacks_is_skipped_and_has_to_be_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="no delay"):
        perform(SCENARIOS["a_delayed_message_appears_when_it_is_due"], Place("memory:", tmp_path, wrap=HasNoDelay))
    assert fails("what_a_broker_lacks_is_refused", "memory:", tmp_path, HasNoDelay)


def test_the_suite_covers_what_brokers_promise() -> None:
    proved = {name for scenario in SCENARIOS.values() for name in scenario.promises}
    # G8 and G9 are the outbox's and the inbox's: no broker keeps them.
    assert proved == PROMISES.keys() - {"G8", "G9"}
    assert len(SCENARIOS) >= 80
    assert table().count("\n") == len(SCENARIOS) + 2


def fails(
    scenario: str,
    url: str,
    folder: Path,
    mutant: Callable[[Broker], Broker] = BrokerStandIn,
    patience: float = PATIENCE,
) -> bool:
    """Whether a scenario fails, as it has to on what is wrong."""
    try:
        perform(SCENARIOS[scenario], Place(url, folder, wrap=mutant, patience=patience))
    except (AssertionError, TimeoutError, ValueError, KeyError, pytest.fail.Exception):
        return True
    return False

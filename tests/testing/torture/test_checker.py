"""The checker is tested too: each thing that may go wrong is put into a clean run, and must be found; and what only
looks wrong must not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tidemill.testing.torture.evidence import SECOND
from tidemill.testing.torture.plan import Kind, id_of

from .world import ONE, OTHER, World

ORDERED, PLAIN = "torture.ordered", "torture.plain"


def test_a_clean_run_is_clean() -> None:
    world = World()
    assert world.check().findings == []
    assert set(world.check().dead) == {kind for kind in Kind if kind not in (Kind.HEALTHY, Kind.FLAKY)}


# ----------------------------------------------------------------- what is wrong


def lose(world: World) -> None:
    world.remains.stored = [each for each in world.remains.stored if each.id != "k00-7"]


def lose_the_last(world: World) -> None:
    del world.remains.stored[-1]


def store_twice(world: World) -> None:
    world.remains.stored.append(world.remains.stored[0])


def store_out_of_order(world: World) -> None:
    stored = world.remains.stored
    stored[3], stored[4] = stored[4], stored[3]


def store_what_nobody_published(world: World) -> None:
    world.publish("k00", world.plan.last(0))


def store_other_bytes(world: World) -> None:
    world.remains.stored[5] = msgspec.structs.replace(world.remains.stored[5], body=b"{}")


def handle_what_nobody_stored(world: World) -> None:
    run = world.begin(ONE, PLAIN, "k00", 999)
    world.end("ended", ONE, PLAIN, "k00", 999, 1, run)


def leave_unhandled(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    world.forget(lambda fact: fact.subscription == PLAIN and (fact.key, fact.number) == (key, number))


def acknowledge_before_the_end(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    world.forget(lambda fact: fact.what == "ended" and (fact.key, fact.number) == (key, number))


def acknowledge_what_nobody_ran(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    world.change(world.find("acked", key, number), run=0)


def acknowledge_twice(world: World) -> None:
    key, number = world.of(Kind.HEALTHY, at=-1)
    run = world.begin(OTHER, PLAIN, key, number)
    world.end("ended", OTHER, PLAIN, key, number, 1, run)
    world.settle("acked", OTHER, PLAIN, key, number, 1, run)


def acknowledge_a_dead_letter(world: World) -> None:
    key, number = world.of(Kind.UNKNOWN)
    world.settle("acked", OTHER, ORDERED, key, number, 1, 0)


def repeat_what_was_settled(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    run = world.begin(OTHER, PLAIN, key, number)
    world.end("ended", OTHER, PLAIN, key, number, 1, run)


def repeat_what_is_not_settled(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    world.forget(lambda fact: fact.what == "acked" and (fact.key, fact.number) == (key, number))
    repeat_what_was_settled(world)


def drop_poison(world: World) -> None:
    key, number = world.of(Kind.UNDECODABLE)
    world.remains.dead = [each for each in world.remains.dead if each.message.id != id_of(key, number)]


def give_up_twice(world: World) -> None:
    world.remains.dead.append(world.remains.dead[0])


def give_up_what_nobody_stored(world: World) -> None:
    world.bury(ORDERED, "k01", 998, 4)


def give_up_the_innocent(world: World) -> None:
    world.bury(PLAIN, *world.of(Kind.HEALTHY), 4)


def give_up_early(world: World) -> None:
    letter = world.remains.dead[[each.attempts for each in world.remains.dead].index(4)]
    world.remains.dead.remove(letter)
    world.remains.dead.append(msgspec.structs.replace(letter, attempts=2, history=letter.history[:2]))


def give_up_without_history(world: World) -> None:
    letter = world.remains.dead.pop()
    world.remains.dead.append(msgspec.structs.replace(letter, history=()))


def give_up_with_other_bytes(world: World) -> None:
    letter = world.remains.dead.pop()
    other = msgspec.structs.replace(letter.message, body=letter.message.body + b" ")
    world.remains.dead.append(msgspec.structs.replace(letter, message=other))


def try_too_often(world: World) -> None:
    key, number = world.of(Kind.RAISES)
    run = world.begin(ONE, PLAIN, key, number, 5)
    world.end("failed", ONE, PLAIN, key, number, 5, run)


def forget_attempts(world: World) -> None:
    key, number = world.of(Kind.FLAKY)
    for fact in [each for each in world.facts if (each.key, each.number, each.attempt) == (key, number, 2)]:
        world.change(fact, attempt=1)


def charge_the_innocent(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    for fact in [each for each in world.facts if (each.key, each.number, each.attempt) == (key, number, 1)]:
        world.change(fact, attempt=2)


def charge_what_waited_behind_a_timeout(world: World) -> None:
    key, number = world.of(Kind.FLAKY)
    world.change(world.find("failed", key, number), what="cut")


def overtake(world: World) -> None:
    """An event runs once more after a later one of its key has been settled."""
    key, number = world.of(Kind.HEALTHY)
    move = [each for each in world.facts if each.subscription == ORDERED and (each.key, each.number) == (key, number)]
    for fact in move:
        world.change(fact, at=fact.at + 3600 * SECOND)


def run_two_at_once(world: World) -> None:
    key, number = world.of(Kind.HEALTHY)
    fact = world.find("ended", key, number)
    world.change(fact, at=fact.at + SECOND)


def lose_leases_for_nothing(world: World) -> None:
    for fact in [each for each in world.facts if each.what == "acked" and each.subscription == PLAIN]:
        world.change(fact, what="late")
        world.settle("acked", OTHER, PLAIN, fact.key, fact.number, 1, 0)


def never_drain(world: World) -> None:
    world.remains.drained = None


def miscount(world: World) -> None:
    status = world.remains.statuses[0]
    world.remains.statuses[0] = msgspec.structs.replace(status, acked=status.acked + 1)


def damage(world: World) -> None:
    world.remains.integrity = "row 7 missing from index"


def end_by_itself(world: World) -> None:
    world.remains.complaints.append("consumer 7 ended by itself with status 1")


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (lose, "lost"),
        (lose_the_last, "lost"),
        (store_twice, "stored twice"),
        (store_out_of_order, "stored out of order"),
        (store_what_nobody_published, "invented"),
        (store_other_bytes, "bytes"),
        (handle_what_nobody_stored, "invented"),
        (leave_unhandled, "not handled"),
        (acknowledge_before_the_end, "acknowledged unhandled"),
        (acknowledge_what_nobody_ran, "acknowledged unhandled"),
        (acknowledge_twice, "settled twice"),
        (acknowledge_a_dead_letter, "settled twice"),
        (repeat_what_was_settled, "repeated"),
        (repeat_what_is_not_settled, "repeated"),
        (drop_poison, "poison"),
        (give_up_twice, "given up twice"),
        (give_up_what_nobody_stored, "invented"),
        (give_up_the_innocent, "innocent given up"),
        (give_up_early, "attempts"),
        (give_up_without_history, "dead letter history"),
        (give_up_with_other_bytes, "bytes"),
        (try_too_often, "attempts"),
        (forget_attempts, "attempts forgotten"),
        (charge_the_innocent, "innocent charged"),
        (charge_what_waited_behind_a_timeout, "innocent charged"),
        (overtake, "order"),
        (run_two_at_once, "two at once"),
        (lose_leases_for_nothing, "lease lost"),
        (never_drain, "not drained"),
        (miscount, "figures"),
        (damage, "integrity"),
        (end_by_itself, "process"),
    ],
)
def test_what_is_wrong_is_found(wrong: Callable[[World], None], rule: str) -> None:
    world = World()
    wrong(world)
    assert rule in world.broken()


# ------------------------------------------------------------ what only looks so


def killed_before_it_settled(world: World) -> None:
    """A process ran an event to its end and was killed: another one runs it, and the next of its key, again."""
    key, number = world.of(Kind.HEALTHY)
    began, ended = world.find("began", key, number), world.find("ended", key, number)
    world.facts += [
        msgspec.structs.replace(began, pid=OTHER, at=began.at - 4),
        msgspec.structs.replace(ended, pid=OTHER, at=began.at - 3),
        msgspec.structs.replace(
            began, pid=OTHER, at=began.at - 2, id=id_of(key, number + 1), number=number + 1, run=90
        ),
    ]
    world.tell("killed", OTHER)
    world.change(world.facts[-1], at=began.at - 1)


def charged_for_the_death_of_its_process(world: World) -> None:
    """A process was killed while a handler ran: the next run is the second attempt."""
    key, number = world.of(Kind.HEALTHY)
    began = world.find("began", key, number)
    for fact in [each for each in world.facts if (each.key, each.number, each.subscription) == (key, number, ORDERED)]:
        world.change(fact, attempt=2)
    world.facts.append(msgspec.structs.replace(began, pid=OTHER, at=began.at - 2, attempt=1))
    world.tell("killed", OTHER)
    world.change(world.facts[-1], at=began.at - 1)


def killed_at_the_very_beginning(world: World) -> None:
    """A process was killed after the broker knew that it began, and before the handler could write that down."""
    charge_the_innocent(world)
    key, number = world.of(Kind.HEALTHY)
    began = world.find("began", key, number)
    for subscription in (ORDERED, PLAIN):
        early = msgspec.structs.replace(began, what="begins", pid=OTHER, at=began.at - 2, attempt=1, run=7)
        world.facts.append(msgspec.structs.replace(early, subscription=subscription))
    world.tell("killed", OTHER)
    world.change(world.facts[-1], at=began.at - 1)


def paused_past_its_lease(world: World) -> None:
    """A process stood still while it ran an event; another ran it and the next. Then it goes on, and is too late."""
    key, number = world.of(Kind.HEALTHY)
    began, acked = world.find("began", key, number), world.find("acked", key, number)
    world.facts += [
        msgspec.structs.replace(began, pid=OTHER, at=began.at - 2),
        msgspec.structs.replace(acked, what="paused", pid=OTHER, at=began.at - 1),
        msgspec.structs.replace(acked, what="resumed", pid=OTHER, at=acked.at + SECOND),
        msgspec.structs.replace(acked, what="ended", pid=OTHER, at=acked.at + SECOND + 1),
        msgspec.structs.replace(acked, what="late", pid=OTHER, at=acked.at + SECOND + 2),
    ]


def given_back_by_a_drain(world: World) -> None:
    """A handler was cancelled by a drain, and its event given back."""
    key, number = world.of(Kind.HEALTHY)
    began = world.find("began", key, number)
    world.facts += [
        msgspec.structs.replace(began, pid=OTHER, at=began.at - 3),
        msgspec.structs.replace(began, what="cut", pid=OTHER, at=began.at - 2),
        msgspec.structs.replace(began, what="released", pid=OTHER, at=began.at - 1),
    ]


def waited_for_newer_code(world: World) -> None:
    """A dead letter's history begins with older code that did not know its version, which is no attempt."""
    letter = world.remains.dead.pop()
    waited = msgspec.structs.replace(letter.history[0], error="FutureVersion: version 2")
    world.remains.dead.append(msgspec.structs.replace(letter, history=(waited, *letter.history)))


def given_up_after_many_deaths(world: World) -> None:
    """An innocent event was running at each of four deaths: nobody can know that it was not to blame."""
    key, number = world.of(Kind.HEALTHY, at=-1)
    world.forget(lambda fact: fact.subscription == ORDERED and (fact.key, fact.number) == (key, number))
    for attempt in range(1, 5):
        world.begin(50 + attempt, ORDERED, key, number, attempt)
        world.tell("killed", 50 + attempt)
    world.settle("dead", ONE, ORDERED, key, number, 4, 0)
    world.bury(ORDERED, key, number, 4)
    world.remains.statuses[0] = world.status(ORDERED)


@pytest.mark.parametrize(
    ("looks", "repeated"),
    [
        (killed_before_it_settled, {"killed": 2}),
        (charged_for_the_death_of_its_process, {"killed": 1}),
        (killed_at_the_very_beginning, {}),
        (paused_past_its_lease, {"paused": 1}),
        (given_back_by_a_drain, {"given back": 1}),
        (waited_for_newer_code, {}),
        (given_up_after_many_deaths, {"killed": 3}),
    ],
)
def test_what_only_looks_wrong_is_not(looks: Callable[[World], None], repeated: dict[str, int]) -> None:
    clean = World().check().repeated
    world = World()
    looks(world)
    checked = world.check()
    assert checked.findings == []
    more = {name: count - clean.get(name, 0) for name, count in checked.repeated.items()}
    assert {name: count for name, count in more.items() if count} == repeated


def test_who_only_began_and_lived_is_no_excuse() -> None:
    world = World()
    killed_at_the_very_beginning(world)
    world.forget(lambda fact: fact.what == "killed")
    assert "innocent charged" in world.broken()


def test_a_late_outcome_that_the_broker_accepted_is_found() -> None:
    world = World()
    paused_past_its_lease(world)
    (late,) = [fact for fact in world.facts if fact.what == "late"]
    world.change(late, what="acked")
    assert {"settled twice", "repeated", "two at once"} <= world.broken()


def test_a_lost_lease_does_not_excuse_the_next_owner() -> None:
    """What ran in the paused process is void; order among the others holds all the same."""
    world = World()
    paused_past_its_lease(world)
    overtake(world)
    assert "order" in world.broken()


def test_a_finding_keeps_examples_and_counts_the_rest() -> None:
    world = World()
    world.remains.stored = world.remains.stored[:-20]
    (lost,) = [finding for finding in world.check().findings if finding.rule == "lost"]
    assert (lost.count, len(lost.examples)) == (20, 5)
    assert "(and 15 more)" in str(lost)

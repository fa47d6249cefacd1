"""A torture run that never was: every process well behaved, so that one wrongness at a time can be put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tidemill.broker import DeadLettered, SubscriptionStatus
from tidemill.message import Failure
from tidemill.testing.history import Fact
from tidemill.testing.torture.checker import Checked, check
from tidemill.testing.torture.evidence import SECOND, Remains
from tidemill.testing.torture.plan import POISON, RAW, Kind, Plan, id_of
from tidemill.testing.torture.steps import message

PUBLISHER, ONE, OTHER = 1, 2, 3
MILLISECOND = SECOND // 1000

PLAN = Plan(
    seed=3,
    events=120,
    keys=2,
    seconds=1.0,
    shares={kind: 0.06 for kind in Kind if kind is not Kind.HEALTHY},
)


class World:
    """Facts of processes that do all right, one event after the other, and what is left of it."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.plan = plan
        self.facts: list[Fact] = []
        self.remains = Remains(integrity="ok", drained=0.1)
        self.now = SECOND
        self.count = 0
        for key in range(plan.keys):
            for number in range(plan.last(key)):
                self.publish(plan.key(key), number)
        for subscription in plan.subscriptions:
            for key in range(plan.keys):
                for number in range(plan.last(key)):
                    self.handle(subscription, plan.key(key), number)
        self.remains.statuses = [self.status(subscription) for subscription in plan.subscriptions]

    def tell(self, what: str, pid: int, **values: Any) -> Fact:
        self.now += MILLISECOND
        fact = Fact(what, pid, self.now, **values)
        self.facts.append(fact)
        return fact

    def publish(self, key: str, number: int) -> None:
        self.tell("confirmed", PUBLISHER, id=id_of(key, number), key=key, number=number)
        self.remains.stored.append(message(self.plan, 1, key, number))

    def handle(self, subscription: str, key: str, number: int) -> None:
        kind = self.plan.kind_for(subscription, key, number)
        if kind in RAW:
            self.settle("dead", ONE, subscription, key, number, 1, 0)
            self.bury(subscription, key, number, 1)
            return
        attempts = self.plan.attempts if kind in POISON else 2 if kind is Kind.FLAKY else 1
        for attempt in range(1, attempts + 1):
            well = kind not in POISON and attempt == attempts
            last = kind in POISON and attempt == attempts
            pid = ONE
            if kind is Kind.EXITS:
                pid = 1000 + self.count
            run = self.begin(pid, subscription, key, number, attempt)
            if kind is Kind.EXITS:
                self.tell("exits", pid)
                continue
            how = "cut" if kind is Kind.HANGS else "ended" if well else "failed"
            self.now += SECOND if kind is Kind.HANGS else 0
            self.end(how, pid, subscription, key, number, attempt, run)
            self.settle(
                "acked" if well else "dead" if last else "retried", pid, subscription, key, number, attempt, run
            )
        if kind is Kind.EXITS:
            self.settle("dead", ONE, subscription, key, number, attempts, 0)
        if kind in POISON:
            self.bury(subscription, key, number, attempts)

    def begin(self, pid: int, subscription: str, key: str, number: int, attempt: int = 1) -> int:
        self.count += 1
        self.end("began", pid, subscription, key, number, attempt, self.count)
        return self.count

    def end(self, how: str, pid: int, subscription: str, key: str, number: int, attempt: int, run: int) -> None:
        self.settle(how, pid, subscription, key, number, attempt, run)

    def settle(self, what: str, pid: int, subscription: str, key: str, number: int, attempt: int, run: int) -> None:
        self.tell(
            what,
            pid,
            subscription=subscription,
            id=id_of(key, number),
            key=key,
            number=number,
            attempt=attempt,
            run=run,
        )

    def bury(self, subscription: str, key: str, number: int, attempts: int) -> None:
        history = tuple(Failure(attempt, self.now, "RuntimeError") for attempt in range(1, attempts + 1))
        self.remains.dead.append(
            DeadLettered(
                number=len(self.remains.dead) + 1,
                subscription=subscription,
                message=message(self.plan, 1, key, number),
                reason="",
                attempts=attempts,
                at=self.now,
                history=history,
            )
        )

    def status(self, subscription: str) -> SubscriptionStatus:
        dead = sum(letter.subscription == subscription for letter in self.remains.dead)
        return SubscriptionStatus(
            name=subscription,
            topic=self.plan.topic,
            types=None,
            backlog=0,
            retrying=0,
            dead=dead,
            oldest=None,
            consumers=0,
            acked=len(self.remains.stored) - dead,
            retried=0,
        )

    # ------------------------------------------------------------ for the tests

    def of(self, kind: Kind, subscription: str = "torture.ordered", at: int = 0) -> tuple[str, int]:
        """The first event of a kind; or the one `at` places further."""
        found = [
            (self.plan.key(key), number)
            for key in range(self.plan.keys)
            for number in range(self.plan.last(key))
            if self.plan.kind_for(subscription, self.plan.key(key), number) is kind
        ]
        return found[at]

    def find(self, what: str, key: str, number: int, subscription: str = "torture.ordered") -> Fact:
        """The first fact of a kind about an event."""
        return next(
            fact
            for fact in self.facts
            if (fact.what, fact.key, fact.number) == (what, key, number) and fact.subscription in ("", subscription)
        )

    def change(self, fact: Fact, **values: Any) -> None:
        """Let a fact be otherwise."""
        self.facts[self.facts.index(fact)] = msgspec.structs.replace(fact, **values)

    def forget(self, which: Callable[[Fact], bool]) -> None:
        """Let facts not be."""
        self.facts = [fact for fact in self.facts if not which(fact)]

    def check(self) -> Checked:
        return check(self.plan, self.facts, self.remains)

    def broken(self) -> set[str]:
        """The rules that are found to be broken."""
        return {finding.rule for finding in self.check().findings}

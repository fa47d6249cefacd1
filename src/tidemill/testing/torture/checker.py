"""What is wrong with a torture run: nothing, one hopes. A pure function of what was written down and what is left.

Every rule has a test that breaks it. A run that is void, as its process had lost the lease, is no evidence of
anything; but if the broker accepted what it came to, it was not void.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from ...broker import DeadLettered
from ...errors import FutureVersion
from ..history import Fact
from .evidence import SECOND, Evidence, Process, Remains, Run
from .plan import POISON, RAW, Kind, Plan, parts
from .steps import bodies

SHOWN: Final = 5
"""Examples kept of each finding."""

_WAITED: Final = FutureVersion.__name__
"""What begins a line of a dead letter's history that is no attempt: the event waited for newer code."""

CARELESS: Final = 0.005
"""The share of runs that may lose their lease in a process that was not paused: a busy machine is slow to renew."""


class Finding(msgspec.Struct):
    """A rule that was broken."""

    rule: str
    count: int = 0
    examples: list[str] = []

    def __str__(self) -> str:
        more = f" (and {self.count - len(self.examples)} more)" if self.count > len(self.examples) else ""
        return f"{self.rule}: {'; '.join(self.examples)}{more}"


class Checked(msgspec.Struct):
    """The checker's answer."""

    findings: list[Finding]
    repeated: dict[str, int]
    """Events handled again, by the reason: `killed`, `crashed`, `paused`, `given back`."""
    dead: dict[str, int]
    """Dead letters by kind of event, all subscriptions together."""


def check(plan: Plan, facts: Sequence[Fact], remains: Remains) -> Checked:
    """Everything that is wrong with a run."""
    checker = _Checker(plan, Evidence(facts), remains)
    checker.check()
    return Checked(list(checker.findings.values()), dict(checker.repeated), dict(checker.given_up))


class _Checker:
    def __init__(self, plan: Plan, evidence: Evidence, remains: Remains) -> None:
        self.plan = plan
        self.evidence = evidence
        self.remains = remains
        self.findings: dict[str, Finding] = {}
        self.repeated: Counter[str] = Counter()
        self.given_up: Counter[str] = Counter()
        self.stored = {message.id for message in remains.stored}
        self.letters: dict[tuple[str, str], list[DeadLettered]] = defaultdict(list)
        for letter in remains.dead:
            self.letters[letter.subscription, letter.message.id].append(letter)

    def check(self) -> None:
        self._storage()
        self._fates()
        self._settlements()
        for runs in self.evidence.runs.values():
            self._runs(runs)
        for subscription, ordered in self.plan.subscriptions.items():
            if ordered:
                self._order(subscription)
        self._leases()
        self._end()

    def wrong(self, rule: str, text: str) -> None:
        finding = self.findings.setdefault(rule, Finding(rule))
        finding.count += 1
        if len(finding.examples) < SHOWN:
            finding.examples.append(text)

    # ---------------------------------------------------------------- storage

    def _storage(self) -> None:
        """What was confirmed is stored, once, in order, with the bytes it had; and nothing else is."""
        for identity in sorted({fact.id for fact in self.evidence.of("confirmed")} - self.stored):
            self.wrong("lost", f"{identity} was confirmed and is not stored")
        seen: set[str] = set()
        following: Counter[str] = Counter()
        for message in self.remains.stored:
            if message.id in seen:
                self.wrong("stored twice", message.id)
                continue
            seen.add(message.id)
            key, number = parts(message.id)
            if message.body not in bodies(self.plan, key, number):
                self.wrong("bytes", f"{message.id} is stored with other bytes than were published")
            if number != following[key]:
                self.wrong("stored out of order", f"{message.id} comes where {key}-{following[key]} should")
            following[key] = max(following[key], number + 1)
        for number in range(self.plan.keys):
            key = self.plan.key(number)
            if following[key] > self.plan.last(number):
                self.wrong("invented", f"{key}-{following[key] - 1} is stored, and was never to be published")

    # ------------------------------------------------------------------ fates

    def _fates(self) -> None:
        """Every stored event was handled, or is a dead letter where it is poison: by each subscription."""
        for subscription in self.plan.subscriptions:
            for identity in self.stored:
                self._fate(subscription, identity)
        for (subscription, identity), found in self.letters.items():
            if len(found) > 1:
                self.wrong("given up twice", f"{identity} on {subscription}")
            if identity not in self.stored:
                self.wrong("invented", f"a dead letter {identity} on {subscription} that nobody stored")
            self.given_up[self.plan.kind_for(subscription, *parts(identity))] += len(found)
        for subscription, identity in self.evidence.runs:
            if identity not in self.stored:
                self.wrong("invented", f"{identity} was handled by {subscription}, and is not stored")

    def _fate(self, subscription: str, identity: str) -> None:
        kind = self.plan.kind_for(subscription, *parts(identity))
        letters = self.letters.get((subscription, identity), [])
        runs = self.evidence.runs.get((subscription, identity), [])
        handled = any(run.how == "ended" for run in runs)
        if kind in POISON:
            if not letters:
                self.wrong("poison", f"{identity} ({kind}) is no dead letter of {subscription}")
            for letter in letters:
                self._letter(kind, letter)
        elif letters:
            if not self._explained(subscription, identity, runs):
                attempts = ", ".join(failure.error for failure in letters[0].history)
                self.wrong("innocent given up", f"{identity} ({kind}) on {subscription}: {attempts}")
            for letter in letters:
                self._letter(kind, letter)
        elif not handled:
            self.wrong("not handled", f"{identity} was neither handled nor given up by {subscription}")

    def _letter(self, kind: Kind, letter: DeadLettered) -> None:
        """A dead letter has its bytes and all of its attempts."""
        what = f"{letter.message.id} ({kind}) on {letter.subscription}"
        if letter.message.body not in bodies(self.plan, *parts(letter.message.id)):
            self.wrong("bytes", f"the dead letter {what} has other bytes than were published")
        attempts = [failure.attempt for failure in letter.history if not failure.error.startswith(_WAITED)]
        if attempts != list(range(1, letter.attempts + 1)):
            self.wrong("dead letter history", f"{what} was given up at attempt {letter.attempts}; known: {attempts}")
        if letter.attempts > self.plan.attempts or (kind not in RAW and letter.attempts < self.plan.attempts):
            self.wrong("attempts", f"{what} was given up at attempt {letter.attempts} of {self.plan.attempts}")

    def _explained(self, subscription: str, identity: str, runs: list[Run]) -> bool:
        """Whether each attempt of an innocent was one in which its process died, or one that its kind fails."""
        charged = {run.attempt for run in runs if self._charges(run)}
        died = {attempt for name, event, attempt in self.evidence.begun if (name, event) == (subscription, identity)}
        return charged | died >= set(range(1, self.plan.attempts + 1))

    def _charges(self, run: Run) -> bool:
        """Whether a run may have cost an attempt: it failed, its time was up, or its process died or lost it."""
        return run.how == "failed" or run.died or run.void or self._too_long(run)

    def _too_long(self, run: Run) -> bool:
        return run.how == "cut" and run.ended - run.began >= 0.95 * self.plan.timeout * SECOND

    # ------------------------------------------------------------ settlements

    def _settlements(self) -> None:
        """Only what was handled is acknowledged, and nothing ends twice."""
        finals: Counter[tuple[str, str]] = Counter()
        for fact in self.evidence.without_run:
            if fact.what == "acked":
                self.wrong("acknowledged unhandled", f"{fact.id} on {fact.subscription}: no handler ran")
            if fact.what in ("acked", "dead"):
                finals[fact.subscription, fact.id] += 1
        for name, runs in self.evidence.runs.items():
            for run in runs:
                finals[name] += run.final
                if run.settled == "acked" and run.how != "ended":
                    self.wrong("acknowledged unhandled", f"{_told(run)}: {run.how or 'it never ended'}")
        for (subscription, identity), count in finals.items():
            if count > 1:
                self.wrong("settled twice", f"{identity} on {subscription}, {count} times")
        for fact in self.evidence.facts:
            if fact.what == "acked" and (fact.subscription, fact.id) in self.letters:
                self.wrong("settled twice", f"{fact.id} on {fact.subscription}: acknowledged, and given up")

    # ------------------------------------------------------------------- runs

    def _runs(self, runs: list[Run]) -> None:
        """A run that is not the first of its event has a reason, and its attempt is the right one."""
        done = False
        remembered = 0
        earlier: Run | None = None
        for at, run in enumerate(runs):
            if run.attempt > self.plan.attempts:
                self.wrong("attempts", f"{_told(run)}, of {self.plan.attempts}")
            if run.void:
                self.repeated["paused"] += at > 0
            else:
                if done:
                    self.wrong("repeated", f"{_told(run)}: after it had been settled")
                elif earlier is not None:
                    self._reason(earlier, run)
                elif at > 0:
                    self.repeated["paused"] += 1
                self._attempt(runs[:at], run, remembered)
                earlier = run
                if run.settled == "retried":
                    remembered = max(remembered, run.attempt)
            done = done or run.final

    def _reason(self, before: Run, run: Run) -> None:
        if before.settled == "retried":
            return
        if before.settled == "released":
            self.repeated["given back"] += 1
        elif before.died and before.process.ended <= run.began:
            self.repeated[before.process.how] += 1
        else:
            self.wrong("repeated", f"{_told(run)}, though {_told(before)} was in a process that lived")

    def _attempt(self, before: list[Run], run: Run, remembered: int) -> None:
        if run.attempt <= remembered:
            self.wrong("attempts forgotten", f"{_told(run)}, though attempt {remembered} had failed")
        last = run.attempt - 1
        died = (run.subscription, run.id, last) in self.evidence.begun
        if last and not died and not any(each.attempt == last and self._charges(each) for each in before):
            self.wrong("innocent charged", f"{_told(run)}, and no attempt {last} had failed")

    # ------------------------------------------------------------------ order

    def _order(self, subscription: str) -> None:
        """Of each key one event at a time, in order."""
        keys: dict[str, list[Run]] = defaultdict(list)
        for (name, _), runs in self.evidence.runs.items():
            if name == subscription:
                for run in runs:
                    if not run.void:
                        keys[run.key].append(run)
        for runs in keys.values():
            runs.sort(key=lambda run: run.began)
            self._one_at_a_time(runs)
            highest = -1
            for at, run in enumerate(runs):
                if run.number < highest:
                    for other in _standing(runs[:at], run):
                        self.wrong("order", f"{_told(run)} began after {_told(other)}")
                highest = max(highest, run.number)

    def _one_at_a_time(self, runs: list[Run]) -> None:
        latest: Run | None = None
        for run in runs:
            if latest is not None and latest.over > run.began:
                self.wrong("two at once", f"{_told(run)} began while {_told(latest)} ran")
            if latest is None or run.over > latest.over:
                latest = run

    # -------------------------------------------------------------------- end

    def _leases(self) -> None:
        """Only who was paused loses a lease."""
        runs = [run for found in self.evidence.runs.values() for run in found]
        careless = [run for run in runs if run.settled == "late" and not _was_paused(run.process, run.began)]
        if len(careless) > CARELESS * len(runs) + 1:
            for run in careless:
                self.wrong("lease lost", f"{_told(run)}, in a process that was not paused")

    def _end(self) -> None:
        """In the end everything is settled, the broker's figures agree, and its storage is whole."""
        if self.remains.drained is None:
            left = ", ".join(f"{status.backlog} on {status.name}" for status in self.remains.statuses)
            self.wrong("not drained", f"{self.plan.drain:g} s after the last fault there were {left}")
        else:
            for status in self.remains.statuses:
                dead = sum(len(found) for (name, _), found in self.letters.items() if name == status.name)
                if (status.acked, status.dead) != (len(self.stored) - dead, dead):
                    counts = f"{len(self.stored)} stored, {dead} dead letters"
                    self.wrong("figures", f"{counts}, but {status.name} says {status.acked} and {status.dead}")
        if self.remains.integrity not in ("", "ok"):
            self.wrong("integrity", self.remains.integrity)
        for complaint in self.remains.complaints:
            self.wrong("process", complaint)


def _standing(before: list[Run], run: Run) -> Iterator[Run]:
    """Runs of later events before it that were not undone by the death of their process."""
    for other in before:
        if other.number > run.number and not (other.died and other.process.ended <= run.began):
            yield other


def _was_paused(process: Process, since: int) -> bool:
    return any(until >= since - SECOND for _, until in process.pauses)


def _told(run: Run) -> str:
    return f"{run.id} attempt {run.attempt} in {run.process.pid} on {run.subscription}"

"""What is done in a torture run. Everything follows from a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Final

import msgspec

from ...outcome import RetryPolicy


class Kind(StrEnum):
    """What an event does to its handler."""

    HEALTHY = "healthy"
    """Is handled."""
    FLAKY = "flaky"
    """Fails once, then is handled."""
    UNDECODABLE = "undecodable"
    """Its bytes are no event."""
    UNKNOWN = "unknown type"
    """Of a type that no code knows."""
    RAISES = "raises"
    """Its handler always fails."""
    HANGS = "hangs"
    """Its handler never returns: the timeout has to end it."""
    BLOCKS = "blocks"
    """Its handler stops the event loop for a moment, then fails."""
    EXITS = "exits"
    """Its handler ends the process."""


POISON: Final = frozenset(Kind) - {Kind.HEALTHY, Kind.FLAKY}
"""What must become a dead letter."""

RAW: Final = frozenset({Kind.UNDECODABLE, Kind.UNKNOWN})
"""What never reaches a handler."""

SHARES: Final[dict[Kind, float]] = {
    Kind.FLAKY: 0.02,
    Kind.UNDECODABLE: 0.015,
    Kind.UNKNOWN: 0.012,
    Kind.RAISES: 0.015,
    Kind.HANGS: 0.004,
    Kind.BLOCKS: 0.002,
    Kind.EXITS: 0.002,
}
"""The share of each kind among all events: five in a hundred are poison. The rest is healthy."""


class FaultKind(StrEnum):
    """What is done to the processes."""

    KILL_CONSUMER = "kill -9 of a consumer"
    KILL_PUBLISHER = "kill -9 of a publisher"
    PAUSE = "pause past the lease"
    DEPLOY = "rolling deploy"
    BURST = "burst"
    DISK_FULL = "full disk"


_OF_CONSUMERS: Final = frozenset({FaultKind.KILL_CONSUMER, FaultKind.PAUSE, FaultKind.DEPLOY})


class Fault(msgspec.Struct, frozen=True):
    """A fault to come."""

    at: float
    """Seconds after the start."""
    kind: FaultKind
    roll: float
    """Decides whom it hits, and for how long: from 0 to 1."""


ORDERED: Final = "ordered"
PLAIN: Final = "plain"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run, completely: the same plan makes the same events and the same faults at the same times.

    What the processes make of it differs from run to run, as they are real ones.
    """

    seed: int
    events: int = 20_000
    minutes: float = 10.0
    """Most minutes until the last fault; after that, what is left is handled."""
    keys: int = 64
    consumers: int = 4
    publishers: int = 2
    lease: float = 1.5
    """Seconds. Short, so that a pause of a few seconds outlasts it."""
    timeout: float = 0.8
    """Seconds a handler may take."""
    longest: float = 0.008
    """Seconds a healthy handler takes at most: enough to be killed in, short enough for hundreds a second."""
    attempts: int = 4
    seconds: float = 0.0
    """How long events are published and faults injected; 0: long enough for both."""
    faults: dict[FaultKind, int] = {}
    """How many of each kind; those not named: as many as fit the number of events."""
    shares: dict[Kind, float] = msgspec.field(default_factory=SHARES.copy)
    drain: float = 60.0
    """Seconds after the last fault within which everything has to be settled."""
    name: str = "torture"
    """What its service and its topic are called."""
    mutant: str = ""
    """`module:function`, called in the processes before they begin: for tests of the run itself."""

    @property
    def topic(self) -> str:
        """The topic of all events."""
        return f"{self.name}.steps"

    @property
    def retry(self) -> RetryPolicy:
        """How its handlers are retried: soon."""
        return RetryPolicy(attempts=self.attempts, immediate=0, base=0.05, factor=2, cap=0.2)

    @property
    def subscriptions(self) -> dict[str, bool]:
        """The subscriptions, and whether each is ordered."""
        return {f"{self.name}.{ORDERED}": True, f"{self.name}.{PLAIN}": False}

    @property
    def duration(self) -> float:
        """How long events are published and faults injected, in seconds."""
        return min(self.seconds or 20 + self.events / 250, self.minutes * 60)

    def planned(self, kind: FaultKind) -> int:
        """How many faults of a kind are planned."""
        if kind in self.faults or self.faults:
            return self.faults.get(kind, 0)
        thousands = self.events / 1000
        return round(
            {
                FaultKind.KILL_CONSUMER: 52 + 2.6 * thousands,
                FaultKind.KILL_PUBLISHER: 18 + 0.9 * thousands,
                FaultKind.PAUSE: 8 + 0.58 * thousands,
                FaultKind.DEPLOY: 2 + 0.1 * thousands,
                FaultKind.BURST: 2 + 0.1 * thousands,
                FaultKind.DISK_FULL: 1 + 0.03 * thousands,
            }[kind]
        )

    def needed(self, kind: FaultKind) -> int:
        """How many faults of a kind must have hit, or the run proves nothing: four of five."""
        planned = self.planned(kind)
        return max(min(planned, 1), int(planned * 0.8))

    def timeline(self) -> list[Fault]:
        """All faults, in the order of their times, from when the processes have had a moment to begin."""
        draw = random.Random(f"{self.seed}/faults")
        start = min(1.0, self.duration / 4)
        # What is about publishing comes while there still is something to publish.
        until = {kind: 0.75 * self.duration for kind in FaultKind if kind not in _OF_CONSUMERS}
        faults = [
            Fault(round(draw.uniform(start, until.get(kind, self.duration)), 3), kind, draw.random())
            for kind in FaultKind
            for _ in range(self.planned(kind))
        ]
        return sorted(faults, key=lambda fault: fault.at)

    def key(self, number: int) -> str:
        """The name of a key."""
        return f"k{number:02}"

    def last(self, key: int) -> int:
        """How many events a key has."""
        return self.events // self.keys + (key < self.events % self.keys)

    def kind(self, key: str, number: int) -> Kind:
        """What kind of event that is."""
        roll = random.Random(f"{self.seed}/{key}-{number}").random()
        for kind, share in self.shares.items():
            if roll < share:
                return kind
            roll -= share
        return Kind.HEALTHY

    def kind_for(self, subscription: str, key: str, number: int) -> Kind:
        """What that event does to the handler of a subscription. What is dangerous is so to the ordered one alone."""
        kind = self.kind(key, number)
        if kind in (Kind.HANGS, Kind.BLOCKS, Kind.EXITS) and not self.subscriptions[subscription]:
            return Kind.HEALTHY
        return kind


def id_of(key: str, number: int) -> str:
    """An event's id: the same for a publisher that is started again, so that it repeats what is not confirmed."""
    return f"{key}-{number}"


def parts(identity: str) -> tuple[str, int]:
    """The key and number in an event's id."""
    key, _, number = identity.rpartition("-")
    return key, int(number)

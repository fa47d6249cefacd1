"""Faults on purpose, in staging: what brokers and networks do once a month, some hundred times a day.

    TIDEMILL_CHAOS=0.01 tidemill run shop:service

Everything dealt here is within what Tidemill promises: a service that handles events idempotently (by `ctx.message.id`)
and repeats a publish whose fate is unknown loses nothing, and has every effect once. One that does not shows it.
"""

from __future__ import annotations

import copy
import random
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from .broker import Broker, Feed, Receipt, Settlement, Status, Subscription
from .clock import Clock
from .errors import BrokerError, ConfigurationError
from .handler import HandlerSpec
from .message import Delivery, Message
from .outcome import RELEASE, Ack, Outcome
from .pipeline import Handle
from .stand_in import BrokerStandIn, FeedStandIn
from .telemetry import emit

VARIABLE: Final = "TIDEMILL_CHAOS"

HIGHEST: Final = 0.5
"""Highest probability: with more, little else than faults would happen."""

LONGEST: Final = 0.5
"""Longest delay, in seconds: long enough to bring things out of step, and far below any lease."""

REMEMBERED: Final = 10_000
"""Messages remembered as handed out again, so that it happens to none of them twice."""


class Chaos:
    """What goes wrong, and how often: each operation fails with one probability, in one of the ways it can fail.

    probability  of each publish, each fetch, each settling, and each acknowledgement.
    seed         the same seed deals the same faults to the same operations, each kind counted for itself.
    """

    def __init__(self, probability: float, seed: int, clock: Clock) -> None:
        self.probability = probability
        self.seed = seed
        self.dealt: Counter[str] = Counter()
        """How often each fault happened."""
        self._clock = clock
        self._draws: dict[str, random.Random] = {}
        self._again: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], clock: Clock) -> Chaos | None:
        """What `$TIDEMILL_CHAOS` and `$TIDEMILL_CHAOS_SEED` ask for, which is nothing where the first is 0.

        Raises `ConfigurationError` where they ask for something that cannot be.
        """
        text = environment.get(VARIABLE, "0")
        try:
            probability = float(text)
        except ValueError:
            probability = -1.0
        if not 0 <= probability <= HIGHEST:  # written so that NaN fails too
            raise ConfigurationError(
                f"{VARIABLE}={text!r} is no probability from 0 to {HIGHEST:g}. Nothing was started. Write "
                f"{VARIABLE}=0.01 to have one operation in a hundred fail, or unset it."
            )
        seed = environment.get(f"{VARIABLE}_SEED") or str(random.randrange(2**32))
        try:
            number = int(seed)
        except ValueError:
            raise ConfigurationError(
                f"{VARIABLE}_SEED={seed!r} is no whole number. Nothing was started. Write the seed that an earlier "
                "run logged, or unset it."
            ) from None
        return cls(probability, number, clock) if probability else None

    def tell(self) -> None:
        """Say loudly that faults are on."""
        emit("chaos.enabled", probability=self.probability, seed=self.seed)

    def broker(self, real: Broker) -> Broker:
        """`real`, on which some things go wrong."""
        return _ChaosBroker(real, self)

    def handler(self, spec: HandlerSpec) -> HandlerSpec:
        """`spec`, some of whose acknowledgements are as good as lost: the event is handed out again."""
        spec = copy.copy(spec)
        # Outermost, as a middleware: the consumer then knows what goes back, and keeps the order of its key.
        spec.use = (self._hand_out_again, *spec.use)
        return spec

    async def _hand_out_again(self, call_next: Handle, delivery: Delivery) -> Outcome:
        outcome = await call_next(delivery)
        if isinstance(outcome, Ack):
            message = delivery.message
            event = (delivery.subscription, message.source, message.id)
            if event not in self._again and self.draw("ack", "duplicate"):
                self._again[event] = None
                if len(self._again) > REMEMBERED:
                    self._again.popitem(last=False)
                return RELEASE
        return outcome

    def draw(self, operation: str, *faults: str) -> str | None:
        """Which of these faults happens to an operation now, if one does."""
        draws = self._draws.get(operation)
        if draws is None:
            draws = self._draws[operation] = random.Random(f"{self.seed} {operation}")
        fault = faults[int(draws.random() * len(faults))]
        if draws.random() >= self.probability:
            return None
        self.dealt[f"{operation}.{fault}"] += 1
        return fault

    async def delay(self, operation: str) -> None:
        """Let some time pass."""
        await self._clock.sleep(self._draws[operation].uniform(0, LONGEST))


class _ChaosBroker(BrokerStandIn):
    def __init__(self, real: Broker, chaos: Chaos) -> None:
        super().__init__(real)
        self._chaos = chaos

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        fault = self._chaos.draw("publish", "delay", "refuse", "forget")
        if fault == "refuse":
            raise BrokerError(f"nothing was stored, on purpose ({VARIABLE})")
        receipts = await self.real.publish(messages, due=due)
        if fault == "delay":
            await self._chaos.delay("publish")
        if fault == "forget":
            unknown = Receipt(Status.UNKNOWN, f"the confirmation was dropped, on purpose ({VARIABLE})")
            return [unknown if receipt.ok else receipt for receipt in receipts]
        return receipts

    async def subscribe(self, subscription: Subscription) -> Feed:
        return _ChaosFeed(await self.real.subscribe(subscription), self._chaos)


class _ChaosFeed(FeedStandIn):
    def __init__(self, real: Feed, chaos: Chaos) -> None:
        super().__init__(real)
        self._chaos = chaos

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        # Before, not after: what is given back meanwhile must not be overtaken by what is held here.
        if self._chaos.draw("fetch", "delay"):
            await self._chaos.delay("fetch")
        return await self.real.fetch(limit, wait, max_bytes)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        fault = self._chaos.draw("settle", "delay", "refuse", "forget")
        if fault == "delay":
            await self._chaos.delay("settle")
        if fault == "refuse":
            raise BrokerError(f"nothing was recorded, on purpose ({VARIABLE})")
        late = await self.real.settle(settlements)
        if fault == "forget":
            raise TimeoutError(f"the broker's answer was dropped, on purpose ({VARIABLE})")
        return late

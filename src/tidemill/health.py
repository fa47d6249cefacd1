"""Whether running services live and consume: what an orchestrator asks, and what a person with curl reads.

**Live** means that waiting helps: the event loop has its turn, and every task that consumes exists. What is not live
does not recover by itself and is to be started again. A broker that is away, or handlers that fail, are no reason:
another process would meet the same.

**Ready** means that every subscription really consumes: the start is finished, no drain has begun, and the broker
answers each one's fetches, which is more than that a connection is open.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final, Literal

import msgspec

from .consumer import Consumer
from .runtime import Runtime

SILENT: Final = 10.0
"""Seconds after which a fetch without an answer counts as failing. A broker answers within one, with nothing if there
is nothing; ten leave room for a checkpoint, a failover and a busy disk."""

State = Literal["starting", "consuming", "paused", "failing", "draining", "stopped"]


class SubscriptionHealth(msgspec.Struct, frozen=True):
    """How one subscription is, in this process."""

    name: str
    state: State
    why: str = ""
    """In words, where it does not consume."""

    @property
    def ready(self) -> bool:
        """Whether it does what it is asked to: one that somebody paused does."""
        return self.state in ("consuming", "paused")


class Health(msgspec.Struct, frozen=True):
    """How services are, in this process."""

    live: bool
    ready: bool
    why: str = ""
    """In words, where they are not ready."""
    subscriptions: tuple[SubscriptionHealth, ...] = ()


def health_of(runtime: Runtime | None, names: Collection[str] | None = None) -> Health:
    """How a runtime is; with `names` as far as these subscriptions go. None: nothing runs."""
    if runtime is None:
        return Health(live=True, ready=False, why="not running")
    specs = [spec for service in runtime.services for spec in service.handlers]
    wanted = [spec.subscription.name for spec in specs if names is None or spec.subscription.name in names]
    if runtime.state in ("starting", "stopped"):
        found = tuple(SubscriptionHealth(name, runtime.state) for name in wanted)
        return Health(live=True, ready=False, why=runtime.state, subscriptions=found)
    consumers = {consumer.name: consumer for consumer in runtime.consumers}
    if not consumers and specs:
        return Health(live=True, ready=True, why="publishes only")
    # While it drains it ends by itself: its tasks are ending, and nobody shall kill it for that.
    draining = runtime.state == "draining"
    dead = [] if draining else [name for name in wanted if not consumers[name].alive]
    stuck = runtime.watch is not None and runtime.watch.stuck
    found = tuple(
        SubscriptionHealth(name, "draining" if draining else "failing", "" if draining else "a task of it has ended")
        if draining or name in dead
        else _subscription(consumers[name])
        for name in wanted
    )
    failing = [each.name for each in found if not each.ready]
    if stuck:
        why = "the event loop stands still"
    elif draining:
        why = "draining"
    else:
        why = f"{', '.join(failing)} does not consume" if failing else ""
    return Health(live=not dead and not stuck, ready=not why, why=why, subscriptions=found)


def _subscription(consumer: Consumer) -> SubscriptionHealth:
    now = time.monotonic()
    if consumer.trouble:
        since, error = min(consumer.trouble.values())
        return SubscriptionHealth(consumer.name, "failing", f"{error} (for {now - since:.0f} s)")
    waited = now - min(consumer.asked.values(), default=now)
    if waited > SILENT:
        return SubscriptionHealth(consumer.name, "failing", f"the broker has not answered for {waited:.0f} s")
    if consumer.is_paused:
        return SubscriptionHealth(consumer.name, "paused", "somebody paused it: tidemill resume lets it go on")
    if consumer.circuit_open_since is not None:
        # It is ready: another process would meet the same failures, and one event at a time is tried.
        return SubscriptionHealth(consumer.name, "consuming", "its circuit is open: one event at a time is tried")
    return SubscriptionHealth(consumer.name, "consuming")

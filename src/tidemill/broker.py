"""What an adapter to a broker promises: the protocol, its capabilities, and how one is found by URL.

An adapter moves batches of messages and settles deliveries. It runs no handlers and makes no policy; what a broker
lacks is emulated once, in the core. An adapter is done when the conformance suite passes against the real server.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias
from urllib.parse import parse_qs, urlsplit

import msgspec

from .clock import Clock
from .errors import BrokerUrlError, ConfigurationError
from .message import Delivery, Failure, Message
from .outcome import Outcome

DEFAULT_URL = "sqlite:///tidemill.db"
"""The embedded broker in the working directory: durable, and nothing to install."""

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_SECRET = re.compile(r"([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&#]*", re.IGNORECASE)


class Support(StrEnum):
    """How a feature comes about on a broker. Native and emulated pass the same tests; none is an error at start."""

    NATIVE = "native"
    EMULATED = "emulated"
    NONE = "none"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker can do, and its numbers. Known after `open`."""

    durability: Literal["disk", "replicated", "memory"]
    """What a confirmed publish survives: `disk` a power cut, `memory` nothing."""
    processes: bool
    """Whether several processes can share it."""
    publish_batch: int
    """Messages worth putting into one `publish`; 1 where a batch gains nothing."""
    delay: Support = Support.NATIVE
    """Delayed publishing and delayed retries."""
    order: Support = Support.NATIVE
    """Order per key across consumers, through retries and crashes."""
    deduplication: Support = Support.NATIVE
    """A second publish of the same `(source, id)` within the retention is reported as a duplicate."""
    longest_run: float | None = None
    """Seconds after which a delivery is taken from a handler that still runs; None: it is kept as long as need be."""
    history: Support = Support.NATIVE
    """Reading what was handled: `read`, `trace`, subscriptions that start in the past."""


class TopicSpec(msgspec.Struct, frozen=True):
    """What a broker needs to know of a topic."""

    name: str
    key: str | None = None
    retain: float = 7 * 86400.0
    """Seconds that handled messages stay readable."""


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A handler's durable claim on a topic."""

    name: str
    """`<service>.<handler>`: a contract, as the backlog belongs to it."""
    topic: str
    types: tuple[str, ...] | None = None
    """The event types it wants; None for all. Others pass it by."""
    ordered: bool = False
    """Events of one key one at a time, in order, across all consumers."""
    start: Literal["now", "beginning"] | int = "now"
    """Where a subscription that does not exist yet begins: a time is nanoseconds since 1970."""
    lease: float = 30.0
    """Seconds after which the deliveries of a consumer that gave no sign of life go to another."""
    renamed_from: str | None = None
    """The name it had before: its backlog moves along."""
    parks: bool = False
    """Whether, after a dead letter, the later events of its key wait, uncharged, until it is replayed or discarded.
    Of ordered subscriptions only."""


Resolve: TypeAlias = Literal["replay", "discard"]
"""What can be done about a dead letter."""


class Status(StrEnum):
    """What became of one published message."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    NOT_STORED = "not_stored"
    UNKNOWN = "unknown"


class Receipt(msgspec.Struct, frozen=True):
    """The broker's answer for one published message."""

    status: Status
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the message is stored, by this call or an earlier one."""
        return self.status is Status.STORED or self.status is Status.DUPLICATE


STORED = Receipt(Status.STORED)
DUPLICATE = Receipt(Status.DUPLICATE)


class SubscriptionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one subscription, all consumers together."""

    name: str
    topic: str
    types: tuple[str, ...] | None
    backlog: int
    """Messages not settled yet, those in flight and those waiting for a retry included."""
    retrying: int
    """Of the backlog: failed at least once, waiting or running again."""
    dead: int
    """Dead letters kept. None of them is in the backlog; what waits behind a parked one is."""
    oldest: int | None
    """When the oldest message of the backlog was published, in nanoseconds since 1970; None without a backlog."""
    consumers: int
    """Open feeds that gave a sign of life lately."""
    acked: int
    """Deliveries acknowledged since the subscription exists."""
    retried: int
    """Failed attempts since the subscription exists."""
    paused: bool = False
    """Whether it is paused: its consumers fetch nothing."""


class TopicStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one topic."""

    name: str
    key: str | None
    messages: int
    """Messages readable now."""
    scheduled: int
    """Messages published with a delay that is not over."""


class Inspection(msgspec.Struct, frozen=True):
    """The state of a broker as far as Tidemill put it there."""

    topics: list[TopicStatus]
    subscriptions: list[SubscriptionStatus]


class DeadLettered(msgspec.Struct, frozen=True, kw_only=True):
    """A message a subscription gave up on."""

    number: int
    """What `Broker.resolve` takes: larger for what was given up later, and never used for another."""
    subscription: str
    message: Message
    reason: str
    attempts: int
    at: int
    """When it was given up: nanoseconds since 1970."""
    history: tuple[Failure, ...] = ()
    """Every failed attempt, those before a replay included."""
    parked: bool = False
    """Whether the later events of its key wait until it is replayed or discarded."""


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody decided about a dead letter: a line of the audit trail."""

    number: int
    """Larger for what was decided later."""
    at: int
    """When: nanoseconds since 1970."""
    action: Resolve
    by: str
    """Who, as they called themselves."""
    letter: int
    """The dead letter's number."""
    subscription: str
    message_id: str
    source: str
    type: str
    key: str | None
    reason: str
    """Why it had been given up."""
    attempts: int


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What one subscription did with one message."""

    subscription: str
    message_id: str
    state: Literal["pending", "retrying", "acked", "dead"]
    attempts: int = 1
    history: tuple[Failure, ...] = ()
    reason: str = ""


class Trace(msgspec.Struct, frozen=True):
    """The messages of one flow, in the order they were published, and what every subscription did with them."""

    messages: list[Message]
    fates: list[Fate]


Settlement: TypeAlias = tuple[Delivery, Outcome]


class FeedWatcher(Protocol):
    """Who is told what happens to a feed without having been asked for."""

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """The lease of these is gone: another consumer may have them already, and no outcome of them counts (G12)."""
        ...

    def paused(self, paused: bool) -> None:
        """The subscription is paused: nothing comes until it goes on, and what waits here is to be given back.

        Or it goes on.
        """
        ...


class Feed(Protocol):
    """An open subscription: what one consumer fetches from and settles with."""

    def watch(self, watcher: FeedWatcher) -> None:
        """Tell `watcher` from now on, on the event loop, what happens to this feed by itself."""
        ...

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        """Up to `limit` deliveries of at most `max_bytes` together (one may exceed it), or none after `wait` seconds.
        With a `limit` of 0 none; but it keeps up with what others do, as every fetch does, at least once a second.

        Every delivery is this feed's alone until it is settled or its lease is lost. On an ordered subscription no
        event is delivered while an earlier one of its key waits for a retry or is held by another feed.
        What is delivered is decided in the step of the event loop in which it is returned: whatever was settled by then
        counts, so that an event which arrived earlier does not overtake one that was given back meanwhile.
        """
        ...

    def begin(self, delivery: Delivery) -> bool:
        """A handler is about to run it. False where the lease is over, as far as is known here: then it must not.

        From here on the attempt counts (G5): if this process dies before the outcome is recorded or `end` is called,
        the next delivery of the message says `died`. Called once for each run, and never for what only waits.
        """
        ...

    def end(self, delivery: Delivery) -> None:
        """The handler has ended in an outcome that charges nothing: `Ack` or `Release`."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        """Record outcomes. Returns the deliveries whose lease was lost: their outcome did not count.

        The one place that ends deliveries. Raises `BrokerError` if nothing was recorded; it is then safe to repeat.
        On an ordered subscription a released event stays behind an earlier one of its key that is to be retried, or
        was given up where the subscription parks; and later ones stay behind one that is released for a while.
        """
        ...

    def let_go(self) -> None:
        """The event loop is stuck, and with it what is in flight: renew the lease no more, until it lives again.

        The one method that is called from another thread.
        """
        ...

    async def leave(self) -> None:
        """Begin to close: nothing more is to be fetched here, and what is given back goes to other consumers at once,
        while handlers still run. Raises nothing for a broker's sake: at the latest `close` has the same effect."""
        ...

    async def close(self) -> None:
        """Give back at once, uncharged, what was fetched and not settled, so that other consumers go on with it."""
        ...


class Broker(Protocol):
    """The adapter to the system that stores messages. Its methods are called from one event loop."""

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do. Valid after `open`."""
        ...

    async def open(self) -> None:
        """Connect. Raises `BrokerError` where the storage cannot be used at all."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then disconnect. Closing twice does nothing."""
        ...

    async def declare(self, topics: Sequence[TopicSpec], subscriptions: Sequence[Subscription]) -> None:
        """Create what is missing, update what changed, destroy nothing. Repeating it changes nothing."""
        ...

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        """Store messages; a receipt each, in their order. On return they are durable as `capabilities` says.

        Messages of one key keep their order. With `due` (nanoseconds since 1970) they appear on their topic then.
        Never raises for one message's sake; raises `BrokerError` if nothing was stored at all.
        """
        ...

    async def subscribe(self, subscription: Subscription) -> Feed:
        """Open a declared subscription for one consumer."""
        ...

    async def pause(self, subscription: str, paused: bool) -> None:
        """Let no consumer of a subscription fetch until it is resumed; durable as what is declared.

        Repeating it changes nothing. Raises `ConfigurationError` where there is no such subscription.
        """
        ...

    async def inspect(self) -> Inspection:
        """What is there, and how far each subscription is."""
        ...

    async def dead_letters(
        self, subscription: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[DeadLettered]:
        """The dead letters kept, oldest first; of one subscription if named.

        The next `limit` after the number `after`, so that a long list is read in pages. With `None` all of them.
        """
        ...

    async def resolve(self, action: Resolve, numbers: Sequence[int], *, by: str) -> list[int]:
        """Replay or discard dead letters, all or none of them. Returns the numbers of those that were still there.

        Each is a dead letter no more, and a line in the trail says that `by` decided so. A replayed one is pending
        again for the subscription that had given up, and for no other: with its id and its history, counting
        attempts from 1. On an ordered subscription it stays behind earlier events of its key that wait, and it is
        delivered to no other feed while one holds later ones. What waited behind a parked one that is discarded
        goes on; of a replayed one, when that is settled.
        """
        ...

    async def resolutions(self, *, before: int | None = None, limit: int = 1000) -> list[Resolution]:
        """The audit trail of `resolve`, newest last: the last `limit` lines, or the last before a number."""
        ...

    def read(self, topic: str, *, since: int | None = None, follow: bool = False) -> AsyncIterator[Message]:
        """The messages of a topic, without consuming: from `since` (nanoseconds since 1970; None: the oldest kept).

        With `follow` it goes on with new messages for ever; without, it ends at the newest.
        """
        ...

    async def trace(self, correlation_id: str) -> Trace:
        """What happened in one flow. Raises `Unsupported` where the broker keeps no history."""
        ...


class BrokerUrl(msgspec.Struct, frozen=True):
    """A broker's URL in parts."""

    scheme: str
    text: str
    """The whole URL, without secrets: for people, not for connecting."""
    path: str
    """As written: an adapter whose paths are file names takes the percent-encoding off."""
    namespace: str
    """From `?namespace=`: what every name is prefixed with, so that environments share one broker."""
    options: dict[str, str]
    """The other query parameters."""

    def refuse_options(self, *known: str) -> None:
        """Raise `BrokerUrlError` where a query parameter is none of `known`."""
        for name in self.options:
            if name not in known:
                allowed = ", ".join(("namespace", *known))
                raise BrokerUrlError(f"{self.text}: unknown parameter {name!r}. This broker takes: {allowed}.")


Connect: TypeAlias = Callable[[BrokerUrl, Clock], Broker]
"""What an adapter registers as entry point in the group `tidemill.brokers`, under its URL scheme."""


def parse_url(url: str) -> BrokerUrl:
    """Take a broker's URL apart. Raises `BrokerUrlError` where it is none."""
    try:
        parts = urlsplit(url)
        # By hand, as parts.password is None where there is a user alone, and a token is just that.
        user, at, _ = parts.netloc.rpartition("@")
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except (ValueError, TypeError, AttributeError) as error:
        raise _no_url(url, f" {error}.") from error
    if not parts.scheme:
        raise _no_url(url)
    if parts.fragment:
        raise _no_url(url, " A '#' in a path is written %23.")
    options = {name: values[-1] for name, values in query.items()}
    namespace = options.pop("namespace", "")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise BrokerUrlError(
            f"namespace={namespace!r}: use letters, digits, '-' and '_', starting with a letter or digit, "
            "at most 60 characters."
        )
    text = url
    if at:
        name, colon, _ = user.partition(":")
        text = text.replace(f"{user}@", f"{name}:***@" if colon else "***@", 1)
    text = _SECRET.sub(r"\1***", text)
    return BrokerUrl(parts.scheme.lower(), text, parts.path, namespace, options)


def _no_url(url: object, why: str = "") -> BrokerUrlError:
    shown = repr(url).rpartition("@")[2] if isinstance(url, str) else repr(url)  # no password in any error
    return BrokerUrlError(
        f"{shown} is not a broker URL.{why} Examples: memory:, sqlite:///shop.db (a relative path), "
        "sqlite:////var/lib/shop.db (an absolute one)."
    )


def connect(url: str, clock: Clock) -> Broker:
    """The adapter for `url`, not opened yet.

    Raises `BrokerUrlError` where no installed adapter serves its scheme, and `ConfigurationError` where the one that
    does cannot be imported.
    """
    # A tenth of the time `import tidemill` takes, and needed only here.
    from importlib.metadata import entry_points

    parsed = parse_url(url)
    known = {point.name: point for point in entry_points(group="tidemill.brokers")}
    point = known.get(parsed.scheme)
    if point is None:
        near = difflib.get_close_matches(parsed.scheme, known, n=1)
        hint = f" Did you mean {near[0]}:?" if near else ""
        found = f"Installed: {', '.join(sorted(known))}." if known else "None is: install Tidemill with pip."
        raise BrokerUrlError(f"{parsed.text}: no broker is installed for {parsed.scheme!r}.{hint} {found}")
    try:
        make: Connect = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{parsed.text}: its adapter {point.value!r} cannot be loaded: {error}. Nothing was started. "
            "Install the distribution that brings it again, with all that it needs."
        ) from error
    return make(parsed, clock)

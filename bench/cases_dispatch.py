# SPDX-License-Identifier: Apache-2.0
# Copyright The Tidemill authors
"""Between broker and handler: what a framework itself costs an event, with no broker and no network.

Both get the same thing in the same form, as a NATS client hands it over: headers and a body, in an object a message.
Both decode it into the same six typed fields with msgspec, call a handler that counts, and acknowledge. The
acknowledgement goes to a stand-in that counts as well, and at the end as many must have been acknowledged as handled.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tidemill import Message
from tidemill.broker import FeedWatcher, Settlement
from tidemill.clock import SystemClock
from tidemill.cloudevents import from_binary, to_binary
from tidemill.codec import to_message
from tidemill.consumer import Consumer
from tidemill.message import Delivery
from tidemill.outcome import ACK

from .events import OrderPlaced, PlainOrder, Tally, make
from .measure import Case, Figures, Skipped
from .waiting import until

TIDEMILL = "dispatch: Tidemill"
TIDEMILL_ROWS = "dispatch: Tidemill, from a row"
FASTSTREAM = "dispatch: FastStream"


class RawMessage:
    """As a client library hands it over."""

    __slots__ = ("body", "headers")

    def __init__(self, headers: dict[str, str], body: bytes) -> None:
        self.headers = headers
        self.body = body


class StandIn:
    """A feed without a broker: turns what came in into deliveries, and counts what is acknowledged."""

    def __init__(self, raw: Sequence[Any], parse: Callable[[Any], Message]) -> None:
        self._raw = deque(enumerate(raw, 1))
        self._parse = parse
        self._never = asyncio.get_running_loop().create_future()
        self.acknowledged = 0

    def watch(self, watcher: FeedWatcher) -> None: ...

    async def fetch(self, limit: int, wait: float, max_bytes: int) -> list[Delivery]:
        raw, parse = self._raw, self._parse
        if not raw:
            await self._never
        deliveries: list[Delivery] = []
        while raw and len(deliveries) < limit:
            position, message = raw.popleft()
            deliveries.append(Delivery(parse(message), "bench.count", 1, position))
        return deliveries

    def begin(self, delivery: Delivery) -> bool:
        return True

    def end(self, delivery: Delivery) -> None: ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        for _, outcome in settlements:
            if outcome is ACK:
                self.acknowledged += 1
        return []

    async def leave(self) -> None: ...

    async def close(self) -> None: ...


async def _tidemill(count: int, rows: bool, **options: Any) -> Figures:
    tally = Tally(**options)
    messages = [to_message(make(tally.cls, number), source="bench", time=time.time_ns()) for number in range(count)]
    if rows:
        feed = StandIn([_row(message) for message in messages], lambda row: Message(*row))
    else:
        feed = StandIn(
            [RawMessage(*to_binary(message)) for message in messages],
            lambda raw: from_binary(raw.headers, raw.body, topic="orders"),
        )
    del messages
    (spec,) = tally.service.handlers
    consumer = Consumer(spec, feed, SystemClock())
    began = time.perf_counter()
    consumer.start()
    await until(lambda: feed.acknowledged >= count)
    elapsed = time.perf_counter() - began
    await consumer.drain(1)
    assert tally.seen == count
    return {"µs/event": elapsed / count * 1e6}


def _row(message: Message) -> tuple[Any, ...]:
    """A message's columns, as a SQL broker's driver hands them over."""
    return tuple(getattr(message, name) for name in message.__struct_fields__)


async def _faststream(count: int) -> Figures:
    try:
        from fast_depends.msgspec import MsgSpecSerializer
        from faststream import AckPolicy
        from faststream._internal.endpoint.subscriber.utils import MultiLock
        from faststream.nats import JStream, NatsBroker, PullSub
        from nats.aio.msg import Msg
    except ImportError as error:
        raise Skipped(f"pip install 'faststream[nats]' brings it ({error})") from error

    class Connection:
        """What `Msg.ack` publishes to."""

        acknowledged = 0

        async def publish(self, subject: str, payload: bytes = b"", *args: object, **kwargs: object) -> None:
            assert payload in (b"", Msg.Ack.Ack), payload  # anything else is a refusal
            Connection.acknowledged += 1

    seen = 0
    broker = NatsBroker(logger=None, serializer=MsgSpecSerializer())

    async def handler(event: PlainOrder) -> None:
        nonlocal seen
        seen += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subscriber: Any = broker.subscriber(
            "orders",
            stream=JStream("ORDERS", declare=False),
            durable="count",
            pull_sub=PullSub(batch_size=100),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )
        subscriber(handler)
    # What broker.start() does, apart from talking to a server.
    broker._setup_logger()
    subscriber.lock = MultiLock()
    subscriber._build_fastdepends_model()
    subscriber._post_start()
    connection = Connection()
    raw: list[Any] = []
    for number in range(count):
        message = to_message(make(OrderPlaced, number), source="bench", time=time.time_ns())
        headers, body = to_binary(message)
        headers["correlation_id"] = headers["message_id"] = message.id
        raw.append(Msg(connection, "orders", f"$JS.ACK.ORDERS.count.1.{number}.{number}.0.0", body, headers))  # type: ignore[arg-type]
    consume = subscriber.consume
    began = time.perf_counter()
    for each in raw:
        await consume(each)
    elapsed = time.perf_counter() - began
    assert seen == connection.acknowledged == count, (seen, connection.acknowledged, count)
    return {"µs/event": elapsed / count * 1e6}


def cases() -> list[Case]:
    group = "Between broker and handler"
    return [
        Case(TIDEMILL, group, lambda count: asyncio.run(_tidemill(count, rows=False)), 20_000),
        Case(TIDEMILL_ROWS, group, lambda count: asyncio.run(_tidemill(count, rows=True)), 20_000),
        Case(
            f"{TIDEMILL}, handler sleeps(0)",
            group,
            lambda count: asyncio.run(_tidemill(count, rows=False, pause=True)),
            20_000,
        ),
        Case(FASTSTREAM, group, lambda count: asyncio.run(_faststream(count)), 10_000, "peer"),
    ]

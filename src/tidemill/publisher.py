"""Publishing: many awaiting callers, one broker batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from .broker import STORED, Broker, Receipt, Status, TopicSpec
from .errors import BrokerError, PublishError
from .event import Topic
from .message import Message

CONFIRM = 10.0
"""Seconds to wait for the broker's confirmation: longer than any healthy commit, short enough for a web request.
After that it is not known whether the messages are stored."""

MAX_BATCH = 1000
"""Most messages in one batch, and so in one transaction of a SQL broker."""

IN_FLIGHT = 2
"""Batches under way at once: while one is written, the callers of the other encode their next events."""


class Publisher:
    """Publishes messages through one broker. Every method returns when the broker has confirmed.

    The messages must be ones that `message.check` lets pass, as those of `codec.to_message` are.

    Concurrent callers share a batch: what is waiting when the previous batch is confirmed goes next, so a batch is
    as large as the load makes it and a lone caller never waits for company.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        # Where batches gain nothing a message goes straight through: no future, no turn of the loop.
        self._direct = broker.capabilities.publish_batch <= 1
        self._limit = min(MAX_BATCH, max(1, broker.capabilities.publish_batch)) // IN_FLIGHT
        self._waiting: list[tuple[Message, asyncio.Future[Receipt]]] = []
        self.topics: set[str] = set()
        """The topics declared so far."""
        self._declaring = asyncio.Lock()
        self._senders: set[asyncio.Task[None]] = set()

    async def publish(self, message: Message, due: int | None = None) -> Receipt:
        """Store one message; with `due` (nanoseconds since 1970) it appears on its topic then.

        Raises `PublishError`, which says whether it is stored.
        """
        if self._direct:
            try:
                receipt = (await self.broker.publish((message,), due=due))[0]
            except Exception as error:
                receipt = _receipt_of(error)
        elif due is not None:
            receipt = (await self._send((message,), due))[0]
        else:
            confirmed = asyncio.get_running_loop().create_future()
            self._waiting.append((message, confirmed))
            if len(self._senders) < IN_FLIGHT:
                self._senders.add(asyncio.create_task(self._send_waiting()))
            receipt = await confirmed
        if receipt is not STORED and not receipt.ok:
            raise _error([(message, receipt)], 1)
        return receipt

    async def declare(self, topic: Topic) -> None:
        """Create the topic on the broker if it is missing; once, however many callers publish to it first."""
        async with self._declaring:
            if topic.name not in self.topics:
                await self.broker.declare([TopicSpec(topic.name, topic.key, topic.retain.total_seconds())], [])
                self.topics.add(topic.name)

    async def publish_many(self, messages: Sequence[Message], due: int | None = None) -> list[Receipt]:
        """Store many messages, in order; the fast way for one caller.

        Raises `PublishError`, which says per message what is known.
        """
        receipts: list[Receipt] = []
        for start in range(0, len(messages), MAX_BATCH):
            receipts += await self._send(messages[start : start + MAX_BATCH], due)
        failed = [(message, receipt) for message, receipt in zip(messages, receipts, strict=True) if not receipt.ok]
        if failed:
            raise _error(failed, len(messages))
        return receipts

    async def close(self) -> None:
        """Wait until everything that callers are waiting for is confirmed or refused."""
        while self._senders:
            await asyncio.wait(tuple(self._senders))

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[: self._limit]
                del self._waiting[: self._limit]
                receipts = [Receipt(Status.UNKNOWN, "publishing was stopped")] * len(batch)
                try:
                    receipts = await self._send([message for message, _ in batch], None)
                finally:  # nobody waits for ever, even if this task is cancelled
                    for (_, confirmed), receipt in zip(batch, receipts, strict=True):
                        if not confirmed.done():
                            confirmed.set_result(receipt)
        finally:
            # In the same turn that found nothing waiting: whoever comes next must see that there is a sender less.
            self._senders.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _send(self, messages: Sequence[Message], due: int | None) -> list[Receipt]:
        try:
            if self._direct:
                return await self.broker.publish(messages, due=due)
            async with asyncio.timeout(CONFIRM):
                return await self.broker.publish(messages, due=due)
        except Exception as error:
            return [_receipt_of(error)] * len(messages)


def _receipt_of(error: Exception) -> Receipt:
    if isinstance(error, BrokerError):
        return Receipt(Status.NOT_STORED, str(error))
    if isinstance(error, TimeoutError):
        return Receipt(Status.UNKNOWN, f"the broker did not confirm within {CONFIRM:g} s")
    return Receipt(Status.UNKNOWN, f"{type(error).__name__}: {error}")


def _error(failed: list[tuple[Message, Receipt]], total: int) -> PublishError:
    message, receipt = failed[0]
    unknown = sum(1 for _, each in failed if each.status is Status.UNKNOWN)
    what = f"{message.type!r} (id {message.id})" if total == 1 else f"{len(failed)} of {total} messages"
    if unknown:
        state = "may or may not be stored; publish again with the same id, which stores nothing twice"
    else:
        state = "not stored; publish again when the cause is gone"
    return PublishError(f"{what}: {state}. {receipt.error}", failed)

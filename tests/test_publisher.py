"""Publishing: shared batches, confirmations, and what callers are told when a broker does not answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from tidemill import publisher as module
from tidemill.broker import STORED, Capabilities, Receipt, Status
from tidemill.errors import BrokerError, PublishError
from tidemill.message import Message
from tidemill.publisher import Publisher


class FakeBroker:
    """Answers after as many turns of the loop as `turns` says, or raises what it is told to."""

    capabilities = Capabilities(durability="disk", processes=True, publish_batch=1000)

    def __init__(self, turns: random.Random | None = None, error: Exception | None = None) -> None:
        self.turns = turns
        self.error = error
        self.batches: list[int] = []
        self.stored: list[str] = []

    async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
        self.batches.append(len(messages))
        for _ in range(self.turns.randint(0, 3) if self.turns else 1):
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.stored += [message.id for message in messages]
        return [STORED] * len(messages)


def message(number: int = 0, body: bytes = b"{}", topic: str = "t") -> Message:
    return Message(f"id-{number}", "test", "it.happened", topic, 1, body)


@pytest.mark.parametrize("seed", range(20))
def test_no_caller_waits_for_ever_however_batches_and_callers_interleave(seed: int) -> None:
    # Callers that published in the very turn in which the last batch ended were once forgotten.
    turns = random.Random(seed)
    broker = FakeBroker(turns)

    async def caller(publisher: Publisher, first: int) -> None:
        for number in range(first, first + 40):
            await publisher.publish(message(number))
            for _ in range(turns.randint(0, 2)):
                await asyncio.sleep(0)

    async def main() -> None:
        publisher = Publisher(broker)  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await asyncio.gather(*(caller(publisher, 1000 * number) for number in range(15)))
            await publisher.close()

    asyncio.run(main())
    assert len(set(broker.stored)) == 15 * 40, f"seed {seed}"


def test_concurrent_callers_share_batches() -> None:
    broker = FakeBroker()

    async def main() -> None:
        publisher = Publisher(broker)  # type: ignore[arg-type]
        await asyncio.gather(*(publisher.publish(message(number)) for number in range(600)))

    asyncio.run(main())
    assert sum(broker.batches) == 600
    assert len(broker.batches) <= 4


def test_a_broker_that_stored_nothing_is_told_apart_from_one_that_did_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def publish(broker: FakeBroker) -> PublishError:
        with pytest.raises(PublishError) as raised:
            await Publisher(broker).publish(message())  # type: ignore[arg-type]
        return raised.value

    refused = asyncio.run(publish(FakeBroker(error=BrokerError("the disk is full"))))
    assert refused.failed[0][1] == Receipt(Status.NOT_STORED, "the disk is full")
    assert "not stored; publish again when the cause is gone. the disk is full" in str(refused)

    broken = asyncio.run(publish(FakeBroker(error=RuntimeError("connection lost at commit"))))
    assert broken.failed[0][1].status is Status.UNKNOWN
    assert "publish again with the same id" in str(broken)

    class Silent(FakeBroker):
        async def publish(self, messages: Sequence[Message], *, due: int | None = None) -> list[Receipt]:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(module, "CONFIRM", 0.02)
    silent = asyncio.run(publish(Silent()))
    assert silent.failed[0][1].status is Status.UNKNOWN
    assert "did not confirm within 0.02 s" in str(silent)


def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    broker = FakeBroker()

    async def main() -> None:
        publisher = Publisher(broker)  # type: ignore[arg-type]
        tasks = [asyncio.create_task(publisher.publish(message(number))) for number in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert isinstance(results[3], asyncio.CancelledError)
        assert [result for number, result in enumerate(results) if number != 3] == [STORED] * 9

    asyncio.run(main())

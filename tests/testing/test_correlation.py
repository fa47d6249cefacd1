"""What a handler publishes joins the handled event's flow, whichever way the handler goes to publish it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tidemill import Context, Delivery, Handle, Message, Outcome, RetryPolicy, Service, Topic, event
from tidemill.context import current
from tidemill.testing import Mill, running

topic = Topic("steps")


@event("begun", topic=topic)
class Begun:
    name: str


@event("done", topic=topic)
class Done:
    name: str


service = Service("worker")
way: Callable[[Begun, Context], Any]


@service.on(Begun, name="asynchronous")
async def handle(event: Begun, context: Context) -> None:
    await way(event, context)


async def directly(event: Begun, context: Context) -> None:
    await service.publish(Done(event.name))


async def many(event: Begun, context: Context) -> None:
    await service.publish_many([Done(event.name)])


async def later(event: Begun, context: Context) -> None:
    await asyncio.sleep(0)
    await service.publish(Done(event.name), delay=60)


async def gather(event: Begun, context: Context) -> None:
    await asyncio.gather(service.publish(Done(event.name)), asyncio.sleep(0))


async def task(event: Begun, context: Context) -> None:
    await asyncio.create_task(service.publish(Done(event.name)))


async def group(event: Begun, context: Context) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(0))
        tasks.create_task(service.publish(Done(event.name)))


async def left_behind(event: Begun, context: Context) -> None:
    kept.append(asyncio.create_task(service.publish(Done(event.name))))


kept: list[asyncio.Task[Message]] = []


async def thread(event: Begun, context: Context) -> None:
    await asyncio.to_thread(lambda: context.run(service.publish(Done(event.name))))


async def timeout(event: Begun, context: Context) -> None:
    async with asyncio.timeout(5):
        await service.publish(Done(event.name))


async def shielded(event: Begun, context: Context) -> None:
    await asyncio.shield(asyncio.ensure_future(service.publish(Done(event.name))))


WAYS = [directly, many, later, gather, task, group, left_behind, thread, timeout, shielded]


async def check(mill: Mill, names: list[str]) -> None:
    for name in names:
        await mill.publish(Begun(name))
    await mill.settled()
    begun = {each.id: each for each in mill.messages() if each.type == "begun"}
    done = [each for each in mill.messages() if each.type == "done"]
    assert len(done) == len(names) == len(mill.published(Done, by="worker"))
    for message, event_ in zip(done, mill.published(Done), strict=True):
        assert message.causation_id is not None
        cause = begun[message.causation_id]
        assert message.correlation_id == cause.correlation_id == cause.id
        assert event_.name.encode() in cause.body, "each in its own flow, and in nobody else's"


@pytest.mark.parametrize("chosen", WAYS, ids=lambda way: way.__name__)
def test_from_async_handlers(chosen: Callable[[Begun, Context], Any]) -> None:
    global way  # noqa: PLW0603
    way = chosen

    async def main() -> None:
        async with running(service) as mill:
            await check(mill, [f"<{number}>" for number in range(40)])

    asyncio.run(main())


def test_from_def_handlers_which_run_in_threads() -> None:
    service = Service("worker")
    threads: set[int] = set()
    both = threading.Barrier(2, timeout=5)

    @service.on(Begun)
    def handle(event: Begun, context: Context) -> None:
        threads.add(threading.get_ident())
        both.wait()
        context.run(service.publish(Done(event.name)))

    async def main() -> None:
        async with running(service) as mill:
            await check(mill, [f"<{number}>" for number in range(20)])

    asyncio.run(main())
    assert threading.get_ident() not in threads


def test_from_a_pool_of_the_users_own_it_must_be_handed_on() -> None:
    """Not every pool copies the context; what is published from one of those begins its own flow."""
    service = Service("worker")
    pool = ThreadPoolExecutor(1)

    @service.on(Begun)
    async def handle(event: Begun, context: Context) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, lambda: context.run(service.publish(Done(event.name))))

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish(Begun("1"))
            await mill.settled()
            [done] = [each for each in mill.messages() if each.type == "done"]
            assert done.causation_id is None
            assert done.correlation_id == done.id

    asyncio.run(main())
    pool.shutdown()


def test_a_flow_goes_through_services_and_retries() -> None:
    first, second = Service("first"), Service("second")
    failures = [OSError("once"), OSError("twice")]

    @first.on(Begun, retry=RetryPolicy(attempts=3))
    async def start(event: Begun) -> None:
        if failures:
            raise failures.pop()
        await first.publish(Done("from first"))

    @second.on(Done)
    async def finish(event: Done, context: Context) -> None:
        assert context.correlation_id
        if event.name == "from first":
            await second.publish(Done("from second"))

    async def main() -> None:
        async with running(first, second) as mill:
            root = await mill.publish(Begun("1"))
            await mill.settled()
            one, two = (each for each in mill.messages() if each.type == "done")
            assert (one.correlation_id, one.causation_id, one.source) == (root.id, root.id, "first")
            assert (two.correlation_id, two.causation_id, two.source) == (root.id, one.id, "second")

    asyncio.run(main())


def test_a_foreign_event_without_a_correlation_id_begins_the_flow() -> None:
    global way  # noqa: PLW0603
    way = directly

    async def main() -> None:
        async with running(service) as mill:
            await mill.publish_message(Message("f-1", "elsewhere", "begun", "steps", 0, b'{"name": "x"}'))
            await mill.publish_message(
                Message(
                    "f-2",
                    "elsewhere",
                    "begun",
                    "steps",
                    0,
                    b'{"name": "y"}',
                    correlation_id="flow",
                    causation_id="f",
                )
            )
            await mill.settled()
            done = [each for each in mill.messages() if each.type == "done"]
            assert [(each.correlation_id, each.causation_id) for each in done] == [
                ("f-1", "f-1"),
                ("flow", "f-2"),
            ]

    asyncio.run(main())


def test_middlewares_are_in_the_flow_and_tests_are_not() -> None:
    service = Service("worker")

    async def tell(call_next: Handle, delivery: Delivery) -> Outcome:
        await service.publish(Done("from the middleware"))
        return await call_next(delivery)

    @service.on(Begun, use=[tell])
    async def handle(event: Begun) -> None: ...

    async def main() -> None:
        async with running(service) as mill:
            begun = await mill.publish(Begun("1"))
            await mill.settled()
            assert mill.messages()[1].causation_id == begun.id
            assert current.get() is None
            outside = await service.publish(Done("from the test"))
            assert outside.causation_id is None

    asyncio.run(main())

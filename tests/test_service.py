"""Services: publishing, resources, and being run by what people have."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from waiting import wait_until

from tidemill import (
    ConfigurationError,
    Context,
    DefinitionError,
    InvalidMessage,
    Message,
    Service,
    Topic,
    event,
)
from tidemill.broker import connect
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime, run_until_signal

notes = Topic("notes")
keyed = Topic("keyed", key="key")


@event("note.taken", topic=notes)
class NoteTaken:
    text: str


@event("thing.happened", topic=keyed)
class ThingHappened:
    key: str | None
    number: int = 0


@pytest.fixture(params=["memory:", "sqlite:"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    return request.param if request.param == "memory:" else f"sqlite:///{tmp_path}/events.db"


def listener(seen: list[Any], name: str = "notes") -> Service[None]:
    service = Service(name)

    @service.on(NoteTaken)
    async def remember(event: NoteTaken, ctx: Context) -> None:
        seen.append((event.text, ctx.message))

    return service


def test_what_is_published_carries_who_when_and_its_flow(url: str) -> None:
    seen: list[tuple[str, Message]] = []

    async def main() -> None:
        service = listener(seen)
        before = datetime.now(UTC)
        async with service.running(url):
            sent = await service.publish(NoteTaken("one"), headers={"tenantid": "åäö"})
            many = await service.publish_many([NoteTaken("two"), NoteTaken("three")])
            await wait_until(lambda: len(seen) == 3)
        text, message = seen[0]
        assert (text, message) == ("one", sent)
        assert [found for _, found in seen[1:]] == many
        assert (message.source, message.type, message.version) == ("notes", "note.taken", 1)
        assert message.extensions == {"tenantid": "åäö"}
        assert (message.correlation_id, message.causation_id) == (message.id, None)
        assert before - timedelta(seconds=1) < message.when < datetime.now(UTC) + timedelta(seconds=1)

    asyncio.run(main())


def test_what_a_handler_publishes_joins_the_flow_from_tasks_gather_and_threads(url: str) -> None:
    service = Service("flow")
    seen: dict[str, Message] = {}

    @service.on(ThingHappened)
    async def fan_out(event: ThingHappened) -> None:
        await asyncio.gather(service.publish(NoteTaken("gathered")), asyncio.create_task(publish("task")))
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(publish("thread"), loop).result())

    async def publish(text: str) -> None:
        await service.publish(NoteTaken(text))

    @service.on(NoteTaken)
    def note(event: NoteTaken, ctx: Context) -> None:  # in a thread of its own
        if event.text != "from a def":
            ctx.run(service.publish(NoteTaken("from a def")))
        seen[event.text] = ctx.message

    async def main() -> None:
        async with service.running(url):
            first = await service.publish(ThingHappened("k"))
            await wait_until(lambda: {"gathered", "task", "thread", "from a def"} <= set(seen))
            for text, message in seen.items():
                assert message.correlation_id == first.id, text
            for text in ("gathered", "task", "thread"):
                assert seen[text].causation_id == first.id, text
            assert seen["from a def"].causation_id in {seen[text].id for text in ("gathered", "task", "thread")}

    asyncio.run(main())


def test_one_delivery_does_not_see_the_variables_of_another(url: str) -> None:
    import contextvars

    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    service = Service("isolated")
    seen: list[int] = []

    @service.on(NoteTaken, concurrency=1)
    async def leaky(event: NoteTaken) -> None:
        seen.append(variable.get())
        variable.set(1)
        await asyncio.sleep(0)
        seen.append(variable.get())

    async def main() -> None:
        async with service.running(url):
            await service.publish_many([NoteTaken("a"), NoteTaken("b"), NoteTaken("c")])
            await wait_until(lambda: len(seen) == 6)

    asyncio.run(main())
    assert seen == [0, 1] * 3


def test_mistakes_are_said_before_anything_leaves() -> None:
    service = Service("shop")

    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"because it is not running\. Use `async with service.running"):
            await service.publish(NoteTaken("x"))
        async with service.running("memory:"):
            with pytest.raises(DefinitionError, match="is not an event"):
                await service.publish("text")
            with pytest.raises(InvalidMessage, match="cannot be encoded"):
                await service.publish(NoteTaken(object()))  # type: ignore[arg-type]
            with pytest.raises(InvalidMessage, match="its key 'key' is None"):
                await service.publish(ThingHappened(None))
            with pytest.raises(InvalidMessage, match="control characters"):
                await service.publish(ThingHappened("a\nb"))
            with pytest.raises(InvalidMessage, match="Remove control characters"):
                await service.publish(NoteTaken("x"), headers={"tenant": "a\r\nb"})
            with pytest.raises(InvalidMessage, match="the limit is 1,048,576"):
                await service.publish(NoteTaken("x" * 50_000_000))
            with pytest.raises(ValueError, match="either delay= or at="):
                await service.publish(NoteTaken("x"), delay=1, at=datetime.now(UTC))
            with pytest.raises(ValueError, match="time zone"):
                await service.publish(NoteTaken("x"), at=datetime(2030, 1, 1))  # noqa: DTZ001
            with pytest.raises(ValueError, match="0 seconds or more"):
                await service.publish(NoteTaken("x"), delay=-1)
            with pytest.raises(ValueError, match="no more than centuries"):
                await service.publish(NoteTaken("x"), delay=float("inf"))
            with pytest.raises(ValueError, match="year 2262"):
                await service.publish(NoteTaken("x"), at=datetime(9999, 1, 1, tzinfo=UTC))
            with pytest.raises(ConfigurationError, match="is running already"):
                async with service.running("memory:"):
                    pass
            await service.publish(ThingHappened("ключ é 鍵"))

    asyncio.run(main())


def test_resources_are_entered_before_the_first_event_and_left_after_the_last() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def pool() -> AsyncIterator[dict[str, str]]:
        order.append("open")
        yield {"name": "pool"}
        order.append("close")

    service = Service("resourceful", resources=pool)

    @service.on(NoteTaken)
    async def use(event: NoteTaken) -> None:
        await asyncio.sleep(0.01)
        order.append(service.resources["name"])

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="has no resources"):
            _ = service.resources
        async with service.running("memory:"):
            await service.publish(NoteTaken("x"))
            await wait_until(lambda: order == ["open"])
            await asyncio.sleep(0)

    asyncio.run(main())
    assert order == ["open", "pool", "close"]


def test_a_resource_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    service = Service("broken", resources=broken)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(OSError, match="no database"):
                async with service.running(f"sqlite:///{tmp_path}/events.db"):
                    pass

    asyncio.run(main())
    assert not list(tmp_path.glob("events.db-live/*"))


def test_any_asgi_application_runs_it_as_its_lifespan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_BROKER", f"sqlite:///{tmp_path}/events.db")
    seen: list[tuple[str, Message]] = []
    service = listener(seen, "web")

    async def take(request: Request) -> PlainTextResponse:
        await service.publish(NoteTaken(request.path_params["text"]))
        await wait_until(lambda: bool(seen))
        return PlainTextResponse(seen[0][0])

    app = Starlette(routes=[Route("/{text}", take)], lifespan=service.lifespan)
    with TestClient(app) as client:
        assert client.get("/hello").text == "hello"
    with pytest.raises(ConfigurationError):
        asyncio.run(service.publish(NoteTaken("after")))


def test_services_that_share_a_name_or_a_subscription_do_not_start() -> None:
    async def start(*services: Service[Any]) -> None:
        clock = SystemClock()
        runtime = Runtime(services, connect("memory:", clock), clock)
        await runtime.start()
        await runtime.close()

    with pytest.raises(ConfigurationError, match="two services are named 'same'"):
        asyncio.run(start(Service("same"), Service("same")))

    first, second = Service("a"), Service("a.b")
    first.on(NoteTaken, name="b.c")(_ignore)
    second.on(NoteTaken, name="c")(_ignore)
    with pytest.raises(ConfigurationError, match=r"two handlers share the subscription 'a\.b\.c'"):
        asyncio.run(start(first, second))


async def _ignore(event: NoteTaken) -> None: ...


def test_a_signal_drains_and_a_second_one_forces(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    service = Service("stubborn")
    state: list[str] = []

    @service.on(NoteTaken)
    async def slow(event: NoteTaken) -> None:
        state.append("began")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            state.append("cancelled")
            raise

    async def main() -> None:
        def ready(runtime: Runtime) -> None:
            task = asyncio.create_task(kill())
            task.add_done_callback(lambda done: done.result())

        async def kill() -> None:
            await service.publish(NoteTaken("x"))
            await wait_until(lambda: state == ["began"])
            os.kill(os.getpid(), signal.SIGTERM)

        def draining(runtime: Runtime) -> None:
            assert runtime.running == 1
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)

        await asyncio.wait_for(run_until_signal([service], url, ready=ready, draining=draining), 10)

    asyncio.run(main())
    assert state == ["began", "cancelled"]

    async def backlog() -> tuple[int, int]:
        broker = connect(url, SystemClock())
        await broker.open()
        status = (await broker.inspect()).subscriptions[0]
        await broker.close()
        return status.backlog, status.retried

    assert asyncio.run(backlog()) == (1, 0)  # given back, and not charged


def test_only_an_ordered_subscription_parks() -> None:
    service = Service("shop")

    @service.on(ThingHappened, after_dead_letter="park")
    async def first(event: ThingHappened) -> None: ...

    @service.on(ThingHappened)
    async def second(event: ThingHappened) -> None: ...

    assert [spec.subscription.parks for spec in service.handlers] == [True, False]
    for options, way_out in (
        ({"ordered": False}, "Remove ordered=False, or remove the option"),
        ({}, r"Declare it as Topic\('notes', key=...\)"),
    ):
        cls = ThingHappened if options else NoteTaken
        with pytest.raises(DefinitionError, match=way_out):
            service.on(cls, after_dead_letter="park", **options)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match='give "continue" or "park"'):
        service.on(ThingHappened, after_dead_letter="stop")  # type: ignore[arg-type]

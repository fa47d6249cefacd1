"""G11: what was written by older code, and by newer code, while both may run."""

from __future__ import annotations

from ... import Context, Message, Service
from .events import FileKept, OrderPaid, OrderPlaced, archive, soon
from .place import Place, message, store
from .scenario import promise


@promise("G11")
async def old_versions_are_brought_up_to_date(place: Place) -> None:
    """Events of version 1 and 2 reach today's handler as today's class."""
    service = Service("shop")
    handled: list[FileKept] = []

    @service.on(FileKept)
    async def keep(event: FileKept) -> None:
        handled.append(event)

    async with place.running(service):
        broker = await place.broker()
        for version, body in (
            (1, b'{"name":"a","user":"Ada"}'),
            (2, b'{"name":"b","size":7,"user":"Bob"}'),
            (3, b'{"name":"c","size":8,"owner":"Cyd","unknown":true}'),
        ):
            await store(broker, message(topic="archive", type="file.kept", version=version, body=body))
        await place.handled("shop.keep")
    handled.sort(key=lambda event: event.name)
    assert handled == [FileKept("a", 0, "Ada"), FileKept("b", 7, "Bob"), FileKept("c", 8, "Cyd")]


@promise("G11", "G5", needs=("delay",))
async def an_event_from_the_future_waits_for_newer_code(place: Place) -> None:
    """Uncharged, while others pass it by; a newer consumer that comes in time handles it at its first attempt, and only
    if none comes it is a dead letter, with its bytes."""
    older, newer = Service("shop"), Service("shop")
    handled: list[tuple[str, int]] = []
    passed: list[str] = []

    @older.on(archive, name="keep", retry=soon(1))
    async def keep_old(event: FileKept) -> None:
        passed.append(event.name)

    @newer.on(archive, name="keep")
    async def keep_new(event: Message, ctx: Context) -> None:
        handled.append((event.id, ctx.attempt))

    sent = message(topic="archive", type="file.kept", version=4, body=b'{"path":"/"}')
    async with place.running(older):
        broker = await place.broker()
        await store(broker, sent)
        await store(broker, message(topic="archive", type="file.kept", body=b'{"name":"a"}'))
        await place.until(lambda: passed == ["a"], "an old event passes it by")
        await place.handled("shop.keep", 1)
        status = await place.status("shop.keep")
        assert (status.backlog, status.retried, status.dead) == (1, 0, 0)
    async with place.running(newer):
        await place.handled("shop.keep")
    assert handled == [(sent.id, 1)]

    last = Service("depot")

    @last.on(archive, name="keep", retry=soon(3, future=0.5))
    async def keep_last(event: FileKept) -> None: ...

    async with place.running(last):
        await store(await place.broker(), message(topic="archive", type="file.kept", version=4, body=b"{}"))
        await place.handled("depot.keep")
        (letter,) = await (await place.broker()).dead_letters("depot.keep")
    assert "newer than this code" in letter.reason
    assert letter.message.body == b"{}"
    assert letter.history[0].error.startswith("FutureVersion")


@promise("G11", "G1", needs=("processes", "durable"))
async def a_new_type_waits_for_newer_code(place: Place) -> None:
    """Newer code has added a type to a handler, and older code runs beside it: that neither handles the new events nor
    passes them by in its share; what it leaves is handled by the newer code, at its first attempt."""
    older, newer = Service("shop"), Service("shop")
    by_older: list[int] = []
    by_newer: list[tuple[str, int, int]] = []

    @older.on(OrderPlaced, name="note")
    async def note_old(event: OrderPlaced) -> None:
        by_older.append(event.number)

    @newer.on(OrderPlaced, OrderPaid, name="note")
    async def note_new(event: OrderPlaced | OrderPaid, ctx: Context) -> None:
        by_newer.append((type(event).__name__, event.number, ctx.attempt))

    def both() -> int:
        return len(by_older) + len(by_newer)

    async with place.running(newer, await place.another()):
        async with place.running(older, await place.another()):
            await newer.publish_many(OrderPlaced(str(number), number) for number in range(60))
            await place.until(lambda: both() == 60, "both handle what both know")
            await newer.publish_many(OrderPaid(str(number), number) for number in range(60))
            await newer.publish_many(OrderPlaced(f"other-{number}", number) for number in range(60))
            await place.until(
                lambda: sum(each[0] == "OrderPlaced" for each in by_newer) + len(by_older) == 120, "go on"
            )
        await place.until(lambda: both() == 180, "the newer code handles what was left to it", 20.0)
    paid = [(number, attempt) for name, number, attempt in by_newer if name == "OrderPaid"]
    assert sorted(paid) == [(number, 1) for number in range(60)]


@promise("G11", "G6", needs=("processes", "durable", "order"))
async def a_key_waits_for_newer_code(place: Place) -> None:
    """Where older code leaves an event to newer code, the later ones of its key wait behind it; other keys go on."""
    older, newer = Service("shop"), Service("shop")
    handled: dict[str, list[str]] = {}

    @older.on(OrderPlaced, name="note")
    async def note_old(event: OrderPlaced) -> None:
        handled.setdefault(event.customer, []).append(f"placed {event.number}")

    @newer.on(OrderPlaced, OrderPaid, name="note")
    async def note_new(event: OrderPlaced | OrderPaid) -> None:
        what = "placed" if isinstance(event, OrderPlaced) else "paid"
        handled.setdefault(event.customer, []).append(f"{what} {event.number}")

    customers = [str(number) for number in range(40)]
    async with place.running(older, await place.another()) as shop:
        async with place.running(newer, await place.another()):
            pass  # it has claimed the new type
        async with place.running(newer, await place.another()):
            for customer in customers:
                await shop.publish_many([OrderPlaced(customer, 1), OrderPaid(customer, 2), OrderPlaced(customer, 3)])
            await place.until(lambda: all(handled.get(each) for each in customers), "every key begins")
    async with place.running(newer):
        await place.until(lambda: all(len(handled[each]) == 3 for each in customers), "all is handled", 20.0)
    assert handled == {customer: ["placed 1", "paid 2", "placed 3"] for customer in customers}

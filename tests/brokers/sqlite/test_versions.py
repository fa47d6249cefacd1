"""Processes of two versions of a service on one file, as in a rolling deployment: one handler, of which the newer code
takes an event that the older code does not know."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from waiting import wait_until

from tidemill import Service, Topic, event
from tidemill.brokers.sqlite import feed as feeds

from .rig import brokers, message, reader, rows, store, subscribe, take

parcels = Topic("parcels", key="parcel")


@event("parcel.sent", topic=parcels)
class ParcelSent:
    parcel: str


@event("parcel.lost", topic=parcels)
class ParcelLost:
    parcel: str


PARCELS = [f"p{number}" for number in range(60)]


class Versions:
    """A file, and what services of the older and of the newer code have handled."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'parcels.db'}"
        self.by_old: list[str] = []
        self.by_new: list[str] = []

    def old(self) -> Service[None]:
        service: Service[None] = Service("depot")

        @service.on(ParcelSent, name="note")
        async def note(event: ParcelSent) -> None:
            self.by_old.append(f"sent {event.parcel}")

        return service

    def new(self) -> Service[None]:
        service: Service[None] = Service("depot")

        @service.on(ParcelSent, ParcelLost, name="note")
        async def note(event: ParcelSent | ParcelLost) -> None:
            self.by_new.append(f"{'sent' if isinstance(event, ParcelSent) else 'lost'} {event.parcel}")

        return service


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path)


def test_both_versions_handle_what_both_know(versions: Versions) -> None:
    old, new = versions.old(), versions.new()

    async def main() -> None:
        async with old.running(versions.url), new.running(versions.url):
            await new.publish_many(ParcelSent(parcel) for parcel in PARCELS)
            await wait_until(lambda: len(versions.by_old) + len(versions.by_new) == len(PARCELS))
            assert sorted(versions.by_old + versions.by_new) == sorted(f"sent {parcel}" for parcel in PARCELS)

    asyncio.run(main())


def test_a_new_event_published_once_the_older_code_is_gone_is_handled(versions: Versions) -> None:
    old, new = versions.old(), versions.new()

    async def main() -> None:
        async with new.running(versions.url):
            async with old.running(versions.url):
                await new.publish(ParcelSent("p0"))
                await wait_until(lambda: versions.by_old or versions.by_new)
            await new.publish_many(ParcelLost(parcel) for parcel in PARCELS)
            expected = {f"lost {parcel}" for parcel in PARCELS}
            await wait_until(lambda: expected <= set(versions.by_new))

    asyncio.run(main())


def test_a_new_event_with_a_handler_of_its_own_is_handled_while_older_code_runs(versions: Versions) -> None:
    """What the guarantees recommend."""
    old, new = versions.old(), versions.old()
    lost: list[str] = []

    @new.on(ParcelLost)
    async def search(event: ParcelLost) -> None:
        lost.append(event.parcel)

    async def main() -> None:
        async with old.running(versions.url), new.running(versions.url):
            await new.publish_many(ParcelLost(parcel) for parcel in PARCELS)
            await wait_until(lambda: sorted(lost) == sorted(PARCELS))

    asyncio.run(main())


def test_a_new_event_published_while_older_code_runs_is_handled(versions: Versions) -> None:
    old, new = versions.old(), versions.new()

    async def main() -> None:
        async with new.running(versions.url):
            async with old.running(versions.url):
                await new.publish_many(ParcelSent(parcel) for parcel in PARCELS)
                # Each has its share of the slots.
                await wait_until(lambda: len(versions.by_old) + len(versions.by_new) == len(PARCELS))
                await new.publish_many(ParcelLost(parcel) for parcel in PARCELS)
                await new.publish_many(ParcelSent(f"{parcel}-after") for parcel in PARCELS)
                await wait_until(lambda: sum("after" in each for each in versions.by_old + versions.by_new) == 60)
            expected = {f"lost {parcel}" for parcel in PARCELS}
            await wait_until(lambda: expected <= set(versions.by_new))

    asyncio.run(main())


def test_a_key_waits_for_the_new_event_that_older_code_leaves_to_newer_code(versions: Versions) -> None:
    old, new = versions.old(), versions.new()

    async def main() -> None:
        async with old.running(versions.url):
            async with new.running(versions.url):
                pass  # the claim on the new type is there from now on
            async with new.running(versions.url):
                both = [event(parcel) for parcel in PARCELS for event in (ParcelSent, ParcelLost, ParcelSent)]
                await new.publish_many(both)
                await wait_until(lambda: len(versions.by_old) >= 10)
        assert not any(each.startswith("lost") for each in versions.by_old)
        assert len(versions.by_old) == len(set(versions.by_old)), "none went past what waits"
        async with new.running(versions.url):
            handled = versions.by_old + versions.by_new
            await wait_until(lambda: len(versions.by_old + versions.by_new) == 180, seconds=20)
        for parcel in PARCELS:
            mine = [each for each in versions.by_old + versions.by_new if each.endswith(f" {parcel}")]
            assert mine == [f"sent {parcel}", f"lost {parcel}", f"sent {parcel}"], handled

    asyncio.run(main())


def test_a_type_that_no_code_takes_any_more_passes_by(versions: Versions) -> None:
    old, new = versions.old(), versions.new()

    async def main() -> None:
        async with new.running(versions.url):
            await new.publish(ParcelLost("p1"))
            await wait_until(lambda: versions.by_new == ["lost p1"])
        async with old.running(versions.url) as running:  # rolled back
            await running.publish_many([ParcelLost("p1"), ParcelSent("p1")])
            await wait_until(lambda: versions.by_old == ["sent p1"], seconds=3)

    asyncio.run(main())


def test_what_could_not_be_read_once_is_read_at_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the very moment in which newer code claims a type must not have its events passed by."""

    async def run() -> None:
        async with brokers(tmp_path / "a.db", 2) as (first, second):
            feed = await subscribe(first, reader(types=("order.placed",)))
            assert await take(feed) == []
            read = feeds.wanted

            def fails(*_: object) -> None:
                monkeypatch.setattr(feeds, "wanted", read)
                raise sqlite3.OperationalError("database is locked")

            monkeypatch.setattr(feeds, "wanted", fails)
            await second.declare([], [reader(types=("order.paid", "order.placed"))])
            first.tick()
            assert feeds.wanted is read, "it was not asked for"
            await store(second, message(type="order.paid"))
            assert await take(feed) == []
            assert rows(tmp_path / "a.db", "select count(*) from tidemill_exception") == [(1,)]

    asyncio.run(run())

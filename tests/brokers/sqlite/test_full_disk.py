"""A disk without room: what was confirmed stays, nothing is half stored, and with room again everything goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from tidemill import PublishError, Service, Topic, event, telemetry
from tidemill.broker import Status
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime

from .rig import broker_at, brokers, drain, message, reader, rows, store, subscribe

SIZE = 4 * 1024 * 1024
BALLAST = 2 * 1024 * 1024

parcels = Topic("parcels", key="to")


@event("parcel.sent", topic=parcels)
class ParcelSent:
    to: str
    number: int
    label: str


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, of which 2 MiB are taken by a file that a test can remove."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        why = "" if done.returncode == 0 else done.stderr.strip()
    except FileNotFoundError as error:
        why = str(error)
    if why:
        if os.environ.get("CI") and os.getuid() == 0:
            pytest.fail(f"a small disk is needed here, and cannot be mounted: {why}")
        pytest.skip(f"needs root, to mount a small disk: sudo {' '.join(command[:-1])} FOLDER ({why})")
    (disk / "ballast").write_bytes(os.urandom(BALLAST))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_everything_goes_on_when_there_is_room_again(small_disk: Path) -> None:
    path = small_disk / "a.db"
    said: list[str] = []
    confirmed: set[int] = set()
    refused: list[PublishError] = []
    handled: list[int] = []
    gate = asyncio.Event()
    service = Service("depot")

    @service.on(ParcelSent, concurrency=4)
    async def handle(event: ParcelSent) -> None:
        await gate.wait()
        handled.append(event.number)

    async def publish(numbers: range, size: int = 20_000) -> None:
        for number in numbers:
            try:
                await service.publish(ParcelSent(str(number % 7), number, "x" * size))
            except PublishError as error:
                refused.append(error)
                return
            confirmed.add(number)

    async def run() -> None:
        runtime = Runtime([service], broker_at(path), SystemClock())
        await runtime.start()
        consumer = runtime.consumers[0]
        await publish(range(500))
        assert 20 < len(confirmed) < 200
        await publish(range(500, 1000), size=1)  # where no large event fits, there may be room for an outcome still
        (error, _) = refused
        assert [receipt.status for _, receipt in error.failed] == [Status.NOT_STORED]
        assert "no room left for" in str(error)
        assert "Free disk space: consumers and publishers go on by themselves." in str(error)
        # Outcomes cannot be stored either: they are kept, and what is fetched is bounded.
        gate.set()
        await wait_until(lambda: "settle.failed" in said, what="settling did not fail")
        await publish(range(1000, 1001))
        assert 1000 not in confirmed
        assert consumer._open <= consumer._window
        (small_disk / "ballast").unlink()
        await wait_until(lambda: set(handled) >= confirmed, seconds=30, what="it did not go on by itself")
        await publish(range(2000, 2010))
        assert len(confirmed & set(range(2000, 2010))) == 10
        await wait_until(lambda: set(handled) >= confirmed, what="new events are not handled")
        await wait_until(lambda: not consumer._open, what="not settled")
        (status,) = (await runtime.broker.inspect()).subscriptions
        assert (status.backlog, status.acked) == (0, len(confirmed))
        await runtime.close()

    stop = telemetry.listen(lambda name, fields: said.append(name))
    try:
        asyncio.run(run())
    finally:
        stop()
    assert sorted(handled) == sorted(confirmed), "nothing twice, nothing that was refused"
    assert rows(path, "pragma integrity_check") == [("ok",)]


def test_opening_on_a_full_disk_says_so(small_disk: Path) -> None:
    for size in (4096, 512, 1):
        with (small_disk / "rest").open("ab", buffering=0) as file:
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                pass

    async def run() -> None:
        with pytest.raises(Exception, match="no room left") as caught:
            async with brokers(small_disk / "a.db"):
                pass
        assert type(caught.value).__name__ == "StorageFull"
        (small_disk / "rest").unlink()
        async with brokers(small_disk / "a.db") as (broker,):
            assert (await broker.publish([message()]))[0].ok

    asyncio.run(run())


def test_a_full_disk_frees_itself_where_the_file_has_room(small_disk: Path) -> None:
    """The write-ahead log has filled the disk, and the pages in it have their place in the file already."""
    path = small_disk / "a.db"

    async def run() -> None:
        async with brokers(path) as (broker,):
            await store(broker, *(message(body=b"x" * 50_000) for _ in range(20)))
        (small_disk / "ballast").write_bytes(b"")
        async with brokers(path) as (broker,):
            feed = await subscribe(broker, reader())
            (small_disk / "ballast").write_bytes(os.urandom(SIZE - path.stat().st_size - 300_000))
            for number in range(400):
                # Changes pages that are there: each commit adds to the log, and none to the file.
                await broker.declare([], [reader(types=("a", "b") if number % 2 else ("order.placed",))])
            assert len(await drain(feed)) == 20

    asyncio.run(run())

"""A file that takes no writes: a clear error, nothing half stored, and all goes on once it does."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from tidemill import PublishError, Service, Topic, event
from tidemill.broker import Status
from tidemill.brokers.sqlite import writer
from tidemill.clock import SystemClock
from tidemill.runtime import Runtime

from .rig import broker_at, rows

NOBODY = 65534

parcels = Topic("read-only-parcels")


@event("read-only-parcel.sent", topic=parcels)
class ParcelSent:
    number: int


PROGRAM = """
import asyncio, concurrent.futures.thread, os, sys  # all that is needed: nobody may not read where Python lies
from tidemill.broker import TopicSpec, connect
from tidemill.clock import SystemClock
async def main():
    broker = connect(sys.argv[1], SystemClock())
    if os.getuid() == 0:  # root may do anything
        os.setgid({nobody}), os.setuid({nobody})
    try:
        await broker.open()
        await broker.declare([TopicSpec("orders")], [])
        print("open")
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
    await broker.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["the file", "the folder"])
def test_a_file_that_may_not_be_written_is_a_clear_error(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    url = f"sqlite:///{folder}/a.db"

    def opened() -> str:
        program = PROGRAM.format(nobody=NOBODY)
        done = subprocess.run(
            [sys.executable, "-c", program, url], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stderr == ""
        return done.stdout.strip()

    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)  # pytest's folders are for their owner alone
    folder.chmod(0o777)
    assert opened() == "open"
    place = folder if what == "the folder" else folder / "a.db"
    os.chown(place, os.getuid(), os.getgid())
    allowed = place.stat().st_mode
    place.chmod(0o555 if what == "the folder" else 0o444)
    if what == "the folder":
        for file in folder.iterdir():
            file.unlink() if file.is_file() else file.rmdir()
    said = opened()
    assert said.startswith("StorageFull: ")
    assert "cannot be written" in said
    assert "Nothing of this was stored; what was confirmed before is safe." in said
    assert "Check the permissions of the file, of those beside it and of their folder." in said
    for each in (place, *folder.iterdir()):  # what SQLite made beside the file has the file's permissions
        if each.is_file() or each is place:
            each.chmod(allowed | 0o222)
    assert opened() == "open"


def test_everything_goes_on_when_it_takes_writes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a file system is switched to read-only while the file is open."""
    path = tmp_path / "a.db"
    service = Service("depot")
    handled: list[int] = []
    end = writer._end

    @service.on(ParcelSent)
    async def handle(event: ParcelSent) -> None:
        handled.append(event.number)

    def refuse(connection: sqlite3.Connection, path: str) -> None:
        connection.execute("rollback")
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorname = "SQLITE_READONLY"
        raise error

    async def run() -> None:
        runtime = Runtime([service], broker_at(path), SystemClock())
        await runtime.start()
        await service.publish(ParcelSent(1))
        await wait_until(lambda: handled == [1])
        monkeypatch.setattr(writer, "_end", refuse)
        with pytest.raises(PublishError, match="cannot be written") as caught:
            await service.publish(ParcelSent(2))
        assert [receipt.status for _, receipt in caught.value.failed] == [Status.NOT_STORED]
        monkeypatch.setattr(writer, "_end", end)
        await service.publish(ParcelSent(3))
        await wait_until(lambda: handled == [1, 3])
        (status,) = (await runtime.broker.inspect()).subscriptions
        await wait_until(lambda: not runtime.consumers[0]._open)
        assert status.dead == 0
        await runtime.close()

    asyncio.run(run())
    assert rows(path, "pragma integrity_check") == [("ok",)]

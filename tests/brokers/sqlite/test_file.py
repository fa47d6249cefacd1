"""Files that cannot be used: what happened, what is true now, what to do; and nothing is touched or left behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.broker import connect
from tidemill.brokers.sqlite.file import APPLICATION_ID, translate
from tidemill.clock import SystemClock
from tidemill.errors import (
    BrokerError,
    BrokerUrlError,
    ConfigurationError,
    NotTidemillStorage,
    PublishError,
    StorageFull,
)
from tidemill.publisher import Publisher

from .rig import broker_at, brokers, change, drain, ids, message, reader, rows, store, subscribe, take_all


async def open_and_close(path: Path | str) -> None:
    broker = broker_at(path)
    await broker.open()
    await broker.close()


def refusal(path: Path | str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        asyncio.run(open_and_close(path))
    return str(caught.value)


def test_the_database_of_another_application_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    change(path, "create table invoices (number)")
    before = path.read_bytes()
    text = refusal(path, NotTidemillStorage)
    assert "is an SQLite database of something else. It was not touched." in text
    assert "sqlite:///another.db" in text
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "something was left beside it"


@pytest.mark.parametrize("pragma", ["application_id = 77", "user_version = 3"])
def test_an_empty_database_with_a_mark_is_anothers_too(pragma: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    change(path, f"pragma {pragma}")
    assert "something else" in refusal(path, NotTidemillStorage)


def test_a_file_that_is_no_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\n" * 200)
    text = refusal(path, NotTidemillStorage)
    assert text == f"{path} is not an SQLite database. It was not touched. Give Tidemill a file of its own."
    assert path.read_text().startswith("remember")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_a_newer_tidemill_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    asyncio.run(open_and_close(path))
    change(path, "pragma user_version = 3")
    text = refusal(path, NotTidemillStorage)
    assert "written by a newer Tidemill (schema 3, this one knows 2). It was not touched. Upgrade" in text


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    asyncio.run(open_and_close(path))
    assert rows(path, "pragma application_id") == [(APPLICATION_ID,)]


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def fill() -> None:
        async with brokers(path) as (broker,):
            await subscribe(broker, reader())
            await store(broker, *(message("a", body=b"x" * 500) for _ in range(300)))

    async def use() -> None:
        async with brokers(path) as (broker,):
            with pytest.raises(PublishError, match="is damaged") as caught:
                await Publisher(broker).publish_many([message("a") for _ in range(50)])
            assert "not stored" in str(caught.value)
            assert "keep a copy" in str(caught.value)
            with pytest.raises(NotTidemillStorage, match="is damaged"):
                feed = await broker.subscribe(reader())
                await take_all(feed, 300, wait=0.1)

    asyncio.run(fill())
    asyncio.run(open_and_close(path))
    log = rows(path, "select rootpage from sqlite_master where tbl_name = 'tidemill_log' and rootpage > 0")
    with path.open("r+b") as file:
        for (page,) in log:
            file.seek((int(str(page)) - 1) * 4096)
            file.write(b"\xff" * 4096)
    asyncio.run(use())
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    assert "is damaged" in refusal(path, NotTidemillStorage), "so much that it cannot even be opened"


def test_a_missing_folder(tmp_path: Path) -> None:
    text = refusal(tmp_path / "no" / "such" / "a.db", ConfigurationError)
    assert f"there is no folder {tmp_path}/no/such. Nothing was created. Create it, or correct the URL" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder(tmp_path: Path) -> None:
    text = refusal(tmp_path, ConfigurationError)
    assert text == f"{tmp_path} is a folder. Nothing was created. Name a file in it: sqlite:///{tmp_path}/events.db"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("sqlite://shop.db", "Write sqlite:///shop.db"),
        ("sqlite:shop.db", "Write sqlite:///shop.db"),
        ("sqlite:/var/lib/shop.db", "or sqlite:////var/lib/shop.db"),
        ("sqlite://var/shop.db?namespace=a", "sqlite:////var/shop.db (an absolute path)"),
        ("sqlite://", "Write sqlite:///shop.db"),
        ("sqlite:", "Write sqlite:///shop.db"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "memory: is the broker that leaves nothing behind"),
        ("sqlite:///a%00b.db", "names no file"),
        ("sqlite:///a.db?mode=ro", "unknown parameter 'mode'. This broker takes: namespace, synchronous."),
        ("sqlite:///a.db?synchronous=off", "synchronous is full or normal, not 'off'."),
    ],
)
def test_a_mistyped_url(url: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BrokerUrlError) as caught:
        connect(url, SystemClock())
    assert hint in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_odd_characters(tmp_path: Path) -> None:
    folder = tmp_path / "für alle #1?"
    folder.mkdir()
    path = folder / "a%b.db"
    url = f"{tmp_path}/f%C3%BCr%20alle%20%231%3F/a%25b.db"
    asyncio.run(open_and_close(url))
    assert path.exists()


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working directory becomes: the writer connects later than the reader."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    async def run() -> None:
        broker = broker_at("a.db")
        await broker.open()
        monkeypatch.chdir(tmp_path / "elsewhere")
        await store(broker, message())
        await subscribe(broker, reader())
        await broker.close()

    asyncio.run(run())
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert rows(tmp_path / "a.db", "select count(*) from tidemill_log") == [(1,)]


def test_a_link_and_its_target_are_one_broker(tmp_path: Path) -> None:
    """Its locks lie beside the file itself: else each would think that the other's consumers are dead."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.db").symlink_to(tmp_path / "a.db")

    async def run() -> None:
        one, two = broker_at(tmp_path / "a.db"), broker_at(tmp_path / "links" / "b.db")
        await one.open(), await two.open()
        feed = await subscribe(one, reader())
        await subscribe(two, reader())
        assert two.is_alive(feed.owner)
        await one.close(), await two.close()

    asyncio.run(run())
    assert [each.name for each in (tmp_path / "links").iterdir()] == ["b.db"]


def test_namespaces_share_a_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (plain,), brokers(path, namespace="east") as (east,):
            feeds = [await subscribe(each, reader()) for each in (plain, east)]
            in_plain, in_east = message("a"), message("a")
            await store(plain, in_plain)
            await store(east, in_east)
            for feed, sent in zip(feeds, (in_plain, in_east), strict=True):
                (taken,) = await drain(feed)
                assert taken.message == sent
            for broker in (plain, east):
                found = await broker.inspect()
                assert [topic.name for topic in found.topics] == ["orders"]
                assert [each.name for each in found.subscriptions] == ["shop.handle"]
                assert [each.messages for each in found.topics] == [1]

    asyncio.run(run())


def test_a_namespace_holds_for_those_who_only_publish(tmp_path: Path) -> None:
    """Without having declared anything: the topic of the same name in another namespace is another topic."""
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path) as (plain,):
            feed = await subscribe(plain, reader())
            east = broker_at(path, namespace="east")
            await east.open()
            await store(east, message("a"))
            assert [each async for each in plain.read("orders")] == []
            assert len([each async for each in east.read("orders")]) == 1
            assert await drain(feed) == []
            assert [each.name for each in (await plain.inspect()).topics] == ["orders"]
            await east.close()

    asyncio.run(run())


def test_a_subscription_that_another_process_declared_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        early = broker_at(path)
        await early.open()
        async with brokers(path) as (other,):
            await other.declare([], [reader()])
            feed = await early.subscribe(reader())
            sent = message("a")
            await store(other, sent)
            assert ids(await take_all(feed, 1)) == [sent.id]
            with pytest.raises(ConfigurationError, match=r"'shop\.other' is not declared"):
                await early.subscribe(reader("shop.other"))
        await early.close()

    asyncio.run(run())


def test_one_url_twice_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        async with brokers(path, 2) as (one, two):
            feeds = [await subscribe(each, reader()) for each in (one, two)]
            for _ in range(3):
                for feed in feeds:
                    await drain(feed)
            sent = [message(str(number)) for number in range(50)]
            await asyncio.gather(*(store(broker, each) for broker, each in zip((one, two) * 25, sent, strict=True)))
            came = [await drain(feed) for feed in feeds]
            assert all(came), "one of them got nothing"
            assert sorted(ids([*came[0], *came[1]])) == sorted(each.id for each in sent)
            await one.close()
            assert rows(path, "pragma integrity_check") == [("ok",)]
            late = message("a")
            await store(two, late)
            assert ids(await take_all(feeds[1], 1)) == [late.id]

    asyncio.run(run())


def test_what_failed_to_open_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database\n" * 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        refusal(path, NotTidemillStorage)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


AS_NOBODY = """
import asyncio, os, sys, tempfile
from tidemill.broker import connect
from tidemill.clock import SystemClock
from tidemill.message import Message
from tidemill.publisher import Publisher

async def main(path):
    broker = connect(f"sqlite:///{path}", SystemClock())
    await broker.open()
    try:
        await Publisher(broker).publish(Message("m", "tests", "order.placed", "orders", 0, b"{}"))
    finally:
        await broker.close()

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(f"{folder}/a.db"))  # so that all modules are loaded: nobody may be unable to read them
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    asyncio.run(main(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
else:
    print("stored")
"""


def as_nobody(path: Path) -> str:
    command = [sys.executable, "-c", AS_NOBODY, str(path)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert found.stderr == ""
    return found.stdout.strip()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everyone can reach and write."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


def test_everyone_may_write(shared: Path) -> None:
    assert as_nobody(shared / "a.db") == "stored"


def test_a_folder_that_cannot_be_written(shared: Path) -> None:
    shared.chmod(0o555)
    text = as_nobody(shared / "a.db")
    shared.chmod(0o777)
    assert text.startswith(f"StorageFull {shared}/a.db cannot be written (")
    assert "Check the permissions of the file, of those beside it and of their folder." in text


def test_a_file_that_cannot_be_written(shared: Path) -> None:
    path = shared / "a.db"
    asyncio.run(open_and_close(path))
    path.chmod(0o444)
    (shared / "a.db-lock").chmod(0o666)
    if os.getuid() != 0:
        pytest.skip("the file is this user's own, who may change its mode")
    text = as_nobody(path)
    assert text.startswith("PublishError ")
    assert "not stored" in text
    assert "cannot be written" in text
    assert rows(path, "select count(*) from tidemill_log") == [(0,)]


def test_errors_that_have_no_name_of_their_own() -> None:
    error = translate("a.db", sqlite3.OperationalError("something new"))
    assert type(error) is BrokerError
    assert str(error) == "a.db: something new (OperationalError). Nothing of this was stored; it may be tried again."
    assert isinstance(translate("a.db", OSError(28, "No space left on device")), StorageFull)

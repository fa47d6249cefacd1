"""Files of older schemas: what was in them is there afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from tidemill.broker import Status
from tidemill.brokers.sqlite import file
from tidemill.brokers.sqlite.file import APPLICATION_ID
from tidemill.brokers.sqlite.rows import pack_history, slot_of
from tidemill.message import Failure

from .rig import brokers, drain, ids, message, reader, rows, subscribe

SCHEMA_1 = (Path(__file__).parent / "schema_1.sql").read_text()

FAILURE = Failure(1, 5, "ValueError: no", "Traceback")

DEAD = """insert into tidemill_dead_letter (subscription, seq, id, source, type, version, time, key, correlation,
    causation, content_type, extensions, body, reason, attempts, at, history)
values (?, ?, ?, 'tests', 'order.placed', 3, 7, ?, null, 'cause', 'text/plain', ?, ?, 'no reason', 2, ?, ?)"""

LOG = """insert into tidemill_log (seq, topic, slot, id, source, type, version, time, stored, key, body)
values (?, 1, ?, ?, 'tests', 'order.placed', 1, 0, 1, ?, ?)"""


def make(path: Path) -> None:
    """A file as a program of schema 1 left it: events 1 to 10, of which retention has removed 1, 2 and 3."""
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.executescript(SCHEMA_1)
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.execute("pragma user_version = 1")
    with connection:
        connection.execute("insert into tidemill_topic (name, key, retain) values ('orders', 'customer', 60.0)")
        for name in ("shop.handle", "shop.other"):
            connection.execute(
                "insert into tidemill_subscription (name, topic, ordered, first) values (?, 1, 1, 0)", (name,)
            )
        for subscription in (1, 2):
            connection.executemany(
                "insert into tidemill_slot (subscription, slot, position) values (?, ?, 9)",
                [(subscription, slot) for slot in range(32)],
            )
        for seq in (4, 5, 6, 7, 8, 10):
            connection.execute(LOG, (seq, slot_of("a"), f"e{seq}", "a", b"%d" % seq))
        # Number 2 was published a second time after retention had removed it, and is number 9 since.
        connection.execute(LOG, (9, slot_of("a"), "e2", "a", b"again"))
        history = pack_history((FAILURE,))
        extensions = b'{"tenant":"x"}'
        for subscription, seq in ((1, 1), (2, 1), (1, 2), (1, 9), (1, 3), (1, 4)):
            name = "e2" if seq == 9 else f"e{seq}"
            key = None if seq == 3 else "a"
            row = (subscription, seq, name, key, extensions, b"\xff%d" % seq, seq * 100, history)
            connection.execute(DEAD, row)
    connection.close()


def test_dead_letters_of_a_file_of_schema_1_refer_to_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    make(path)

    async def run() -> None:
        async with brokers(path) as (broker,):
            letters = await broker.dead_letters()
            assert [(each.subscription, each.message.id, each.at) for each in letters] == [
                ("shop.handle", "e1", 100),
                ("shop.other", "e1", 100),
                ("shop.handle", "e2", 900),
                ("shop.handle", "e3", 300),
                ("shop.handle", "e4", 400),
            ]
            assert [each.number for each in letters] == [1, 2, 4, 5, 6]
            first = letters[0]
            assert (first.message.body, first.message.key, first.message.version) == (b"\xff1", "a", 3)
            assert (first.message.content_type, first.message.extensions) == ("text/plain", {"tenant": "x"})
            assert (first.message.time, first.message.causation_id, first.message.correlation_id) == (7, "cause", "e1")
            assert (first.reason, first.attempts, first.history, first.parked) == ("no reason", 2, (FAILURE,), False)
            assert rows(path, "select slot from tidemill_log where seq = 1") == [(slot_of("a"),)]
            assert rows(path, "select seq from tidemill_log order by seq") == [(n,) for n in (1, *range(3, 11))]
            (again,) = await broker.publish([message(id="e1")])
            assert again.status is Status.DUPLICATE, "what the log keeps is known"
            feed = await subscribe(broker, reader())
            assert ids(await drain(feed)) == ["e10"], "nothing that was settled comes again"

    asyncio.run(run())


def test_a_dead_letter_without_a_key_is_delivered_to_nobody_by_the_upgrade(tmp_path: Path) -> None:
    """Retention had removed the event. It was in a slot of which the log does not tell, and others are less far."""
    path = tmp_path / "a.db"
    make(path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("update tidemill_slot set position = 0 where slot = 0 or (slot = 1 and subscription = 2)")
    connection.close()

    async def run() -> None:
        async with brokers(path) as (broker,):
            feeds = [await subscribe(broker, reader(name)) for name in ("shop.handle", "shop.other")]
            for feed in feeds:
                assert ids(await drain(feed)) == ["e10"]
            assert await broker.resolve("replay", [5], by="me") == [5]
            assert [ids(await drain(feed)) for feed in feeds] == [["e3"], []]

    asyncio.run(run())


def test_an_upgraded_file_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    make(tmp_path / "old.db")

    async def run() -> None:
        for name in ("old", "new"):
            async with brokers(tmp_path / f"{name}.db"):
                pass

    asyncio.run(run())
    old, new = (
        {
            table: sorted(
                rows(
                    tmp_path / f"{name}.db",
                    f"select name, type, \"notnull\", dflt_value, pk from pragma_table_info('{table}')",
                )
            )
            for (table,) in rows(tmp_path / f"{name}.db", "select name from sqlite_master where type = 'table'")
        }
        for name in ("old", "new")
    )
    assert old == new
    others = "select type, name, tbl_name, sql from sqlite_master where type != 'table' order by name"
    assert rows(tmp_path / "old.db", others) == rows(tmp_path / "new.db", others)
    assert rows(tmp_path / "old.db", "pragma user_version") == [(file.SCHEMA_VERSION,)]


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    make(path)
    before = rows(path, "select * from sqlite_master")
    load = file.load
    monkeypatch.setattr(file, "load", lambda name: f"{load(name)}\nselect no_such_function();")

    async def run() -> None:
        async with brokers(path):
            pass

    with pytest.raises(Exception, match="no_such_function"):
        asyncio.run(run())
    assert rows(path, "select * from sqlite_master") == before
    assert rows(path, "pragma user_version") == [(1,)]


def test_a_program_of_schema_1_that_has_the_file_open_removes_no_dead_letter(tmp_path: Path) -> None:
    """It knows nothing of what the letters refer to, and its retention goes on."""
    path = tmp_path / "a.db"
    make(path)

    async def run() -> None:
        async with brokers(path) as (broker,):
            before = await broker.dead_letters()
            connection = sqlite3.connect(path)
            with connection:
                connection.execute("delete from tidemill_log where seq < 8")
            connection.close()
            assert await broker.dead_letters() == before
            assert rows(path, "select seq from tidemill_log order by seq") == [(n,) for n in (1, 3, 4, 8, 9, 10)]

    asyncio.run(run())

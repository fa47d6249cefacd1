"""Opening a database file: is it ours, is it safe, and what its errors mean."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from ...broker import BrokerUrl
from ...errors import BrokerError, BrokerUrlError, ConfigurationError, NotTidemillStorage, StorageFull
from .rows import slot_of
from .sql import load

APPLICATION_ID = 0x74644D4C  # "tdML", in the file's header (sqlite.org/fileformat.html §1.3.15)
SCHEMA_VERSION = 2
WAL_PAGES = 4000
"""Pages after which the write-ahead log is copied into the database: 16 MiB, four times SQLite's default, as
checkpoints cost an fsync of their own."""


BUSY = 5000
"""Milliseconds to wait where another program, which knows nothing of our lock, is writing."""


def connect(path: str, *, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun and ended by name, never behind our back."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY / 1000)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute(f"pragma synchronous = {synchronous}")
        connection.execute("pragma cache_size = -32768")
        connection.execute(f"pragma wal_autocheckpoint = {WAL_PAGES}")
    except BaseException:
        connection.close()
        raise
    return connection


class WriteLock:
    """One writer at a time, first come first served, across all processes that have the file open.

    SQLite alone lets waiting writers poll, up to 100 ms apart. And before 3.51.3 a checkpoint that meets another
    connection's commit can lose that commit (sqlite.org/wal.html#walresetbug): as both happen under this lock only,
    they never meet. The kernel releases it when its holder dies.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-lock"
        self._is_new = not os.path.exists(self._path)
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the lock; blocks until it is free."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def keep(self) -> None:
        """The file is ours: other processes may rely on the lock beside it."""
        self._is_new = False

    def retract(self) -> None:
        """Release the file, and leave nothing behind beside a file that is none of ours."""
        self.close()
        if self._is_new:
            with suppress(OSError):
                os.unlink(self._path)


def prepare(path: str, lock: WriteLock) -> None:
    """Make sure `path` is a Tidemill database of this version; create the tables in a new file, upgrade an older one.

    Raises `NotTidemillStorage` where the file is something else, `StorageFull` where it cannot be written.
    """
    with lock.held(), translated(path):
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY / 1000)
        try:
            application = connection.execute("pragma application_id").fetchone()[0]
            version = connection.execute("pragma user_version").fetchone()[0]
            tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
            if application != APPLICATION_ID and (tables or application or version):
                raise NotTidemillStorage(
                    f"{path} is an SQLite database of something else. It was not touched. Give Tidemill a file of its "
                    "own: sqlite:///another.db"
                )
            lock.keep()
            if version > SCHEMA_VERSION:
                raise NotTidemillStorage(
                    f"{path} was written by a newer Tidemill (schema {version}, this one knows {SCHEMA_VERSION}). "
                    "It was not touched. Upgrade Tidemill here."
                )
            if version == 0:
                connection.execute("pragma journal_mode = wal")
                _run(connection, f"{load('schema.sql')}\npragma application_id = {APPLICATION_ID};", SCHEMA_VERSION)
            else:
                connection.create_function("slot_of", 1, _slot)
                for step in range(version + 1, SCHEMA_VERSION + 1):
                    _run(connection, load(f"upgrade_{step}.sql"), step)
        finally:
            connection.close()


def _run(connection: sqlite3.Connection, script: str, version: int) -> None:
    # In one transaction: whatever ends this process, the file is of the one version or of the other.
    connection.executescript(f"begin immediate;\n{script}\npragma user_version = {version};\ncommit;")


def _slot(key: str | None) -> int | None:
    return None if key is None else slot_of(key)


def path_of(url: BrokerUrl) -> str:
    """The file that a URL names: after three slashes a relative path, after four an absolute one.

    Raises `BrokerUrlError` where it names none, before anything is created under a wrong name.
    """
    path = unquote(url.path[1:])
    if not url.text[len(url.scheme) :].startswith(":///"):
        meant = quote(unquote(url.text[len(url.scheme) :].partition("?")[0].lstrip(":/")))
        raise BrokerUrlError(
            f"{url.text}: three slashes come before a path. Nothing was opened. Write sqlite:///{meant or 'shop.db'} "
            f"(in the working directory) or sqlite:////{meant or 'var/lib/shop.db'} (an absolute path)."
        )
    if not path or path == ":memory:" or "\0" in path:
        raise BrokerUrlError(
            f"{url.text} names no file. Write sqlite:///shop.db (in the working directory) or "
            "sqlite:////var/lib/shop.db (an absolute path); memory: is the broker that leaves nothing behind."
        )
    return path


def real_path(path: str) -> str:
    """The one name of a file, whatever the working directory becomes and whichever link leads to it: its locks lie
    beside it. Raises `ConfigurationError` where no database can be at `path`.
    """
    path = os.path.realpath(path)
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no folder {folder}. Nothing was created. Create it, or correct the URL sqlite:///{quote(path)}."
        )
    if Path(path).is_dir():
        raise ConfigurationError(
            f"{path} is a folder. Nothing was created. Name a file in it: sqlite:///{quote(path)}/events.db"
        )
    return path


_NO_ROOM = frozenset(("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"))
_DAMAGED = frozenset(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def translate(path: str, error: sqlite3.Error | OSError) -> BrokerError:
    """What an error of the driver means to people."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    base = "_".join(name.split("_")[:2])
    if isinstance(error, PermissionError) or base in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"):
        return StorageFull(
            f"{path} cannot be written ({error}). Nothing of this was stored; what was confirmed before is safe. "
            "Check the permissions of the file, of those beside it and of their folder."
        )
    if base in _NO_ROOM or (isinstance(error, OSError) and error.errno == 28):
        return StorageFull(
            f"no room left for {path} ({error}). Nothing of this was stored; what was confirmed before is safe. "
            "Free disk space: consumers and publishers go on by themselves."
        )
    if base == "SQLITE_NOTADB":
        return NotTidemillStorage(
            f"{path} is not an SQLite database. It was not touched. Give Tidemill a file of its own."
        )
    if base in _DAMAGED:
        return NotTidemillStorage(
            f"{path} is damaged ({error}). Stop everything that uses it, keep a copy, and look at "
            f"`sqlite3 {path} '.recover'`."
        )
    return BrokerError(f"{path}: {error} ({name}). Nothing of this was stored; it may be tried again.")


@contextmanager
def translated(path: str) -> Generator[None]:
    """Raise Tidemill's errors for the driver's."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translate(path, error) from error

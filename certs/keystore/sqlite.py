"""A store in one SQLite file: the embedded kind, which needs no server.

Theory of operation
-------------------
*Durability.* Write-ahead log (WAL) with ``synchronous=FULL``: a commit that returned survives a
power cut. Readers never wait for a writer.

*Transactions.* The sqlite3 module starts transactions by guessing at statements, so it is put in
autocommit mode and BEGIN is issued here. Writers use BEGIN IMMEDIATE: they take the write lock
before they read. With a plain BEGIN, two writers that both read first would both fail to upgrade,
at once and whatever the busy timeout; with IMMEDIATE the second waits its turn and then reads what
the first wrote.

*Files.* SQLite gives the ``-wal`` and ``-shm`` files the mode of the database file, so making that
one 0600 first covers all three. A database is created under another name and linked into place
(`files.drafted`): no half-made store ever stands at the path, and of two creators one wins.

*Read-only opening* exists for examining a copy. A WAL database without its ``-wal`` file has
nothing pending, so it is opened ``immutable``: no lock, no side file, and not one changed byte.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import sqlalchemy
from sqlalchemy.pool import QueuePool

from certs.errors import StoreError, StoreFault
from certs.keystore.database import BUSY_TIMEOUT_SECONDS, DAMAGED, Database, Kind, say_begin
from certs.keystore.files import drafted
from certs.keystore.tables import APPLICATION_ID, metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import DBAPIError

__all__ = ["SQLiteDatabase"]

_MAX_VALUE_BYTES = 1 << 20  # no row of ours comes near; bounds what a forged row can make us read
_MOST_CONNECTIONS = 100
_READ_WRITE = "mode=rw"
_SQLITE_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_BEGIN: dict[Kind, str] = {"read": "BEGIN", "write": "BEGIN IMMEDIATE"}

_FAULTS: dict[int, tuple[StoreFault, str]] = {
    sqlite3.SQLITE_BUSY: (
        StoreFault.LOCKED,
        "is locked by another process; wait for it to finish, then try again",
    ),
    sqlite3.SQLITE_LOCKED: (
        StoreFault.LOCKED,
        "is locked by another connection; wait for it to finish, then try again",
    ),
    sqlite3.SQLITE_READONLY: (
        StoreFault.READ_ONLY,
        "is read-only; make the file and its folder writable for this user",
    ),
    sqlite3.SQLITE_PERM: (
        StoreFault.UNREADABLE,
        "cannot be opened; check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        StoreFault.UNREADABLE,
        "cannot be opened; check that the file exists and its folder is writable for this user",
    ),
    sqlite3.SQLITE_FULL: (
        StoreFault.FULL,
        "cannot grow, the disk is full; free some space, nothing was changed",
    ),
    sqlite3.SQLITE_IOERR: (
        StoreFault.UNREADABLE,
        "cannot be read or written; check the disk and its free space",
    ),
    sqlite3.SQLITE_NOTADB: (StoreFault.NOT_A_STORE, "is not a key store; give another path"),
    sqlite3.SQLITE_CORRUPT: (StoreFault.DAMAGED, "is damaged; restore it from a backup"),
}
_DUPLICATES = {sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE}


class SQLiteDatabase(Database):
    """One open database file. Make it with `create`, open it with `open`."""

    def __init__(self, path: Path, engine: Engine) -> None:
        super().__init__(str(path), engine)
        self.path = path

    @classmethod
    def create(cls, path: Path, fill: Callable[[Connection], None]) -> None:
        """Create the database file (0600) with all tables, let `fill` write the first rows.

        All or nothing: the file appears at `path` complete and synchronised, or not at all.
        Raises `StoreError` (exists, unreadable, full, …).
        """
        with drafted(path) as draft:
            cls.fill(draft, fill, name=path)

    @classmethod
    def fill(
        cls, file: Path, fill: Callable[[Connection], None], *, name: Path | None = None
    ) -> None:
        """Make all tables in an empty file, and let `fill` write the first rows.

        `name` is what errors call it.
        """
        database = cls(name or file, _engine(file, _READ_WRITE, BUSY_TIMEOUT_SECONDS))
        with database, database.write() as connection:
            metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            fill(connection)

    @staticmethod
    def require_vacant(path: Path) -> None:
        """Raise `StoreError` if anything stands at the path, or there is no folder for it."""
        if path.exists():
            raise _exists(path)
        if not path.parent.is_dir():
            raise StoreError(
                f"there is no folder {path.parent}; make it first", fault=StoreFault.UNREADABLE
            )

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
    ) -> Self:
        """Open an existing file; raise `StoreError` if it is not one of our databases."""
        try:
            _require_store(path)
            pending = path.with_name(path.name + "-wal").exists()
        except OSError as error:
            raise _os_error(path, error) from None
        examining = "mode=ro" if pending else "immutable=1"
        mode = examining if read_only else _READ_WRITE
        return cls(path, _engine(path, mode, busy_timeout_seconds))

    def snapshot(self, destination: Path) -> None:
        """Write a consistent, compact copy to an empty file while others go on using this one."""
        with self.transaction(None) as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(destination),))

    def fold(self) -> None:
        """Fold the write-ahead log into the file and empty it, unless somebody is reading."""
        with self.transaction(None) as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def fault_of(self, error: DBAPIError) -> tuple[StoreFault, str] | None:
        """Return what a result code of SQLite means; None for a duplicate."""
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code in _DUPLICATES:
            return None
        if not isinstance(code, int):
            return DAMAGED
        return _FAULTS.get(code & 0xFF, DAMAGED)  # extended codes add upper bits


def _require_store(path: Path) -> None:
    """Look at the file's first bytes, so that nobody else's database is ever opened for writing.

    SQLite's header holds an application id in bytes 68 to 71. It is set before the file first
    appears, so it stands in the file itself even while newer pages wait in the write-ahead log.
    """
    if not path.exists():
        raise StoreError(
            f"there is no key store at {path}; create one, or give another path",
            fault=StoreFault.MISSING,
        )
    header = b""
    if path.is_file():
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    if not header.startswith(_SQLITE_MAGIC) or header[68:72] != APPLICATION_ID.to_bytes(4):
        raise StoreError(
            f"{path} is not a key store; give another path", fault=StoreFault.NOT_A_STORE
        )


def _engine(path: Path, mode: str, busy_timeout_seconds: float) -> Engine:
    read_only = mode != _READ_WRITE
    uri = f"file:{quote(str(path))}?{mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=busy_timeout_seconds,
            isolation_level=None,  # autocommit: BEGIN is ours to say
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )
        with ExitStack() as undo:
            undo.callback(connection.close)  # a damaged file makes more than sqlite3.Error
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")  # no functions from a forged schema
            if not read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")  # replaced records leave no trace
            undo.pop_all()
        return connection

    engine = sqlalchemy.create_engine(
        "sqlite+pysqlite://",
        creator=connect,
        poolclass=QueuePool,
        max_overflow=_MOST_CONNECTIONS,
        hide_parameters=True,  # an error's text never quotes a row
    )

    say_begin(engine, _BEGIN)
    return engine


def _exists(path: Path) -> StoreError:
    return StoreError(
        f"{path} exists and is never overwritten; choose another path", fault=StoreFault.EXISTS
    )


def _os_error(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot use {path}: {error.strerror}; check the folder and its permissions",
        fault=StoreFault.UNREADABLE,
    )

"""A store in a PostgreSQL database: the kind that several processes and machines share.

One database (or one schema of it, by the URL's ``search_path``) holds one store. The URL is libpq's
(``postgresql://user@host/database``), so its files and variables work: ``~/.pgpass``, PGPASSFILE,
``sslmode=verify-full``. A password in the URL is refused, since URLs end up in arguments and logs.

Theory of operation
-------------------
*Transactions.* Readers run REPEATABLE READ, READ ONLY: one snapshot. Writers run READ COMMITTED and
begin with ``LOCK TABLE store_info IN SHARE ROW EXCLUSIVE MODE``, which one holds at a time and no
reader waits for; each statement after it sees what the writers before committed. That is BEGIN
IMMEDIATE by another name, and neither serialisation failures nor deadlocks can come of it.

*Durability.* ``synchronous_commit`` is set on for the session, whatever the server's default is.

*What is left behind.* A replaced or purged record stays in the table until VACUUM, which `fold`
runs, and in the server's write-ahead log and its archives, which are its administrator's.

The server is trusted to give back what it holds, not to hold what was written: rows are sealed and
checked as those of a file are. Sizes of values are its to bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import psycopg
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import inspect

from certs.errors import InvalidInput, StoreError, StoreFault
from certs.keystore.database import BUSY_TIMEOUT_SECONDS, DAMAGED, Database, Kind, say_begin
from certs.keystore.rows import every_row, write_rows
from certs.keystore.sqlite import SQLiteDatabase
from certs.keystore.tables import metadata, store_info

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import DBAPIError

__all__ = ["PostgreSQLDatabase"]

_CONNECT_SECONDS = 10
_SILENCE_MILLISECONDS = 30_000  # of the server's machine; then the connection is lost
_MOST_CONNECTIONS = 20
_WAIT_SECONDS = 30.0
_CREATORS = 0x50465353  # the advisory lock that creators of a store take: "PFSS"

_BEGIN: dict[Kind, str] = {
    "read": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "write": (
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
        f"LOCK TABLE {store_info.name} IN SHARE ROW EXCLUSIVE MODE"
    ),
}

_UNREACHABLE = (
    StoreFault.UNREADABLE,
    "cannot be reached, or the connection was lost; look whether the server runs, and try again",
)
_LOCKED = (
    StoreFault.LOCKED,
    "is locked by another process; wait for it to finish, then try again",
)
# By SQLSTATE, or its class: the longest that fits.
_FAULTS: dict[str, tuple[StoreFault, str]] = {
    "08": _UNREACHABLE,
    "22P05": (StoreFault.DAMAGED, "does not hold UTF-8; make the database with ENCODING 'UTF8'"),
    "25006": (
        StoreFault.READ_ONLY,
        "is read-only, or a standby; connect to the primary, with a role that may write",
    ),
    "28": (
        StoreFault.UNREADABLE,
        "does not let this user in; check the user, the passfile (PGPASSFILE) and pg_hba.conf",
    ),
    "3D000": (StoreFault.MISSING, "does not exist; create the database (createdb), then the store"),
    "40001": _LOCKED,
    "40P01": _LOCKED,
    "42501": (
        StoreFault.READ_ONLY,
        "does not let this role do that; grant it the store's tables",
    ),
    "42P01": (StoreFault.NOT_A_STORE, "is not a key store; give another database"),
    "42703": (StoreFault.NOT_A_STORE, "is not a key store; give another database"),
    "53100": (
        StoreFault.FULL,
        "cannot grow, the server's disk is full; free some space, nothing was changed",
    ),
    "53300": (StoreFault.LOCKED, "has no connection left to give; raise max_connections"),
    "55P03": _LOCKED,
    "57014": _LOCKED,
    "57P": _UNREACHABLE,
}


class PostgreSQLDatabase(Database):
    """One open database of a server. Make its tables with `create`, open it with `open`."""

    @classmethod
    def create(cls, url: str, fill: Callable[[Connection], None]) -> None:
        """Make all tables in an existing, empty database, and let `fill` write the first rows.

        All or nothing, and of two creators one wins. Raises `StoreError`.
        """
        database = cls(_shown(url), _engine(url, BUSY_TIMEOUT_SECONDS))
        with database, database.transaction(None) as connection:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATORS})")
            database._require_vacant(connection)
            metadata.create_all(connection, checkfirst=False)
            fill(connection)

    @classmethod
    def require_vacant(cls, url: str) -> None:
        """Raise `StoreError` if the database has a store, or cannot be reached."""
        database = cls(_shown(url), _engine(url, BUSY_TIMEOUT_SECONDS))
        with database, database.read() as connection:
            database._require_vacant(connection)

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> Self:
        """Open an existing store; raise `StoreError` if there is none."""
        database = cls(_shown(url), _engine(url, busy_timeout_seconds))
        try:
            database._require_store()
        except BaseException:
            database.close()
            raise
        return database

    def snapshot(self, destination: Path) -> None:
        """Write a consistent copy to an empty file, which is a store in SQLite then."""
        with self.read() as connection:
            SQLiteDatabase.fill(destination, lambda copy: write_rows(copy, every_row(connection)))

    def fold(self) -> None:
        """Give replaced and erased rows back (VACUUM), unless somebody is reading them yet."""
        tables = ", ".join(table.name for table in metadata.sorted_tables)
        with self.transaction(None) as connection:
            connection.exec_driver_sql(f"VACUUM {tables}")

    def fault_of(self, error: DBAPIError) -> tuple[StoreFault, str] | None:
        """Return what an SQLSTATE means; None for a duplicate."""
        state = getattr(error.orig, "sqlstate", None)
        if state == psycopg.errors.UniqueViolation.sqlstate:
            return None
        if not isinstance(state, str):  # it never came to a server's answer, or says it in words
            return _of_words(str(error.orig)) or _UNREACHABLE
        for length in range(len(state), 1, -1):
            if state[:length] in _FAULTS:
                return _FAULTS[state[:length]]
        return DAMAGED

    def _require_store(self) -> None:
        with self.read() as connection:
            if not inspect(connection).has_table(store_info.name):
                raise StoreError(
                    f"there is no key store in {self.name}; create one, or give another database",
                    fault=StoreFault.MISSING,
                )

    def _require_vacant(self, connection: Connection) -> None:
        taken = sorted(metadata.tables.keys() & {*inspect(connection).get_table_names()})
        if store_info.name in taken:
            raise StoreError(
                f"{self.name} has a key store, which is never overwritten; choose another database",
                fault=StoreFault.EXISTS,
            )
        if taken:  # migrations of whoever made them must not meet ours
            raise StoreError(
                f"{self.name} has a table {taken[0]!r} of something else; choose another database",
                fault=StoreFault.EXISTS,
            )


def _of_words(text: str) -> tuple[StoreFault, str] | None:
    """Return what a refused connection means: libpq gives the server's words, not its code."""
    if "does not exist" in text and "database" in text:
        return _FAULTS["3D000"]
    if "authentication failed" in text or "no password supplied" in text or "role " in text:
        return _FAULTS["28"]
    return None


def _shown(url: str) -> str:
    """Return what to call the database; raise `InvalidInput` for a URL that is none of libpq's."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # The text itself is not repeated: what is malformed in it may be a password.
        raise InvalidInput(
            "that is no URL of a PostgreSQL database; write postgresql://user@host:5432/database"
        ) from None
    if {"password", "sslpassword"} & parts.keys():
        raise InvalidInput(
            "a password in a URL is read by others; put it in a passfile (~/.pgpass, PGPASSFILE)"
        )
    return f"postgresql:{parts.get('dbname', '')}"


def _engine(url: str, busy_timeout_seconds: float) -> Engine:
    defaults = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _SILENCE_MILLISECONDS}
    wanted = conninfo_to_dict(url)
    conninfo = make_conninfo(url, **{k: v for k, v in defaults.items() if k not in wanted})
    patience = f"SET lock_timeout = {max(1, round(busy_timeout_seconds * 1000))}"

    def connect() -> psycopg.Connection[tuple[object, ...]]:
        connection = psycopg.connect(conninfo, autocommit=True, application_name="pfs")
        try:
            connection.execute(f"SET synchronous_commit = on; {patience}".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=connect,
        max_overflow=_MOST_CONNECTIONS,
        pool_timeout=_WAIT_SECONDS,
        hide_parameters=True,  # an error's text never quotes a row
    )

    say_begin(engine, _BEGIN)
    return engine

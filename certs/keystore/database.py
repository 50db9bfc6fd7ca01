"""A store's database: its transactions, and its troubles in plain words.

Two kinds of database keep stores, with the same behaviour: one SQLite file
(`certs.keystore.sqlite`) and a PostgreSQL database that several machines share
(`certs.keystore.postgresql`). This module is what they have in common; `certs.keystore.address`
chooses.

Theory of operation
-------------------
*Readers* see one consistent state for as long as their block lasts, and never wait for a writer.

*Writers are alone.* A write block takes the one write lock before it reads anything, so "read the
latest version, insert the next" is no race, and any number of processes make one audit log without
gaps. Who waits longer for the lock than the busy timeout is told so.

*Durability.* A block that was left without an exception survives a power cut.

*Errors.* The driver's codes are translated in one table a driver, and nowhere else. A connection
that was lost while nobody used it (a server that restarted) is replaced without a word when a block
begins; one that is lost later is an error, since what was under way may or may not have happened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from certs.errors import StoreError, StoreFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Connection, Engine, RootTransaction

__all__ = [
    "BUSY_TIMEOUT_SECONDS",
    "DAMAGED",
    "ConnectionLost",
    "Database",
    "DuplicateRow",
    "Kind",
    "say_begin",
]

BUSY_TIMEOUT_SECONDS = 10.0
_KIND_OPTION = "pfs_transaction"
Kind = Literal["read", "write"]
_Answer = TypeVar("_Answer")
DAMAGED = (StoreFault.DAMAGED, "is damaged or not a key store; restore it from a backup")


class DuplicateRow(StoreError):
    """An insert lost against a row with the same key; the caller says what that means."""


class ConnectionLost(StoreError):
    """The connection to the server was lost; what was being committed may be there or not."""


class Database(ABC):
    """One open database; `name` is how messages call it. Threads may share it.

    Connections must not cross fork(2): open the store again in the child.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self._closed = False

    @abstractmethod
    def snapshot(self, destination: Path) -> None:
        """Write a consistent, compact copy to an empty file while others go on using this one."""

    @abstractmethod
    def fold(self) -> None:
        """Leave as little as can be of what was replaced or erased."""

    @abstractmethod
    def fault_of(self, error: DBAPIError) -> tuple[StoreFault, str] | None:
        """Return what a driver's error means, and the rest of a sentence; None for a duplicate."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a block of reads on one consistent view."""
        with self.transaction("read") as connection:
            yield connection

    def ask(self, read: Callable[[Connection], _Answer]) -> _Answer:
        """Return what one reading statement finds: a view of one moment, without a transaction."""
        try:
            with self.transaction(None) as connection:
                return read(connection)
        except ConnectionLost:
            with self.transaction(None) as connection:
                return read(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run a block of reads and writes, alone; commit at its end, or undo all of it."""
        with self.transaction("write") as connection:
            yield connection

    @contextmanager
    def savepoint(self, connection: Connection) -> Iterator[None]:
        """Run a part of a write block that can fail by itself: it is undone, the rest is not."""
        part = connection.begin_nested()
        try:
            yield
        except DBAPIError as error:
            found = self._translated(error)
            with suppress(DBAPIError):  # a full disk has undone the whole transaction already
                part.rollback()
            raise found from None
        except BaseException:
            part.rollback()
            raise
        part.commit()

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        self.engine.dispose()

    @contextmanager
    def transaction(self, kind: Kind | None) -> Iterator[Connection]:
        """Run a block on one connection; of no kind, each statement stands for itself."""
        if self._closed:
            raise StoreError("the key store was closed; open it again", fault=StoreFault.CLOSED)
        try:
            with self._begun(kind) as connection:
                yield connection
        except DBAPIError as error:
            raise self._translated(error) from None
        except sqlalchemy.exc.TimeoutError:
            raise StoreError(
                f"{self.name} is in use by too many threads of this program at once; try again",
                fault=StoreFault.LOCKED,
            ) from None
        except UnicodeDecodeError:
            # SQLite's driver decodes names out of a damaged schema for an error's text, and fails.
            raise StoreError(f"{self.name} {DAMAGED[1]}", fault=DAMAGED[0]) from None

    @contextmanager
    def _begun(self, kind: Kind | None) -> Iterator[Connection]:
        try:
            connection, transaction = self._begin(kind)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            # The pool has dropped the others that were lost with it.
            connection, transaction = self._begin(kind)
        with connection, transaction:
            yield connection

    def _begin(self, kind: Kind | None) -> tuple[Connection, RootTransaction]:
        connection = self.engine.connect().execution_options(**{_KIND_OPTION: kind})
        try:
            return connection, connection.begin()
        except BaseException:
            connection.close()
            raise

    def _translated(self, error: DBAPIError) -> StoreError:
        found = self.fault_of(error)
        if found is None:
            return DuplicateRow(f"{self.name} has that row already", fault=StoreFault.EXISTS)
        kind = ConnectionLost if error.connection_invalidated else StoreError
        fault, text = found
        return kind(f"{self.name} {text}", fault=fault)


def say_begin(engine: Engine, statements: Mapping[Kind, str]) -> None:
    """Have each transaction of a kind begun by its statement; one of no kind begins with none."""

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        kind = connection.get_execution_options().get(_KIND_OPTION)
        if kind is not None:
            connection.exec_driver_sql(statements[kind])

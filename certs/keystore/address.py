"""Where a store is: a path or a URL, and the database that this means.

| written | means |
|---|---|
| ``keys.db``, ``/var/lib/pfs/keys.db`` | one SQLite file |
| ``sqlite:///keys.db``, ``sqlite:////var/lib/pfs/keys.db`` | the same two |
| ``postgresql://user@host/database`` | a PostgreSQL database (libpq's URL, without a password) |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from certs.errors import InvalidInput
from certs.keystore.database import BUSY_TIMEOUT_SECONDS
from certs.keystore.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from sqlalchemy import Connection

    from certs.keystore.database import Database
    from certs.keystore.postgresql import PostgreSQLDatabase

__all__ = ["create_database", "open_database", "require_vacant"]

_POSTGRESQL = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class _Place:
    """What can be done where an address leads, whichever kind of database is there."""

    create: Callable[[Callable[[Connection], None]], None]
    open: Callable[[float], Database]
    require_vacant: Callable[[], None]


def create_database(address: str | os.PathLike[str], fill: Callable[[Connection], None]) -> None:
    """Make the tables of a new store where the address says, and let `fill` write its first rows.

    All or nothing. Raises `StoreError`, or `InvalidInput` for what is no address.
    """
    _place(address).create(fill)


def open_database(
    address: str | os.PathLike[str], *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS
) -> Database:
    """Open the database of an existing store; raise `StoreError` or `InvalidInput`."""
    return _place(address).open(busy_timeout_seconds)


def require_vacant(address: str | os.PathLike[str]) -> None:
    """Raise `StoreError` if something stands where a store is to be made."""
    _place(address).require_vacant()


def _place(address: str | os.PathLike[str]) -> _Place:
    if isinstance(address, str) and address.startswith(_POSTGRESQL):
        server = _postgresql()
        return _Place(
            create=partial(server.create, address),
            open=lambda patience: server.open(address, busy_timeout_seconds=patience),
            require_vacant=partial(server.require_vacant, address),
        )
    path = _file_of(address)
    return _Place(
        create=partial(SQLiteDatabase.create, path),
        open=lambda patience: SQLiteDatabase.open(path, busy_timeout_seconds=patience),
        require_vacant=partial(SQLiteDatabase.require_vacant, path),
    )


def _file_of(address: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a store in a file."""
    path = Path(address)
    if isinstance(address, str) and "://" in address:
        parts = urlsplit(address)
        beside = parts.netloc or parts.query or parts.fragment
        if parts.scheme != "sqlite" or beside or len(parts.path) < len("/x"):
            raise InvalidInput(
                "a store is a path, sqlite:///relative, sqlite:////absolute, or "
                "postgresql://user@host/database"
            )
        path = Path(unquote(parts.path.removeprefix("/")))
    if "\0" in str(path) or not _is_utf8(str(path)):
        raise InvalidInput("the path of a store is text in UTF-8 without a NUL")
    return path.absolute()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _postgresql() -> type[PostgreSQLDatabase]:
    try:
        from certs.keystore.postgresql import PostgreSQLDatabase  # noqa: PLC0415 - an extra
    except ImportError:
        raise InvalidInput(
            "a store in PostgreSQL needs the package psycopg; "
            "run: pip install 'pfs-transport[postgres]'"
        ) from None
    return PostgreSQLDatabase

"""What a store is, before anything in it: id, schema, and the root key as its KEK wrapped it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from certs.errors import StoreError, StoreFault
from certs.keystore.envelope import STORE_ID_BYTES
from certs.keystore.kek.provider import MAX_WRAPPED_BYTES
from certs.keystore.keyring import Keyring, root_context
from certs.keystore.records import insert_term
from certs.keystore.tables import SCHEMA_VERSION, as_bytes, as_number, damaged, store_info

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from certs.keystore.database import Database
    from certs.keystore.kek import KEKProvider

__all__ = ["RootRow", "first_rows", "open_keyring", "read_root", "schema_of"]


@dataclass(frozen=True, slots=True)
class RootRow:
    """A store's identity and its root key as the KEK wrapped it."""

    store_id: bytes
    generation: int
    wrapped: bytes


def first_rows(connection: Connection, keyring: Keyring, wrapped_root_key: bytes, now: int) -> None:
    """Write what a new store begins with: its identity, its wrapped root key, its first term."""
    connection.execute(
        insert(store_info).values(
            singleton=1,
            schema_version=SCHEMA_VERSION,
            store_id=keyring.store_id,
            root_generation=1,
            wrapped_root_key=wrapped_root_key,
            created_at=now,
        )
    )
    insert_term(connection, keyring.new_term(1), invocations=0, now=now)


def open_keyring(database: Database, kek: KEKProvider) -> Keyring:
    """Unwrap the root key; raise `WrongKEK`, `CorruptEnvelope` or `StoreError` (newer schema)."""
    with database.read() as connection:
        if schema_of(connection) > SCHEMA_VERSION:
            raise StoreError(
                f"{database.name} has schema {schema_of(connection)} and this program reads "
                f"{SCHEMA_VERSION}; upgrade the program",
                fault=StoreFault.NEWER_SCHEMA,
            )
        root = read_root(connection)
    associated_data = root_context(root.store_id, root.generation).encode()
    return Keyring(root.store_id, kek.unwrap(root.wrapped, associated_data))


def read_root(connection: Connection) -> RootRow:
    """Return the store's identity and its wrapped root key."""
    columns = store_info.c
    rows = connection.execute(
        select(columns.store_id, columns.root_generation, columns.wrapped_root_key)
    ).all()
    if len(rows) != 1:  # a damaged page can show a row twice, or none
        raise damaged("store_info.singleton")
    row = rows[0]
    store_id = as_bytes(row.store_id, "store_info.store_id")
    wrapped = as_bytes(row.wrapped_root_key, "store_info.wrapped_root_key")
    if len(store_id) != STORE_ID_BYTES:
        raise damaged("store_info.store_id")
    if len(wrapped) > MAX_WRAPPED_BYTES:
        raise damaged("store_info.wrapped_root_key")
    generation = as_number(row.root_generation, "store_info.root_generation", least=1)
    return RootRow(store_id, generation, wrapped)


def schema_of(connection: Connection) -> int:
    """Return the schema's number, by itself: another schema may have no other column known here."""
    schema = connection.execute(select(store_info.c.schema_version)).scalar()
    return as_number(schema, "store_info.schema_version", least=1)

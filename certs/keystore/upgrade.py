"""Bringing a store of an older schema to the present one, in one transaction.

Schema 1 had private keys alone, and no sealed state: each key is opened once, so that only what was
sealed with it, and not an edited row, goes into the state that is sealed now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from certs.keystore.kinds import require_key_type
from certs.keystore.records import (
    KeyInfo,
    counted_term,
    opened,
    read_version,
    schema_of,
    seal_state,
)
from certs.keystore.tables import (
    SCHEMA_VERSION,
    as_number,
    as_text,
    as_time,
    key_states,
    keys,
    metadata,
    store_info,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from certs.keystore.database import Database
    from certs.keystore.keyring import Keyring

__all__ = ["upgrade"]


def upgrade(database: Database, keyring: Keyring, now: int) -> None:
    """Bring the store to `SCHEMA_VERSION` if it is older; all or nothing.

    Raises `CorruptEnvelope` if a key of the older store was tampered with.
    """
    with database.read() as connection:
        if schema_of(connection) == SCHEMA_VERSION:
            return
    with database.write() as connection:
        if schema_of(connection) == SCHEMA_VERSION:
            return  # another process was first
        metadata.create_all(connection)
        _seal_states(connection, keyring, now)
        connection.execute(update(store_info).values(schema_version=SCHEMA_VERSION))


def _seal_states(connection: Connection, keyring: Keyring, now: int) -> None:
    rows = connection.execute(
        select(keys).where(keys.c.name.not_in(select(key_states.c.name))).order_by(keys.c.name)
    ).all()
    for row in rows:
        info = KeyInfo(
            name=as_text(row.name, "keys.name"),
            key_type=require_key_type(as_text(row.key_type, "keys.key_type")),
            purpose=as_text(row.purpose, "keys.purpose"),
            exportable=bool(as_number(row.exportable, "keys.exportable", most=1)),
            version=as_number(row.latest_version, "keys.latest_version", least=1),
            created_at=as_time(row.created_at, "keys.created_at"),
        )
        opened(keyring, read_version(connection, info, None))  # raises if the row was edited
        term = counted_term(connection, keyring, now)
        connection.execute(
            insert(key_states).values(
                name=info.name,
                revision=info.revision,
                term=term.number,
                sealed=seal_state(keyring, term, info),
            )
        )

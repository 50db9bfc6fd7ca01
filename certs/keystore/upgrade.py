"""Bringing a store of an older schema to the present one, in one transaction.

Schema 1 had private keys alone, and no sealed state: each key is opened once, so that only what was
sealed with it, and not an edited row, goes into the state that is sealed now. Schema 2 had neither
grants nor an audit log: the log begins with the upgrade, and the owner is granted everything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from certs.keystore.access import OWNER
from certs.keystore.audit import AuditEntry
from certs.keystore.audit_log import AuditLog
from certs.keystore.grants import begin_grants
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

__all__ = ["begin_oversight", "upgrade"]

_SEALED_STATES = 2  # the first schema that has them


def begin_oversight(connection: Connection, keyring: Keyring, entry: AuditEntry) -> None:
    """Grant the owner everything and begin the audit log, whose first row tells of it."""
    begin_grants(connection, keyring)
    first = replace(entry, details={**entry.details, "principal": OWNER, "revision": "1"})
    AuditLog.begin(connection, keyring, first)


def upgrade(database: Database, keyring: Keyring, now: int, principal: str) -> None:
    """Bring the store to `SCHEMA_VERSION` if it is older; all or nothing.

    Raises `CorruptEnvelope` if a key of the older store was tampered with.
    """
    with database.read() as connection:
        if schema_of(connection) == SCHEMA_VERSION:
            return
    with database.write() as connection:
        if schema_of(connection) == SCHEMA_VERSION:
            return  # another process was first
        old = schema_of(connection)
        metadata.create_all(connection)
        if old < _SEALED_STATES:
            _seal_states(connection, keyring, now)
        entry = AuditEntry(now, principal, "upgrade", "", "done", details={"schema": str(old)})
        begin_oversight(connection, keyring, entry)
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

"""The rows of a store: reading them with suspicion, writing them whole.

Functions here run inside a transaction of `database`; `store` decides when one begins and ends.
Nothing read from a row is believed before `opened` has unsealed the record and compared what stands
in the clear with what was sealed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Row, func, insert, select, update

from certs.errors import CorruptEnvelope, KeyNotFound, StoreError, StoreFault
from certs.key_types import KeyType, public_key_der, require_public_key
from certs.keystore.envelope import MAX_TERM, STORE_ID_BYTES
from certs.keystore.kek.provider import MAX_WRAPPED_BYTES
from certs.keystore.keyring import INVOCATION_LIMIT, Keyring, SealedTerm, root_context
from certs.keystore.names import is_name
from certs.keystore.payload import PrivateKeyPayload
from certs.keystore.tables import (
    SCHEMA_VERSION,
    as_bytes,
    as_number,
    as_text,
    as_time,
    damaged,
    key_versions,
    keys,
    store_info,
    terms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from certs.keystore.database import Database
    from certs.keystore.kek import KEKProvider

__all__ = [
    "PURPOSES",
    "KeyInfo",
    "SealedKey",
    "find_key",
    "first_rows",
    "insert_key",
    "keys_after",
    "open_keyring",
    "opened",
    "read_sealed_key",
    "seal_version",
]

PURPOSES = frozenset({"sign"})
_PRIVATE_KEY = "private-key"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What a listing shows of a key: nothing secret, and not yet checked against a sealed record.

    `version` is the newest version; `created_at` is when the name was first used.
    """

    name: str
    key_type: KeyType
    purpose: str
    exportable: bool
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SealedKey:
    """One version of a key as its rows hold it."""

    info: KeyInfo
    version: int
    term: SealedTerm
    public_key: bytes
    record: bytes


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
    _insert_term(connection, keyring.new_term(1), invocations=0, now=now)


def open_keyring(database: Database, kek: KEKProvider) -> Keyring:
    """Unwrap the root key; raise `WrongKEK`, `CorruptEnvelope` or `StoreError` (newer schema)."""
    columns = store_info.c
    with database.read() as connection:
        # By itself: a newer schema may have no other column that is known here.
        schema = connection.execute(select(columns.schema_version)).scalar()
        if as_number(schema, "store_info.schema_version", least=1) != SCHEMA_VERSION:
            raise StoreError(
                f"{database.path} has schema {schema} and this program reads {SCHEMA_VERSION}; "
                "upgrade the program",
                fault=StoreFault.NEWER_SCHEMA,
            )
        row = connection.execute(
            select(columns.store_id, columns.root_generation, columns.wrapped_root_key)
        ).one()
    store_id = as_bytes(row.store_id, "store_info.store_id")
    if len(store_id) != STORE_ID_BYTES:
        raise damaged("store_info.store_id")
    generation = as_number(row.root_generation, "store_info.root_generation", least=1)
    wrapped = as_bytes(row.wrapped_root_key, "store_info.wrapped_root_key")
    if len(wrapped) > MAX_WRAPPED_BYTES:
        raise damaged("store_info.wrapped_root_key")
    return Keyring(store_id, kek.unwrap(wrapped, root_context(store_id, generation).encode()))


def find_key(connection: Connection, name: str) -> KeyInfo:
    """Return a key's row; raise `KeyNotFound` if there is none."""
    if not is_name(name):  # nor would every text reach the database: lone surrogates do not
        raise KeyNotFound("there is no key of that name, and no key can have it; list the keys")
    row = connection.execute(select(keys).where(keys.c.name == name)).first()
    if row is None:
        raise KeyNotFound(f"there is no key named {name!r}; list the keys, or create it")
    return _key_info(row)


def keys_after(connection: Connection, name: str, limit: int) -> Sequence[KeyInfo]:
    """Return up to `limit` keys in the order of their names, from the first one after `name`."""
    query = select(keys).where(keys.c.name > name).order_by(keys.c.name).limit(limit)
    return [_key_info(row) for row in connection.execute(query)]


def read_sealed_key(connection: Connection, name: str, version: int | None) -> SealedKey:
    """Return one version of a key, the newest if None; raise `KeyNotFound` if there is none.

    That a key's newest version is the one its row names is checked each time: removing the row of
    a newer version must not bring an older key back into use unnoticed.
    """
    info = find_key(connection, name)
    newest = connection.execute(
        select(func.max(key_versions.c.version)).where(key_versions.c.name == name)
    ).scalar()
    if newest != info.version:
        raise CorruptEnvelope(
            f"key {name!r} should have {info.version} versions and the newest found is {newest}; "
            "restore the store from a backup"
        )
    wanted = info.version if version is None else version
    if not 1 <= wanted <= info.version:
        raise KeyNotFound(f"key {name!r} has versions 1 to {info.version}, not {wanted}")
    row = connection.execute(
        select(key_versions, terms.c.sealed.label("sealed_term"))
        .join(terms, terms.c.number == key_versions.c.term)
        .where(key_versions.c.name == name, key_versions.c.version == wanted)
    ).first()
    if row is None:
        raise CorruptEnvelope(
            f"version {wanted} of key {name!r}, or the term that seals it, is missing from the "
            "store; restore it from a backup"
        )
    return _sealed_key(info, row)


def insert_key(connection: Connection, info: KeyInfo) -> None:
    """Insert the row of a new name; `database.DuplicateRow` if the name is taken."""
    connection.execute(
        insert(keys).values(
            name=info.name,
            key_type=info.key_type.value,
            purpose=info.purpose,
            exportable=int(info.exportable),
            latest_version=info.version,
            created_at=int(info.created_at.timestamp()),
        )
    )


def seal_version(
    connection: Connection, keyring: Keyring, info: KeyInfo, payload: PrivateKeyPayload, now: int
) -> None:
    """Seal the private key as version `info.version` and insert it. Runs in a write transaction."""
    term = _counted_term(connection, keyring, now)
    record = keyring.seal(
        term,
        payload.encode(),
        kind=_PRIVATE_KEY,
        name=info.name,
        version=info.version,
        purpose=info.purpose,
    )
    connection.execute(
        insert(key_versions).values(
            name=info.name,
            version=info.version,
            term=term.number,
            public_key=public_key_der(payload.private_key.public_key()),
            sealed=record,
            created_at=now,
        )
    )
    connection.execute(
        update(keys).where(keys.c.name == info.name).values(latest_version=info.version)
    )


def opened(keyring: Keyring, sealed: SealedKey) -> PrivateKeyPayload:
    """Unseal a key and hold its rows to it; raise `CorruptEnvelope` if anything differs."""
    info = sealed.info
    payload = PrivateKeyPayload.parse(
        keyring.unseal(
            sealed.term,
            sealed.record,
            kind=_PRIVATE_KEY,
            name=info.name,
            version=sealed.version,
            purpose=info.purpose,
        )
    )
    differences = {
        "key type": payload.key_type is not info.key_type,
        "exportable mark": payload.exportable is not info.exportable,
        "public key": public_key_der(require_public_key(payload.private_key.public_key()))
        != sealed.public_key,
    }
    for what, differs in differences.items():
        if differs:
            raise CorruptEnvelope(
                f"the {what} of {info.name!r} version {sealed.version} was edited and is not what "
                "was sealed; restore the store from a backup"
            )
    return payload


def _counted_term(connection: Connection, keyring: Keyring, now: int) -> SealedTerm:
    """Return the newest term with this invocation counted; begin the next term at the limit."""
    row = connection.execute(
        select(terms).order_by(terms.c.number.desc()).limit(1).with_for_update()
    ).first()
    if row is None:
        raise CorruptEnvelope("the store has no term to seal with; restore it from a backup")
    number = as_number(row.number, "terms.number", least=1, most=MAX_TERM)
    invocations = as_number(row.invocations, "terms.invocations")
    if invocations >= INVOCATION_LIMIT:
        following = keyring.new_term(number + 1)
        _insert_term(connection, following, invocations=1, now=now)
        return following
    connection.execute(
        update(terms).where(terms.c.number == number).values(invocations=invocations + 1)
    )
    return SealedTerm(number, as_bytes(row.sealed, "terms.sealed"))


def _insert_term(connection: Connection, term: SealedTerm, *, invocations: int, now: int) -> None:
    connection.execute(
        insert(terms).values(
            number=term.number, sealed=term.sealed, invocations=invocations, created_at=now
        )
    )


def _sealed_key(info: KeyInfo, row: Row[tuple[object, ...]]) -> SealedKey:
    return SealedKey(
        info=info,
        version=as_number(row.version, "key_versions.version", least=1),
        term=SealedTerm(
            as_number(row.term, "key_versions.term", least=1, most=MAX_TERM),
            as_bytes(row.sealed_term, "terms.sealed"),
        ),
        public_key=as_bytes(row.public_key, "key_versions.public_key"),
        record=as_bytes(row.sealed, "key_versions.sealed"),
    )


def _key_info(row: Row[tuple[object, ...]]) -> KeyInfo:
    name = as_text(row.name, "keys.name")
    key_type = as_text(row.key_type, "keys.key_type")
    purpose = as_text(row.purpose, "keys.purpose")
    if not is_name(name):
        raise damaged("keys.name")
    if key_type not in set(KeyType):
        raise damaged("keys.key_type")
    if purpose not in PURPOSES:
        raise damaged("keys.purpose")
    return KeyInfo(
        name=name,
        key_type=KeyType(key_type),
        purpose=purpose,
        exportable=bool(as_number(row.exportable, "keys.exportable", most=1)),
        version=as_number(row.latest_version, "keys.latest_version", least=1),
        created_at=as_time(row.created_at, "keys.created_at"),
    )

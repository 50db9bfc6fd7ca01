"""What a thief can do who holds both a store's database file and its KEK.

This is the danger that the store exists to keep away, written down as code so that experiments can
carry the theft out and show its consequences. Nothing else may import it for convenience: keys are
used through `KeyStore.signing_key` and exported through `KeyStore.export_private_key`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from certs.keystore.access import OWNER
from certs.keystore.identity import open_keyring, schema_of
from certs.keystore.kek import using_provider
from certs.keystore.payload import PrivateKeyPayload
from certs.keystore.records import keys_after, opened, read_version
from certs.keystore.schema import upgrade
from certs.keystore.sqlite import SQLiteDatabase
from certs.keystore.store import utc_now
from certs.keystore.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from certs.key_types import KeyType, PrivateKey
    from certs.keystore.kek import KEKProvider
    from certs.keystore.keyring import Keyring
    from certs.keystore.records import KeyInfo

__all__ = ["StolenKey", "unseal_every_private_key"]

_PAGE = 500


class StolenKey(NamedTuple):
    """One version of one key, in the thief's hands."""

    name: str
    version: int
    key_type: KeyType
    private_key: PrivateKey

    def __repr__(self) -> str:
        return f"<StolenKey {self.name!r} version {self.version}, {self.key_type}>"


def unseal_every_private_key(
    path: str | os.PathLike[str], kek: KEKProvider | str
) -> list[StolenKey]:
    """Return every version of every private key in a store, **ignoring the exportable mark**.

    That mark binds users of the store, not a holder of its KEK. The file is opened read-only and
    not one byte of it, or of its folder, is changed; a copy of the file is enough (a copy taken
    while the store is in use should be made with `KeyStore.snapshot`). A file of an older schema is
    read by way of a temporary copy. Raises as `KeyStore.open` does, and `CorruptEnvelope` at the
    first record that does not open.
    """
    where = Path(path).absolute()
    with using_provider(kek) as provider:
        with SQLiteDatabase.open(where, read_only=True) as database:
            keyring = open_keyring(database, provider)
            if database.ask(schema_of) == SCHEMA_VERSION:
                return _every_private_key(database, keyring)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "store")
            with SQLiteDatabase.open(where, read_only=True) as database:
                database.snapshot(copy)
            with SQLiteDatabase.open(copy) as database:
                upgrade(database, keyring, int(utc_now().timestamp()), OWNER)
                return _every_private_key(database, keyring)


def _every_private_key(database: SQLiteDatabase, keyring: Keyring) -> list[StolenKey]:
    stolen: list[StolenKey] = []
    with database.read() as connection:
        last = ""
        while page := keys_after(connection, keyring, last, _PAGE):
            for info in page:
                stolen.extend(_versions_of(connection, keyring, info))
            last = page[-1].name
    return stolen


def _versions_of(connection: Connection, keyring: Keyring, info: KeyInfo) -> Iterator[StolenKey]:
    if info.purged:
        return  # there is nothing left to steal
    for version in range(1, info.version + 1):
        payload = opened(keyring, read_version(connection, info, version))
        if isinstance(payload, PrivateKeyPayload):
            yield StolenKey(info.name, version, payload.key_type, payload.private_key)

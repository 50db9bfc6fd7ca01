"""`KeyStore`: named, versioned private keys that sign where they are kept.

One store is one SQLite file. Its keys are sealed under a keyring whose root key is wrapped by a KEK
that lives elsewhere (`certs.keystore.kek`); the file alone opens nothing. Every name has versions
1, 2, 3, …: writing to a name adds a version, and no version is ever replaced.

A store may be shared by threads and opened by several processes. It must not cross fork(2).
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

from certs.errors import KeyExists, KeyNotExportable, WrongPurpose
from certs.key_types import (
    KeyType,
    PrivateKey,
    PublicKey,
    generate_private_key,
    key_type_of,
    require_private_key,
    require_public_key,
)
from certs.keystore.database import BUSY_TIMEOUT_SECONDS, Database, DuplicateRow
from certs.keystore.gate import Act, Gate, OpenGate
from certs.keystore.kek import KEKProvider, open_kek
from certs.keystore.keyring import Keyring, new_store_id, root_context
from certs.keystore.names import require_name
from certs.keystore.payload import PrivateKeyPayload
from certs.keystore.records import (
    PURPOSES,
    KeyInfo,
    find_key,
    first_rows,
    insert_key,
    keys_after,
    open_keyring,
    opened,
    read_sealed_key,
    seal_version,
)
from certs.keystore.signing import KeyHandle, Witness, signing_key_for

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import TracebackType

__all__ = ["KeyInfo", "KeyStore", "using_provider", "utc_now"]

_PAGE = 500


def utc_now() -> datetime:
    """Return the present time; the clock that a store uses unless it is given another."""
    return datetime.now(UTC)


class KeyStore:
    """An open key store. Make one with `create`, open one with `open`, close it after use.

    `kek` is a provider or the URI of one (``file:/etc/pfs/kek``); a provider that the store opened
    from a URI is closed again at once, since only the root key is needed afterwards.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Callable[[], datetime],
        gate: Gate | None = None,
    ) -> None:
        self.database = database
        self._keyring = keyring
        self._clock = clock
        self._gate: Gate = OpenGate() if gate is None else gate  # see certs.keystore.gate

    def __repr__(self) -> str:
        return f"<KeyStore {self.store_id} at {self.database.path}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        kek: KEKProvider | str,
        *,
        clock: Callable[[], datetime] = utc_now,
        busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
    ) -> Self:
        """Make a new store in a new file of mode 0600, and open it.

        Raises `StoreError` if the file exists or cannot be written, `KEKUnavailable` for the KEK.
        """
        where = Path(path).absolute()
        root_key = Keyring.new_root_key()
        keyring = Keyring(new_store_id(), root_key)
        with using_provider(kek) as provider:
            associated_data = root_context(keyring.store_id, 1).encode()
            wrapped = provider.wrap(root_key, associated_data)
            now = int(clock().timestamp())
            Database.create(where, lambda rows: first_rows(rows, keyring, wrapped, now))
            keyring.close()
            # By the same provider: whoever was asked for a passphrase is not asked twice.
            return cls.open(where, provider, clock=clock, busy_timeout_seconds=busy_timeout_seconds)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        kek: KEKProvider | str,
        *,
        clock: Callable[[], datetime] = utc_now,
        busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
    ) -> Self:
        """Open an existing store.

        Raises `WrongKEK`, `KEKUnavailable`, `CorruptEnvelope`, or `StoreError` with its fault.
        """
        with using_provider(kek) as provider:
            database = Database.open(
                Path(path).absolute(), busy_timeout_seconds=busy_timeout_seconds
            )
            with contextlib.ExitStack() as undo:
                undo.callback(database.close)
                store = cls(database, open_keyring(database, provider), clock)
                undo.pop_all()
        return store

    @property
    def store_id(self) -> str:
        """The store's identity, 32 hex digits; every record is bound to it."""
        return self._keyring.store_id.hex()

    def create_key(
        self, name: str, key_type: KeyType, *, purpose: str = "sign", exportable: bool = False
    ) -> KeyInfo:
        """Make a new key of this name, version 1.

        Raises `KeyExists` if the name was ever used, `InvalidName`, or `WrongPurpose` for a purpose
        other than ``sign``. Of several processes creating one name, exactly one succeeds.
        """
        with self._gate.perform("create", name) as act:
            require_name(name)
            private_key = generate_private_key(KeyType(key_type))
            return self._insert(act, private_key, purpose, exportable=exportable)

    def import_key(
        self, name: str, private_key: object, *, purpose: str = "sign", exportable: bool = False
    ) -> KeyInfo:
        """Store an existing private key as version 1 of a new name.

        Raises as `create_key` does, `UnsupportedKey` for a type that the store does not make, and
        `KeyNotExportable` for a key that is kept in another store.
        """
        with self._gate.perform("import", name) as act:
            require_name(name)
            return self._insert(
                act, require_private_key(private_key), purpose, exportable=exportable
            )

    def rotate(self, name: str) -> KeyInfo:
        """Make a new key as the next version of an existing name; older versions stay usable."""
        with self._gate.perform("rotate", name) as act:
            return self._rotate(act, name)

    def keys(self) -> Iterator[KeyInfo]:
        """Yield every key in the order of names, in constant memory.

        A key that is created while this runs may or may not appear.
        """
        with self._gate.perform("list", ""):
            last = ""
        while True:
            with self.database.read() as connection:
                page = keys_after(connection, last, _PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1].name

    def key(self, name: str) -> KeyInfo:
        """Return what a listing shows of one key; raise `KeyNotFound`."""
        with self._gate.perform("show", name), self.database.read() as connection:
            return find_key(connection, name)

    def public_key(self, name: str, version: int | None = None) -> PublicKey:
        """Return the public key of a version (the newest if None), derived from what is sealed."""
        with self._gate.perform("public-key", name, version) as act:
            act.version, payload = self._payload(name, version)
            return require_public_key(payload.private_key.public_key())

    def signing_key(
        self, name: str, version: int | None = None, *, witness: Witness | None = None
    ) -> PrivateKey:
        """Return an object that signs with a version (the newest if None) inside this store.

        It implements cryptography's own private-key interface and holds no private key; what would
        export one raises `KeyNotExportable`. It stays with its version when the name is rotated,
        and works as long as the store is open. `witness` is called with the exact bytes to be
        signed (for a prehashed signature: the digest) before the key is opened; if it raises,
        nothing is signed.
        """
        with self._gate.perform("public-key", name, version) as act:
            act.version, payload = self._payload(name, version)
            handle = KeyHandle(
                name=name,
                version=act.version,
                opened=partial(self._signing, name, act.version),
                witness=witness,
            )
            return signing_key_for(handle, require_public_key(payload.private_key.public_key()))

    def export_private_key(self, name: str, version: int | None = None) -> PrivateKey:
        """Return the private key itself; `KeyNotExportable` unless it was created exportable."""
        with self._gate.perform("export", name, version) as act:
            act.version, payload = self._payload(name, version)
            if not payload.exportable:
                raise KeyNotExportable(
                    f"key {name!r} was not created exportable; sign with it through signing_key"
                )
            return payload.private_key

    def snapshot(self, destination: str | os.PathLike[str]) -> None:
        """Write a consistent copy to a new file of mode 0600; the same KEK opens it."""
        with self._gate.perform("snapshot", ""):
            self.database.snapshot(Path(destination).absolute())

    def close(self) -> None:
        """Forget the root key and close the database."""
        self._keyring.close()
        self.database.close()

    def _insert(
        self, act: Act, private_key: PrivateKey, purpose: str, *, exportable: bool
    ) -> KeyInfo:
        if purpose not in PURPOSES:
            raise WrongPurpose(f"a private key's purpose is one of {', '.join(PURPOSES)}")
        key_type = key_type_of(private_key)
        now = self._now()
        act.version = 1
        info = KeyInfo(act.name, key_type, purpose, exportable, 1, datetime.fromtimestamp(now, UTC))
        payload = PrivateKeyPayload(private_key, key_type, exportable)
        try:
            with self.database.write() as connection:
                insert_key(connection, info)
                seal_version(connection, self._keyring, info, payload, now)
                act.commit_with(connection)
        except DuplicateRow:
            raise KeyExists(
                f"there is a key named {act.name!r} and a name is never overwritten; "
                "rotate it, or choose another name"
            ) from None
        return info

    def _rotate(self, act: Act, name: str) -> KeyInfo:
        with self.database.read() as connection:
            key_type = find_key(connection, name).key_type
        private_key = generate_private_key(key_type)  # slow for RSA, so outside of the write lock
        with self.database.write() as connection:
            # Opened, not just read: a new version must not take over an edited exportable mark.
            current = read_sealed_key(connection, name, None)
            exportable = opened(self._keyring, current).exportable
            info = KeyInfo(
                name=name,
                key_type=key_type,
                purpose=current.info.purpose,
                exportable=exportable,
                version=current.version + 1,
                created_at=current.info.created_at,
            )
            payload = PrivateKeyPayload(private_key, key_type, exportable)
            act.version = info.version
            seal_version(connection, self._keyring, info, payload, self._now())
            act.commit_with(connection)
        return info

    def _payload(self, name: str, version: int | None) -> tuple[int, PrivateKeyPayload]:
        with self.database.read() as connection:
            sealed = read_sealed_key(connection, name, version)
        return sealed.version, opened(self._keyring, sealed)

    @contextlib.contextmanager
    def _signing(self, name: str, version: int, data: bytes) -> Iterator[PrivateKey]:
        """Open the private key for one signature; the signature leaves after the block's end."""
        with self._gate.perform("sign", name, version) as act:
            act.signed_sha256 = sha256(data).digest()
            yield self._payload(name, version)[1].private_key

    def _now(self) -> int:
        return int(self._clock().timestamp())


@contextlib.contextmanager
def using_provider(kek: KEKProvider | str) -> Iterator[KEKProvider]:
    """Yield the provider; one that is opened from a URI here is closed here."""
    if not isinstance(kek, str):
        yield kek
        return
    provider = open_kek(kek)
    try:
        yield provider
    finally:
        provider.close()

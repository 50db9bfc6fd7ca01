"""`KeyStore`: named, versioned keys and secrets that are used where they are kept.

A store is one SQLite file, or a PostgreSQL database that several machines share
(`certs.keystore.address`). Its records are sealed under a keyring whose root key is wrapped by a
KEK that lives elsewhere (`certs.keystore.kek`); the database alone opens nothing. Every name has
versions 1, 2, 3, …: writing to a name adds a version, and no version is ever replaced. What may
change is a key's state (disabled, deleted), which is sealed as well (`certs.keystore.state`).

This module is the officer's part, the life of keys; `certs.keystore.use` is the user's,
`certs.keystore.oversight` the auditor's, `certs.keystore.upkeep` what concerns the store as a
whole. Every operation of any goes through `certs.keystore.gate`: who may is decided there, and what
was done is recorded.

A store may be shared by threads and opened by several processes. It must not cross fork(2).
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Self

from certs.errors import (
    InvalidInput,
    KeyDeleted,
    KeyExists,
    KeyNotFound,
    PurgeProtected,
    UnsupportedKey,
    WrongPurpose,
)
from certs.key_types import KeyType, generate_private_key, key_type_of, require_private_key
from certs.keystore.access import OWNER, require_principal
from certs.keystore.address import create_database, open_database, require_vacant
from certs.keystore.audit import AuditEntry
from certs.keystore.audit_log import AuditLog
from certs.keystore.commits import GroupCommit
from certs.keystore.database import BUSY_TIMEOUT_SECONDS, DuplicateRow
from certs.keystore.gate import Gate
from certs.keystore.identity import first_rows, open_keyring
from certs.keystore.kek import KEKProvider, using_provider
from certs.keystore.keyring import Keyring, new_store_id, root_context
from certs.keystore.kinds import default_purpose, require_purpose
from certs.keystore.names import is_under, just_before, require_name
from certs.keystore.payload import (
    AES_256_BYTES,
    MAX_SECRET_BYTES,
    Payload,
    PrivateKeyPayload,
    SecretPayload,
)
from certs.keystore.records import (
    KeyInfo,
    NewKey,
    erase_versions,
    find_key,
    has_name,
    insert_keys,
    keys_after,
    opened,
    put_state,
    read_version,
    seal_version,
)
from certs.keystore.schema import begin_oversight, mark_schema, upgrade
from certs.keystore.state import MAX_DISABLED_VERSIONS
from certs.keystore.upkeep import KeyUpkeep
from certs.keystore.use import require_present, shown_time

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from sqlalchemy import Connection

    from certs.keystore.gate import Act

__all__ = [
    "DEFAULT_RETENTION",
    "KeyInfo",
    "KeyStore",
    "VersionInfo",
    "utc_now",
]

DEFAULT_RETENTION = timedelta(days=30)
MAX_RETENTION = timedelta(days=3653)
_PAGE = 500


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a key: when it was made, whether it may be used, which term seals it."""

    name: str
    version: int
    created_at: datetime
    enabled: bool
    term: int


def utc_now() -> datetime:
    """Return the present time; the clock that a store uses unless it is given another."""
    return datetime.now(UTC)


class KeyStore(KeyUpkeep):
    """An open key store. Make one with `create`, open one with `open`, close it after use.

    `kek` is a provider or the URI of one (``file:/etc/pfs/kek``); a provider that the store opened
    from a URI is closed again at once, since only the root key is needed afterwards. `principal` is
    on whose behalf it acts; the owner is granted everything until that is revoked.
    """

    def __repr__(self) -> str:
        return f"<KeyStore {self.store_id} at {self.database.name}>"

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
        address: str | os.PathLike[str],
        kek: KEKProvider | str,
        *,
        principal: str = OWNER,
        clock: Callable[[], datetime] = utc_now,
        busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
    ) -> Self:
        """Make a new store, in a new file of mode 0600 or in an empty database, and open it.

        Raises `StoreError` if there is one or nothing can be written, `KEKUnavailable` for the KEK.
        """
        require_vacant(address)
        root_key = Keyring.new_root_key()
        keyring = Keyring(new_store_id(), root_key)
        with using_provider(kek) as provider:
            associated_data = root_context(keyring.store_id, 1).encode()
            wrapped = provider.wrap(root_key, associated_data)
            now = int(clock().timestamp())
            entry = AuditEntry(now, require_principal(principal), "init", "", "done")

            def fill(connection: Connection) -> None:
                mark_schema(connection)
                first_rows(connection, keyring, wrapped, now)
                begin_oversight(connection, keyring, entry)

            create_database(address, fill)
            keyring.close()
            # By the same provider: whoever was asked for a passphrase is not asked twice.
            patience = busy_timeout_seconds
            return cls.open(
                address, provider, principal=principal, clock=clock, busy_timeout_seconds=patience
            )

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str],
        kek: KEKProvider | str,
        *,
        principal: str = OWNER,
        clock: Callable[[], datetime] = utc_now,
        busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS,
    ) -> Self:
        """Open an existing store.

        Raises `WrongKEK`, `KEKUnavailable`, `CorruptEnvelope`, or `StoreError` with its fault.
        """
        with contextlib.ExitStack() as undo:
            # First: nobody is asked for a passphrase to what is not there.
            database = open_database(address, busy_timeout_seconds=busy_timeout_seconds)
            undo.callback(database.close)
            with using_provider(kek) as provider:
                keyring = open_keyring(database, provider)
            upgrade(database, keyring, int(clock().timestamp()), require_principal(principal))
            commits = GroupCommit(database, AuditLog(keyring), partial(insert_keys, keyring))
            gate = Gate(database, keyring, commits, clock, principal)
            store = cls(database, keyring, clock, gate)
            undo.pop_all()
        return store

    @property
    def store_id(self) -> str:
        """The store's identity, 32 hex digits; every record is bound to it."""
        return self._keyring.store_id.hex()

    def create_key(
        self,
        name: str,
        key_type: KeyType,
        *,
        purpose: str | None = None,
        exportable: bool = False,
        purge_protected: bool = False,
        details: Mapping[str, str] | None = None,
    ) -> KeyInfo:
        """Make a new key of this name, version 1.

        `purpose` is ``sign``, ``wrap`` or ``data``; None is the type's usual one. A purge-protected
        key stays so for ever. `details` are public facts for the audit log's row, which `creation`
        returns. Raises `KeyExists` if the name was ever used, `InvalidName`, or `WrongPurpose` for
        a purpose that keys of this type do not serve. Of several processes creating one name,
        exactly one succeeds.
        """

        def create(act: Act) -> KeyInfo:
            act.details = dict(details or {})
            require_name(name)
            if key_type is KeyType.SECRET:
                raise UnsupportedKey("a secret is not made but set; use set_secret")
            require_purpose(key_type, purpose or default_purpose(key_type))
            payload = _generated(key_type, exportable=exportable)
            return self._insert(act, payload, purpose, purge_protected=purge_protected)

        return self._gate.by_memory("create", name, None, create)

    def import_key(
        self,
        name: str,
        key: object,
        *,
        purpose: str | None = None,
        exportable: bool = False,
        purge_protected: bool = False,
    ) -> KeyInfo:
        """Store an existing private key, or the 32 bytes of an AES-256 key, under a new name.

        Raises as `create_key` does, `UnsupportedKey` for a type that the store does not make, and
        `KeyNotExportable` for a key that is kept in another store.
        """

        def add(act: Act) -> KeyInfo:
            require_name(name)
            payload = _imported(key, exportable=exportable)
            return self._insert(act, payload, purpose, purge_protected=purge_protected)

        return self._gate.by_memory("import", name, None, add)

    def set_secret(self, name: str, value: bytes, *, purge_protected: bool = False) -> KeyInfo:
        """Store opaque bytes, 1 to 65,533, as version 1 of a new name or the next of its name.

        `purge_protected` is for a new name. Raises `WrongPurpose` if the name is that of a key.
        """
        with self._gate.perform("secret-set", name) as act:
            require_name(name)
            if not 1 <= len(value) <= MAX_SECRET_BYTES:
                raise InvalidInput(f"a secret has 1 to {MAX_SECRET_BYTES} bytes, not {len(value)}")
            payload = SecretPayload(value, KeyType.SECRET, exportable=True)
            with self.database.read() as connection:
                exists = has_name(connection, name)
            if not exists:
                with contextlib.suppress(KeyExists):  # another process may be first
                    return self._insert(act, payload, None, purge_protected=purge_protected)
            return self._add_version(act, KeyType.SECRET, lambda _: payload)

    def rotate(self, name: str) -> KeyInfo:
        """Make a new key as the next version of an existing name; older versions stay usable."""
        with self._gate.perform("rotate", name) as act:
            with self.database.read() as connection:
                key_type = find_key(connection, self._keyring, name).key_type
            if key_type is KeyType.SECRET:
                raise WrongPurpose(f"{name!r} is a secret; set it to make a new version")
            # Generation is slow for RSA, so it happens outside of the write lock.
            fresh = _generated(key_type, exportable=False)
            return self._add_version(
                act, key_type, lambda exportable: replace(fresh, exportable=exportable)
            )

    def keys(self, under: str = "", *, deleted: bool = False) -> Iterator[KeyInfo]:
        """Yield every key in the order of names, in constant memory; deleted ones if asked.

        With `under`, only the key of that name and those below it (``web`` has ``web/a`` and not
        ``webmail``), which a grant for that scope is enough for. A key that is created while this
        runs may or may not appear. Raises `CorruptEnvelope` at a key whose row is not what was
        sealed.
        """
        with self._gate.perform("list", under):
            last = just_before(require_name(under)) if under else ""
        while True:
            with self.database.read() as connection:
                page = keys_after(connection, self._keyring, last, _PAGE)
            for info in page:
                if under and info.name > f"{under}0":  # "0" is the next character after "/"
                    return
                wanted = not under or is_under(info.name, under)
                if wanted and (deleted or info.deleted_at is None):
                    yield info
            if len(page) < _PAGE:
                return
            last = page[-1].name

    def key(self, name: str) -> KeyInfo:
        """Return what a listing shows of one key, deleted or not; raise `KeyNotFound`."""
        with self._gate.perform("show", name), self.database.read() as connection:
            return find_key(connection, self._keyring, name)

    def versions(self, name: str) -> tuple[VersionInfo, ...]:
        """Return every version of a key, oldest first, with its time and whether it may be used."""
        with self._gate.perform("versions", name), self.database.read() as connection:
            info = find_key(connection, self._keyring, name)
            return tuple(
                VersionInfo(
                    name=name,
                    version=sealed.version,
                    created_at=sealed.created_at,
                    enabled=info.enabled and sealed.version not in info.disabled_versions,
                    term=sealed.term.number,
                )
                for number in range(1, info.version + 1)
                for sealed in [read_version(connection, info, number)]
            )

    def disable(self, name: str, version: int | None = None) -> KeyInfo:
        """Take a whole key, or one version of it, out of use until `enable`.

        A disabled key signs, wraps, unwraps, exports and tells nothing; its public key can still be
        had and its signatures verified.
        """
        return self._set_enabled("disable", name, version, enabled=False)

    def enable(self, name: str, version: int | None = None) -> KeyInfo:
        """Undo `disable` for the whole key, or for one version."""
        return self._set_enabled("enable", name, version, enabled=True)

    def delete(self, name: str, *, retention: timedelta = DEFAULT_RETENTION) -> KeyInfo:
        """Delete a key; it can be recovered until the retention time (0 to 10 years) is over.

        Nothing but `recover`, `purge`, `key` and `versions` knows it meanwhile. Its name is never
        used again, purged or not.
        """
        with self._gate.perform("delete", name) as act:
            if not timedelta(0) <= retention <= MAX_RETENTION:
                raise InvalidInput(f"a retention time is 0 to {MAX_RETENTION.days} days")
            now = self._today()
            until = now + retention
            act.details = {"purge_at": str(int(until.timestamp()))}

            def change(info: KeyInfo) -> KeyInfo:
                require_present(info)
                return replace(info, deleted_at=now, purge_at=until)

            return self._change(act, change)

    def recover(self, name: str) -> KeyInfo:
        """Undo `delete`; raise `KeyDeleted` once the retention time is over."""
        with self._gate.perform("recover", name) as act:
            now = self._today()

            def change(info: KeyInfo) -> KeyInfo:
                if info.purge_at is None:
                    raise InvalidInput(f"key {name!r} is not deleted")
                if info.purged:
                    require_present(info)
                if now >= info.purge_at:
                    raise KeyDeleted(
                        f"the retention time of key {name!r} is over; it stays deleted"
                    )
                return replace(info, deleted_at=None, purge_at=None)

            return self._change(act, change)

    def purge(self, name: str) -> KeyInfo:
        """Destroy what is sealed of a deleted key; its name and public keys remain as a headstone.

        Raises `PurgeProtected` for a key that is not deleted, or that is purge-protected and whose
        retention time is not over. Backups of the store still hold the key, and so does SQLite's
        write-ahead log while somebody reads the store: until the last one has closed it.
        """
        with self._gate.perform("purge", name) as act:
            now = self._today()

            def change(info: KeyInfo) -> KeyInfo:
                if info.purged:
                    require_present(info)
                if info.purge_at is None:
                    raise PurgeProtected(f"key {name!r} is not deleted; delete it first")
                if info.purge_protected and now < info.purge_at:
                    raise PurgeProtected(
                        f"key {name!r} is purge-protected until {shown_time(info.purge_at)}"
                    )
                return replace(info, purged=True)

            info = self._change(act, change, erase_versions)
            self.database.fold()
            return info

    def close(self) -> None:
        """Forget every key and close the database."""
        self._keyring.close()
        self._gate.commits.memory.forget()
        self.database.close()

    def _insert(
        self, act: Act, payload: Payload, purpose: str | None, *, purge_protected: bool
    ) -> KeyInfo:
        purpose = purpose or default_purpose(payload.key_type)
        require_purpose(payload.key_type, purpose)
        act.version = 1
        act.details["revision"] = "1"
        info = KeyInfo(
            name=act.name,
            key_type=payload.key_type,
            purpose=purpose,
            exportable=payload.exportable,
            version=1,
            created_at=self._today(),
            purge_protected=purge_protected,
        )
        try:
            act.add(NewKey(info, payload, self._now()))
        except DuplicateRow:
            raise KeyExists(
                f"there is or was a key named {act.name!r} and a name is never overwritten; "
                "rotate it, or choose another name"
            ) from None
        return info

    def _add_version(
        self, act: Act, key_type: KeyType, payload: Callable[[bool], Payload]
    ) -> KeyInfo:
        """Seal a next version; `payload` is told whether the key is exportable."""
        now = self._now()

        def change(info: KeyInfo) -> KeyInfo:
            require_present(info)
            if info.key_type is not key_type:
                raise WrongPurpose(f"{info.name!r} is a {info.key_type} key; choose another name")
            act.version = info.version + 1
            return replace(info, version=info.version + 1)

        def add(connection: Connection, info: KeyInfo) -> None:
            # The newest version must open: a damaged key is not papered over by a new version.
            previous = replace(info, version=info.version - 1)
            opened(self._keyring, read_version(connection, previous, None))
            seal_version(connection, self._keyring, info, payload(info.exportable), now)

        return self._change(act, change, add)

    def _set_enabled(
        self, operation: str, name: str, version: int | None, *, enabled: bool
    ) -> KeyInfo:
        def change(info: KeyInfo) -> KeyInfo:
            require_present(info)
            if version is None:
                return replace(info, enabled=enabled)
            if not 1 <= version <= info.version:
                raise KeyNotFound(f"key {name!r} has versions 1 to {info.version}, not {version}")
            one = frozenset({version})
            disabled = info.disabled_versions - one if enabled else info.disabled_versions | one
            if len(disabled) > MAX_DISABLED_VERSIONS:
                raise InvalidInput(f"at most {MAX_DISABLED_VERSIONS} versions can be disabled")
            return replace(info, disabled_versions=disabled)

        with self._gate.perform(operation, name, version) as act:
            return self._change(act, change)

    def _change(
        self,
        act: Act,
        change: Callable[[KeyInfo], KeyInfo],
        besides: Callable[[Connection, KeyInfo], None] = lambda _connection, _info: None,
    ) -> KeyInfo:
        """Replace a key's state by what `change` makes of it, in one write transaction."""

        def put(connection: Connection) -> KeyInfo:
            info = change(find_key(connection, self._keyring, act.name))
            besides(connection, info)
            revision = put_state(connection, self._keyring, info, self._now())
            act.details["revision"] = str(revision)
            return info

        return act.commit(put)


def _generated(key_type: KeyType, *, exportable: bool) -> Payload:
    if key_type is KeyType.AES_256:
        return SecretPayload(secrets.token_bytes(AES_256_BYTES), key_type, exportable)
    return PrivateKeyPayload(generate_private_key(KeyType(key_type)), key_type, exportable)


def _imported(key: object, *, exportable: bool) -> Payload:
    if isinstance(key, bytes) and len(key) == AES_256_BYTES:
        return SecretPayload(key, KeyType.AES_256, exportable)
    private_key = require_private_key(key)
    return PrivateKeyPayload(private_key, key_type_of(private_key), exportable)

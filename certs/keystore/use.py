"""What the user of a key does with it: sign, verify, wrap, unwrap, take its public half.

`KeyStore` adds what an officer does (create, rotate, disable, delete, …). The two halves meet in
`_KeyAccess`: how a version of a key is found, held to its state, and opened.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import rsa

from certs.errors import (
    BadSignature,
    CorruptEnvelope,
    KeyDeleted,
    KeyDisabled,
    KeyNotExportable,
    WrongPurpose,
)
from certs.key_types import PrivateKey, PublicKey, require_public_key
from certs.keystore.kinds import DATA, PURPOSES, SECRET, SIGN, WRAP
from certs.keystore.payload import Payload, PrivateKeyPayload
from certs.keystore.records import KeyInfo, SealedVersion, find_key, find_version, opened
from certs.keystore.revocations import (
    NUMBER_CRL,
    REVOKE,
    Revocation,
    add_revocation,
    crl_number,
    raise_crl_number,
)
from certs.keystore.signatures import Signature, algorithm_of, is_signature, sign_message
from certs.keystore.signing import KeyHandle, Witness, signing_key_for
from certs.keystore.wrapping import (
    DATA_KEY_BYTES,
    unwrap_bytes,
    wrap_bytes,
    wrapped_version,
    wrapping_place,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection

    from certs.keystore.database import Database
    from certs.keystore.envelope import RecordContext
    from certs.keystore.gate import Act, Gate
    from certs.keystore.keyring import Keyring

__all__ = ["DataKey", "KeyUse", "require_present", "shown_time"]


@dataclass(frozen=True, slots=True)
class DataKey:
    """A fresh key (32 bytes) to encrypt data with, and the same key wrapped, to keep beside it."""

    name: str
    version: int
    wrapped: bytes
    plaintext: bytes = field(repr=False)


@dataclass(slots=True)
class _Found:
    """A version of a key as its row was found, and its key once that was opened."""

    sealed: SealedVersion
    _payload: Payload | None = field(default=None, repr=False)

    def opened(self, keyring: Keyring) -> _Opened:
        if self._payload is None:
            self._payload = opened(keyring, self.sealed)
        return _Opened(self.sealed.info, self.sealed.version, self._payload)


@dataclass(frozen=True, slots=True)
class _Opened:
    info: KeyInfo
    version: int
    payload: Payload = field(repr=False)

    def private_key(self) -> PrivateKey:
        if isinstance(self.payload, PrivateKeyPayload):
            return self.payload.private_key
        raise WrongPurpose(f"{self.info.name!r} ({self.info.key_type}) has no public key")

    def secret(self) -> bytes:
        if isinstance(self.payload, PrivateKeyPayload):
            raise WrongPurpose(f"{self.info.name!r} is a pair of keys; export its private key")
        return self.payload.secret


class _KeyAccess:
    """An open store: its database, its keyring, its clock and its gate."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Callable[[], datetime],
        gate: Gate,
    ) -> None:
        self.database = database
        self._keyring = keyring
        self._clock = clock
        self._gate = gate  # see certs.keystore.gate

    def _open(
        self,
        act: Act,
        version: int | None,
        purposes: tuple[str, ...] = PURPOSES,
        *,
        even_disabled: bool = False,
    ) -> _Opened:
        """Open one version of `act.name`, if it is there, enabled and for this purpose."""
        found = act.find(
            ("key", act.name, version),
            lambda connection: _Found(find_version(connection, self._keyring, act.name, version)),
        )
        info = found.sealed.info
        require_present(info)
        act.version = found.sealed.version
        if not even_disabled:
            _require_enabled(info, act.version)
        if info.purpose not in purposes:
            raise WrongPurpose(
                f"the purpose of {info.name!r} is {info.purpose}; this takes a key for "
                f"{' or '.join(purposes)}"
            )
        return found.opened(self._keyring)

    def _place(self, key: _Opened) -> RecordContext:
        return wrapping_place(self._keyring.store_id, key.info.name, key.version, key.info.purpose)

    def _now(self) -> int:
        return int(self._clock().timestamp())

    def _today(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)


class KeyUse(_KeyAccess):
    """The half of `KeyStore` that uses keys. `version` None means the newest, everywhere.

    Each method raises `KeyNotFound`, `KeyDeleted`, `KeyDisabled`, `WrongPurpose` or
    `CorruptEnvelope` for what its name says, and does nothing then.
    """

    def public_key(self, name: str, version: int | None = None) -> PublicKey:
        """Return the public key of a version, derived from what is sealed.

        Works for a disabled key too: what it signed before must stay verifiable.
        """

        def answer(act: Act) -> PublicKey:
            key = self._open(act, version, even_disabled=True)
            return require_public_key(key.private_key().public_key())

        return self._gate.by_memory("public-key", name, version, answer)

    def signing_key(
        self,
        name: str,
        version: int | None = None,
        *,
        witness: Witness | None = None,
        details: Mapping[str, str] | None = None,
    ) -> PrivateKey:
        """Return an object that signs with a version inside this store.

        It implements cryptography's own private-key interface and holds no private key; what would
        export one raises `KeyNotExportable`. It stays with its version when the name is rotated,
        and works as long as the store is open and the key enabled. `witness` is called with the
        exact bytes to be signed (for a prehashed signature: the digest) before the key is opened;
        if it raises, nothing is signed. `details` are public facts for the audit log's rows of the
        signatures (what a certificate's serial number is, and whose it is), of which it keeps 512
        characters each; `InvalidInput` for more than a row takes.
        """
        self._gate.require_recordable("sign", name, dict(details or {}))
        with self._gate.perform("public-key", name, version) as act:
            key = self._open(act, version, (SIGN,), even_disabled=True)
            handle = KeyHandle(
                name=name,
                version=key.version,
                opened=partial(self._signing, name, key.version, witness, dict(details or {})),
            )
            return signing_key_for(handle, require_public_key(key.private_key().public_key()))

    def revoke_certificate(
        self, name: str, serial: int, *, reason: str, revoked_at: datetime
    ) -> None:
        """Note for good that a certificate which this key signed is revoked; one commit.

        `certs.authority` knows which certificates there are, and which reasons. `InvalidInput` if
        it is revoked already.
        """
        with self._gate.perform(REVOKE, name) as act:
            revocation = Revocation(serial, name, revoked_at, reason)
            act.details = revocation.details

            def add(connection: Connection) -> None:
                find_key(connection, self._keyring, name)
                add_revocation(connection, revocation)

            act.commit(add)

    def next_crl_number(self, name: str) -> int:
        """Return a number for a list (CRL) signed with this key, above all before; one commit.

        It is in the audit log by itself: the details of a signature are its caller's words.
        """
        with self._gate.perform(NUMBER_CRL, name) as act:

            def count(connection: Connection) -> int:
                find_key(connection, self._keyring, name)
                number = crl_number(connection, name) + 1
                raise_crl_number(connection, name, number)
                act.details = {"crl_number": str(number)}
                return number

            return act.commit(count)

    def sign(self, name: str, message: bytes, *, version: int | None = None) -> Signature:
        """Sign a message with the key's own algorithm (`Signature.algorithm` names it)."""
        digest = sha256(message).digest()

        def answer(act: Act) -> Signature:
            act.signed_sha256 = digest
            key = self._open(act, version, (SIGN,))
            private_key = key.private_key()
            return Signature(
                name=name,
                version=key.version,
                algorithm=algorithm_of(private_key.public_key()),
                signature=sign_message(private_key, message),
            )

        return self._gate.by_memory("sign", name, version, answer)

    def verify(
        self, name: str, signature: bytes, message: bytes, *, version: int | None = None
    ) -> Signature:
        """Return the signature as verified by one version; raise `BadSignature` if it is not.

        A signature does not say which version made it: None means the newest alone. Works for a
        disabled key too.
        """

        def answer(act: Act) -> Signature:
            key = self._open(act, version, (SIGN,), even_disabled=True)
            public_key = require_public_key(key.private_key().public_key())
            if not is_signature(public_key, signature, message):
                raise BadSignature(
                    f"that is no signature by key {name!r} version {key.version} over these bytes"
                )
            return Signature(name, key.version, algorithm_of(public_key), signature)

        return self._gate.by_memory("verify", name, version, answer)

    def wrap(
        self, name: str, plaintext: bytes, *, context: bytes = b"", version: int | None = None
    ) -> bytes:
        """Wrap somebody's key, 1 to 65,536 bytes, with a key of purpose ``wrap``.

        `unwrap` returns it only for the same `context` (at most 4,096 bytes, not secret; none for
        an RSA key). `InvalidInput` for lengths out of bounds.
        """

        def answer(act: Act) -> bytes:
            key = self._open(act, version, (WRAP,))
            return wrap_bytes(_wrapping_key(key), self._place(key), plaintext, context)

        return self._gate.by_memory("wrap", name, version, answer)

    def unwrap(self, name: str, wrapped: bytes, *, context: bytes = b"") -> bytes:
        """Return what `wrap` or `generate_data_key` wrapped under this name, by whichever version.

        Raises `CorruptEnvelope` for other bytes, another key, another context.
        """

        def answer(act: Act) -> bytes:
            act.version = wrapped_version(wrapped)
            key = self._open(act, act.version, (WRAP, DATA))
            if key.info.purpose == WRAP and isinstance(key.payload, PrivateKeyPayload):
                private_key = key.payload.private_key
                if isinstance(private_key, rsa.RSAPrivateKey):
                    return unwrap_bytes(private_key, self._place(key), wrapped, context)
            return unwrap_bytes(key.secret(), self._place(key), wrapped, context)

        return self._gate.by_memory("unwrap", name, None, answer)

    def generate_data_key(
        self, name: str, *, context: bytes = b"", version: int | None = None
    ) -> DataKey:
        """Return a fresh key and its wrapped form, under a key of purpose ``data``.

        Such a key wraps nothing that it did not make itself.
        """

        def answer(act: Act) -> DataKey:
            key = self._open(act, version, (DATA,))
            plaintext = secrets.token_bytes(DATA_KEY_BYTES)
            wrapped = wrap_bytes(key.secret(), self._place(key), plaintext, context)
            return DataKey(name=name, version=key.version, wrapped=wrapped, plaintext=plaintext)

        return self._gate.by_memory("generate-data-key", name, version, answer)

    def get_secret(self, name: str, version: int | None = None) -> bytes:
        """Return an opaque secret."""
        return self._gate.by_memory(
            "secret-get",
            name,
            version,
            lambda act: self._open(act, version, (SECRET,)).secret(),
        )

    def export_private_key(self, name: str, version: int | None = None) -> PrivateKey:
        """Return the private key itself; `KeyNotExportable` unless it was created exportable."""
        return self._exported(name, version).private_key()

    def export_symmetric_key(self, name: str, version: int | None = None) -> bytes:
        """Return an AES-256 key itself, 32 bytes, if it was created exportable."""
        return self._exported(name, version, (WRAP, DATA)).secret()

    def _exported(
        self, name: str, version: int | None, purposes: tuple[str, ...] = (SIGN, WRAP, DATA)
    ) -> _Opened:

        def answer(act: Act) -> _Opened:
            key = self._open(act, version, purposes)
            if not key.payload.exportable:
                raise KeyNotExportable(
                    f"key {name!r} was not created exportable; use it inside the store"
                )
            return key

        return self._gate.by_memory("export", name, version, answer)

    @contextlib.contextmanager
    def _signing(
        self,
        name: str,
        version: int,
        witness: Witness | None,
        details: dict[str, str],
        data: bytes,
    ) -> Iterator[PrivateKey]:
        """Open the private key for one signature; the signature leaves after the block's end."""
        with self._gate.perform("sign", name, version) as act:
            act.signed_sha256 = sha256(data).digest()
            act.details = details
            if witness is not None:
                witness(data)
            yield self._open(act, version, (SIGN,)).private_key()


def require_present(info: KeyInfo) -> None:
    """Raise `KeyDeleted` if the key was deleted or purged."""
    if info.purged:
        raise KeyDeleted(f"key {info.name!r} was purged, and nothing brings it back")
    if info.deleted_at is not None and info.purge_at is not None:
        raise KeyDeleted(
            f"key {info.name!r} was deleted; recover it, which is possible until "
            f"{shown_time(info.purge_at)}"
        )


def shown_time(time: datetime) -> str:
    """Return a time as people read it, to the second, in UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _require_enabled(info: KeyInfo, version: int) -> None:
    if not info.enabled:
        raise KeyDisabled(f"key {info.name!r} is disabled; enable it first")
    if version in info.disabled_versions:
        raise KeyDisabled(
            f"version {version} of key {info.name!r} is disabled; enable it, or use another"
        )


def _wrapping_key(key: _Opened) -> bytes | rsa.RSAPublicKey:
    if not isinstance(key.payload, PrivateKeyPayload):
        return key.payload.secret
    public_key = key.payload.private_key.public_key()
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key
    raise CorruptEnvelope(f"key {key.info.name!r} is not of a type that wraps; restore a backup")

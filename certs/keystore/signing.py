"""Private keys that sign where they are kept.

These classes implement cryptography's own private-key interfaces, so a store's key goes straight
into ``CertificateBuilder.sign`` or any other code that signs, while the private part is opened
inside the store for the length of one call. Whatever would hand it out raises `KeyNotExportable`.

A *witness* sees the exact bytes to be signed before the private key is touched; if it raises,
nothing is signed. Write-ahead issuance is a witness, and so is an audit log: both must have
recorded an operation before its result exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric import utils as asymmetric_utils

from certs.errors import CorruptEnvelope
from certs.key_types import PrivateKey, PublicKey
from certs.keystore.kept import KeptPrivateKey

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
    from cryptography.utils import Buffer

__all__ = [
    "KeyHandle",
    "StoreECPrivateKey",
    "StoreEd25519PrivateKey",
    "StoreMLDSA65PrivateKey",
    "StoreRSAPrivateKey",
    "Witness",
    "signing_key_for",
]

Witness: TypeAlias = Callable[[bytes], None]

_Public = TypeVar("_Public", bound=PublicKey)


@dataclass(frozen=True, slots=True)
class KeyHandle:
    """How a signing key reaches its store.

    `opened`, given the data, is a context: it yields the private key, and when it ends the
    signature is admitted. Nothing is returned to the caller before that.
    """

    name: str
    version: int
    opened: Callable[[bytes], AbstractContextManager[PrivateKey]]


class _InStore(KeptPrivateKey[_Public]):
    """A key that its store opens for the length of one signature."""

    def __init__(self, handle: KeyHandle, public_key: _Public) -> None:
        super().__init__(
            public_key,
            f"{handle.name!r} version {handle.version}",
            "store; if it was created exportable, export_private_key returns it",
        )
        self._handle = handle

    def _opened_for(self, data: bytes) -> AbstractContextManager[PrivateKey]:
        """Open the private key for the length of a block that signs these bytes."""
        return self._handle.opened(data)

    def _refuse_type(self) -> NoReturn:
        raise CorruptEnvelope(
            f"key {self._described} is no longer of the type it had; restore from a backup"
        )


class StoreECPrivateKey(_InStore[ec.EllipticCurvePublicKey], ec.EllipticCurvePrivateKey):
    """An elliptic-curve key that signs inside its store."""

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """The size of the curve's order, in bits."""
        return self._public_key.key_size

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign inside the store."""
        message = bytes(data)
        with self._opened_for(message) as key:
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                self._refuse_type()
            return key.sign(message, signature_algorithm)

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Raise `WrongPurpose`."""
        del algorithm, peer_public_key
        self._refuse_use("agree on a secret")


class StoreEd25519PrivateKey(_InStore[ed25519.Ed25519PublicKey], ed25519.Ed25519PrivateKey):
    """An Ed25519 key that signs inside its store."""

    def sign(self, data: Buffer) -> bytes:
        """Sign inside the store."""
        message = bytes(data)
        with self._opened_for(message) as key:
            if not isinstance(key, ed25519.Ed25519PrivateKey):
                self._refuse_type()
            return key.sign(message)

    def private_bytes_raw(self) -> NoReturn:
        """Raise `KeyNotExportable`."""
        self._refuse_export()


class StoreMLDSA65PrivateKey(_InStore[mldsa.MLDSA65PublicKey], mldsa.MLDSA65PrivateKey):
    """An ML-DSA-65 key (FIPS 204) that signs inside its store."""

    def sign(self, data: Buffer, context: Buffer | None = None) -> bytes:
        """Sign inside the store."""
        message = bytes(data)
        with self._opened_for(message) as key:
            if not isinstance(key, mldsa.MLDSA65PrivateKey):
                self._refuse_type()
            return key.sign(message, context)

    def sign_mu(self, mu: Buffer) -> bytes:
        """Sign a message representative (64 bytes) inside the store; a witness sees just that."""
        message = bytes(mu)
        with self._opened_for(message) as key:
            if not isinstance(key, mldsa.MLDSA65PrivateKey):
                self._refuse_type()
            return key.sign_mu(message)

    def private_bytes_raw(self) -> NoReturn:
        """Raise `KeyNotExportable`."""
        self._refuse_export()


class StoreRSAPrivateKey(_InStore[rsa.RSAPublicKey], rsa.RSAPrivateKey):
    """An RSA key that signs inside its store."""

    @property
    def key_size(self) -> int:
        """The size of the modulus, in bits."""
        return self._public_key.key_size

    def sign(
        self,
        data: bytes,
        padding: AsymmetricPadding,
        algorithm: asymmetric_utils.Prehashed
        | hashes.HashAlgorithm
        | asymmetric_utils.NoDigestInfo,
    ) -> bytes:
        """Sign inside the store."""
        message = bytes(data)
        with self._opened_for(message) as key:
            if not isinstance(key, rsa.RSAPrivateKey):
                self._refuse_type()
            return key.sign(message, padding, algorithm)

    def decrypt(self, ciphertext: bytes, padding: AsymmetricPadding) -> NoReturn:
        """Raise `WrongPurpose`."""
        del ciphertext, padding
        self._refuse_use("decrypt")


def signing_key_for(handle: KeyHandle, public_key: PublicKey) -> PrivateKey:
    """Return the object that signs with this key, of the class that its public key calls for."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return StoreECPrivateKey(handle, public_key)
    if isinstance(public_key, rsa.RSAPublicKey):
        return StoreRSAPrivateKey(handle, public_key)
    if isinstance(public_key, mldsa.MLDSA65PublicKey):
        return StoreMLDSA65PrivateKey(handle, public_key)
    return StoreEd25519PrivateKey(handle, public_key)

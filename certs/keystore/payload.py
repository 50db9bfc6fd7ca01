"""What is sealed for a version of a key: its bytes, and the attributes that must not be edited.

The `exportable` mark and the key type also stand in the clear, for listing. Those columns are only
a copy: whoever can edit the database could set them, so the sealed ones decide, and a difference
between the two is reported as corruption. docs/formats.md ("Key payload") has the layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from certs.errors import CorruptEnvelope, UnsupportedKey
from certs.key_types import KeyType, PrivateKey, key_type_of, require_private_key
from certs.keystore.envelope import MAX_PLAINTEXT_BYTES

__all__ = [
    "AES_256_BYTES",
    "MAX_SECRET_BYTES",
    "TYPE_CODES",
    "Payload",
    "PrivateKeyPayload",
    "SecretPayload",
    "parse_payload",
]

AES_256_BYTES = 32

_VERSION = 1
_EXPORTABLE = 0x01
_HEADER = struct.Struct(">BBB")

MAX_SECRET_BYTES = MAX_PLAINTEXT_BYTES - _HEADER.size

# Numbers are never reused: 1..15 elliptic curves, 16..31 RSA, 32..47 lattices, 48..63 symmetric.
TYPE_CODES: dict[KeyType, int] = {
    KeyType.EC_P256: 1,
    KeyType.EC_P384: 2,
    KeyType.ED25519: 3,
    KeyType.RSA_2048: 16,
    KeyType.RSA_3072: 17,
    KeyType.RSA_4096: 18,
    KeyType.ML_DSA_65: 32,
    KeyType.AES_256: 48,
    KeyType.SECRET: 64,
}
_TYPES = {code: key_type for key_type, code in TYPE_CODES.items()}
_LENGTHS = {
    KeyType.AES_256: range(AES_256_BYTES, AES_256_BYTES + 1),
    KeyType.SECRET: range(1, MAX_SECRET_BYTES + 1),
}


@dataclass(frozen=True, slots=True, eq=False)
class PrivateKeyPayload:
    """A private key with its sealed attributes."""

    private_key: PrivateKey
    key_type: KeyType
    exportable: bool

    def __repr__(self) -> str:
        return f"<PrivateKeyPayload {self.key_type} exportable={self.exportable}>"

    def encode(self) -> bytes:
        """Return the plaintext of the record: version, flags, type code, PKCS#8 DER."""
        return _header(self.key_type, exportable=self.exportable) + self.private_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @classmethod
    def parse(cls, plaintext: bytes) -> PrivateKeyPayload:
        """Read a plaintext that was sealed here; raise `CorruptEnvelope` for anything else.

        These bytes were authenticated, so a failure means another version of the program wrote
        them; it is still an error of this type and not a crash.
        """
        marked, exportable = _parse_header(plaintext)
        try:
            # OpenSSL's RSA check costs far more than a signature; the bytes are authenticated.
            key = require_private_key(
                serialization.load_der_private_key(
                    plaintext[_HEADER.size :], None, unsafe_skip_rsa_key_validation=True
                )
            )
            key_type = key_type_of(key)
        except (ValueError, TypeError, UnsupportedAlgorithm, UnsupportedKey):
            # Never chained: the cause may quote what it could not parse.
            raise CorruptEnvelope(
                "a private key payload holds no readable PKCS#8 key; restore from a backup"
            ) from None
        if key_type is not marked:
            raise CorruptEnvelope(
                f"a key payload is marked {marked} but holds {key_type}; restore from a backup"
            )
        return cls(key, key_type, exportable)


@dataclass(frozen=True, slots=True, eq=False)
class SecretPayload:
    """A symmetric key, or an opaque secret, with its sealed attributes."""

    secret: bytes
    key_type: KeyType
    exportable: bool

    def __repr__(self) -> str:
        return f"<SecretPayload {self.key_type} exportable={self.exportable}>"

    def encode(self) -> bytes:
        """Return the plaintext of the record: version, flags, type code, the bytes."""
        return _header(self.key_type, exportable=self.exportable) + self.secret

    @classmethod
    def parse(cls, plaintext: bytes) -> SecretPayload:
        """Read a plaintext that was sealed here; raise `CorruptEnvelope` for anything else."""
        key_type, exportable = _parse_header(plaintext)
        secret = plaintext[_HEADER.size :]
        if len(secret) not in _LENGTHS.get(key_type, ()):
            raise CorruptEnvelope(
                f"a key payload is marked {key_type} and holds {len(secret)} bytes; "
                "restore from a backup"
            )
        return cls(secret, key_type, exportable)


Payload: TypeAlias = PrivateKeyPayload | SecretPayload


def parse_payload(key_type: KeyType, plaintext: bytes) -> Payload:
    """Read the plaintext of a key of this type; raise `CorruptEnvelope` for anything else."""
    if key_type in _LENGTHS:
        return SecretPayload.parse(plaintext)
    return PrivateKeyPayload.parse(plaintext)


def _header(key_type: KeyType, *, exportable: bool) -> bytes:
    return _HEADER.pack(_VERSION, _EXPORTABLE if exportable else 0, TYPE_CODES[key_type])


def _parse_header(plaintext: bytes) -> tuple[KeyType, bool]:
    if len(plaintext) <= _HEADER.size:
        raise CorruptEnvelope("a key payload is too short; restore from a backup")
    version, flags, code = _HEADER.unpack_from(plaintext)
    if version != _VERSION or flags & ~_EXPORTABLE or code not in _TYPES:
        raise CorruptEnvelope(
            f"a key payload of version {version}, flags {flags:#04x}, type {code} "
            "is not known to this version of the program; upgrade it"
        )
    return _TYPES[code], bool(flags & _EXPORTABLE)

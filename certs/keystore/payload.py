"""What is sealed for a private key: its PKCS#8, and the attributes that must not be edited.

The `exportable` mark and the key type also stand in the clear, for listing. Those columns are only
a copy: whoever can edit the database could set them, so the sealed ones decide, and a difference
between the two is reported as corruption. docs/formats.md ("Private key payload") has the layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from certs.errors import CorruptEnvelope, UnsupportedKey
from certs.key_types import KeyType, PrivateKey, key_type_of, require_private_key

__all__ = ["PrivateKeyPayload"]

_VERSION = 1
_EXPORTABLE = 0x01
_HEADER = struct.Struct(">BBB")

# Numbers are never reused: 1..15 elliptic curves, 16..31 RSA, 32.. what comes after them.
_CODES: dict[KeyType, int] = {
    KeyType.EC_P256: 1,
    KeyType.EC_P384: 2,
    KeyType.ED25519: 3,
    KeyType.RSA_2048: 16,
    KeyType.RSA_3072: 17,
}
_TYPES = {code: key_type for key_type, code in _CODES.items()}


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
        flags = _EXPORTABLE if self.exportable else 0
        return _HEADER.pack(
            _VERSION, flags, _CODES[self.key_type]
        ) + self.private_key.private_bytes(
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
        if len(plaintext) <= _HEADER.size:
            raise CorruptEnvelope("a private key payload is too short; restore from a backup")
        version, flags, code = _HEADER.unpack_from(plaintext)
        if version != _VERSION or flags & ~_EXPORTABLE or code not in _TYPES:
            raise CorruptEnvelope(
                f"a private key payload of version {version}, flags {flags:#04x}, type {code} "
                "is not known to this version of the program; upgrade it"
            )
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
        if key_type is not _TYPES[code]:
            raise CorruptEnvelope(
                f"a private key payload is marked {_TYPES[code]} but holds {key_type}; "
                "restore from a backup"
            )
        return cls(key, key_type, bool(flags & _EXPORTABLE))

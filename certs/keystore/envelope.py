"""Sealed records: AES-256-GCM, bound to the one place in the one store where they belong.

docs/formats.md ("Sealed record") specifies every byte. Two properties carry the design:

*Place.* The associated data names the format, the store, and the record's kind, name, version,
purpose and term. A record that is swapped with another row, renamed, moved to another store or put
back over a later version therefore fails to open: its bytes are intact, its place is not.

*Injectivity.* That holds only if no two places share an encoding. Each field is preceded by its
length and the fields come in fixed number and order, so the encoding can be decoded, and an
encoding that can be decoded cannot collide. (Joining fields by a separator would make
``("a/b", "c")`` and ``("a", "b/c")`` the same place.)

Reading is strict: a record of a wrong length, magic, version or algorithm is never attempted.
Nonces are 96 random bits, so one key may seal only a bounded number of records: `keyring` counts.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag

from certs.errors import CorruptEnvelope

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "KEY_BYTES",
    "MAX_PLAINTEXT_BYTES",
    "MAX_RECORD_BYTES",
    "MAX_TERM",
    "MAX_VERSION",
    "MIN_RECORD_BYTES",
    "STORE_ID_BYTES",
    "RecordContext",
    "seal",
    "unseal",
]

KEY_BYTES = 32
STORE_ID_BYTES = 16
MAX_PLAINTEXT_BYTES = 65_536

_FORMAT = b"pfs sealed record 1"
_MAGIC = b"PFSR"
_VERSION = 1
_AES_256_GCM = 1
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEADER = struct.Struct(f">4sBBI{_NONCE_BYTES}s")
_LENGTH = struct.Struct(">I")

MIN_RECORD_BYTES = _HEADER.size + 1 + _TAG_BYTES
MAX_RECORD_BYTES = _HEADER.size + MAX_PLAINTEXT_BYTES + _TAG_BYTES
MAX_TERM = 2**32 - 1
MAX_VERSION = 2**63 - 1  # what a signed SQL integer holds


@dataclass(frozen=True, slots=True)
class RecordContext:
    """The place a record belongs to.

    `store_id` is 16 bytes; `version` is at least 1 and below 2**63; `term` is the number of the
    keyring's term that seals the record, or 0 for what the root key or the KEK itself wraps.
    `kind`, `name` and `purpose` are any text. A place outside these bounds is a `ValueError`.
    """

    store_id: bytes
    kind: str
    name: str
    version: int
    purpose: str
    term: int

    def __post_init__(self) -> None:
        if len(self.store_id) != STORE_ID_BYTES:
            raise ValueError(f"a store id has {STORE_ID_BYTES} bytes, not {len(self.store_id)}")
        if not 1 <= self.version <= MAX_VERSION:
            raise ValueError(f"version {self.version} is outside 1..2**63-1")
        if not 0 <= self.term <= MAX_TERM:
            raise ValueError(f"term {self.term} is outside 0..2**32-1")

    def encode(self) -> bytes:
        """Return the associated data: seven fields, each preceded by its length in 4 bytes."""
        fields = (
            _FORMAT,
            self.store_id,
            self.kind.encode(),
            self.name.encode(),
            self.version.to_bytes(8),
            self.purpose.encode(),
            self.term.to_bytes(4),
        )
        return b"".join(_LENGTH.pack(len(field)) + field for field in fields)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} version {self.version}"


def seal(key: AESGCM, context: RecordContext, plaintext: bytes) -> bytes:
    """Return `plaintext` (1 to 65,536 bytes) as a record that opens only with `key` at `context`.

    The caller counts invocations: a key may seal far fewer than 2**32 records (NIST SP 800-38D,
    8.3), because the nonce is random.
    """
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise ValueError(f"a record holds 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    header = _HEADER.pack(_MAGIC, _VERSION, _AES_256_GCM, context.term, nonce)
    return header + key.encrypt(nonce, plaintext, context.encode())


def unseal(key: AESGCM, context: RecordContext, record: bytes) -> bytes:
    """Return what was sealed at `context`; raise `CorruptEnvelope` for anything else.

    The header needs no authentication of its own: magic, version and algorithm have one value each,
    the term must equal the context's (which the associated data covers), and the nonce is covered
    by the tag.
    """
    if not MIN_RECORD_BYTES <= len(record) <= MAX_RECORD_BYTES:
        raise CorruptEnvelope(_damaged(context, f"it has {len(record)} bytes"))
    magic, version, algorithm, term, nonce = _HEADER.unpack_from(record)
    if magic != _MAGIC or version != _VERSION or algorithm != _AES_256_GCM:
        raise CorruptEnvelope(_damaged(context, "its header is not that of a sealed record"))
    if term != context.term:
        raise CorruptEnvelope(
            _damaged(context, f"it is sealed under term {term}, its row says {context.term}")
        )
    try:
        return key.decrypt(nonce, record[_HEADER.size :], context.encode())
    except InvalidTag:
        raise CorruptEnvelope(
            _damaged(context, "it was altered, or sealed for another name, version or store")
        ) from None


def _damaged(context: RecordContext, reason: str) -> str:
    return f"the record of {context} does not open: {reason}; restore the store from a backup"

"""Numbered terms between the root key and the records, so that keys can be renewed piecewise.

::

    KEK (outside)  --wraps-->  root key  --seals-->  term 1, 2, 3, ...  --seal-->  records

*Rekey* (a new KEK) rewraps one root key. *Rotate* (a new term) adds one row and touches no record.
*Rewrap* moves records from an old term to the newest, one by one. None of the three needs the
others, which is why the root key and the terms are separate things even while there is one term.

The keyring holds no list of the terms that exist; the database does. Each call brings the sealed
term from the row that it was read with, and the keyring remembers the opened key beside those exact
bytes. A transaction that made a term and was rolled back can therefore leave nothing harmful here:
the next holder of that number has other bytes, so the remembered key is not used. (A cache by
number alone would go on sealing under a key that no database row holds.)

Counting. GCM with random nonces must stay far below 2**32 invocations per key (NIST SP 800-38D,
8.3). `INVOCATION_LIMIT` is 2**24: the chance that any two of a term's nonces are equal is then
below 2**-48. The count is kept in the database, raised in the transaction that seals.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from certs.errors import CorruptEnvelope, StoreError, StoreFault
from certs.keystore.envelope import KEY_BYTES, STORE_ID_BYTES, RecordContext, seal, unseal

__all__ = ["INVOCATION_LIMIT", "Keyring", "SealedTerm", "new_store_id", "root_context"]

INVOCATION_LIMIT = 2**24

_ROOT_LEVEL = 0  # the term number of what lies above the terms


@dataclass(frozen=True, slots=True)
class SealedTerm:
    """A term as its row holds it: its number (1 and up) and its key, sealed under the root key."""

    number: int
    sealed: bytes


def new_store_id() -> bytes:
    """Return a fresh random store id (16 bytes)."""
    return secrets.token_bytes(STORE_ID_BYTES)


def root_context(store_id: bytes, generation: int) -> RecordContext:
    """Return the place of the wrapped root key; its encoding is the KEK's associated data."""
    return RecordContext(
        store_id=store_id,
        kind="root-key",
        name="",
        version=generation,
        purpose="wrap",
        term=_ROOT_LEVEL,
    )


class Keyring:
    """The opened root key of one store, and the terms opened with it so far.

    `close` drops every key; a closed keyring raises `StoreError`. Python cannot promise that the
    bytes are gone from memory.
    """

    def __init__(self, store_id: bytes, root_key: bytes) -> None:
        if len(root_key) != KEY_BYTES:
            raise CorruptEnvelope(
                f"the root key has {len(root_key)} bytes instead of {KEY_BYTES}; "
                "restore the store from a backup"
            )
        self.store_id = store_id
        self._root: AESGCM | None = AESGCM(root_key)
        self._backup_key = HKDF(
            hashes.SHA256(), KEY_BYTES, salt=store_id, info=b"pfs backup key 1"
        ).derive(root_key)
        self._opened: dict[SealedTerm, AESGCM] = {}

    def __repr__(self) -> str:
        return f"<Keyring of store {self.store_id.hex()}>"

    @staticmethod
    def new_root_key() -> bytes:
        """Return a fresh root key (32 bytes)."""
        return secrets.token_bytes(KEY_BYTES)

    def new_term(self, number: int) -> SealedTerm:
        """Return a fresh term, sealed under the root key; the caller stores it before using it."""
        key = secrets.token_bytes(KEY_BYTES)
        return SealedTerm(number, seal(self._open_root(), self._term_context(number), key))

    def seal(
        self,
        term: SealedTerm,
        plaintext: bytes,
        *,
        kind: str,
        name: str,
        version: int,
        purpose: str,
    ) -> bytes:
        """Seal one record under the term, for one place. The caller has counted this invocation."""
        context = RecordContext(self.store_id, kind, name, version, purpose, term.number)
        return seal(self._open_term(term), context, plaintext)

    def unseal(
        self, term: SealedTerm, record: bytes, *, kind: str, name: str, version: int, purpose: str
    ) -> bytes:
        """Open one record; raise `CorruptEnvelope` if it, or its term, is not what was sealed."""
        context = RecordContext(self.store_id, kind, name, version, purpose, term.number)
        return unseal(self._open_term(term), context, record)

    def seal_above_terms(
        self, plaintext: bytes, *, kind: str, name: str, version: int, purpose: str
    ) -> bytes:
        """Seal one record under the root key itself: for the few that no term should outlive.

        They change by hand (grants) or never (the audit log's key), so they are not counted.
        """
        context = RecordContext(self.store_id, kind, name, version, purpose, _ROOT_LEVEL)
        return seal(self._open_root(), context, plaintext)

    def unseal_above_terms(
        self, record: bytes, *, kind: str, name: str, version: int, purpose: str
    ) -> bytes:
        """Open what `seal_above_terms` sealed; raise `CorruptEnvelope` if it is anything else."""
        context = RecordContext(self.store_id, kind, name, version, purpose, _ROOT_LEVEL)
        return unseal(self._open_root(), context, record)

    def backup_key(self) -> bytes:
        """Return the key that seals this store's backups, 32 bytes, derived from the root key."""
        self._open_root()
        return self._backup_key

    def require_open(self) -> None:
        """Raise `StoreError` if the keyring was closed."""
        self._open_root()

    def close(self) -> None:
        """Drop every key."""
        self._root = None
        self._backup_key = b""
        self._opened.clear()

    def _open_root(self) -> AESGCM:
        if self._root is None:
            raise StoreError("the key store was closed; open it again", fault=StoreFault.CLOSED)
        return self._root

    def _open_term(self, term: SealedTerm) -> AESGCM:
        root = self._open_root()
        opened = self._opened.get(term)
        if opened is None:
            opened = AESGCM(unseal(root, self._term_context(term.number), term.sealed))
            self._opened[term] = opened
        return opened

    def _term_context(self, number: int) -> RecordContext:
        return RecordContext(
            store_id=self.store_id,
            kind="term",
            name="",
            version=number,
            purpose="seal",
            term=_ROOT_LEVEL,
        )

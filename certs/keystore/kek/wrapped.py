"""The form of a wrapped root key that every provider but the key file shares.

A header says which provider wrapped it and with which parameters; docs/formats.md ("Wrapped root
key, other providers") has every byte. Parsing is strict and happens before anything is asked of a
token or a service.

Most tokens and vaults wrap keys without associated data, and some of them by encryption to a public
key. So they wrap a fresh key that lives for one root key, and that key seals the root key, the
header and the associated data with AES-256-GCM here. That also tells two failures apart which
authenticated encryption by itself cannot: the outer wrap does not open, so the KEK is another one;
or it opens and the inner seal does not, so the bytes were altered or belong to another store.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certs.errors import CorruptEnvelope

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ROOT_KEY_BYTES",
    "ProviderNumber",
    "WrappedKey",
    "damaged",
    "open_root_key",
    "require_root_key",
    "seal_root_key",
]

ROOT_KEY_BYTES = 32
_MAGIC = b"PFSK"
_VERSION = 2
_HEADER = struct.Struct(">4sBBH")
_LENGTH = struct.Struct(">H")
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SEALED_BYTES = _NONCE_BYTES + ROOT_KEY_BYTES + _TAG_BYTES
_MAX_BYTES = 4096


class ProviderNumber(IntEnum):
    """Who wrapped a root key, as the header says it; a number is never used again."""

    PASSPHRASE = 1
    PKCS11 = 2
    AWS_KMS = 3
    AZURE_KEY_VAULT = 4


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A wrapped root key in its parts; `body` is the provider's own."""

    provider: ProviderNumber
    parameters: bytes
    body: bytes

    @property
    def header(self) -> bytes:
        """All that stands before the body."""
        start = _HEADER.pack(_MAGIC, _VERSION, self.provider, len(self.parameters))
        return start + self.parameters

    def encode(self) -> bytes:
        """Return the whole, at most 4,096 bytes."""
        return self.header + self.body

    @classmethod
    def parse(cls, wrapped: bytes, provider: ProviderNumber) -> WrappedKey:
        """Take a wrapped root key apart; `CorruptEnvelope` if this provider did not write it."""
        if not _HEADER.size <= len(wrapped) <= _MAX_BYTES:
            raise damaged(f"it has {len(wrapped)} bytes")
        magic, version, number, length = _HEADER.unpack_from(wrapped)
        if magic != _MAGIC or version != _VERSION or number != provider:
            raise CorruptEnvelope(
                "the root key was wrapped by a KEK of another kind; give the KEK URI that the "
                "store was made with, or restore the store from a backup"
            )
        end = _HEADER.size + length
        if len(wrapped) < end:
            raise damaged("it is cut short")
        return cls(provider, wrapped[_HEADER.size : end], wrapped[end:])

    def associated_data(self, of_store: bytes) -> bytes:
        """Return what seals are bound to: this header, and the place of the root key."""
        return struct.pack(">I", len(self.header)) + self.header + of_store

    def seal(self, key: bytes, root_key: bytes, associated_data: bytes) -> WrappedKey:
        """Return this with the root key, sealed under `key` (32 bytes), after its body."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        bound = self.associated_data(associated_data)
        sealed = nonce + AESGCM(key).encrypt(nonce, require_root_key(root_key), bound)
        return WrappedKey(self.provider, self.parameters, self.body + sealed)

    def unseal(self, key: bytes, sealed: bytes, associated_data: bytes) -> bytes:
        """Return the root key; `CorruptEnvelope` if it was altered or belongs elsewhere."""
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return AESGCM(key).decrypt(nonce, ciphertext, self.associated_data(associated_data))
        except InvalidTag:
            raise damaged("it was altered, or comes from another store") from None

    def require_sealed(self, sealed: bytes) -> bytes:
        """Return `sealed` if it has the length of a sealed root key (60 bytes)."""
        if len(sealed) != _SEALED_BYTES:
            raise damaged("its sealed part has another length")
        return sealed


def seal_root_key(
    provider: ProviderNumber,
    parameters: bytes,
    root_key: bytes,
    associated_data: bytes,
    wrap: Callable[[bytes], bytes],
) -> bytes:
    """Seal a root key under a fresh key of 32 bytes that `wrap` puts under the KEK."""
    key = secrets.token_bytes(ROOT_KEY_BYTES)
    outer = wrap(key)
    started = WrappedKey(provider, parameters, _LENGTH.pack(len(outer)) + outer)
    return started.seal(key, root_key, associated_data).encode()


def open_root_key(
    wrapped: WrappedKey, associated_data: bytes, unwrap: Callable[[bytes], bytes]
) -> bytes:
    """Return the root key; `unwrap` returns the key that seals it, or raises `WrongKEK`."""
    body = wrapped.body
    if len(body) < _LENGTH.size:
        raise damaged("it is cut short")
    (length,) = _LENGTH.unpack_from(body)
    outer = body[_LENGTH.size : _LENGTH.size + length]
    sealed = wrapped.require_sealed(body[_LENGTH.size + length :])
    key = unwrap(outer)
    if len(key) != ROOT_KEY_BYTES:
        raise damaged("what it is sealed under is no key of this format")
    return wrapped.unseal(key, sealed, associated_data)


def require_root_key(key: bytes) -> bytes:
    """Return `key` if it has a root key's length."""
    if len(key) != ROOT_KEY_BYTES:
        raise ValueError(f"a root key has {ROOT_KEY_BYTES} bytes, not {len(key)}")
    return key


def damaged(reason: str) -> CorruptEnvelope:
    """Return the error for a wrapped root key that no KEK can open."""
    return CorruptEnvelope(
        f"the wrapped root key does not open: {reason}; restore the store from a backup"
    )

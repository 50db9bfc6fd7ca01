"""Keys that leave the store wrapped, to be kept anywhere, and unwrapped by the store alone.

Symmetric keys wrap with AES-256-GCM-SIV (RFC 8452), not with the GCM of sealed records: how often a
key wraps is not counted, and here a repeated nonce would only tell that the same bytes were wrapped
twice. The associated data binds what is wrapped to store, key name, version and purpose, and to a
*context* of the caller, who must present the same one to unwrap.

RSA keys wrap with OAEP, so that others can wrap for the store with the public key alone.

docs/formats.md ("Wrapped key") has the layout.
"""

from __future__ import annotations

import secrets
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from certs.errors import CorruptEnvelope, InvalidInput
from certs.keystore.envelope import MAX_VERSION, RecordContext

__all__ = [
    "DATA_KEY_BYTES",
    "MAX_CONTEXT_BYTES",
    "MAX_WRAPPED_KEY_BYTES",
    "MAX_WRAPPING_BYTES",
    "unwrap_bytes",
    "wrap_bytes",
    "wrapped_version",
    "wrapping_place",
]

DATA_KEY_BYTES = 32
MAX_WRAPPED_KEY_BYTES = 65_536
MAX_CONTEXT_BYTES = 4096

_MAGIC = b"PFSW"
_FORMAT = 1
_AES_256_GCM_SIV, _RSA_OAEP = 1, 2
_HEADER = struct.Struct(">4sBBQ")
_LENGTH = struct.Struct(">I")
_NONCE_BYTES = 12
_TAG_BYTES = 16
MAX_WRAPPING_BYTES = _HEADER.size + _NONCE_BYTES + MAX_WRAPPED_KEY_BYTES + _TAG_BYTES


def wrapping_place(store_id: bytes, name: str, version: int, purpose: str) -> RecordContext:
    """Return the place that wrapped bytes are bound to: the key that wraps them."""
    return RecordContext(store_id, "wrapped-key", name, version, purpose, 0)


def wrap_bytes(
    key: bytes | rsa.RSAPublicKey, place: RecordContext, plaintext: bytes, context: bytes
) -> bytes:
    """Wrap 1 to 65,536 bytes (RSA: what fits into OAEP with SHA-256); context: 4,096 at most."""
    if not 1 <= len(plaintext) <= MAX_WRAPPED_KEY_BYTES:
        raise InvalidInput(f"what is wrapped has 1 to {MAX_WRAPPED_KEY_BYTES} bytes")
    if isinstance(key, rsa.RSAPublicKey):
        _refuse_context(context)
        most = key.key_size // 8 - 2 * hashes.SHA256.digest_size - 2  # RFC 8017, 7.1.1
        if len(plaintext) > most:
            raise InvalidInput(f"key {place.name!r} wraps at most {most} bytes; use an AES-256 key")
        return _header(_RSA_OAEP, place) + key.encrypt(plaintext, _oaep())
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCMSIV(key).encrypt(nonce, plaintext, _associated(place, context))
    return _header(_AES_256_GCM_SIV, place) + nonce + sealed


def wrapped_version(wrapped: bytes) -> int:
    """Return the version of the key that wrapped these bytes; raise `CorruptEnvelope`."""
    if not _HEADER.size < len(wrapped) <= MAX_WRAPPING_BYTES:
        raise CorruptEnvelope("that is no wrapped key by its length; give what wrap returned")
    magic, form, _, version = _HEADER.unpack_from(wrapped)
    if magic != _MAGIC or form != _FORMAT or not 1 <= version <= MAX_VERSION:
        raise CorruptEnvelope("these bytes are not a wrapped key; give what wrap returned")
    return int(version)


def unwrap_bytes(
    key: bytes | rsa.RSAPrivateKey, place: RecordContext, wrapped: bytes, context: bytes
) -> bytes:
    """Return what was wrapped; raise `CorruptEnvelope` for anything but the very same bytes."""
    algorithm = wrapped[5] if len(wrapped) > _HEADER.size else 0
    body = wrapped[_HEADER.size :]
    if isinstance(key, rsa.RSAPrivateKey):
        _refuse_context(context)
        if algorithm != _RSA_OAEP:
            raise _unopened(place)
        try:
            return key.decrypt(body, _oaep())
        except ValueError:
            raise _unopened(place) from None
    if algorithm != _AES_256_GCM_SIV or len(body) <= _NONCE_BYTES + _TAG_BYTES:
        raise _unopened(place)
    try:
        return AESGCMSIV(key).decrypt(
            body[:_NONCE_BYTES], body[_NONCE_BYTES:], _associated(place, context)
        )
    except InvalidTag:
        raise _unopened(place) from None


def _header(algorithm: int, place: RecordContext) -> bytes:
    return _HEADER.pack(_MAGIC, _FORMAT, algorithm, place.version)


def _associated(place: RecordContext, context: bytes) -> bytes:
    if len(context) > MAX_CONTEXT_BYTES:
        raise InvalidInput(f"a context has at most {MAX_CONTEXT_BYTES} bytes")
    return place.encode() + _LENGTH.pack(len(context)) + context


def _refuse_context(context: bytes) -> None:
    if context:
        raise InvalidInput("RSA keys wrap without a context; use an AES-256 key")


def _oaep() -> padding.OAEP:
    return padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def _unopened(place: RecordContext) -> CorruptEnvelope:
    return CorruptEnvelope(
        f"what is wrapped does not open with key {place.name!r} version {place.version}: it was "
        "altered, wrapped by another key, or with another context"
    )

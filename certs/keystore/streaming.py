"""Long plaintexts sealed as streams: Tink's streaming AEAD, AES-256-GCM-HKDF, 1 MiB segments.

The format is Tink's ("Streaming AEAD", AES256_GCM_HKDF_1MB), so that any Tink reads what this
writes, given the key and the associated data. Each stream has its own key, derived from a fresh
salt, and each segment a nonce that counts it and says whether it is the last. So no segment can be
left out, put in, moved, taken from another stream, or cut off at the end without `CorruptEnvelope`.

What `StreamOpener` returns before `finish` is genuine as far as it goes; that the stream is whole
is known only then.
"""

from __future__ import annotations

import secrets
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from certs.errors import CorruptEnvelope

__all__ = ["HEADER_BYTES", "SEGMENT_BYTES", "StreamOpener", "StreamSealer"]

SEGMENT_BYTES = 1 << 20
_KEY_BYTES = 32
_PREFIX_BYTES = 7
_TAG_BYTES = 16
HEADER_BYTES = 1 + _KEY_BYTES + _PREFIX_BYTES
_NONCE = struct.Struct(f">{_PREFIX_BYTES}sIB")
_MOST_SEGMENTS = 2**32


class _Segments:
    """The key of one stream, and the count of its segments."""

    def __init__(self, key: bytes, salt: bytes, prefix: bytes, associated_data: bytes) -> None:
        derivation = HKDF(hashes.SHA256(), _KEY_BYTES, salt=salt, info=associated_data)
        self._aead = AESGCM(derivation.derive(key))
        self._prefix = prefix
        self.number = 0

    def nonce(self, *, last: bool) -> bytes:
        """Return the next segment's nonce."""
        if self.number >= _MOST_SEGMENTS:
            raise ValueError("a stream has at most 2**32 segments")
        nonce = _NONCE.pack(self._prefix, self.number, last)
        self.number += 1
        return nonce

    def seal(self, plaintext: bytes, *, last: bool) -> bytes:
        return self._aead.encrypt(self.nonce(last=last), plaintext, None)

    def open(self, segment: bytes, *, last: bool) -> bytes:
        number = self.number
        try:
            return self._aead.decrypt(self.nonce(last=last), segment, None)
        except InvalidTag:
            raise CorruptEnvelope(
                f"segment {number} of the stream does not open: it was altered, moved or cut off, "
                "or the key is another"
            ) from None


class StreamSealer:
    """Seals one stream: `update` with plaintext of any length, then `finish`, each giving bytes.

    `key` is 32 bytes and may seal any number of streams; `associated_data` is what the reader must
    know too.
    """

    def __init__(self, key: bytes, associated_data: bytes) -> None:
        salt, prefix = secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_PREFIX_BYTES)
        self._segments = _Segments(key, salt, prefix, associated_data)
        self._out = bytes([HEADER_BYTES]) + salt + prefix
        self._waiting = bytearray()
        self._room = SEGMENT_BYTES - _TAG_BYTES - HEADER_BYTES

    def update(self, plaintext: bytes) -> bytes:
        """Take plaintext; return what is sealed by now."""
        self._waiting += plaintext
        out = [self._out]
        self._out = b""
        while len(self._waiting) > self._room:  # a full segment may yet be the last one
            out.append(self._segments.seal(bytes(self._waiting[: self._room]), last=False))
            del self._waiting[: self._room]
            self._room = SEGMENT_BYTES - _TAG_BYTES
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the end of the stream; nothing can follow."""
        return self._out + self._segments.seal(bytes(self._waiting), last=True)


class StreamOpener:
    """Opens one stream: `update` with its bytes in pieces of any length, then `finish`.

    Both return plaintext and raise `CorruptEnvelope`. Holds at most one segment and a piece.
    """

    def __init__(self, key: bytes, associated_data: bytes) -> None:
        self._key = key
        self._associated_data = associated_data
        self._segments: _Segments | None = None
        self._waiting = bytearray()
        self._room = SEGMENT_BYTES - HEADER_BYTES

    def update(self, ciphertext: bytes) -> bytes:
        """Take bytes of the stream; return the plaintext of the segments that are complete."""
        self._waiting += ciphertext
        if self._segments is None:
            if len(self._waiting) < HEADER_BYTES:
                return b""
            self._segments = self._begin()
        out = []
        while len(self._waiting) > self._room:
            out.append(self._segments.open(bytes(self._waiting[: self._room]), last=False))
            del self._waiting[: self._room]
            self._room = SEGMENT_BYTES
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the rest of the plaintext; the stream is whole."""
        if self._segments is None:
            raise CorruptEnvelope("the stream is cut off before its first segment")
        return self._segments.open(bytes(self._waiting), last=True)

    def _begin(self) -> _Segments:
        length, salt, prefix = struct.unpack(
            f">B{_KEY_BYTES}s{_PREFIX_BYTES}s", bytes(self._waiting[:HEADER_BYTES])
        )
        if length != HEADER_BYTES:
            raise CorruptEnvelope("the stream does not begin with the header of one")
        del self._waiting[:HEADER_BYTES]
        return _Segments(self._key, salt, prefix, self._associated_data)

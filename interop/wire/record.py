"""Splitting a byte stream into TLS records, wherever the network cut it.

This module knows only the five-byte header (RFC 9846 section 5.1): what a record is, how long it
may be, and whether a stream looks like TLS at all. That last question has a third answer, *not
enough bytes yet*, and its "no" is a result with a sentence, not an error: a recorder sees every
kind of traffic, and a stream of HTTP is not a damaged stream of TLS.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from interop.errors import DissectError
from interop.wire.registry import ContentType, HandshakeType

__all__ = [
    "HEADER_LENGTH",
    "MAX_CIPHERTEXT_TLS12",
    "MAX_CIPHERTEXT_TLS13",
    "MAX_PLAINTEXT",
    "Record",
    "RecordSplitter",
    "find_client_hello",
    "not_tls_reason",
    "read_header",
]

HEADER_LENGTH = 5
MAX_PLAINTEXT = 2**14  # RFC 9846 section 5.1
MAX_CIPHERTEXT_TLS13 = 2**14 + 256  # RFC 9846 section 5.2
MAX_CIPHERTEXT_TLS12 = 2**14 + 2048  # RFC 5246 section 6.2.3

_HEADER = Struct("!BHH")
_HELLO_BEGINS = bytes((ContentType.HANDSHAKE, 3))
_CLIENT_HELLO = Struct("!2sBHBBHH")  # a record's header, a message's, and legacy_version
_MESSAGE_HEADER_LENGTH = 4
_FIRST_TYPES = (ContentType.HANDSHAKE, ContentType.ALERT)
_MAJOR_VERSION = 3
_MINOR_VERSIONS = 4
_SSL2_LENGTH_FLAG = 0x80
_SSL2_CLIENT_HELLO = 1
_PLAUSIBLE_TYPES = (*_FIRST_TYPES, ContentType.APPLICATION_DATA, ContentType.CHANGE_CIPHER_SPEC)

_NOT_TLS = "not TLS: the stream does not begin with a handshake record"
_SSL2 = "an SSL 2.0 ClientHello: nothing this old is read here"
_MID_SESSION = "the capture begins in mid-session: there is no ClientHello"


class Record(NamedTuple):
    """One record: header fields and fragment.

    `raw` spans the header too: in TLS 1.3 the header is the additional data of the AEAD.
    """

    content_type: int
    version: int
    raw: memoryview

    @property
    def fragment(self) -> memoryview:
        """The record's contents, protected or not."""
        return self.raw[HEADER_LENGTH:]


def read_header(view: memoryview, offset: int, limit: int) -> tuple[int, int, int] | None:
    """Read (content type, version, fragment length) at `offset`; None if bytes are missing.

    Raises `DissectError` for a type that TLS does not have, a version that is not 3.x, or a
    fragment longer than `limit` bytes (RFC 9846 section 5.1: record_overflow).
    """
    if len(view) - offset < HEADER_LENGTH:
        return None
    content_type, version, length = _HEADER.unpack_from(view, offset)
    if not ContentType.CHANGE_CIPHER_SPEC <= content_type <= ContentType.HEARTBEAT:
        raise DissectError(f"no content type {content_type}", offset=offset, path="record.type")
    if version >> 8 != _MAJOR_VERSION:
        raise DissectError(
            f"record version 0x{version:04x} is not TLS", offset=offset + 1, path="record.version"
        )
    if length > limit:
        raise DissectError(
            f"{length} bytes, at most {limit} are allowed", offset=offset + 3, path="record.length"
        )
    return content_type, version, length


def not_tls_reason(prefix: bytes | bytearray | memoryview) -> str | None:
    """Say why a stream that begins with `prefix` is not TLS; the empty string if it may be.

    None while too few bytes have come to tell. A stream of TLS begins with a handshake record, or
    with an alert where a server refused at once.
    """
    if not prefix:
        return None
    first = prefix[0]
    if first not in _PLAUSIBLE_TYPES and not first & _SSL2_LENGTH_FLAG:
        return _NOT_TLS
    if len(prefix) < HEADER_LENGTH:
        return None
    _, major, minor = prefix[:3]
    length = int.from_bytes(prefix[3:5], "big")
    if first & _SSL2_LENGTH_FLAG:
        return _SSL2 if minor == _SSL2_CLIENT_HELLO else _NOT_TLS
    if major != _MAJOR_VERSION or minor > _MINOR_VERSIONS or not 0 < length <= MAX_CIPHERTEXT_TLS12:
        return _NOT_TLS
    return "" if first in _FIRST_TYPES else _MID_SESSION


def find_client_hello(data: bytes) -> int:
    """Find where a ClientHello begins that has a record to itself; -1 if there is none.

    For streams that begin as something else, such as STARTTLS.
    """
    offset = data.find(_HELLO_BEGINS)
    while offset >= 0:
        if len(data) - offset < _CLIENT_HELLO.size:
            return -1
        _, minor, length, kind, high, low, version = _CLIENT_HELLO.unpack_from(data, offset)
        is_alone = (high << 16 | low) + _MESSAGE_HEADER_LENGTH == length
        if (
            minor <= _MINOR_VERSIONS
            and kind == HandshakeType.CLIENT_HELLO
            and is_alone
            and version >> 8 == _MAJOR_VERSION
        ):
            return offset
        offset = data.find(_HELLO_BEGINS, offset + 1)
    return -1


class RecordSplitter:
    """Cuts an arbitrarily chunked stream into records; keeps at most one partial record.

    For tools that want the records themselves. The decryptor has its own loop, which avoids an
    object for each record.
    """

    def __init__(self, limit: int = MAX_CIPHERTEXT_TLS12) -> None:
        self._limit = limit
        self._pending = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of a record whose end has not come yet."""
        return len(self._pending)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Record]:
        """Take the next bytes of the stream and give the records they complete.

        Raises `DissectError` (see `read_header`); its offset counts from the first byte pending.
        """
        self._pending += data
        view = memoryview(bytes(self._pending))
        records = []
        offset = 0
        while header := read_header(view, offset, self._limit):
            content_type, version, length = header
            end = offset + HEADER_LENGTH + length
            if end > len(view):
                break
            records.append(Record(content_type, version, view[offset:end]))
            offset = end
        del self._pending[:offset]
        return records

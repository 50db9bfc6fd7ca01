"""Reading the ClientHello that our own library writes, for the self-check of a context.

It is the one place where the library says in full what it will really offer. This is no general
parser: it reads one flight from one library in one process, and anything unexpected in it is
refused. `interop.wire` reads what strangers send, and shares no code with this on purpose.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from transport.errors import PolicyViolation

__all__ = ["ClientHelloOffer", "parse_client_hello"]

_RECORD_HEADER_BYTES = 5
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SUPPORTED_GROUPS = 10
_SIGNATURE_ALGORITHMS = 13
_SUPPORTED_VERSIONS = 43


@dataclass(frozen=True, slots=True)
class ClientHelloOffer:
    """The code points that a ClientHello offers."""

    versions: frozenset[int]
    suites: frozenset[int]
    groups: frozenset[int]
    signature_schemes: frozenset[int]


class _Reader:
    """Takes vectors off the front of a message (RFC 9846 section 3.4)."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, length: int) -> bytes:
        if length > len(self._data):
            raise PolicyViolation(
                "the TLS library's own ClientHello cannot be read",
                advice="install a release of pyOpenSSL and cryptography that is known to work",
            )
        taken, self._data = self._data[:length], self._data[length:]
        return taken

    def integer(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.integer(length_bytes))


def parse_client_hello(flight: bytes) -> ClientHelloOffer:
    """Read the first flight of a client; raises `PolicyViolation` where it is no ClientHello."""
    records = _Reader(flight)
    handshake = b""
    while records:
        header = records.take(_RECORD_HEADER_BYTES)
        if header[0] == _HANDSHAKE:
            handshake += records.take(int.from_bytes(header[3:], "big"))
        else:
            records.take(int.from_bytes(header[3:], "big"))
    messages = _Reader(handshake)
    if messages.integer(1) != _CLIENT_HELLO:
        return ClientHelloOffer(frozenset(), frozenset(), frozenset(), frozenset())
    body = _Reader(messages.vector(3))
    legacy_version = body.integer(2)
    body.take(32)  # random
    body.vector(1)  # legacy_session_id
    suites = _code_points(body.vector(2))
    body.vector(1)  # legacy_compression_methods
    extensions = _read_extensions(body.vector(2))
    versions = extensions.get(_SUPPORTED_VERSIONS)
    return ClientHelloOffer(
        # RFC 9846 section 4.3.1: without the extension, the legacy field is the one version.
        versions=_code_points(versions[1:]) if versions else frozenset({legacy_version}),
        suites=suites,
        groups=_code_points(extensions.get(_SUPPORTED_GROUPS, b"\0\0")[2:]),
        signature_schemes=_code_points(extensions.get(_SIGNATURE_ALGORITHMS, b"\0\0")[2:]),
    )


def _read_extensions(data: bytes) -> dict[int, bytes]:
    reader = _Reader(data)
    extensions: dict[int, bytes] = {}
    while reader:
        kind = reader.integer(2)
        extensions[kind] = reader.vector(2)
    return extensions


def _code_points(data: bytes) -> frozenset[int]:
    return frozenset(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))

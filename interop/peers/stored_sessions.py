"""OpenSSL's sessions written down, with their secrets: what a thief of a client's memory has.

`pfs attack --psk` reads them, as it reads what `openssl s_client -sess_out` writes.
`TellingSessions` is for a client of `transport`, whose store gives away nothing otherwise.
"""

# ruff: noqa: SLF001 - the pointers that the binding wants are private attributes

from __future__ import annotations

import base64
import textwrap
from typing import TYPE_CHECKING, Any, Final

from OpenSSL._util import ffi, lib

from interop.errors import InteropError
from transport import ClientSessions

if TYPE_CHECKING:
    from collections.abc import Hashable

    from transport.sessions import _Ticket

__all__ = ["TellingSessions", "encode_session", "session_pem"]

_MAX_SESSION_BYTES: Final = 1 << 20
_PEM_LABEL: Final = "SSL SESSION PARAMETERS"
_PEM_COLUMNS: Final = 64
_THE_SERVER: Final = "the server"


def encode_session(pointer: Any) -> bytes:
    """Return a session in OpenSSL's own encoding (ssl_asn1.c, DER)."""
    size = int(lib.i2d_SSL_SESSION(pointer, ffi.NULL))
    if not 0 < size <= _MAX_SESSION_BYTES:
        raise InteropError("the session cannot be written down")
    encoded = ffi.new("unsigned char[]", size)
    lib.i2d_SSL_SESSION(pointer, ffi.new("unsigned char **", encoded))
    return bytes(ffi.buffer(encoded, size))


def session_pem(pointer: Any) -> bytes:
    """Return a session in PEM."""
    lines = textwrap.wrap(base64.b64encode(encode_session(pointer)).decode(), _PEM_COLUMNS)
    block = (f"-----BEGIN {_PEM_LABEL}-----", *lines, f"-----END {_PEM_LABEL}-----", "")
    return "\n".join(block).encode()


class TellingSessions(ClientSessions):
    """DELIBERATELY WEAK. A client's store that tells the sessions it has been given, in `told`.

    It is for one server, whatever address that has: a recording relay has another each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.told = b""

    def _take(self, _server: Hashable) -> _Ticket | None:
        return super()._take(_THE_SERVER)

    def _keep(self, _server: Hashable, ticket: _Ticket) -> None:
        self.told += session_pem(ticket.session._pointer)
        super()._keep(_THE_SERVER, ticket)

"""The controls: endpoints without the protection, at which the same attacks have to succeed.

* *plain-http*: the application on bare TCP. Whoever repeats a request there executes it again, so
  the counter counts.
* *unprotected-records*: HTTP in TLS's record framing without keys, sequence numbers or closure.
  The attacker's record cutting, reordering and splicing is the same code as at the protected
  endpoints, and works.
* *early-data*: TLS 1.3 with 0-RTT data and no anti-replay (`interop.peers.early_data`). A replay
  through real TLS succeeds, and is seen.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from interop.live_servers import PlainListener
from interop.peers.early_data import early_data_context, serve_early_data
from interop.replay.application import CountingApplication
from interop.replay.servers import CountingServer, threaded_server
from interop.wire.record import RecordSplitter
from interop.wire.registry import ContentType

if TYPE_CHECKING:
    import socket

    from certs.credential import Credential
    from interop.http_exchange import ByteStream

__all__ = ["RecordStream", "early_data_server", "plain_server", "unprotected_server"]

_RECORD_BYTES: Final = 16 * 1024
_VERSION: Final = 0x0303


def plain_server() -> CountingServer:
    """Return a server of HTTP on bare TCP."""
    return threaded_server(PlainListener(), CountingApplication.serve)


def unprotected_server() -> CountingServer:
    """Return a server of HTTP in records that nothing protects."""

    def serve(application: CountingApplication, connection: socket.socket) -> None:
        application.serve(RecordStream(connection))

    return threaded_server(PlainListener(), serve)


def early_data_server(credential: Credential) -> CountingServer:
    """Return a server of TLS 1.3 that takes 0-RTT data, as often as they come."""
    context = early_data_context(credential.certificates_pem(), credential.private_key_pem())

    def serve(application: CountingApplication, connection: socket.socket) -> None:
        serve_early_data(context, connection, application.serve)

    return threaded_server(PlainListener(), serve)


class RecordStream:
    """A byte stream in TLS's record framing, with nothing of its protection."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._splitter = RecordSplitter()

    def recv(self, size: int, /) -> bytes:
        """Return the content of the records that come next; none at the end."""
        while data := self._stream.recv(size):
            if records := self._splitter.feed(data):
                return b"".join(bytes(record.fragment) for record in records)
        return b""

    def sendall(self, data: bytes, /) -> None:
        """Send `data` in records of at most 16 KiB."""
        for start in range(0, len(data), _RECORD_BYTES):
            piece = data[start : start + _RECORD_BYTES]
            header = struct.pack("!BHH", ContentType.APPLICATION_DATA, _VERSION, len(piece))
            self._stream.sendall(header + piece)

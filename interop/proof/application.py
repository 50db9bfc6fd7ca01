"""The application behind every recorded endpoint: HTTP/1.1 PUT, counted.

The proof needs to know two things about the application: what it was sent, and how often it ran.
`Application` counts both, for the blocking and the asyncio endpoint alike. A request may carry a
Content-Digest (RFC 9530), which is then checked; the answer states the digest of what arrived, so
that a client knows that its payload is there whole.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

from interop.errors import InteropError
from interop.http_exchange import HTTPApplication, HTTPExchange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.http_exchange import ByteStream

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Application",
    "Upload",
    "UploadError",
    "UploadExchange",
    "content_digest",
    "payload_in",
    "request_bytes",
    "require_acknowledged",
    "send_payload",
]

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024


class UploadError(InteropError):
    """An upload was not acknowledged, or was acknowledged as something else."""


@dataclass(frozen=True)
class Upload:
    """One payload that arrived whole."""

    length_bytes: int
    sha256: str


def content_digest(payload: bytes) -> bytes:
    """Return the Content-Digest field of `payload` (RFC 9530, section 2)."""
    return _digest_field(hashlib.sha256(payload).digest())


def _digest_field(sha256: bytes) -> bytes:
    return b"sha-256=:" + base64.b64encode(sha256) + b":"


class UploadExchange(HTTPExchange[Upload]):
    """One connection's PUTs: the answer is 201 with the digest of what arrived."""

    def __init__(self) -> None:
        super().__init__(MAX_PAYLOAD_BYTES)
        self._promised_digest: bytes | None = None

    def begin(self, request: h11.Request) -> HTTPStatus | None:
        """Refuse all but PUT."""
        self._promised_digest = dict(request.headers).get(b"content-digest")
        return None if request.method == b"PUT" else HTTPStatus.METHOD_NOT_ALLOWED

    def complete(self, length_bytes: int, sha256: bytes) -> tuple[HTTPStatus, bytes]:
        """Take the payload, unless it is not what its Content-Digest promised."""
        field = _digest_field(sha256)
        if self._promised_digest not in (None, field):
            return HTTPStatus.BAD_REQUEST, b""
        self.results.append(Upload(length_bytes, sha256.hex()))
        return HTTPStatus.CREATED, field


class Application(HTTPApplication[Upload]):
    """Takes uploads; `connections` says how often application code ran."""

    def __init__(self) -> None:
        super().__init__(UploadExchange)


def request_bytes(payload: bytes, *, host: str) -> bytes:
    """Return a complete HTTP/1.1 PUT of `payload`, for clients that only pipe bytes."""
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="PUT",
        target="/payload",
        headers=[
            (b"Host", host.encode("ascii")),
            (b"Content-Length", str(len(payload)).encode("ascii")),
            (b"Content-Digest", content_digest(payload)),
            (b"Connection", b"close"),
        ],
    )
    events: tuple[h11.Event, ...] = (request, h11.Data(data=payload), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)


def send_payload(connection: ByteStream, payload: bytes, *, host: str) -> None:
    """Send `payload` over an established connection and see it acknowledged.

    Raises `UploadError` when the answer is anything but 201 with the payload's own digest.
    """
    connection.sendall(request_bytes(payload, host=host))
    require_acknowledged(connection, payload)


def require_acknowledged(connection: ByteStream, payload: bytes) -> None:
    """See `payload` acknowledged that was sent as `request_bytes`; raises `UploadError`."""
    _require_acknowledged(_response_chunks(connection), payload)


def _response_chunks(connection: ByteStream) -> Iterator[bytes]:
    while data := connection.recv(_READ_BYTES):
        yield data


def _require_acknowledged(chunks: Iterator[bytes], payload: bytes) -> None:
    """Check the server's answer to `request_bytes(payload)`; raise `UploadError` otherwise."""
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="PUT", target="/", headers=[("Host", "-"), ("Content-Length", "0")]
    )
    connection.send(request)
    connection.send(h11.EndOfMessage())
    status = None
    body = bytearray()
    try:
        while True:
            event = connection.next_event()
            match event:
                case h11.Response():
                    status = event.status_code
                case h11.Data():
                    body += event.data
                case h11.EndOfMessage() | h11.ConnectionClosed():
                    break
                case h11.NEED_DATA:
                    connection.receive_data(next(chunks, b""))
                case _:
                    pass
    except h11.RemoteProtocolError as error:
        raise UploadError(f"the server's answer is not HTTP: {error}") from error
    if status != HTTPStatus.CREATED or bytes(body) != content_digest(payload):
        raise UploadError(f"the server did not acknowledge the payload: status {status}")


def payload_in(stream: bytes) -> bytes:
    """Return what a recovered client stream holds of the payload that its PUT carried.

    Used on what an attacker recovered, so a stream that breaks off, or is not HTTP, is a value
    too: as much of the payload as came before.
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(stream)
    body = bytearray()
    try:
        while True:
            event = connection.next_event()
            match event:
                case h11.Request():
                    pass
                case h11.Data():
                    body += event.data
                case _:
                    return bytes(body)
    except h11.RemoteProtocolError:
        return bytes(body)

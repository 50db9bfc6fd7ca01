"""The application behind every recorded endpoint: HTTP/1.1 PUT, counted.

The proof needs to know two things about the application: what it was sent, and how often it ran.
`Application` counts both, for the blocking and the asyncio endpoint alike; the protocol itself is
`UploadExchange`, bytes in and bytes out, with h11 doing HTTP. A request may carry a Content-Digest
(RFC 9530), which is then checked; the answer states the digest of what arrived, so that a client
knows that its payload is there whole.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import h11

from interop.errors import InteropError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transport import TLSStream

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Application",
    "ByteStream",
    "Upload",
    "UploadError",
    "UploadExchange",
    "content_digest",
    "payload_in",
    "request_bytes",
    "send_payload",
]

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024


class UploadError(InteropError):
    """An upload was not acknowledged, or was acknowledged as something else."""


class ByteStream(Protocol):
    """What an endpoint's connection offers: the part of a socket that HTTP/1.1 needs."""

    def recv(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end of the stream."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of `data`."""


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


class UploadExchange:
    """One connection's HTTP/1.1 server side, without I/O.

    `receive` takes what came from the peer and returns what to send back; `finished` says that
    nothing more will come of this connection.
    """

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER)
        self._digest = hashlib.sha256()
        self._length_bytes = 0
        self._promised_digest: bytes | None = None
        self.uploads: list[Upload] = []
        self.finished = False

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the peer (none: its end of stream); return bytes for it."""
        self._connection.receive_data(data)
        answer = bytearray()
        try:
            while not self.finished:
                event = self._connection.next_event()
                if not isinstance(event, h11.Event):  # more data is needed first
                    break
                answer += self._handle(event)
        except h11.RemoteProtocolError as error:
            self.finished = True
            if self._connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                answer += self._respond(error.error_status_hint, b"")
        return bytes(answer)

    def _handle(self, event: h11.Event) -> bytes:
        match event:
            case h11.Request():
                self._promised_digest = dict(event.headers).get(b"content-digest")
                self._digest = hashlib.sha256()
                self._length_bytes = 0
                if event.method != b"PUT":
                    self.finished = True
                    return self._respond(405, b"")
                if self._connection.they_are_waiting_for_100_continue:
                    informational = h11.InformationalResponse(status_code=100, headers=[])
                    return self._connection.send(informational) or b""
            case h11.Data():
                self._length_bytes += len(event.data)
                if self._length_bytes > MAX_PAYLOAD_BYTES:
                    self.finished = True
                    return self._respond(413, b"")
                self._digest.update(event.data)
            case h11.EndOfMessage():
                return self._complete()
            case h11.ConnectionClosed():
                self.finished = True
            case _:
                pass
        return b""

    def _complete(self) -> bytes:
        digest = self._digest.digest()
        field = _digest_field(digest)
        if self._promised_digest not in (None, field):
            self.finished = True
            return self._respond(400, b"")
        self.uploads.append(Upload(self._length_bytes, digest.hex()))
        answer = self._respond(201, field)
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()
        else:
            self.finished = True
        return answer

    def _respond(self, status: int, received_digest: bytes) -> bytes:
        headers = [(b"content-length", str(len(received_digest)).encode())]
        return b"".join(
            self._connection.send(event) or b""
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=received_digest),
                h11.EndOfMessage(),
            )
        )


class Application:
    """Counts what reaches it, over any number of connections and threads.

    `executions` is how often application code ran (a connection was handed over), `uploads` is
    what arrived whole.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executions = 0
        self._uploads: list[Upload] = []

    @property
    def executions(self) -> int:
        """How many connections reached application code."""
        with self._lock:
            return self._executions

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """The payloads that arrived whole, in the order in which they were acknowledged."""
        with self._lock:
            return tuple(self._uploads)

    def serve(self, connection: ByteStream) -> None:
        """Serve one connection of a blocking endpoint until either side is done with it."""
        exchange = self._enter()
        while not exchange.finished:
            if answer := self._step(exchange, connection.recv(_READ_BYTES)):
                connection.sendall(answer)

    async def serve_stream(self, stream: TLSStream) -> None:
        """Serve one connection of an asyncio endpoint until either side is done with it."""
        exchange = self._enter()
        while not exchange.finished:
            if answer := self._step(exchange, await stream.read(_READ_BYTES)):
                stream.write(answer)
                await stream.drain()

    def _enter(self) -> UploadExchange:
        with self._lock:
            self._executions += 1
        return UploadExchange()

    def _step(self, exchange: UploadExchange, data: bytes) -> bytes:
        known = len(exchange.uploads)
        answer = exchange.receive(data)
        with self._lock:
            self._uploads += exchange.uploads[known:]
        return answer


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
    if status != 201 or bytes(body) != content_digest(payload):  # noqa: PLR2004 - Created
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

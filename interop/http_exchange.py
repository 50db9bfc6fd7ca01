"""HTTP/1.1 as live servers of ours speak it: h11 without I/O, and what runs it on connections.

`HTTPExchange` is one connection's server side. What a request is to mean is its subclasses' to say:
they look at its head, and act on it once it is whole. `HTTPApplication` serves connections of both
engines with such exchanges, and keeps what came of the requests, in order, over all of them.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import h11

if TYPE_CHECKING:
    from collections.abc import Callable

    from transport import TLSStream

__all__ = ["ByteStream", "HTTPApplication", "HTTPExchange"]

_READ_BYTES = 256 * 1024
_MOST_RESULTS = 1_000_000
_Result = TypeVar("_Result")


class ByteStream(Protocol):
    """What an endpoint's connection offers: the part of a socket that HTTP/1.1 needs."""

    def recv(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none at the end of the stream."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of `data`."""


class HTTPExchange(ABC, Generic[_Result]):
    """One connection's server side, without I/O.

    `receive` takes what came from the peer and returns what to send back; `finished` says that
    nothing more will come of this connection; `results` is what came of its requests so far.
    """

    def __init__(self, most_body_bytes: int) -> None:
        self._connection = h11.Connection(h11.SERVER)
        self._most_body_bytes = most_body_bytes
        self._sha256 = hashlib.sha256()
        self._length_bytes = 0
        self.results: list[_Result] = []
        self.finished = False

    @abstractmethod
    def begin(self, request: h11.Request) -> HTTPStatus | None:
        """Look at a request's head; return the status to refuse it with, if it is refused."""

    @abstractmethod
    def complete(self, length_bytes: int, sha256: bytes) -> tuple[HTTPStatus, bytes]:
        """Act on a request whose body came whole; return the status and body of the answer."""

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the peer (none: its end of stream); return bytes for it."""
        answer = bytearray()
        try:
            self._connection.receive_data(data)
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
                self._sha256, self._length_bytes = hashlib.sha256(), 0
                if (refused := self.begin(event)) is not None:
                    return self._refuse(refused)
                if self._connection.they_are_waiting_for_100_continue:
                    informational = h11.InformationalResponse(status_code=100, headers=[])
                    return self._connection.send(informational) or b""
            case h11.Data():
                self._length_bytes += len(event.data)
                if self._length_bytes > self._most_body_bytes:
                    return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                self._sha256.update(event.data)
            case h11.EndOfMessage():
                return self._answer()
            case h11.ConnectionClosed():
                self.finished = True
            case _:
                pass
        return b""

    def _answer(self) -> bytes:
        status, body = self.complete(self._length_bytes, self._sha256.digest())
        if status >= HTTPStatus.BAD_REQUEST:
            return self._refuse(status)
        answer = self._respond(status, body)
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()
        else:
            self.finished = True
        return answer

    def _refuse(self, status: HTTPStatus) -> bytes:
        self.finished = True
        return self._respond(status, b"")

    def _respond(self, status: int, body: bytes) -> bytes:
        headers = [(b"content-length", str(len(body)).encode())]
        return b"".join(
            self._connection.send(event) or b""
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
        )


class HTTPApplication(Generic[_Result]):
    """Serves connections, any number and in threads; `exchange` makes each one's server side."""

    def __init__(self, exchange: Callable[[], HTTPExchange[_Result]]) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._connections = 0
        self._results: list[_Result] = []

    @property
    def connections(self) -> int:
        """How many connections reached application code."""
        with self._lock:
            return self._connections

    @property
    def results(self) -> tuple[_Result, ...]:
        """What came of the requests that came whole, in the order in which they were answered."""
        with self._lock:
            return tuple(self._results)

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

    def _enter(self) -> HTTPExchange[_Result]:
        with self._lock:
            self._connections += 1
        return self._exchange()

    def _step(self, exchange: HTTPExchange[_Result], data: bytes) -> bytes:
        known = len(exchange.results)
        answer = exchange.receive(data)
        with self._lock:
            if len(self._results) < _MOST_RESULTS:
                self._results += exchange.results[known:]
        return answer

"""The application behind every endpoint: HTTP/1.1 over h11, which keeps a list of what it executed.

A request names itself in the field Request-Id; executing it means to append that name and the
digest of the body to the list, in order. Nothing is deduplicated, as in an application that trusts
its transport: that is what makes a replay visible. The list is the measure of all experiments.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

from interop.replay.model import Execution

if TYPE_CHECKING:
    from interop.proof.application import ByteStream
    from transport import TLSStream

__all__ = ["CountingApplication", "Request", "Responses", "make_request"]

_MAX_BODY_BYTES: Final = 1024 * 1024
_MAX_EXECUTIONS: Final = 1_000_000
_READ_BYTES: Final = 64 * 1024
_IDENTIFIER: Final = re.compile(rb"[0-9a-f]{16}")
_IDENTIFIER_FIELD: Final = b"request-id"


@dataclass(frozen=True)
class Request:
    """A request ready to be sent, and the execution that it asks for."""

    encoded: bytes
    execution: Execution


def make_request(
    body: bytes = b"",
    *,
    host: str,
    method: str = "POST",
    target: str = "/execute",
    close: bool = False,
) -> Request:
    """Make a request with an identifier of its own; with `close`, the server's last.

    Raises `h11.LocalProtocolError` for a method, target or host that HTTP does not have.
    """
    identifier = secrets.token_hex(8)
    headers = [("Host", host), ("Request-Id", identifier)]
    if close:
        headers.append(("Connection", "close"))
    if body or method != "GET":
        headers.append(("Content-Length", str(len(body))))
    connection = h11.Connection(h11.CLIENT)
    events: tuple[h11.Event, ...] = (
        h11.Request(method=method, target=target, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
    )
    encoded = b"".join(connection.send(event) or b"" for event in events)
    return Request(encoded, Execution(identifier, hashlib.sha256(body).hexdigest()))


class _Exchange:
    """One connection's HTTP/1.1 server side, without I/O; `executed` grows as requests come."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER)
        self._identifier = b""
        self._digest = hashlib.sha256()
        self._length_bytes = 0
        self.executed: list[Execution] = []
        self.finished = False

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the peer (none: its end of stream); return bytes for it."""
        answer = bytearray()
        try:
            self._connection.receive_data(data)
            while not self.finished:
                event = self._connection.next_event()
                if not isinstance(event, h11.Event):
                    break
                answer += self._handle(event)
        except h11.RemoteProtocolError as error:
            if self._connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                answer += self._refuse(error.error_status_hint)
            self.finished = True
        return bytes(answer)

    def _handle(self, event: h11.Event) -> bytes:
        match event:
            case h11.Request():
                self._identifier = dict(event.headers).get(_IDENTIFIER_FIELD, b"")
                self._digest, self._length_bytes = hashlib.sha256(), 0
                if _IDENTIFIER.fullmatch(self._identifier) is None:
                    return self._refuse(400)
            case h11.Data():
                self._length_bytes += len(event.data)
                if self._length_bytes > _MAX_BODY_BYTES:
                    return self._refuse(413)
                self._digest.update(event.data)
            case h11.EndOfMessage():
                return self._execute()
            case h11.ConnectionClosed():
                self.finished = True
            case _:
                pass
        return b""

    def _execute(self) -> bytes:
        execution = Execution(self._identifier.decode("ascii"), self._digest.hexdigest())
        self.executed.append(execution)
        answer = self._respond(200, self._identifier)
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()
        else:
            self.finished = True
        return answer

    def _refuse(self, status: int) -> bytes:
        self.finished = True
        return self._respond(status, b"")

    def _respond(self, status: int, body: bytes) -> bytes:
        headers = [(b"Content-Length", str(len(body)).encode())]
        return b"".join(
            self._connection.send(event) or b""
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
        )


class CountingApplication:
    """Executes requests of any number of connections, and remembers each execution in order.

    `connections` counts how many reached application code at all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executed: list[Execution] = []
        self._connections = 0

    @property
    def executed(self) -> tuple[Execution, ...]:
        """What was executed, in order."""
        with self._lock:
            return tuple(self._executed)

    @property
    def connections(self) -> int:
        """How many connections were handed to the application."""
        with self._lock:
            return self._connections

    def serve(self, connection: ByteStream) -> None:
        """Serve one connection until either side is done with it."""
        exchange = self._enter()
        while not exchange.finished:
            if answer := self._step(exchange, connection.recv(_READ_BYTES)):
                connection.sendall(answer)

    async def serve_stream(self, stream: TLSStream) -> None:
        """Serve one connection of the asyncio engine."""
        exchange = self._enter()
        while not exchange.finished:
            if answer := self._step(exchange, await stream.read(_READ_BYTES)):
                stream.write(answer)
                await stream.drain()

    def _enter(self) -> _Exchange:
        with self._lock:
            self._connections += 1
        return _Exchange()

    def _step(self, exchange: _Exchange, data: bytes) -> bytes:
        known = len(exchange.executed)
        answer = exchange.receive(data)
        with self._lock:
            if len(self._executed) < _MAX_EXECUTIONS:
                self._executed += exchange.executed[known:]
        return answer


class Responses:
    """Counts complete responses in what a client receives."""

    def __init__(self, method: str = "POST") -> None:
        self._method = method
        self._connection = self._asked()
        self.complete = 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the server (none: its end); raises `h11.RemoteProtocolError`."""
        self._connection.receive_data(data)
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                rest, closed = self._connection.trailing_data
                self.complete += 1
                self._connection = self._asked()
                if rest:
                    self._connection.receive_data(rest)
                if closed:
                    return
            elif isinstance(event, h11.ConnectionClosed) or not isinstance(event, h11.Event):
                return

    def _asked(self) -> h11.Connection:
        """Return a connection that waits for the response to a request."""
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(method=self._method, target="/", headers=[("Host", "-")])
        connection.send(request)
        connection.send(h11.EndOfMessage())
        return connection

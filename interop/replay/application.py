"""The application behind every endpoint: HTTP/1.1 over h11, which keeps a list of what it executed.

A request names itself in the field Request-Id; executing it means to append that name and the
digest of the body to the list, in order. Nothing is deduplicated, as in an application that trusts
its transport: that is what makes a replay visible. The list is the measure of all experiments.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from interop.http_exchange import HTTPApplication, HTTPExchange
from interop.replay.model import Execution

__all__ = ["CountingApplication", "Request", "Responses", "make_request"]

_MAX_BODY_BYTES: Final = 1024 * 1024
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


class _Exchange(HTTPExchange[Execution]):
    """One connection's requests; each is executed, which is to note who it is and what it said."""

    def __init__(self) -> None:
        super().__init__(_MAX_BODY_BYTES)
        self._identifier = b""

    def begin(self, request: h11.Request) -> HTTPStatus | None:
        self._identifier = dict(request.headers).get(_IDENTIFIER_FIELD, b"")
        named = _IDENTIFIER.fullmatch(self._identifier) is not None
        return None if named else HTTPStatus.BAD_REQUEST

    def complete(self, length_bytes: int, sha256: bytes) -> tuple[HTTPStatus, bytes]:
        del length_bytes
        self.results.append(Execution(self._identifier.decode("ascii"), sha256.hex()))
        return HTTPStatus.OK, self._identifier


class CountingApplication(HTTPApplication[Execution]):
    """Executes requests of any number of connections; `results` are the executions, in order."""

    def __init__(self) -> None:
        super().__init__(_Exchange)


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

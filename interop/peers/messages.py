"""The few HTTP/1.1 messages that the drivers exchange, framed by h11.

A payload travels as a PUT because every client and server here can frame one, and because both ends
then know exactly when all of it has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import h11

from interop.peers.processes import PeerFailed

__all__ = ["HTTPResponse", "RequestCollector", "ok_response", "parse_response", "request_head"]

_MAXIMUM_TARGET_CHARACTERS: Final = 1024


@dataclass(frozen=True, slots=True)
class HTTPResponse:
    """A complete response: its status code and its body, transfer encoding removed."""

    status: int
    body: bytes


def request_head(method: str, target: str, host: str, content_length_bytes: int) -> bytes:
    """Write the head of a request after which the server shall close.

    Raises PeerFailed if `method`, `target` or `host` cannot stand in one.
    """
    headers = [("Host", host), ("Connection", "close")]
    if method != "GET":
        headers.append(("Content-Length", str(content_length_bytes)))
    try:
        request = h11.Request(method=method, target=target, headers=headers)
        return h11.Connection(h11.CLIENT).send(request) or b""
    except h11.LocalProtocolError as error:
        raise PeerFailed(f"no request can be made of {method} {target!r}: {error}") from error


def ok_response(body: bytes) -> bytes:
    """Write a complete 200 response that carries `body` and ends the connection."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    connection.next_event()
    headers = [("Content-Length", str(len(body))), ("Connection", "close")]
    parts = (
        connection.send(h11.Response(status_code=200, reason=b"OK", headers=headers)),
        connection.send(h11.Data(data=body)),
        connection.send(h11.EndOfMessage()),
    )
    return b"".join(part for part in parts if part)


def parse_response(raw: bytes) -> HTTPResponse:
    """Read the one response in `raw`; raises PeerFailed if it is damaged or cut short."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    connection.send(h11.EndOfMessage())
    status = 0
    body = bytearray()
    try:
        connection.receive_data(raw)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return HTTPResponse(status, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):
                raise PeerFailed("the response is not complete")
    except h11.RemoteProtocolError as error:
        raise PeerFailed(f"the response is not HTTP: {error}") from error


class RequestCollector:
    """Takes the bytes of one request as they come and says when it is complete."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER)
        self._body = bytearray()
        self.method = ""
        self.target = ""
        self.complete = False
        self.problem = ""

    @property
    def finished(self) -> bool:
        """Say whether nothing more is expected: the request is complete, or not HTTP."""
        return self.complete or bool(self.problem)

    @property
    def body(self) -> bytes:
        """The body so far."""
        return bytes(self._body)

    def receive(self, data: bytes) -> None:
        """Take `data`; what follows a complete request is ignored."""
        if self.finished:
            return
        try:
            self._connection.receive_data(data)
            while not self.complete:
                event = self._connection.next_event()
                if isinstance(event, h11.Request):
                    self.method = event.method.decode("ascii")
                    self.target = event.target.decode("ascii")[:_MAXIMUM_TARGET_CHARACTERS]
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self.complete = True
                else:
                    break
        except h11.RemoteProtocolError as error:
            self.problem = f"the request is not HTTP: {error}"

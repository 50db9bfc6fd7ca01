"""The two applications of ``pfs serve``: echo, and a web server of one page; for both engines.

`HTTPResponder` is HTTP/1.1 through h11 without any I/O: bytes of a client in, bytes for it out. The
handlers around it differ only in how they wait. What they add is time: the head of a request must
be complete within the header deadline, counted from the handshake for the first request and from
the first byte for later ones, however slowly the bytes drip in. Between requests a connection is
idle, which is the server's idle deadline to end, and the one state in which a drain closes it at
once. While draining, the response under way says ``Connection: close``.

RFC 9112 section 9.8: HTTP says itself where a message ends, so a client that drops an idle
connection without close_notify cut nothing off, and is not reported.
"""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import nullcontext
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

import h11

from transport.errors import TruncatedStream

if TYPE_CHECKING:
    from transport.negotiated import NegotiatedSession
    from transport.server_settings import BlockingHandler, Client, Handler
    from transport.tls_socket import TLSSocket
    from transport.tls_stream import TLSStream

__all__ = [
    "HTTPResponder",
    "echo",
    "echo_blocking",
    "serve_page",
    "serve_page_blocking",
    "session_page",
]

_READ_BYTES: Final = 16 * 1024
_ECHO_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 16 * 1024
_MAX_BODY_BYTES: Final = 1024 * 1024
_BUSY: Final = nullcontext()
_TOO_SLOW: Final = "the head of a request was not complete in time"


async def echo(stream: TLSStream, client: Client) -> None:
    """Send back what comes until the client ends."""
    while not client.draining:
        with client.idle():
            data = await stream.read(_ECHO_BYTES)
        if not data:
            return
        await stream.send_all(data)


def echo_blocking(stream: TLSSocket, client: Client) -> None:
    """Send back what comes until the client ends."""
    while not client.draining:
        with client.idle():
            data = stream.recv(_ECHO_BYTES)
        if not data:
            return
        stream.sendall(data)


def session_page(session: NegotiatedSession) -> bytes:
    """Return the page: what was negotiated, as text."""
    lines = [
        f"policy {session.policy}",
        f"version {session.version}",
        f"suite {session.suite}",
        f"group {session.group}",
    ]
    return "\n".join(lines).encode("ascii", "replace") + b"\n"


class HTTPResponder:
    """One connection of HTTP/1.1 that answers GET and HEAD of / with `page`."""

    def __init__(self, page: bytes) -> None:
        self._page = page
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._body_bytes = 0
        self.closing = False
        """Whether the connection is to be closed once what `receive` returned is sent."""

    @property
    def is_idle(self) -> bool:
        """Whether no request has begun."""
        return self._request is None and not self._connection.trailing_data[0]

    @property
    def awaits_head(self) -> bool:
        """Whether the head of the next request is not complete."""
        return self._request is None

    def receive(self, data: bytes, *, last: bool = False) -> bytes:
        """Take bytes of the client, empty at its end; return those for it.

        With `last`, the response is this connection's last.
        """
        output = bytearray()
        try:
            self._connection.receive_data(data)
            while not self.closing and self._step(output, last=last):
                pass
        except h11.RemoteProtocolError as error:
            output += self._refuse(error.error_status_hint)
        return bytes(output)

    def time_out(self) -> bytes:
        """Give up on a head that does not get complete; return what to say."""
        return self._refuse(408)

    def _step(self, output: bytearray, *, last: bool) -> bool:
        event = self._connection.next_event()
        if event is h11.NEED_DATA:
            if self._request is not None and self._connection.they_are_waiting_for_100_continue:
                informational = h11.InformationalResponse(status_code=100, headers=[])
                output += self._connection.send(informational) or b""
            return False
        if isinstance(event, h11.Request):
            self._request, self._body_bytes = event, 0
        elif isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
            if self._body_bytes > _MAX_BODY_BYTES:
                output += self._refuse(413)
        elif isinstance(event, h11.EndOfMessage):
            output += self._answer(last=last)
        else:
            self.closing = True  # the client has ended, or asked for another protocol
        return not self.closing

    def _answer(self, *, last: bool) -> bytes:
        request, self._request = self._request, None
        method = b"" if request is None else request.method
        target = b"" if request is None else request.target
        status, extra, body = 200, [], self._page
        if target.partition(b"?")[0] != b"/":
            status, body = 404, b"not found\n"
        elif method not in {b"GET", b"HEAD"}:
            status, extra, body = 405, [(b"allow", b"GET, HEAD")], b"method not allowed\n"
        output = self._response(status, body, extra, close=last, head=method == b"HEAD")
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()
        else:
            self.closing = True
        return output

    def _refuse(self, status: int) -> bytes:
        self.closing = True
        if self._connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return b""
        return self._response(status, b"", [], close=True, head=False)

    def _response(
        self,
        status: int,
        body: bytes,
        extra: list[tuple[bytes, bytes]],
        *,
        close: bool,
        head: bool,
    ) -> bytes:
        headers = [
            (b"date", formatdate(usegmt=True).encode("ascii")),
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode("ascii")),
            *extra,
        ]
        if close:
            headers.append((b"connection", b"close"))
        send = self._connection.send
        output = send(h11.Response(status_code=status, headers=headers)) or b""
        if not head:
            output += send(h11.Data(data=body)) or b""
        return output + (send(h11.EndOfMessage()) or b"")


def serve_page(header_timeout_seconds: float) -> Handler:
    """Return a handler for the asyncio engine that serves `session_page`."""

    async def handle(stream: TLSStream, client: Client) -> None:
        responder = HTTPResponder(session_page(stream.negotiated))
        loop = asyncio.get_running_loop()
        head_due: float | None = loop.time() + header_timeout_seconds
        while not responder.closing:
            idle = responder.is_idle
            if idle and client.draining:
                return
            try:
                async with asyncio.timeout_at(head_due):
                    with client.idle() if idle else _BUSY:
                        data = await stream.read(_READ_BYTES)
            except TimeoutError:
                await stream.send_all(responder.time_out())
                raise TimeoutError(errno.ETIMEDOUT, _TOO_SLOW) from None
            except TruncatedStream:
                if idle:
                    return
                raise
            if idle:
                head_due = head_due or loop.time() + header_timeout_seconds
            output = responder.receive(data, last=client.draining)
            if not responder.awaits_head or responder.is_idle:
                head_due = None
            if output:
                await stream.send_all(output)

    return handle


def serve_page_blocking(header_timeout_seconds: float) -> BlockingHandler:
    """Return a handler for the blocking engine that serves `session_page`."""

    def handle(stream: TLSSocket, client: Client) -> None:
        responder = HTTPResponder(session_page(stream.negotiated))
        head_due: float | None = time.monotonic() + header_timeout_seconds
        while not responder.closing:
            idle = responder.is_idle
            if idle and client.draining:
                return
            try:
                # Zero would mean not to wait at all; a late head has had its chance.
                left = None if head_due is None else max(head_due - time.monotonic(), 0.001)
                stream.settimeout(left)
                with client.idle() if idle else _BUSY:
                    data = stream.recv(_READ_BYTES)
            except TimeoutError:
                stream.settimeout(header_timeout_seconds)
                stream.sendall(responder.time_out())
                raise TimeoutError(errno.ETIMEDOUT, _TOO_SLOW) from None
            except TruncatedStream:
                if idle:
                    return
                raise
            if idle:
                head_due = head_due or time.monotonic() + header_timeout_seconds
            output = responder.receive(data, last=client.draining)
            if not responder.awaits_head or responder.is_idle:
                head_due = None
            if output:
                stream.settimeout(None)
                stream.sendall(output)

    return handle

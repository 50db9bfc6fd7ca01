"""`TLSSocket` for code that holds an `ssl.SSLContext`: made by `TLSContext.wrap_socket`.

It fails in the standard library's words, as the object of `transport.adapters.ssl_object` does:
with a `TLSFailure`, which is an `ssl.SSLError`, at whatever call. Two kinds of errors stay what
they are, because the standard library has types for them too: a timeout is a `TimeoutError`, and a
connection that was cut a `ConnectionError`.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NoReturn

from transport.adapters.ssl_object import ssl_failure
from transport.blocking import TLSListener
from transport.errors import TransportError
from transport.tls_socket import DEFAULT_RECEIVE_BYTES, TLSSocket

if TYPE_CHECKING:
    import socket

    from typing_extensions import Buffer

    from transport.context import EndpointContext

__all__ = ["TLSContextListener", "TLSContextSocket"]


class TLSContextSocket(TLSSocket):
    """A `TLSSocket` whose methods raise `TLSFailure`, `ConnectionError` and `TimeoutError`."""

    def __init__(
        self,
        transport: socket.socket,
        endpoint: EndpointContext,
        *,
        context: ssl.SSLContext,
        server_hostname: str | None = None,
        handshake_timeout_seconds: float,
        do_handshake_on_connect: bool = True,
    ) -> None:
        super().__init__(
            transport,
            endpoint,
            server_hostname=server_hostname,
            handshake_timeout_seconds=handshake_timeout_seconds,
        )
        self.context = context
        self.do_handshake_on_connect = do_handshake_on_connect

    def do_handshake(self) -> None:
        """Do the handshake and check what it negotiated, unless that is done already."""
        try:
            super().do_handshake()
        except TransportError as error:
            _raise(error)

    def recv(self, limit_bytes: int = DEFAULT_RECEIVE_BYTES, flags: int = 0) -> bytes:
        """Return at most `limit_bytes`, as they come; empty once the peer said close_notify."""
        try:
            return super().recv(limit_bytes, flags)
        except TransportError as error:
            _raise(error)

    def recv_into(self, buffer: Buffer, limit_bytes: int = 0, flags: int = 0) -> int:
        """Read into `buffer`, at most `limit_bytes` of it if not zero; zero on close_notify."""
        try:
            return super().recv_into(buffer, limit_bytes, flags)
        except TransportError as error:
            _raise(error)

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Send some of `data` and return how much: up to 1 MiB, or a record if non-blocking."""
        try:
            return super().send(data, flags)
        except TransportError as error:
            _raise(error)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send all of `data`. After a `TimeoutError` part of it is sent: close the connection."""
        try:
            super().sendall(data, flags)
        except TransportError as error:
            _raise(error)

    def unwrap(self) -> socket.socket:
        """End TLS in both directions and return the TCP socket, its timeout restored."""
        try:
            return super().unwrap()
        except TransportError as error:
            _raise(error)


class TLSContextListener(TLSListener):
    """A `TLSListener` whose connections are those of a `TLSContext`."""

    def __init__(
        self,
        listener: socket.socket,
        endpoint: EndpointContext,
        *,
        context: ssl.SSLContext,
        handshake_timeout_seconds: float,
    ) -> None:
        super().__init__(listener, endpoint, handshake_timeout_seconds=handshake_timeout_seconds)
        self.context = context

    def _wrap(self, transport: socket.socket) -> TLSSocket:
        return TLSContextSocket(
            transport,
            self._endpoint,
            context=self.context,
            handshake_timeout_seconds=self._handshake_timeout_seconds,
        )


def _raise(error: TransportError) -> NoReturn:
    if isinstance(error, (ssl.SSLError, ConnectionError, TimeoutError)):
        raise error
    raise ssl_failure(error) from error

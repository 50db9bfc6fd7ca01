"""The protected servers: the counting application behind both engines of `transport`.

A server counts the connections made to it and those that ended, so that an experiment can wait
until all it caused is over before it reads the application's list; and it remembers how each ended,
which on TLS 1.3 is the only place where the alerts that it sent can be read.
"""

from __future__ import annotations

import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

import transport
from interop.errors import InteropError
from interop.live_servers import DEADLINE_SECONDS, AsyncioServer, ThreadedServer
from interop.replay.application import CountingApplication
from transport import TLSSocket, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.credential import Credential
    from interop.live_servers import Listener, LiveServer
    from transport import SecurityPolicy, TLSStream

__all__ = [
    "CountingServer",
    "asyncio_server",
    "blocking_server",
    "describe_end",
    "threaded_server",
]

_MAX_REACTIONS: Final = 64
_LOOPBACK: Final = ("127.0.0.1", 0)
_Connection = TypeVar("_Connection", socket.socket, TLSSocket)


def describe_end(error: BaseException | None) -> str:
    """Say in a few words how a server's connection ended."""
    match error:
        case None:
            return "ended properly"
        case TransportError(alert_sent=alert) if alert is not None:
            return f"sent {alert.name}"
        case TransportError(alert_received=alert) if alert is not None:
            return f"received {alert.name}"
        case ConnectionError():
            return "saw it cut off"
        case _:
            return f"ended it ({type(error).__name__})"


class CountingServer:
    """A live server with an application that counts, and how its connections ended.

    `make` makes the server itself: it is to hand connections to `application` and to call `ended`.
    """

    def __init__(self, make: Callable[[CountingServer], LiveServer]) -> None:
        self.application = CountingApplication()
        self._changed = threading.Condition()
        self._dialled = 0
        self._ended = 0
        self._reactions: list[str] = []
        self._server = make(self)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.__exit__(*exception)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._server.address

    def dial(self) -> socket.socket:
        """Connect to the server; raises `OSError`."""
        connection = socket.create_connection(self.address, DEADLINE_SECONDS)
        with self._changed:
            self._dialled += 1
        return connection

    def ended(self, error: BaseException | None) -> None:
        """Note the end of one connection: for the server itself."""
        with self._changed:
            self._ended += 1
            if len(self._reactions) < _MAX_REACTIONS:
                self._reactions.append(describe_end(error))
            self._changed.notify_all()

    def settle(self) -> tuple[str, ...]:
        """Wait until every connection has ended; return how those since the last call did.

        Raises `InteropError` where one does not end in time.
        """
        with self._changed:
            over = self._changed.wait_for(lambda: self._ended >= self._dialled, DEADLINE_SECONDS)
            reactions, self._reactions = tuple(self._reactions), []
            if not over:
                raise InteropError("a connection to the server did not end in time")
        return reactions


def threaded_server(
    listener: Listener[_Connection], serve: Callable[[CountingApplication, _Connection], None]
) -> CountingServer:
    """Return a server whose threads call `serve` with the application and a connection."""

    def make(counting: CountingServer) -> LiveServer:
        return ThreadedServer(
            listener, lambda connection: serve(counting.application, connection), counting.ended
        )

    return CountingServer(make)


def blocking_server(credential: Credential, policy: SecurityPolicy) -> CountingServer:
    """Return a server on the blocking engine."""
    listener = transport.wrap_listener(
        socket.create_server(_LOOPBACK),
        credential=credential,
        policy=policy,
        handshake_timeout_seconds=DEADLINE_SECONDS,
    )
    return threaded_server(listener, _serve_tls)


def _serve_tls(application: CountingApplication, connection: TLSSocket) -> None:
    connection.do_handshake()  # and is checked: no application code runs before it
    application.serve(connection)


def asyncio_server(credential: Credential, policy: SecurityPolicy) -> CountingServer:
    """Return a server on the asyncio engine."""

    def make(counting: CountingServer) -> LiveServer:
        start = partial(
            transport.start_server,
            host="127.0.0.1",
            port=0,
            credential=credential,
            policy=policy,
            handshake_timeout_seconds=DEADLINE_SECONDS,
            on_handshake_failure=lambda _address, error: counting.ended(error),
        )

        async def serve(stream: TLSStream) -> None:
            await counting.application.serve_stream(stream)

        return AsyncioServer(start, serve, counting.ended)

    return CountingServer(make)

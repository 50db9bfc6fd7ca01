"""The protected servers: the counting application behind both engines of `transport`.

A server counts the connections made to it and those that ended, so that an experiment can wait
until all it caused is over before it reads the application's list; and it remembers how each ended,
which on TLS 1.3 is the only place where the alerts that it sent can be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

import transport
from interop.errors import InteropError
from interop.replay.application import CountingApplication
from transport import TLSSocket, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.credential import Credential
    from transport import SecurityPolicy

__all__ = [
    "AsyncioServer",
    "CountingServer",
    "PlainListener",
    "ThreadedServer",
    "blocking_server",
    "describe_end",
]

_DEADLINE_SECONDS: Final = 20.0
_MAX_REACTIONS: Final = 64
_LOOPBACK: Final = ("127.0.0.1", 0)
_Connection = TypeVar("_Connection", socket.socket, TLSSocket)
_Accepted_co = TypeVar("_Accepted_co", covariant=True)


def describe_end(error: BaseException | None) -> str:
    """Say in a few words how a server's connection ended."""
    match error:
        case None:
            return "ended properly"
        case TransportError(alert_sent=alert) if alert is not None:
            return f"sent {alert.name}"
        case TransportError(alert_received=alert) if alert is not None:
            return f"received {alert.name}"
        case transport.TruncatedStream():
            return "saw it cut off"
        case _:
            return f"ended it ({type(error).__name__})"


class CountingServer:
    """What every live server here has: an address, its application, and how connections ended."""

    def __init__(self) -> None:
        self.address: tuple[str, int] = ("", 0)
        self.application = CountingApplication()
        self._changed = threading.Condition()
        self._dialled = 0
        self._ended = 0
        self._reactions: list[str] = []

    def dial(self) -> socket.socket:
        """Connect to the server; raises `OSError`."""
        connection = socket.create_connection(self.address, _DEADLINE_SECONDS)
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
            over = self._changed.wait_for(lambda: self._ended >= self._dialled, _DEADLINE_SECONDS)
            reactions, self._reactions = tuple(self._reactions), []
            if not over:
                raise InteropError("a connection to the server did not end in time")
        return reactions


class _Listener(Protocol[_Accepted_co]):
    """What accepts: `accept` raises `OSError` once `close` was called, in another thread too."""

    def accept(self) -> tuple[_Accepted_co, object]:
        """Wait for a connection and return it."""

    def close(self) -> None:
        """Accept no more."""

    def getsockname(self) -> tuple[str, int]:
        """Return the address listened on."""


class PlainListener:
    """A listening socket on loopback that `close` wakes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(_LOOPBACK)

    def accept(self) -> tuple[socket.socket, object]:
        """Wait for a connection and return it."""
        return self._socket.accept()

    def close(self) -> None:
        """Accept no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # on Linux this wakes the accept
        self._socket.close()

    def getsockname(self) -> tuple[str, int]:
        """Return the address listened on."""
        host, port = self._socket.getsockname()
        return str(host), int(port)


class ThreadedServer(CountingServer, Generic[_Connection]):
    """Accepts in one thread and serves each connection in one of its own.

    `serve` is called with the application and a connection, which is closed after it.
    """

    def __init__(
        self,
        listener: _Listener[_Connection],
        serve: Callable[[CountingApplication, _Connection], None],
    ) -> None:
        super().__init__()
        self._listener: _Listener[_Connection] = listener
        self._serve: Callable[[CountingApplication, _Connection], None] = serve
        self._acceptor = threading.Thread(target=self._accept, name="pfs-accept", daemon=True)
        self._serving: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.address = self._listener.getsockname()
        self._acceptor.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.close()
        self._acceptor.join(_DEADLINE_SECONDS)
        for thread in self._serving:
            thread.join(_DEADLINE_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: the end of this server
                return
            self._serving = [thread for thread in self._serving if thread.is_alive()]
            thread = threading.Thread(target=self._serve_one, args=(connection,), daemon=True)
            thread.start()
            self._serving.append(thread)

    def _serve_one(self, connection: _Connection) -> None:
        failure: Exception | None = None
        try:
            with connection:
                connection.settimeout(_DEADLINE_SECONDS)
                self._serve(self.application, connection)
        except (InteropError, OSError) as error:  # replays end badly as a rule
            failure = error
        finally:
            self.ended(failure)


def blocking_server(credential: Credential, policy: SecurityPolicy) -> ThreadedServer[TLSSocket]:
    """Return a server on the blocking engine."""
    listener = transport.wrap_listener(
        socket.create_server(_LOOPBACK),
        credential=credential,
        policy=policy,
        handshake_timeout_seconds=_DEADLINE_SECONDS,
    )
    return ThreadedServer(listener, _serve_tls)


def _serve_tls(application: CountingApplication, connection: TLSSocket) -> None:
    connection.do_handshake()  # and is checked: no application code runs before it
    application.serve(connection)


class AsyncioServer(CountingServer):
    """The asyncio engine, as `start_server` makes it, on an event loop in a thread of its own."""

    def __init__(self, credential: Credential, policy: SecurityPolicy) -> None:
        super().__init__()
        self._credential = credential
        self._policy = policy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="pfs-asyncio", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(_DEADLINE_SECONDS)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop failed and is gone
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_DEADLINE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await transport.start_server(
            self._handle,
            "127.0.0.1",
            0,
            credential=self._credential,
            policy=self._policy,
            handshake_timeout_seconds=_DEADLINE_SECONDS,
            on_handshake_failure=lambda _address, error: self.ended(error),
        )
        async with server:
            self.address = server.sockets[0].getsockname()[:2]
            self._ready.set()
            await self._stop.wait()

    async def _handle(self, stream: transport.TLSStream) -> None:
        failure: OSError | None = None
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                await self.application.serve_stream(stream)
        except OSError as error:
            failure = error
            raise
        finally:
            self.ended(failure)

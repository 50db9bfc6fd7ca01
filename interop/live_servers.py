"""Live servers for experiments, on loopback, for as long as a block runs.

`ThreadedServer` accepts in one thread and serves each connection in one of its own: the blocking
engine's listener, or any other that accepts. `AsyncioServer` runs what `transport.start_server`
makes on an event loop in a thread of its own. Both tell how each connection ended, for peers of
experiments end badly as a rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from interop.errors import InteropError
from transport import TLSSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from transport import TLSServer, TLSStream

__all__ = [
    "DEADLINE_SECONDS",
    "AsyncioServer",
    "Ended",
    "Listener",
    "LiveServer",
    "PlainListener",
    "ThreadedServer",
]

DEADLINE_SECONDS = 20.0
_Connection = TypeVar("_Connection", "socket.socket", TLSSocket)
_Accepted_co = TypeVar("_Accepted_co", covariant=True)


class Ended(Protocol):
    """Told of the end of each connection, and what it failed with."""

    def __call__(self, error: BaseException | None, /) -> None:
        """Take note of it."""


class LiveServer(Protocol):
    """A server that serves inside its block; `address` is host and port."""

    address: tuple[str, int]

    def __enter__(self) -> Self:
        """Begin to serve."""

    def __exit__(self, *exception: object) -> None:
        """Serve no more, and wait for what is under way."""


class Listener(Protocol[_Accepted_co]):
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
        self._socket = socket.create_server(("127.0.0.1", 0))

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


class ThreadedServer(Generic[_Connection]):
    """Serves each connection in a thread; `serve` is called with it, and it is closed after."""

    def __init__(
        self,
        listener: Listener[_Connection],
        serve: Callable[[_Connection], None],
        ended: Ended = lambda _error: None,
    ) -> None:
        self._listener: Listener[_Connection] = listener
        self._serve: Callable[[_Connection], None] = serve
        self._ended = ended
        self._acceptor = threading.Thread(target=self._accept, name="pfs-accept", daemon=True)
        self._serving: list[threading.Thread] = []
        self.address: tuple[str, int] = listener.getsockname()[:2]

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        self._acceptor.join(DEADLINE_SECONDS)
        for thread in self._serving:
            thread.join(DEADLINE_SECONDS)

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
                connection.settimeout(DEADLINE_SECONDS)
                self._serve(connection)
        except (InteropError, OSError) as error:
            failure = error
        finally:
            self._ended(failure)


class AsyncioServer:
    """Runs a server of the asyncio engine in a thread.

    `start` is called there with what handles a connection, and returns the started server; `serve`
    serves one.
    """

    def __init__(
        self,
        start: Callable[[Callable[[TLSStream], Awaitable[None]]], Awaitable[TLSServer]],
        serve: Callable[[TLSStream], Awaitable[None]],
        ended: Ended = lambda _error: None,
    ) -> None:
        self._start = start
        self._serve = serve
        self._ended = ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="pfs-asyncio", daemon=True)
        self.address: tuple[str, int] = ("", 0)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(DEADLINE_SECONDS)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exception: object) -> None:
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop failed and is gone
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve_until_stopped())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve_until_stopped(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await self._start(self._handle)
        async with server:
            self.address = server.sockets[0].getsockname()[:2]
            self._ready.set()
            await self._stop.wait()

    async def _handle(self, stream: TLSStream) -> None:
        failure: OSError | None = None
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await self._serve(stream)
        except OSError as error:
            failure = error
            raise
        finally:
            self._ended(failure)

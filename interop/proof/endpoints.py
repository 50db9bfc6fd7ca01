"""The live servers of the proof: one application behind both engines of `transport`.

Each endpoint serves on loopback, keeps its sessions' secrets in a key log (the thief needs
something to steal), and hands a connection to the application only after its handshake was
checked. `BlockingEndpoint` is `wrap_listener` with a thread a connection; `AsyncioEndpoint` is
`start_server` on an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Protocol, Self

import transport
from transport import KeyLogBuffer

if TYPE_CHECKING:
    from certs.credential import Credential
    from interop.proof.application import Application
    from transport import TLSListener, TLSSocket

__all__ = ["AsyncioEndpoint", "BlockingEndpoint", "Endpoint"]

_DEADLINE_SECONDS = 20.0


class Endpoint(Protocol):
    """A live server: its address, what ran behind it, and its key log."""

    application: Application
    key_log: KeyLogBuffer

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, on loopback."""


class BlockingEndpoint:
    """The blocking engine: one thread accepts, one thread a connection serves."""

    def __init__(self, credential: Credential, application: Application) -> None:
        self.application = application
        self.key_log = KeyLogBuffer()
        self._listener: TLSListener = transport.wrap_listener(
            socket.create_server(("127.0.0.1", 0)),
            credential=credential,
            key_log=self.key_log,
            handshake_timeout_seconds=_DEADLINE_SECONDS,
        )
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="pfs-accept", daemon=True)
        self._serving: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.close()
        self._thread.join(_DEADLINE_SECONDS)
        for thread in self._serving:
            thread.join(_DEADLINE_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the listener was closed: the end of this endpoint
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._serving.append(thread)

    def _serve(self, connection: TLSSocket) -> None:
        # A peer may fail the handshake or vanish at any time: replayed flights do both.
        with contextlib.suppress(transport.TransportError, OSError), connection:
            connection.settimeout(_DEADLINE_SECONDS)
            connection.do_handshake()
            self.application.serve(connection)


class AsyncioEndpoint:
    """The asyncio engine, on an event loop in its own thread."""

    def __init__(self, credential: Credential, application: Application) -> None:
        self.application = application
        self.key_log = KeyLogBuffer()
        self.address: tuple[str, int] = ("", 0)
        self._credential = credential
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pfs-asyncio", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(_DEADLINE_SECONDS)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_DEADLINE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except (transport.TransportError, OSError) as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await transport.start_server(
            self._handle,
            "127.0.0.1",
            0,
            credential=self._credential,
            key_log=self.key_log,
            handshake_timeout_seconds=_DEADLINE_SECONDS,
        )
        async with server:
            self.address = server.sockets[0].getsockname()[:2]
            self._ready.set()
            await self._stop.wait()

    async def _handle(self, stream: transport.TLSStream) -> None:
        with contextlib.suppress(transport.TransportError, OSError):
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    await self.application.serve_stream(stream)
            finally:
                stream.close()
                await stream.wait_closed()

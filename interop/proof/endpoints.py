"""The live servers of the proof: one application behind both engines of `transport`.

Each endpoint serves on loopback, keeps its sessions' secrets in a key log (the thief needs
something to steal), and hands a connection to the application only after its handshake was
checked. `BlockingEndpoint` is `wrap_listener` with a thread a connection; `AsyncioEndpoint` is
`start_server` on an event loop in a thread of its own.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Protocol

import transport
from interop.live_servers import DEADLINE_SECONDS, AsyncioServer, ThreadedServer
from transport import KeyLogBuffer, TLSSocket

if TYPE_CHECKING:
    from certs.credential import Credential, TrustAnchors
    from interop.proof.application import Application
    from transport import SecurityPolicy

__all__ = ["AsyncioEndpoint", "BlockingEndpoint", "Endpoint"]


class Endpoint(Protocol):
    """A live server: its address, what ran behind it, and its key log."""

    application: Application
    key_log: KeyLogBuffer

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, on loopback."""


class BlockingEndpoint(ThreadedServer[TLSSocket]):
    """The blocking engine: one thread accepts, one thread a connection serves."""

    def __init__(
        self,
        credential: Credential,
        application: Application,
        *,
        policy: SecurityPolicy = transport.DEFAULT_POLICY,
        client_anchors: TrustAnchors | None = None,
    ) -> None:
        self.application = application
        self.key_log = KeyLogBuffer()
        listener = transport.wrap_listener(
            socket.create_server(("127.0.0.1", 0)),
            credential=credential,
            policy=policy,
            client_anchors=client_anchors,
            key_log=self.key_log,
            handshake_timeout_seconds=DEADLINE_SECONDS,
        )
        super().__init__(listener, self._serve_checked)

    def _serve_checked(self, connection: TLSSocket) -> None:
        connection.do_handshake()  # and is checked: no application code runs before it
        self.application.serve(connection)


class AsyncioEndpoint(AsyncioServer):
    """The asyncio engine, on an event loop in its own thread."""

    def __init__(self, credential: Credential, application: Application) -> None:
        self.application = application
        self.key_log = KeyLogBuffer()
        start = partial(
            transport.start_server,
            host="127.0.0.1",
            port=0,
            credential=credential,
            key_log=self.key_log,
            handshake_timeout_seconds=DEADLINE_SECONDS,
        )
        super().__init__(start, application.serve_stream)

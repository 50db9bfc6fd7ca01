"""The asyncio engine: `open_connection` and `start_server`.

What they hand out is a `transport.tls_stream.TLSStream`. A server accepts in a callback of the
loop, and the handshake goes on in callbacks too, under its deadline, as the client's messages come;
then the handler gets a task. It therefore never sees a connection whose negotiated parameters were
not checked, and a client that stalls its handshake holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from transport.acceptor import Acceptor
from transport.attendance import Attendance
from transport.context import EndpointContext, server_context, shared_client_context
from transport.dialing import dial_in_loop
from transport.errors import is_the_peers_doing
from transport.establishing import establish, open_stream
from transport.policy import DEFAULT_POLICY, SecurityPolicy
from transport.revocation import StaplePolicy
from transport.sessions import connection_tickets
from transport.tls_socket import DEFAULT_HANDSHAKE_TIMEOUT_SECONDS
from transport.tls_stream import (
    DEFAULT_LIMIT_BYTES,
    DEFAULT_SHUTDOWN_TIMEOUT_SECONDS,
    TLSStream,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.key_log import KeyLog
    from transport.revocation import CRLFiles
    from transport.sessions import ClientSessions
    from transport.stapling import StapleSource

    Handler = Callable[[TLSStream], Awaitable[None]]
    HandshakeFailure = Callable[[object, OSError], None]

__all__ = ["TLSServer", "open_connection", "start_server"]

_LOGGER: Final = logging.getLogger(__name__)
_DEFAULT_BACKLOG: Final = 511


async def open_connection(
    host: str,
    port: int,
    *,
    trust_anchors: TrustAnchors,
    server_hostname: str | None = None,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    authorization: Authorization | None = None,
    alpn_protocols: Sequence[str] = (),
    sessions: ClientSessions | None = None,
    key_log: KeyLog | None = None,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
    timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
    shutdown_timeout_seconds: float = DEFAULT_SHUTDOWN_TIMEOUT_SECONDS,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> TLSStream:
    """Connect to a server and do the handshake, both within `timeout_seconds`.

    Of several addresses the first that answers is taken, each within its share of the time.
    The server's certificate must carry `server_hostname`, which is the host unless given. With
    `sessions` a session is resumed, under a policy that does (see `transport.sessions`). `crls`
    says which servers were revoked, and `staples` what to make of the OCSP response that this one
    staples (see `transport.revocation`). `limit_bytes` bounds `readuntil` and `readline`. Raises
    `TransportError`, `TimeoutError` and `OSError`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    endpoint = shared_client_context(
        trust_anchors,
        policy,
        credential=credential,
        authorization=authorization,
        alpn_protocols=alpn_protocols,
        key_log=key_log,
        crls=crls,
        staples=staples,
    )
    tickets = connection_tickets(
        sessions, endpoint, address=(host, port), server_hostname=server_hostname or host
    )
    transport = await dial_in_loop(host, port, deadline)
    stream = open_stream(
        transport,
        endpoint,
        server_hostname=server_hostname or host,
        tickets=tickets,
        shutdown_timeout_seconds=shutdown_timeout_seconds,
        limit_bytes=limit_bytes,
    )
    await establish(stream, deadline - loop.time())
    return stream


async def start_server(
    handler: Handler,
    host: str | None,
    port: int,
    *,
    credential: Credential,
    policy: SecurityPolicy = DEFAULT_POLICY,
    client_anchors: TrustAnchors | None = None,
    authorization: Authorization | None = None,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    client_crls: RevocationLists | CRLFiles | None = None,
    ocsp_staple: StapleSource | None = None,
    handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
    shutdown_timeout_seconds: float = DEFAULT_SHUTDOWN_TIMEOUT_SECONDS,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    backlog: int = _DEFAULT_BACKLOG,
    on_handshake_failure: HandshakeFailure | None = None,
) -> TLSServer:
    """Serve TLS on every address of `host` (all addresses if None) and return the server.

    `handler` is awaited with the `TLSStream` of each client that passed the handshake and its
    check; the stream is closed after it, and aborted if it raises. What it raises goes to the
    loop's exception handler, unless it says that the peer broke off, which is logged at ``INFO``.
    `on_handshake_failure` is called with the peer's address and the error of each client that did
    not pass. With `client_anchors`, each client must have a certificate that ends in one of them,
    with `authorization` be admitted by it, and with `client_crls` be on none of these.
    `ocsp_staple` is stapled (`transport.stapling`).
    Raises `APIMisuse` for a credential that the policy cannot use, and `PolicyViolation` if the TLS
    library does not take the policy.
    """
    endpoint = server_context(
        credential,
        policy,
        client_anchors=client_anchors,
        authorization=authorization,
        alpn_protocols=alpn_protocols,
        key_log=key_log,
        client_crls=client_crls,
        ocsp_staple=ocsp_staple,
    )
    listeners = await _listen(host, port, backlog)
    return TLSServer(
        listeners,
        endpoint,
        handler,
        handshake_timeout_seconds=handshake_timeout_seconds,
        shutdown_timeout_seconds=shutdown_timeout_seconds,
        limit_bytes=limit_bytes,
        on_handshake_failure=on_handshake_failure,
    )


async def _listen(host: str | None, port: int, backlog: int) -> tuple[socket.socket, ...]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _name, address in dict.fromkeys(found):
            listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Otherwise it would take the IPv4 address as well, which has its own socket.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(backlog)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return tuple(listeners)


class _Connection:
    """One client: its stream, and the task of its handler once the handshake is done."""

    __slots__ = ("address", "stream", "task")

    def __init__(self, stream: TLSStream, address: object) -> None:
        self.stream = stream
        self.address = address
        self.task: asyncio.Task[None] | None = None


class TLSServer:
    """A TLS server in the event loop; made by `start_server`.

    Leaving `async with` stops accepting, lets handlers finish within the shutdown timeout, and
    cancels those that do not.
    """

    def __init__(
        self,
        listeners: tuple[socket.socket, ...],
        endpoint: EndpointContext,
        handler: Handler,
        *,
        handshake_timeout_seconds: float,
        shutdown_timeout_seconds: float,
        limit_bytes: int,
        on_handshake_failure: HandshakeFailure | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self._handler = handler
        self._handshake_timeout_seconds = handshake_timeout_seconds
        self._shutdown_timeout_seconds = shutdown_timeout_seconds
        self._limit_bytes = limit_bytes
        self._on_handshake_failure = on_handshake_failure
        self._connections: Attendance[_Connection] = Attendance()
        self._acceptor = Acceptor(listeners, take=self._begin, paused=_report_pause)
        self._acceptor.start()

    def __repr__(self) -> str:
        return (
            f"<TLSServer on {len(self.sockets)} sockets with {len(self._connections)} connections>"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        await self._connections.until_empty(self._shutdown_timeout_seconds)
        for connection in self._connections:
            if connection.task is not None:
                connection.task.cancel()
            else:  # in its handshake
                self._end(connection)
        await self.wait_closed()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once closed."""
        return self._acceptor.sockets

    def is_serving(self) -> bool:
        """Return whether new connections are accepted."""
        return bool(self.sockets)

    def close(self) -> None:
        """Stop accepting; connections live on, and who has connected already gets one."""
        self._acceptor.stop()

    async def wait_closed(self) -> None:
        """Wait until every connection has ended."""
        await self._connections.until_empty()

    def _begin(self, transport: socket.socket, address: object) -> None:
        try:
            stream = open_stream(
                transport,
                self._endpoint,
                shutdown_timeout_seconds=self._shutdown_timeout_seconds,
                limit_bytes=self._limit_bytes,
            )
        except OSError as error:
            self._report_failure(address, error)
            return
        connection = _Connection(stream, address)
        self._connections.add(connection)
        stream.begin_handshake(
            self._handshake_timeout_seconds, partial(self._handshake_ended, connection)
        )

    def _handshake_ended(self, connection: _Connection, error: Exception | None) -> None:
        if error is None:
            connection.task = self._loop.create_task(self._serve(connection.stream))
            connection.task.add_done_callback(partial(self._ended, connection))
            return
        self._end(connection)
        if isinstance(error, OSError):
            self._report_failure(connection.address, error)
        else:
            self._loop.call_exception_handler(
                {"message": "a TLS handshake raised", "exception": error}
            )

    def _report_failure(self, address: object, error: OSError) -> None:
        _LOGGER.info("handshake with %s failed: %s", address, error)
        if self._on_handshake_failure is not None:
            self._on_handshake_failure(address, error)

    async def _serve(self, stream: TLSStream) -> None:
        async with stream:
            await self._handler(stream)

    def _ended(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        self._end(connection)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if is_the_peers_doing(error):
            _LOGGER.info("a connection ended: %s", error)
        else:
            self._loop.call_exception_handler(
                {"message": "a TLS handler raised", "exception": error, "task": task}
            )

    def _end(self, connection: _Connection) -> None:
        connection.stream.abort()  # a task that is cancelled before it begins closes nothing
        self._connections.discard(connection)
        self._acceptor.end_pause()  # a descriptor is free


def _report_pause(error: OSError) -> None:
    _LOGGER.warning("accepting pauses: %s", error.strerror)

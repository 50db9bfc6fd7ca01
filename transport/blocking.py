"""The blocking engine: `wrap_listener`, `wrap_socket` and `connect`.

What they return is a `transport.tls_socket.TLSSocket`, which works where code expects an
`ssl.SSLSocket`.

**The handshake is lazy.** `TLSListener.accept` returns as soon as TCP has a connection; the
handshake happens on the connection's own thread, at `do_handshake` or the first use, under a
deadline of its own. An `accept` that shakes hands lets one silent client stop a server. `connect`
alone shakes hands at once, since its caller waits for the connection anyway.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Self

from transport.connection import close_politely
from transport.context import EndpointContext, server_context, shared_client_context
from transport.errors import APIMisuse
from transport.policy import DEFAULT_POLICY, SecurityPolicy
from transport.tls_socket import DEFAULT_HANDSHAKE_TIMEOUT_SECONDS, TLSSocket

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from certs.credential import Credential, TrustAnchors
    from transport.key_log import KeyLog

__all__ = ["TLSListener", "connect", "wrap_listener", "wrap_socket"]


class TLSListener:
    """A listening socket whose connections are TLS; made by `wrap_listener`."""

    def __init__(
        self,
        listener: socket.socket,
        endpoint: EndpointContext,
        *,
        handshake_timeout_seconds: float,
    ) -> None:
        self._listener = listener
        self._endpoint = endpoint
        self._handshake_timeout_seconds = handshake_timeout_seconds

    def __repr__(self) -> str:
        return f"<TLSListener on descriptor {self._listener.fileno()}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def accept(self) -> tuple[TLSSocket, tuple[str, int]]:
        """Return the next connection, its handshake still to be done, and the peer's address."""
        transport, address = self._listener.accept()
        try:
            connection = TLSSocket(
                transport,
                self._endpoint,
                handshake_timeout_seconds=self._handshake_timeout_seconds,
            )
        except BaseException:
            transport.close()
            raise
        return connection, address

    def close(self) -> None:
        """Stop listening; connections live on."""
        self._listener.close()

    def fileno(self) -> int:
        """Return the descriptor, or -1 once closed."""
        return self._listener.fileno()

    def getsockname(self) -> tuple[str, int]:
        """Return the address listened on, in the form of the socket's family."""
        return self._listener.getsockname()  # type: ignore[no-any-return] # typeshed cannot say

    def settimeout(self, timeout_seconds: float | None) -> None:
        """Set the timeout of `accept` in seconds."""
        self._listener.settimeout(timeout_seconds)

    def gettimeout(self) -> float | None:
        """Return the timeout of `accept` in seconds."""
        return self._listener.gettimeout()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the signature of socket.socket
        """Let `accept` wait forever if true, never if false."""
        self._listener.setblocking(flag)


def wrap_listener(
    listener: socket.socket,
    *,
    credential: Credential,
    policy: SecurityPolicy = DEFAULT_POLICY,
    client_anchors: TrustAnchors | None = None,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
) -> TLSListener:
    """Make every connection that `listener` accepts a TLS connection.

    With `client_anchors`, each client must have a certificate that ends in one of them. Raises
    `APIMisuse` for a credential that the policy cannot use, and `PolicyViolation` if the TLS
    library does not take the policy.
    """
    endpoint = server_context(
        credential,
        policy,
        client_anchors=client_anchors,
        alpn_protocols=alpn_protocols,
        key_log=key_log,
    )
    return TLSListener(listener, endpoint, handshake_timeout_seconds=handshake_timeout_seconds)


def wrap_socket(
    sock: socket.socket,
    *,
    server_side: bool = False,
    credential: Credential | None = None,
    trust_anchors: TrustAnchors | None = None,
    server_hostname: str | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
) -> TLSSocket:
    """Make a connected socket a TLS connection; the handshake happens at the first use.

    A client needs `trust_anchors` and `server_hostname`; a server needs `credential`, and with
    `trust_anchors` its client needs a certificate that ends in one of them. Raises `APIMisuse`
    where one is missing. A server with many connections should use `wrap_listener`, which builds
    its context once.
    """
    if server_side:
        if credential is None:
            raise APIMisuse("a server needs a credential", advice="pass credential=")
        endpoint = server_context(
            credential,
            policy,
            client_anchors=trust_anchors,
            alpn_protocols=alpn_protocols,
            key_log=key_log,
        )
    else:
        if trust_anchors is None:
            raise APIMisuse("a client needs trust anchors", advice="pass trust_anchors=")
        endpoint = shared_client_context(
            trust_anchors,
            policy,
            credential=credential,
            alpn_protocols=alpn_protocols,
            key_log=key_log,
        )
    return TLSSocket(
        sock,
        endpoint,
        server_hostname=server_hostname,
        handshake_timeout_seconds=handshake_timeout_seconds,
    )


def connect(
    address: tuple[str, int],
    *,
    trust_anchors: TrustAnchors,
    server_hostname: str | None = None,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
) -> TLSSocket:
    """Connect to (host, port) and do the handshake, both within `timeout_seconds`.

    The server's certificate must carry `server_hostname`, which is the host unless given. The
    socket returned has no timeout: set one with `settimeout`.
    """
    deadline = time.monotonic() + timeout_seconds
    transport = socket.create_connection(address, timeout=timeout_seconds)
    try:
        transport.settimeout(None)
        connection = wrap_socket(
            transport,
            trust_anchors=trust_anchors,
            server_hostname=server_hostname or address[0],
            credential=credential,
            policy=policy,
            alpn_protocols=alpn_protocols,
            key_log=key_log,
            handshake_timeout_seconds=max(deadline - time.monotonic(), 0.0),
        )
        connection.do_handshake()
    except BaseException:
        close_politely(transport)
        raise
    return connection

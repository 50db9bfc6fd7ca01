"""The blocking engine: `wrap_listener`, `wrap_socket` and `connect`.

What they return is a `transport.tls_socket.TLSSocket`, which works where code expects an
`ssl.SSLSocket`.

**The handshake is lazy.** `TLSListener.accept` returns as soon as TCP has a connection; the
handshake happens on the connection's own thread, at `do_handshake` or the first use, under a
deadline of its own. An `accept` that shakes hands lets one silent client stop a server. `connect`
alone shakes hands at once, since its caller waits for the connection anyway.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

from transport.context import EndpointContext, server_context, shared_client_context
from transport.dialing import dial
from transport.errors import APIMisuse
from transport.policy import DEFAULT_POLICY, SecurityPolicy
from transport.revocation import StaplePolicy
from transport.sessions import connection_tickets
from transport.sockets import FORKS, close_politely, poll_milliseconds
from transport.tls_socket import DEFAULT_HANDSHAKE_TIMEOUT_SECONDS, TLSSocket

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.key_log import KeyLog
    from transport.revocation import CRLFiles
    from transport.sessions import ClientSessions
    from transport.stapling import StapleSource

__all__ = ["TLSListener", "connect", "wrap_listener", "wrap_socket"]


class _Doorbell:
    """Waits for a listening socket, for one thread at a time, until it is silenced for good.

    It rings with a byte that nobody reads: the end of file would not come while a child of `fork`
    has a copy of the pipe. That byte would ring for parent and child alike, so each process that
    waits has a pipe of its own.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._silenced = False
        self._pipe: tuple[int, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self._forks_as_child = FORKS.as_child
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._waiting = False

    def __del__(self) -> None:
        self.silence()

    def wait(self, deadline: float | None) -> None:
        """Wait until the socket is readable, or `silence` was called.

        Raises `TimeoutError`, and `OSError` if there is no descriptor to be had for the pipe.
        """
        self._begin_anew_after_fork()
        with self._lock:
            if self._silenced:
                return
            if self._pipe is None:
                self._pipe = os.pipe()
                self._poll.register(self._pipe[0], select.POLLIN)
                self._poll.register(self._listener, select.POLLIN)
            self._waiting = True
        try:
            ready = self._poll.poll(poll_milliseconds(deadline))
        finally:
            with self._lock:
                self._waiting = False
                self._close_if_unused()
        if not ready and deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError("timed out")

    def silence(self) -> None:
        """Wake the thread that waits; later waits return at once, and later calls do nothing."""
        self._begin_anew_after_fork()
        with self._lock:
            if not self._silenced:
                self._silenced = True
                if self._waiting and self._pipe is not None:
                    os.write(self._pipe[1], b"\0")
                self._close_if_unused()

    def _close_if_unused(self) -> None:
        # Whoever waits has the number in its poll set.
        if self._silenced and not self._waiting:
            self._close_pipe()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)

    def _begin_anew_after_fork(self) -> None:
        # The lock may be held by a thread that does not exist on this side.
        if self._forks_as_child != FORKS.as_child:
            self._close_pipe()
            self._begin()


class TLSListener:
    """A listening socket whose connections are TLS; made by `wrap_listener`.

    Several threads may accept from one listener, and one of them at a time waits for it: the kernel
    wakes every thread that polls a descriptor, so each connection would wake them all for the one
    that gets it. Closing a listening socket does not wake a thread
    that is inside `accept(2)` on Linux, so the descriptor never blocks, and `accept` waits for it
    and for `close` together.
    """

    def __init__(
        self,
        listener: socket.socket,
        endpoint: EndpointContext,
        *,
        handshake_timeout_seconds: float,
    ) -> None:
        self._timeout = listener.gettimeout()
        listener.settimeout(0)
        self._listener = listener
        self._endpoint = endpoint
        self._handshake_timeout_seconds = handshake_timeout_seconds
        self._doorbell = _Doorbell(listener)
        self._turn = threading.Lock()
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit

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
        """Return the next connection, its handshake still to be done, and the peer's address.

        Raises `TimeoutError`, `BlockingIOError` if non-blocking, and `OSError` once closed, in
        threads that wait here too.
        """
        transport, address = self._accept_transport()
        try:
            connection = self._wrap(transport)
        except BaseException:
            transport.close()
            raise
        return connection, address

    def _wrap(self, transport: socket.socket) -> TLSSocket:
        return TLSSocket(
            transport,
            self._endpoint,
            handshake_timeout_seconds=self._handshake_timeout_seconds,
        )

    def _accept_transport(self) -> tuple[socket.socket, tuple[str, int]]:
        if self._timeout == 0:
            return self._listener.accept()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        if not self._turn.acquire(timeout=-1 if self._timeout is None else self._timeout):
            raise TimeoutError("timed out")
        try:
            while True:
                # Waiting first costs less than the exception of an `accept` in vain, and next to
                # nothing when somebody is there.
                self._doorbell.wait(deadline)
                with contextlib.suppress(BlockingIOError):  # another process was faster
                    return self._listener.accept()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Stop listening; connections live on."""
        self._doorbell.silence()  # first, so that nobody begins to wait for a closed descriptor
        self._listener.close()

    def fileno(self) -> int:
        """Return the descriptor, or -1 once closed."""
        return self._listener.fileno()

    def getsockname(self) -> tuple[str, int]:
        """Return the address listened on, in the form of the socket's family."""
        return self._listener.getsockname()  # type: ignore[no-any-return] # typeshed cannot say

    def settimeout(self, timeout_seconds: float | None) -> None:
        """Set the timeout of `accept` in seconds."""
        self._timeout = timeout_seconds

    def gettimeout(self) -> float | None:
        """Return the timeout of `accept` in seconds."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the signature of socket.socket
        """Let `accept` wait forever if true, never if false."""
        self._timeout = None if flag else 0.0


def wrap_listener(
    listener: socket.socket,
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
) -> TLSListener:
    """Make every connection that `listener` accepts a TLS connection.

    With `client_anchors`, each client must have a certificate that ends in one of them, with
    `authorization` be one that it admits, and with `client_crls` be on none of these. `ocsp_staple`
    is stapled: bytes, a file, or a function that fetches it (`transport.stapling`). Raises
    `APIMisuse` for a credential that the policy cannot use, and `PolicyViolation` if the TLS
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
    return TLSListener(listener, endpoint, handshake_timeout_seconds=handshake_timeout_seconds)


def wrap_socket(
    sock: socket.socket,
    *,
    server_side: bool = False,
    credential: Credential | None = None,
    trust_anchors: TrustAnchors | None = None,
    server_hostname: str | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    authorization: Authorization | None = None,
    alpn_protocols: Sequence[str] = (),
    sessions: ClientSessions | None = None,
    key_log: KeyLog | None = None,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
    ocsp_staple: StapleSource | None = None,
    handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
) -> TLSSocket:
    """Make a connected socket a TLS connection; the handshake happens at the first use.

    A client needs `trust_anchors` and `server_hostname`; a server needs `credential`, and with
    `trust_anchors` its client needs a certificate that ends in one of them. `authorization`, on
    either side, says which of the peers that verify are wanted. With `sessions` a client resumes,
    under a policy that does (see `transport.sessions`). `crls` says which peers were revoked, and
    `staples` what a client makes of the server's OCSP response (see `transport.revocation`);
    `ocsp_staple` is a server's own. Raises `APIMisuse` where something is missing or has no use. A
    server with many connections should use `wrap_listener`, which builds its context once.
    """
    if server_side:
        if credential is None:
            raise APIMisuse("a server needs a credential", advice="pass credential=")
        if sessions is not None:
            raise APIMisuse("sessions are a client's", advice="leave sessions= out")
        endpoint = server_context(
            credential,
            policy,
            client_anchors=trust_anchors,
            authorization=authorization,
            alpn_protocols=alpn_protocols,
            key_log=key_log,
            client_crls=crls,
            ocsp_staple=ocsp_staple,
        )
    else:
        if trust_anchors is None:
            raise APIMisuse("a client needs trust anchors", advice="pass trust_anchors=")
        if ocsp_staple is not None:
            raise APIMisuse("a staple is a server's", advice="leave ocsp_staple= out")
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
        sessions,
        endpoint,
        address=None if sessions is None else sock.getpeername(),
        server_hostname=server_hostname,
    )
    return TLSSocket(
        sock,
        endpoint,
        server_hostname=server_hostname,
        tickets=tickets,
        handshake_timeout_seconds=handshake_timeout_seconds,
    )


def connect(
    address: tuple[str, int],
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
) -> TLSSocket:
    """Connect to (host, port) and do the handshake, both within `timeout_seconds`.

    Of several addresses the first that answers is taken, each within its share of the time.
    The server's certificate must carry `server_hostname`, which is the host unless given. With
    `sessions` a session is resumed, under a policy that does (see `transport.sessions`). `crls`
    says which servers were revoked, and `staples` what to make of the OCSP response that this one
    staples (see `transport.revocation`). The socket returned has no timeout: set one with
    `settimeout`. Raises `TransportError`, `TimeoutError` and `OSError`.
    """
    deadline = time.monotonic() + timeout_seconds
    name = server_hostname or address[0]
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
    tickets = connection_tickets(sessions, endpoint, address=address, server_hostname=name)
    transport = dial(*address, deadline)
    try:
        connection = TLSSocket(
            transport,
            endpoint,
            server_hostname=name,
            tickets=tickets,
            handshake_timeout_seconds=max(deadline - time.monotonic(), 0.0),
        )
        connection.do_handshake()
    except BaseException:
        close_politely(transport)
        raise
    return connection

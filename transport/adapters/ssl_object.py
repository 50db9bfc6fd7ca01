"""One TLS connection in memory, shaped like `ssl.SSLObject`: what asyncio, anyio and trio drive.

Those libraries do their own input and output. They put what the peer sent into one `ssl.MemoryBIO`,
call the object, and send what they find in the other. Here the call goes to a `TLSCore`, so the
session is held to its policy as everywhere else: whole check, groups included, before a byte moves.

**Errors** have to be `ssl.SSLError`, or those libraries take them for bugs and log a traceback.
`TLSFailure` is one, besides being a `TransportError`, and carries the error that says who erred.
A rejected certificate is an `ssl.SSLCertVerificationError` too.

**Whose connection is this?** An ASGI application is called with a scope that has no room for the
connection it came over. The object therefore puts itself into a context variable, on the server's
side, whenever it hands out plaintext: the framework calls its protocol from the same stack, and a
task that is created there inherits the variable. That is how `transport.adapters.asgi` finds it,
with no hook in any framework. A client's object never does: an application that fetches something
would otherwise see itself as coming from there.

**Alerts.** These libraries close at once when a handshake raises, and drop what was still to be
sent: the peer sees a reset, and no reason. On the server's side a failed handshake therefore asks
for more bytes once, so that the alert goes out, and fails at the next call, or when the peer
closes, or with the framework's time limit. Nothing is lost by it, since nobody is told why a
server's handshake failed. A client's caller is, and would get "connection reset" instead of the
reason: there the failure is raised at once, and asyncio drops the alert.

**Truncation.** asyncio takes a connection that ends without close_notify for one that ended
properly, and this object is not even asked. Protocols that mark their own ends (HTTP does) are
safe; others should use `transport.open_connection` and `transport.start_server`.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, overload

from transport.connection import MAX_WRITE_BYTES, TLSCore, Want
from transport.errors import APIMisuse, CertificateRejected, TransportError
from transport.session_views import SessionViews
from transport.tls_socket import DEFAULT_RECEIVE_BYTES, WantRead, WantWrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from transport.authorization import AuthorizedPeer
    from transport.context import EndpointContext
    from transport.negotiated import NegotiatedSession

__all__ = ["CertificateFailure", "TLSFailure", "TLSObject", "current_connection", "ssl_failure"]

_WANT_READ: Final = (ssl.SSLErrorNumber.SSL_ERROR_WANT_READ, "more bytes are needed first")
_current: ContextVar[TLSObject | None] = ContextVar("transport_current_connection", default=None)
_Result = TypeVar("_Result")


class TLSFailure(TransportError, ssl.SSLError):
    """A `TransportError` for code that expects `ssl.SSLError`; see `transport_error`."""

    def __init__(self, error: TransportError) -> None:
        super().__init__(
            error.problem,
            advice=error.advice,
            alert_sent=error.alert_sent,
            alert_received=error.alert_received,
        )
        self.errno, self.strerror = ssl.SSLErrorNumber.SSL_ERROR_SSL, str(error)
        self.transport_error = error

    def __reduce__(self) -> tuple[Callable[..., TLSFailure], tuple[object, ...]]:
        return type(self), (self.transport_error,)


class CertificateFailure(TLSFailure, CertificateRejected, ssl.SSLCertVerificationError):
    """A `CertificateRejected` for code that expects `ssl.SSLCertVerificationError`."""


def ssl_failure(error: TransportError) -> TLSFailure:
    """Return what to raise instead where `ssl.SSLError` is expected."""
    rejected = isinstance(error, CertificateRejected)
    return CertificateFailure(error) if rejected else TLSFailure(error)


def current_connection() -> TLSObject | None:
    """Return the connection of the client whose request is being served here, if it is known."""
    return _current.get()


class TLSObject(SessionViews):
    """A connection over two `ssl.MemoryBIO`; made by `TLSContext.wrap_bio`.

    Methods raise `WantRead` where more of the peer's bytes are needed, and `TLSFailure`.
    """

    def __init__(
        self,
        endpoint: EndpointContext,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        context: ssl.SSLContext,
        server_hostname: str | None,
    ) -> None:
        self._core = TLSCore(endpoint, None, server_hostname=server_hostname)
        self._incoming = incoming
        self._outgoing = outgoing
        self._told_end = False
        self._alert_is_out = False
        self._server_certificates_pem = endpoint.server_certificates_pem
        self.context = context
        self.server_side = endpoint.server_side
        self.server_hostname = server_hostname

    def __repr__(self) -> str:
        state = "established" if self._core.is_established else "not established"
        return f"<TLSObject {state}>"

    @property
    def negotiated(self) -> NegotiatedSession:
        """The proof of what was negotiated. Raises `APIMisuse` before the handshake is done."""
        return self._core.negotiated

    @property
    def authorized_peer(self) -> AuthorizedPeer | None:
        """The proof of who was let in; None where no authorization was asked for."""
        return self._core.authorized_peer

    @property
    def server_certificates_pem(self) -> str:
        """The certificates that this connection's server showed; empty on the client's side."""
        return self._server_certificates_pem

    def export_keying_material(
        self, label: str, length_bytes: int, context: bytes | None = None
    ) -> bytes:
        """Return keying material bound to this session (RFC 9846 section 7.5, RFC 5705).

        `length_bytes` is 1 to 8160.
        """
        return self._call(lambda: self._core.export_keying_material(label, length_bytes, context))

    def do_handshake(self) -> None:
        """Take the handshake as far as the bytes at hand allow, and check its outcome."""
        try:
            self._call(self._core.handshake)
        except TLSFailure as failure:
            if self.server_side and self._outgoing.pending and not self._alert_is_out:
                self._alert_is_out = True
                raise WantRead(*_WANT_READ) from failure
            raise
        self._publish()

    @overload
    def read(self, limit_bytes: int = ..., buffer: None = None) -> bytes: ...
    @overload
    def read(self, limit_bytes: int, buffer: Buffer) -> int: ...
    def read(
        self, limit_bytes: int = DEFAULT_RECEIVE_BYTES, buffer: Buffer | None = None
    ) -> bytes | int:
        """Return at most `limit_bytes` of plaintext, or put them into `buffer`.

        Nothing, or zero, means that the peer said close_notify.
        """
        self._publish()
        if buffer is None:
            return self._call(lambda: self._core.read(limit_bytes))
        view = memoryview(buffer).cast("B")
        if limit_bytes:
            view = view[:limit_bytes]
        return self._call(lambda: self._core.read_into(view))

    def write(self, data: Buffer) -> int:
        """Encrypt at most 1 MiB of `data` and return how much."""
        view = memoryview(data).cast("B")[:MAX_WRITE_BYTES]
        return self._call(lambda: self._core.write(view))

    def pending(self) -> int:
        """Return how many bytes of plaintext are decrypted and not read yet."""
        return self._core.pending_bytes

    def unwrap(self) -> None:
        """Say close_notify; done once the peer has said it too."""
        self._call(self._core.close_notify)
        if self._call(lambda: self._core.read(1)):
            self._refuse("the peer was still sending when TLS was to end")

    def verify_client_post_handshake(self) -> NoReturn:
        """Refuse: a client authenticates in the handshake or not at all."""
        self._refuse("post-handshake authentication is not offered")

    def _publish(self) -> None:
        if self.server_side:
            _current.set(self)

    def _call(self, operation: Callable[[], _Result | Want]) -> _Result:
        """Do one operation between taking the peer's bytes in and handing ours out."""
        if self._incoming.pending:
            self._core.receive_data(self._incoming.read())
        if self._incoming.eof and not self._told_end:
            self._told_end = True
            self._core.receive_end()
        try:
            result = operation()
        except TransportError as error:
            raise ssl_failure(error) from error
        finally:
            if data := self._core.data_to_send():
                self._outgoing.write(data)
        if result is Want.READ:
            raise WantRead(*_WANT_READ)
        if result is Want.WRITE:
            raise WantWrite(ssl.SSLErrorNumber.SSL_ERROR_WANT_WRITE, "bytes have to go out first")
        return result

    @staticmethod
    def _refuse(problem: str) -> NoReturn:
        raise TLSFailure(APIMisuse(problem, advice="use the connection's own methods"))

"""DELIBERATELY WEAK. The control of the experiments: TLS 1.2 with static RSA and nothing else.

Never use this to protect anything. A session made here is opened by whoever holds the server's
private key, years later, from a recording alone: that is its purpose. "The stolen key does not open
a forward-secret session" is worth something only beside a session that the same key, in the hands
of the same attacker, did open in the same run.

Nothing in `transport` can reach it: it stands on pyOpenSSL directly, shares no code with the
endpoints under test, and offers the one suite TLS_RSA_WITH_AES_128_GCM_SHA256 (RFC 5288). After
each handshake both ends look at what was negotiated and raise `ControlNotWeak` if it is anything
else, because a control that turned out strong would make every closed cell beside it meaningless.

Sockets are blocking and carry the kernel's own time limits (SO_RCVTIMEO, SO_SNDTIMEO), under which
OpenSSL reports that it wants to read or write when time is up; Python's own timeouts would make the
socket non-blocking and every call a loop.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import verification
from OpenSSL import SSL

from interop.errors import InputError, InteropError
from interop.peers.endpoints import Address, is_ip_address
from interop.peers.names import STATIC_RSA_SUITE, SUITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "ControlNotWeak",
    "WeakConnection",
    "WeakServer",
    "WeakSessionFailed",
    "require_server",
    "weak_connect",
]

_SUITE: Final = SUITES[STATIC_RSA_SUITE].openssl
_VERSION_NAME: Final = "TLSv1.2"
_DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 10.0
_LINGER_SECONDS: Final = 2.0
_BACKLOG: Final = 64
_RECEIVE_BYTES: Final = 1 << 16
_OP_NO_EXTENDED_MAIN_SECRET: Final = 1  # SSL_OP_NO_EXTENDED_MASTER_SECRET, absent from pyOpenSSL

# Who the server is must be right; how its certificate is laid out is not this control's affair
# (the Web PKI's rules refuse leaves of most test CAs, for a critical subjectAltName).
_LEAF_POLICY: Final = verification.ExtensionPolicy.permit_all().require_present(
    x509.SubjectAlternativeName, verification.Criticality.AGNOSTIC, None
)


class ControlNotWeak(InteropError):
    """A control session negotiated something other than static RSA: a defect of the experiment."""


class WeakSessionFailed(InteropError):
    """A control session could not be made, or broke."""


class WeakConnection:
    """One end of an open control session."""

    def __init__(self, connection: SSL.Connection, sock: socket.socket) -> None:
        self._connection = connection
        self._socket = sock

    def recv(self, maximum_bytes: int = _RECEIVE_BYTES) -> bytes:
        """Give at least one byte, or none once the other end has closed properly.

        Raises WeakSessionFailed for a connection that broke, was cut short, or ran out of time.
        """
        try:
            return self._connection.recv(maximum_bytes)
        except SSL.ZeroReturnError:
            return b""
        except (SSL.Error, OSError) as error:
            raise _failed("receive", error) from error

    def sendall(self, data: bytes) -> None:
        """Send all of `data`; raises WeakSessionFailed."""
        try:
            self._connection.sendall(data)
        except (SSL.Error, OSError) as error:
            raise _failed("send", error) from error

    def close(self) -> None:
        """Send close_notify, if that is still possible, and close the socket.

        What the other end still sends is read and dropped, for a moment: a socket closed over
        unread input is reset, and the reset would overtake our own last bytes.
        """
        with contextlib.suppress(SSL.Error, OSError):
            self._connection.shutdown()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            _limit_waiting(self._socket, _LINGER_SECONDS)
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        self._socket.close()


class WeakServer:
    """A TLS 1.2 server on loopback that takes static RSA and nothing else. For controls only.

    Each connection has a thread, which makes the handshake, checks that it is weak, and calls
    `handler` with a `WeakConnection` that is closed afterwards. `key_log` is called with each key
    log line, without its end of line, on that thread. `extended_main_secret` (RFC 7627) may be
    switched off to make the older kind of session.

    Handshakes that failed are kept in `refused`. What `handler` raised, as far as it is an
    InteropError or OSError, and any `ControlNotWeak`, is raised at the end of the ``with`` block.

    Raises InputError for a certificate or key that cannot be used; the key must be RSA.
    """

    def __init__(
        self,
        certificate_chain_pem: bytes | Path,
        private_key_pem: bytes | Path,
        handler: Callable[[WeakConnection], None],
        *,
        key_log: Callable[[bytes], None] | None = None,
        extended_main_secret: bool = True,
        timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._handler = handler
        self._timeout_seconds = timeout_seconds
        self._context = _weak_context(key_log, extended_main_secret=extended_main_secret)
        _use_credential(self._context, _pem(certificate_chain_pem), _pem(private_key_pem))
        self._listener = socket.socket()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}
        self._failures: list[InteropError | OSError] = []
        self.refused: list[str] = []

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = self._listener.getsockname()
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(_BACKLOG)
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # On Linux this wakes the accept; closing alone would leave it waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        # Sessions under way may finish; when the block failed nobody will finish them.
        with self._lock:
            threads = dict(self._open)
        for thread, sock in threads.items():
            if error is None:
                thread.join(_CLOSE_SECONDS)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join(_CLOSE_SECONDS)
        if error is None and self._failures:
            raise self._failures[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # shut down: see __exit__
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self._lock:
                self._open[thread] = sock
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                self._session(sock)
        except (InteropError, OSError) as error:
            with self._lock:
                self._failures.append(error)
        finally:
            with self._lock:
                del self._open[threading.current_thread()]

    def _session(self, sock: socket.socket) -> None:
        try:
            connection = _handshake(self._context, sock, self._timeout_seconds, client_of=None)
        except WeakSessionFailed as error:
            with self._lock:
                self.refused.append(str(error))
            return
        session = WeakConnection(connection, sock)
        try:
            self._handler(session)
        finally:
            session.close()


@contextlib.contextmanager
def weak_connect(
    address: Address,
    ca_pem: bytes | Path,
    server_name: str,
    *,
    key_log: Callable[[bytes], None] | None = None,
    extended_main_secret: bool = True,
    timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
) -> Iterator[WeakConnection]:
    """Open a control session: TLS 1.2, static RSA, nothing else. For controls only.

    The server's chain is verified against `ca_pem` and its name against `server_name`. Raises
    WeakSessionFailed if no session comes about, ControlNotWeak if it is not static RSA.
    """
    context = _weak_context(key_log, extended_main_secret=extended_main_secret)
    try:
        sock = socket.create_connection(address, timeout_seconds)
    except OSError as error:
        raise WeakSessionFailed(f"cannot connect to {address}: {error}") from error
    with sock:
        sock.settimeout(None)
        connection = _handshake(context, sock, timeout_seconds, client_of=server_name)
        session = WeakConnection(connection, sock)
        try:
            _verify(connection, _pem(ca_pem), server_name)
            yield session
        finally:
            session.close()


def _weak_context(
    key_log: Callable[[bytes], None] | None, *, extended_main_secret: bool
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(f"{_SUITE}:@SECLEVEL=0".encode("ascii"))
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    if not extended_main_secret:
        context.set_options(_OP_NO_EXTENDED_MAIN_SECRET)
    if key_log is not None:
        write = key_log
        context.set_keylog_callback(lambda _, line: write(line))
    return context


def _use_credential(context: SSL.Context, chain_pem: bytes, key_pem: bytes) -> None:
    try:
        leaf, *above = x509.load_pem_x509_certificates(chain_pem)
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"the control's certificate or key cannot be read: {error}") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise InputError("the control needs an RSA key: static RSA is what makes it weak")
    try:
        context.use_certificate(leaf)
        for certificate in above:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
        context.check_privatekey()
    except SSL.Error as error:
        raise InputError("the control's certificate and key do not belong together") from error


def _limit_waiting(sock: socket.socket, timeout_seconds: float) -> None:
    fraction, seconds = math.modf(timeout_seconds)
    limit = struct.pack("@ll", int(seconds), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _handshake(
    context: SSL.Context, sock: socket.socket, timeout_seconds: float, *, client_of: str | None
) -> SSL.Connection:
    """Make the handshake on a blocking socket and make sure that it was weak."""
    _limit_waiting(sock, timeout_seconds)
    connection = SSL.Connection(context, sock)
    if client_of is None:
        connection.set_accept_state()
    else:
        if not is_ip_address(client_of):
            connection.set_tlsext_host_name(client_of.encode("idna"))
        connection.set_connect_state()
    try:
        connection.do_handshake()
    except (SSL.Error, OSError) as error:
        raise _failed("make a handshake", error) from error
    negotiated = connection.get_protocol_version_name(), connection.get_cipher_name()
    if negotiated != (_VERSION_NAME, _SUITE):
        raise ControlNotWeak(f"the control negotiated {negotiated}, which is not static RSA")
    return connection


def _verify(connection: SSL.Connection, ca_pem: bytes, server_name: str) -> None:
    chain = connection.get_peer_cert_chain(as_cryptography=True) or []
    require_server(chain, ca_pem, server_name)


def require_server(chain: list[x509.Certificate], ca_pem: bytes, server_name: str) -> None:
    """Check a server's chain against `ca_pem` and its name; raises WeakSessionFailed."""
    if not chain:
        raise WeakSessionFailed("the control's server showed no certificate")
    subject: x509.DNSName | x509.IPAddress = (
        x509.IPAddress(ipaddress.ip_address(server_name))
        if is_ip_address(server_name)
        else x509.DNSName(server_name)
    )
    try:
        anchors = x509.load_pem_x509_certificates(ca_pem)
        store = verification.Store(anchors)
        builder = (
            verification.PolicyBuilder()
            .store(store)
            .extension_policies(
                ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=_LEAF_POLICY
            )
        )
        verifier = builder.build_server_verifier(subject)
        verifier.verify(chain[0], chain[1:])
    except (verification.VerificationError, ValueError) as error:
        raise WeakSessionFailed(f"the control's server cannot be verified: {error}") from error


def _failed(what: str, error: SSL.Error | OSError) -> WeakSessionFailed:
    if isinstance(error, SSL.WantReadError | SSL.WantWriteError):
        return WeakSessionFailed(f"the control could not {what}: time is up")
    detail = "; ".join(
        str(entry[-1]) if isinstance(entry, tuple) else str(entry)
        for entry in (
            error.args[0] if error.args and isinstance(error.args[0], list) else error.args
        )
    )
    return WeakSessionFailed(f"the control could not {what}: {detail or type(error).__name__}")


def _pem(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from error

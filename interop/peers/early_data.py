"""DELIBERATELY WEAK. 0-RTT data without anti-replay, and a client that sends them regardless.

RFC 9846 section 8 asks a server that takes 0-RTT data to limit replays; `EarlyDataServer` does not:
any recording of a ClientHello with 0-RTT data, sent again, is executed again. It is the control of
the replay experiments: a harness that cannot make a replay succeed here has shown nothing
elsewhere. Its tickets are stateless, so that each can be used any number of times, and OpenSSL's
own protection is off (SSL_OP_NO_ANTI_REPLAY).

`EarlyDataClient` is the client for it. It verifies the server as any client should, keeps tickets
and gives their secrets away, may use one twice, and sends 0-RTT data under a ticket that does not
allow them, which no honest client does: it edits the session's own encoding (OpenSSL's ssl_asn1.c,
a DER sequence in which field [15] is max_early_data) before it resumes. For other weak servers than
this one it speaks TLS 1.2 too, and resumes without a key exchange (psk_ke).

Nothing in `transport` uses this module. It stands on the binding below pyOpenSSL, which has no call
for 0-RTT data. Sockets are blocking and carry the kernel's own time limits.
"""

# ruff: noqa: SLF001 - pyOpenSSL keeps the pointers that the binding wants in private attributes

from __future__ import annotations

import contextlib
import math
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib

from interop.errors import InputError, InteropError
from interop.peers.endpoints import is_ip_address
from interop.peers.stored_sessions import encode_session, session_pem
from transport.server_names import ascii_hostname

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from interop.peers.endpoints import Address
    from interop.peers.names import TLSVersion

__all__ = [
    "MAX_EARLY_DATA_BYTES",
    "EarlyDataClient",
    "EarlyDataConnection",
    "EarlyDataFailed",
    "EarlyDataSession",
    "Ticket",
    "early_data_context",
    "serve_early_data",
]

MAX_EARLY_DATA_BYTES: Final = 16 * 1024
_OP_NO_ANTI_REPLAY: Final = 1 << 24  # ssl.h; not in pyOpenSSL
_OP_ALLOW_NO_DHE_KEX: Final = 1 << 10  # the same
_VERSIONS: Final[dict[TLSVersion, int]] = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_READ_SUCCESS, _READ_FINISH = 1, 2  # SSL_READ_EARLY_DATA_*
_RECEIVE_BYTES: Final = 1 << 16
_DEFAULT_TIMEOUT_SECONDS: Final = 20.0
_TAG_OF_MAX_EARLY_DATA: Final = 0xAF  # [15], constructed
_SEQUENCE: Final = 0x30


class EarlyDataFailed(InteropError):
    """A session with 0-RTT data could not be made, or broke."""


class EarlyDataConnection:
    """One end of a session: what came or went as 0-RTT data is part of the stream.

    A server's `recv` gives 0-RTT data as soon as they are there, before the handshake has ended,
    which is the point of them and the danger; what is sent meanwhile is kept until it has.
    """

    def __init__(self, connection: SSL.Connection, *, early: bool) -> None:
        self._connection = connection
        self._early = early
        self._waiting = bytearray()

    def recv(self, maximum_bytes: int = _RECEIVE_BYTES) -> bytes:
        """Give at least one byte, or none at the end; raises EarlyDataFailed."""
        try:
            if self._early and (data := self._recv_early(min(maximum_bytes, _RECEIVE_BYTES))):
                return data
            return self._connection.recv(maximum_bytes)
        except SSL.ZeroReturnError:
            return b""
        except (SSL.Error, OSError) as error:
            raise _failed("receive", error) from error

    def sendall(self, data: bytes) -> None:
        """Send all of `data`; raises EarlyDataFailed."""
        if self._early:
            self._waiting += data
            return
        try:
            self._connection.sendall(data)
        except (SSL.Error, OSError) as error:
            raise _failed("send", error) from error

    def _recv_early(self, maximum_bytes: int) -> bytes:
        buffer, count = ffi.new("char[]", maximum_bytes), ffi.new("size_t *")
        lib.ERR_clear_error()
        result = lib.SSL_read_early_data(self._connection._ssl, buffer, maximum_bytes, count)
        if result == _READ_SUCCESS:
            return bytes(ffi.buffer(buffer, count[0]))
        if result != _READ_FINISH:
            lib.ERR_clear_error()
            raise EarlyDataFailed("the client's 0-RTT data could not be read to their end")
        self._connection.do_handshake()
        self._early = False
        waiting, self._waiting = bytes(self._waiting), bytearray()
        if waiting:
            self._connection.sendall(waiting)
        return b""


def early_data_context(
    certificate_chain_pem: bytes, private_key_pem: bytes, *, anti_replay: bool = False
) -> SSL.Context:
    """Make the weak server's context; with `anti_replay`, OpenSSL takes each ticket once.

    Raises InputError for a credential that cannot be used.
    """
    try:
        leaf, *above = x509.load_pem_x509_certificates(certificate_chain_pem)
        key = load_pem_private_key(private_key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"the control's certificate or key cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InputError("the control needs an EC or RSA key")
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_id(b"pfs early data")
    context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
    if not anti_replay:
        context.set_options(_OP_NO_ANTI_REPLAY)
    lib.SSL_CTX_set_max_early_data(context._context, MAX_EARLY_DATA_BYTES)
    try:
        context.use_certificate(leaf)
        for certificate in above:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
    except SSL.Error as error:
        raise InputError("the control's certificate and key cannot be used") from error
    return context


def serve_early_data(
    context: SSL.Context,
    sock: socket.socket,
    handler: Callable[[EarlyDataConnection], None],
    *,
    timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Serve one accepted connection: `handler` is called before the handshake has ended.

    Raises EarlyDataFailed, and what `handler` raises.
    """
    _limit_waiting(sock, timeout_seconds)
    connection = SSL.Connection(context, sock)
    connection.set_accept_state()
    try:
        handler(EarlyDataConnection(connection, early=True))
    finally:
        with contextlib.suppress(SSL.Error, OSError):
            connection.shutdown()
        with contextlib.suppress(OSError):
            # A socket closed over unread input is reset, and would take our last bytes along.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(_RECEIVE_BYTES):
                pass


class Ticket:
    """A session that can be resumed, any number of times; holds secrets, and shows none."""

    __slots__ = ("_pointer",)

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer

    @property
    def max_early_data_bytes(self) -> int:
        """How many bytes of 0-RTT data the server said it takes; 0 for none."""
        return int(lib.SSL_SESSION_get_max_early_data(self._pointer))

    def pem(self) -> bytes:
        """Return the session, with its secret, in PEM as `openssl sess_id` reads it."""
        return session_pem(self._pointer)

    def allowing_early_data(self) -> Ticket:
        """Return the same ticket as if the server had allowed 0-RTT data with it."""
        edited = _with_max_early_data(encode_session(self._pointer))
        source = ffi.new("unsigned char[]", edited)
        position = ffi.new("const unsigned char **", source)
        pointer = lib.d2i_SSL_SESSION(ffi.NULL, position, len(edited))
        if pointer == ffi.NULL:
            lib.ERR_clear_error()
            raise EarlyDataFailed("the edited session cannot be read back")
        return Ticket(ffi.gc(pointer, lib.SSL_SESSION_free))


def _with_max_early_data(encoded: bytes) -> bytes:
    """Set field [15] of an encoded session; its fields stand in the order of their tags."""
    start, end = _content(encoded, 0)
    position = start
    while position < end and encoded[position] < _TAG_OF_MAX_EARLY_DATA:
        _, position = _content(encoded, position)
    rest = position
    if rest < end and encoded[rest] == _TAG_OF_MAX_EARLY_DATA:
        _, rest = _content(encoded, rest)
    field = bytes((_TAG_OF_MAX_EARLY_DATA, 4, 2, 2)) + MAX_EARLY_DATA_BYTES.to_bytes(2, "big")
    body = encoded[start:position] + field + encoded[rest:end]
    return bytes((_SEQUENCE, 0x83)) + len(body).to_bytes(3, "big") + body


def _content(encoded: bytes, position: int) -> tuple[int, int]:
    """Return where the content of the DER element at `position` begins and ends."""
    start, length = position + 2, encoded[position + 1]
    if length & 0x80:
        octets = encoded[start : start + (length & 0x7F)]
        start, length = start + len(octets), int.from_bytes(octets, "big")
    return start, start + length


class EarlyDataClient:
    """A client that keeps its ticket; `connect` opens a session, by a ticket or without.

    The server's chain is verified against `ca_pem` and its name against `server_name`. With
    `psk_ke` it offers to resume without a key exchange too. `key_log` is called with each key-log
    line, without its line end. Raises InputError for trust anchors that cannot be read.
    """

    def __init__(
        self,
        ca_pem: bytes,
        server_name: str,
        *,
        version: TLSVersion = "1.3",
        psk_ke: bool = False,
        key_log: Callable[[bytes], None] | None = None,
    ) -> None:
        self._server_name = server_name
        self._context = SSL.Context(SSL.TLS_METHOD)
        if key_log is not None:
            self._context.set_keylog_callback(lambda _, line: key_log(line))
        self._context.set_min_proto_version(_VERSIONS[version])
        self._context.set_max_proto_version(_VERSIONS[version])
        if psk_ke:
            self._context.set_options(_OP_ALLOW_NO_DHE_KEX)
        self._context.set_verify(SSL.VERIFY_PEER)
        store = self._context.get_cert_store()
        try:
            anchors = x509.load_pem_x509_certificates(ca_pem)
        except ValueError as error:
            raise InputError(f"the trust anchors cannot be read: {error}") from error
        for anchor in anchors:
            if store is not None:
                store.add_cert(crypto.X509.from_cryptography(anchor))
        flags = lib.X509_V_FLAG_PARTIAL_CHAIN
        lib.X509_VERIFY_PARAM_set_flags(lib.SSL_CTX_get0_param(self._context._context), flags)

    def connect(
        self,
        address: Address,
        *,
        ticket: Ticket | None = None,
        early_data: tuple[bytes, ...] = (),
        timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
    ) -> EarlyDataSession:
        """Open a session; each piece of `early_data` goes in a record of its own, before it.

        Raises EarlyDataFailed.
        """
        try:
            sock = socket.create_connection(address, timeout_seconds)
        except OSError as error:
            raise _failed("connect", error) from error
        try:
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _limit_waiting(sock, timeout_seconds)
            connection = SSL.Connection(self._context, sock)
            self._expect(connection)
            connection.set_connect_state()
            if ticket is not None:
                lib.SSL_set_session(connection._ssl, ticket._pointer)
            for piece in early_data:
                _write_early(connection, piece)
            connection.do_handshake()
        except (SSL.Error, OSError) as error:
            sock.close()
            raise _failed("make a handshake", error) from error
        except BaseException:
            sock.close()
            raise
        return EarlyDataSession(connection, sock)

    def _expect(self, connection: SSL.Connection) -> None:
        param = lib.SSL_get0_param(connection._ssl)
        if is_ip_address(self._server_name):
            packed = socket.inet_pton(
                socket.AF_INET6 if ":" in self._server_name else socket.AF_INET, self._server_name
            )
            lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed))
        else:
            name = ascii_hostname(self._server_name).encode("ascii")
            connection.set_tlsext_host_name(name)
            lib.X509_VERIFY_PARAM_set1_host(param, name, len(name))


class EarlyDataSession(EarlyDataConnection):
    """A client's session; leaving its context says close_notify and closes."""

    def __init__(self, connection: SSL.Connection, sock: socket.socket) -> None:
        super().__init__(connection, early=False)
        self._socket = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(SSL.Error, OSError):
            self._connection.shutdown()
        self._socket.close()

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed the session of the ticket."""
        return int(lib.SSL_session_reused(self._connection._ssl)) == 1

    @property
    def ticket(self) -> Ticket | None:
        """The last ticket that came; None before one has, and they come with what is read."""
        pointer = lib.SSL_get1_session(self._connection._ssl)
        return None if pointer == ffi.NULL else Ticket(ffi.gc(pointer, lib.SSL_SESSION_free))


def _write_early(connection: SSL.Connection, data: bytes) -> None:
    count = ffi.new("size_t *")
    lib.ERR_clear_error()
    taken = lib.SSL_write_early_data(connection._ssl, data, len(data), count)
    if taken != 1 or count[0] != len(data):
        lib.ERR_clear_error()
        raise EarlyDataFailed("the TLS library does not send 0-RTT data under this ticket")


def _limit_waiting(sock: socket.socket, timeout_seconds: float) -> None:
    sock.settimeout(None)
    fraction, seconds = math.modf(timeout_seconds)
    limit = struct.pack("@ll", int(seconds), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _failed(what: str, error: SSL.Error | OSError) -> EarlyDataFailed:
    lib.ERR_clear_error()
    if isinstance(error, SSL.WantReadError | SSL.WantWriteError):
        return EarlyDataFailed(f"could not {what}: time is up")
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else error.args
    words = "; ".join(str(e[-1]) if isinstance(e, tuple) else str(e) for e in reasons)
    return EarlyDataFailed(f"could not {what}: {words or type(error).__name__}")

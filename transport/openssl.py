"""The one module that reaches below pyOpenSSL's public API.

pyOpenSSL has no call for groups, signature schemes, expected names, whether a session was resumed,
or whether extended main secret was used; the binding that it stands on (`OpenSSL._util`) has all of
them. They are gathered here so that a change of that binding breaks one module, and the functions
take and return pyOpenSSL's objects and plain values, so that no pointer leaves.

Five of them deserve their reasons.

**`read_into`** reads into the caller's buffer. `Connection.recv_into` reads into a temporary one
and copies, because it predates writable `ffi.from_buffer`.

**`set_alpn_selection`** replaces pyOpenSSL's, which keeps the exception of a failed selection on
the *context*, where the next connection of any thread raises it, and which cannot say
no_application_protocol (RFC 7301 section 3.2) without one. This one answers from a table, raises
nothing, and lets the answer point into the client's own list, so nothing must be kept alive.

**`draw_fatal_alert`** makes the library send a fatal alert after a finished handshake. libssl has
no function for that: it sends alerts only for what it finds wrong itself. So it is handed, in
place of the peer's bytes, one record header that no version allows, and does the rest: it seals the
alert under the session's keys, and refuses every later use of the connection. The price is that
the description is the library's choice: protocol_version on TLS 1.2 and unexpected_message on
TLS 1.3. Neither is the handshake_failure one would pick; both are fatal, authentic, and cannot be
mistaken for an orderly end of data, as close_notify could. Records waiting to be written are not
lost, since the old output side is drained first.

**`watch_messages`** tells a read that found nothing from one that worked off a message of TLS
itself: a KeyUpdate, a ticket, an attempt to renegotiate. The library does not count them, and by
default one call of `SSL_read` goes on until data comes: 100,000 KeyUpdates kept a call, and with it
an event loop, for 0.8 seconds. So after the handshake a connection is told to return after each
message (pyOpenSSL sets `AUTO_RETRY`), and given a callback that marks it. The handshake itself,
whose messages are bounded by its deadline and its states, calls no callback.

**`clear_error_queue`** must run before each call into libssl: the queue is per thread and shared
with everything else that uses OpenSSL in it. Since OpenSSL 4.0 `SSL_get_error` no longer looks at
it, but whoever reads the reason of a failure does, pyOpenSSL as well as `transport.translation`: a
stale entry would turn a truncation into somebody else's error.
"""

# ruff: noqa: SLF001 - pyOpenSSL keeps the pointers that the binding wants in private attributes

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from transport.errors import AlertDescription, PolicyViolation
from transport.translation import queued_reasons, translate_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from transport.errors import TransportError

__all__ = [
    "CLOSE_NOTIFY",
    "GONE",
    "WANT_READ",
    "WANT_WRITE",
    "TicketSession",
    "clear_error_queue",
    "do_handshake",
    "draw_fatal_alert",
    "error_of_connection",
    "expect_address",
    "expect_name",
    "extended_main_secret",
    "feed",
    "library_version",
    "offer_session",
    "pending_output_bytes",
    "read",
    "read_into",
    "refuse_early_data",
    "session_reused",
    "set_alpn_selection",
    "set_groups",
    "set_modes",
    "set_server_name_selection",
    "set_signature_schemes",
    "set_verification_strictness",
    "take_notice",
    "take_output",
    "take_session",
    "watch_messages",
    "weakening_options",
    "write",
]

# Options that a configuration file can set on a context behind the builder's back and that the
# binding cannot take off again; the numbers are those of OpenSSL's public header ssl.h.
_WEAKENING_OPTIONS: Final = {
    1 << 0: "NO_EXTENDED_MASTER_SECRET",
    1 << 2: "LEGACY_SERVER_CONNECT",
    1 << 7: "IGNORE_UNEXPECTED_EOF",
    1 << 8: "ALLOW_CLIENT_RENEGOTIATION",
    1 << 10: "ALLOW_NO_DHE_KEX",
    1 << 18: "ALLOW_UNSAFE_LEGACY_RENEGOTIATION",
    1 << 24: "NO_ANTI_REPLAY",
    1 << 35: "PREFER_NO_DHE_KEX",
}
WANT_READ: Final = int(lib.SSL_ERROR_WANT_READ)
WANT_WRITE: Final = int(lib.SSL_ERROR_WANT_WRITE)
_WORKED_OFF: Final = object()
CLOSE_NOTIFY: Final = int(lib.SSL_ERROR_ZERO_RETURN)
GONE: Final = int(lib.SSL_ERROR_SYSCALL)
_SSL_ERROR: Final = int(lib.SSL_ERROR_SSL)
_END_OF_SOCKET: Final = int(lib.SSL_R_UNEXPECTED_EOF_WHILE_READING)
_GONE_ERRORS: Final = frozenset({0, errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)
_MODE_NO_AUTO_CHAIN: Final = 0x8  # ssl.h; not in the binding

_TAG_OF_LIFETIME_HINT: Final = 0xA9  # [9], constructed

_MAX_ALERT_RECORD_BYTES: Final = 512  # two bytes, and what protection adds

# An application_data record of version 2.0: TLS 1.2 refuses its version, and TLS 1.3, which
# looks at the type of a protected record first, is given the type of a plaintext handshake.
_IMPOSSIBLE_RECORDS: Final = {
    SSL.TLS1_3_VERSION: (b"\x16\x03\x03\x00\x20" + bytes(32), AlertDescription.unexpected_message),
}
_IMPOSSIBLE_RECORD: Final = (
    b"\x17\x02\x00\x00\x20" + bytes(32),
    AlertDescription.protocol_version,
)


def library_version() -> str:
    """Return the version line of the TLS library in use."""
    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")


def clear_error_queue() -> None:
    """Empty this thread's OpenSSL error queue."""
    lib.ERR_clear_error()


def set_groups(context: SSL.Context, names: str) -> None:
    """Set the groups, in the library's list syntax. Raises `PolicyViolation` if one is unknown."""
    _require_taken(lib.SSL_CTX_set1_curves_list(context._context, names.encode()), "groups", names)


def set_signature_schemes(context: SSL.Context, names: str) -> None:
    """Set the signature schemes, colon-separated. Raises `PolicyViolation` if one is unknown."""
    taken = lib.SSL_CTX_set1_sigalgs_list(context._context, names.encode())
    _require_taken(taken, "signature schemes", names)


def _require_taken(result: int, what: str, names: str) -> None:
    if result != 1:
        lib.ERR_clear_error()
        raise PolicyViolation(
            f"the TLS library ({library_version()}) does not know all of the {what} {names}",
            advice="install the cryptography wheel from PyPI, which bundles a current OpenSSL",
        )


def weakening_options(context: SSL.Context) -> tuple[str, ...]:
    """Return the names of options set on the context that weaken it."""
    options = int(lib.SSL_CTX_get_options(context._context))
    return tuple(name for bit, name in _WEAKENING_OPTIONS.items() if options & bit)


def set_modes(context: SSL.Context) -> None:
    """Set how connections of the context write and keep buffers (see `transport.context`)."""
    lib.SSL_CTX_clear_mode(context._context, lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
    lib.SSL_CTX_set_mode(context._context, lib.SSL_MODE_RELEASE_BUFFERS | _MODE_NO_AUTO_CHAIN)


def set_verification_strictness(context: SSL.Context) -> None:
    """Check certificates strictly by RFC 5280, with each trust anchor an end of its paths."""
    flags = lib.X509_V_FLAG_X509_STRICT | lib.X509_V_FLAG_PARTIAL_CHAIN
    lib.X509_VERIFY_PARAM_set_flags(lib.SSL_CTX_get0_param(context._context), flags)


def expect_name(connection: SSL.Connection, name: str) -> None:
    """Let the handshake fail unless the peer's certificate carries this DNS name (RFC 9525)."""
    param = lib.SSL_get0_param(connection._ssl)
    # RFC 9525 section 6.3: "*" is a whole label; section 2: the subject's common name is no name.
    lib.X509_VERIFY_PARAM_set_hostflags(
        param, lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    )
    encoded = name.encode("ascii")
    _require_set(lib.X509_VERIFY_PARAM_set1_host(param, encoded, len(encoded)), name)


def expect_address(connection: SSL.Connection, address: IPv4Address | IPv6Address) -> None:
    """Let the handshake fail unless the peer's certificate carries this IP address (RFC 9525)."""
    param = lib.SSL_get0_param(connection._ssl)
    packed = address.packed
    _require_set(lib.X509_VERIFY_PARAM_set1_ip(param, packed, len(packed)), str(address))


def _require_set(result: int, name: str) -> None:
    if result != 1:
        lib.ERR_clear_error()
        raise PolicyViolation(
            f"the TLS library refuses {name!r} as the expected peer",
            advice="pass a DNS name or an IP address as server_hostname",
        )


def set_alpn_selection(context: SSL.Context, protocols: Sequence[bytes]) -> None:
    """Let a server choose its most preferred protocol, or end with no_application_protocol."""
    preferred = tuple(protocols)

    def select(_ssl: Any, out: Any, out_length: Any, offered: Any, length: int, _arg: Any) -> int:
        positions: dict[bytes, int] = {}
        position = 0
        while position < length:
            size = offered[position]
            name = bytes(ffi.buffer(offered + position + 1, size))
            positions.setdefault(name, position)
            position += 1 + size
        for name in preferred:
            if name in positions:
                out[0] = offered + positions[name] + 1
                out_length[0] = len(name)
                return int(lib.SSL_TLSEXT_ERR_OK)
        return int(lib.SSL_TLSEXT_ERR_ALERT_FATAL)

    callback = ffi.callback(
        "int(SSL *, unsigned char **, unsigned char *, unsigned char *, unsigned int, void *)",
        select,
    )
    # The C side holds no reference: the callback lives as long as its context.
    context._alpn_select_callback = callback
    lib.SSL_CTX_set_alpn_select_cb(context._context, callback, ffi.NULL)


def set_server_name_selection(
    context: SSL.Context, choose: Callable[[str], SSL.Context | None], *, refuse_unknown: bool
) -> None:
    """Let a server continue a handshake in the context that belongs to the client's server_name.

    `choose` gets the name and must be fast and not raise; None is an unknown name. With
    `refuse_unknown` that ends in alert unrecognized_name (RFC 6066 section 3), else the handshake
    goes on in `context` and the name is not acknowledged. pyOpenSSL's own callback cannot refuse.
    `choose` must not refer to `context`, which keeps it, and with it what it chooses from, alive.
    """
    unknown = int(lib.SSL_TLSEXT_ERR_ALERT_FATAL if refuse_unknown else lib.SSL_TLSEXT_ERR_NOACK)

    def select(ssl: Any, _alert: Any, _argument: Any) -> int:
        name = lib.SSL_get_servername(ssl, lib.TLSEXT_NAMETYPE_host_name)
        if name == ffi.NULL:
            return int(lib.SSL_TLSEXT_ERR_NOACK)
        chosen = choose(ffi.string(name).decode("ascii", "backslashreplace"))
        if chosen is None:
            return unknown  # the library's choice of alert here is unrecognized_name
        lib.SSL_set_SSL_CTX(ssl, chosen._context)
        return int(lib.SSL_TLSEXT_ERR_OK)

    refusal = int(lib.SSL_TLSEXT_ERR_ALERT_FATAL)
    callback = ffi.callback("int(SSL *, int *, void *)", select, error=refusal)
    context._tlsext_servername_callback = callback
    lib.SSL_CTX_set_tlsext_servername_callback(context._context, callback)


def extended_main_secret(connection: SSL.Connection) -> bool:
    """Return whether the finished handshake of TLS 1.2 used RFC 7627."""
    return int(lib.SSL_get_extms_support(connection._ssl)) == 1


def refuse_early_data(context: SSL.Context) -> None:
    """Let no ticket of a server allow 0-RTT data (RFC 9846 section 2.3), whatever the default."""
    lib.SSL_CTX_set_max_early_data(context._context, 0)


class TicketSession:
    """A session of a client, with the ticket to resume it by; holds secrets, and shows none."""

    __slots__ = ("_pointer",)

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer

    def measure(self) -> tuple[int, int]:
        """Return its size in bytes, and the lifetime in seconds that the server gave its ticket."""
        size = int(lib.i2d_SSL_SESSION(self._pointer, ffi.NULL))
        encoded = ffi.new("unsigned char[]", size)
        lib.i2d_SSL_SESSION(self._pointer, ffi.new("unsigned char **", encoded))
        view = ffi.buffer(encoded, size)
        try:
            return size, _lifetime_hint(memoryview(view))
        finally:
            view[:] = bytes(size)


def _lifetime_hint(encoded: memoryview) -> int:
    """Return the field [9] of the library's own encoding (ssl_asn1.c, DER); 0 if it is not there.

    The binding has no accessor.
    """
    position, end = _der_content(encoded, 0)
    while position < end:
        start, following = _der_content(encoded, position)
        if encoded[position] == _TAG_OF_LIFETIME_HINT:
            integer, stop = _der_content(encoded, start)
            return int.from_bytes(encoded[integer:stop], "big")
        position = following
    return 0


def _der_content(encoded: memoryview, position: int) -> tuple[int, int]:
    """Return where the content of the element at `position` begins and ends."""
    start, length = position + 2, encoded[position + 1]
    if length & 0x80:
        octets = encoded[start : start + (length & 0x7F)]
        start, length = start + len(octets), int.from_bytes(octets, "big")
    return start, start + length


def offer_session(connection: SSL.Connection, session: TicketSession) -> None:
    """Let a client that has not begun its handshake offer to resume a session.

    pyOpenSSL's own call insists on the very context that the session came from; the library only
    asks for a compatible one, and the caller sees to that (`transport.sessions`).
    """
    if lib.SSL_set_session(connection._ssl, session._pointer) != 1:
        lib.ERR_clear_error()
        raise MemoryError("no memory for a session")


def take_session(
    connection: SSL.Connection, previous: TicketSession | None
) -> TicketSession | None:
    """Return a client's session if it is another one than `previous`, which must still be held.

    On TLS 1.3 each ticket makes a session of its own; before the first, it cannot be resumed.
    """
    pointer = lib.SSL_get1_session(connection._ssl)
    if pointer == ffi.NULL:
        return None
    held = ffi.gc(pointer, lib.SSL_SESSION_free)
    return None if previous is not None and held == previous._pointer else TicketSession(held)


def session_reused(connection: SSL.Connection) -> bool:
    """Return whether the finished handshake resumed an earlier session."""
    return int(lib.SSL_session_reused(connection._ssl)) == 1


# The calls of every connection. What else than success may come of them daily, they say by a value,
# where pyOpenSSL raises: an exception costs more than some of the calls do, each handshake waits
# twice, and many a peer leaves without a word. The values, all above zero:
#
# - `WANT_READ` and `WANT_WRITE`: repeat the call once the socket is ready for that;
# - `CLOSE_NOTIFY`: the peer has ended its data;
# - `GONE`: the connection ended without close_notify.
#
# Every other error is raised, as the methods of `SSL.Connection` raise it; by `write` also a peer
# that is gone, since which error of the socket it was is worth knowing there.


def do_handshake(connection: SSL.Connection) -> int:
    """Take the handshake further; 0 when done, else one of the values above."""
    ssl = connection._ssl
    lib.ERR_clear_error()
    result = lib.SSL_do_handshake(ssl)
    return 0 if result == 1 else _outcome(connection, ssl, result)


def read(connection: SSL.Connection, limit_bytes: int) -> bytes | int:
    """Return at most `limit_bytes` of plaintext, or one of the values above."""
    ssl = connection._ssl
    lib.ERR_clear_error()
    buffer = _allocate("char[]", limit_bytes)
    result = lib.SSL_read(ssl, buffer, limit_bytes)
    return ffi.buffer(buffer, result)[:] if result > 0 else _outcome(connection, ssl, result)


def read_into(connection: SSL.Connection, buffer: memoryview) -> int:
    """Read at most a record of plaintext into `buffer`, which must not be empty.

    Returns the number of bytes, or one of the values above, negated.
    """
    ssl = connection._ssl
    lib.ERR_clear_error()
    with ffi.from_buffer(buffer, require_writable=True) as target:
        result = int(lib.SSL_read(ssl, target, min(len(target), 0x7FFFFFFF)))
    return result if result > 0 else -_outcome(connection, ssl, result)


def write(connection: SSL.Connection, data: bytes | memoryview) -> int:
    """Send all of `data`, which must not be empty; its length, or one of the values negated."""
    ssl = connection._ssl
    lib.ERR_clear_error()
    with ffi.from_buffer(data) as source:
        result = int(lib.SSL_write(ssl, source, len(source)))
    return result if result > 0 else -_outcome(connection, ssl, result, gone_errors=frozenset())


def _outcome(
    connection: SSL.Connection,
    ssl: Any,
    result: int,
    *,
    gone_errors: frozenset[int] = _GONE_ERRORS,
) -> int:
    error = int(lib.SSL_get_error(ssl, result))
    if error in (WANT_READ, WANT_WRITE, CLOSE_NOTIFY):
        return error
    if error == GONE:
        if ffi.errno in gone_errors:
            return GONE
    elif error == _SSL_ERROR and lib.ERR_GET_REASON(lib.ERR_peek_error()) == _END_OF_SOCKET:
        lib.ERR_clear_error()
        return GONE
    connection._raise_ssl_error(ssl, result)
    return error


@ffi.callback("void(SSL *, int, int)")  # type: ignore[untyped-decorator] # cffi has no types
def _mark(ssl: Any, _where: int, _result: int) -> None:
    connection = SSL.Connection._reverse_mapping.get(ssl)
    if connection is not None:
        connection.set_app_data(_WORKED_OFF)


def watch_messages(connection: SSL.Connection) -> None:
    """Let `take_notice` know of messages from now on; call it when the handshake is done."""
    lib.SSL_clear_mode(connection._ssl, lib.SSL_MODE_AUTO_RETRY)
    lib.SSL_set_info_callback(connection._ssl, _mark)


def take_notice(connection: SSL.Connection) -> bool:
    """Return whether the connection worked off a message of TLS itself since the last call."""
    if connection.get_app_data() is not _WORKED_OFF:
        return False
    connection.set_app_data(None)
    return True


def feed(connection: SSL.Connection, data: bytes | memoryview) -> None:
    """Hand bytes of the peer to a connection in memory."""
    lib.BIO_write(connection._into_ssl, data, len(data))


def take_output(connection: SSL.Connection) -> bytes:
    """Take what a connection in memory has to send to the peer."""
    start = ffi.new("char **")
    length = lib.BIO_get_mem_data(connection._from_ssl, start)
    if not length:
        return b""
    buffer = _allocate("char[]", length)
    return bytes(ffi.buffer(buffer, lib.BIO_read(connection._from_ssl, buffer, length)))


def pending_output_bytes(connection: SSL.Connection) -> int:
    """Return how many bytes wait in the memory BIO to be sent to the peer."""
    start = ffi.new("char **")
    return int(lib.BIO_get_mem_data(connection._from_ssl, start))


def draw_fatal_alert(connection: SSL.Connection) -> tuple[bytes, AlertDescription]:
    """Make the library produce a fatal alert; return the record to send and its description.

    Call it after a finished handshake, with all other output already taken. The connection
    cannot be used afterwards.
    """
    record, description = _IMPOSSIBLE_RECORDS.get(
        connection.get_protocol_version(), _IMPOSSIBLE_RECORD
    )
    source, sink = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
    lib.BIO_write(source, record, len(record))
    lib.SSL_set_bio(connection._ssl, source, sink)  # takes both over and frees the old ones
    connection._into_ssl, connection._from_ssl = source, sink
    scratch = ffi.new("char[]", 1)
    lib.ERR_clear_error()
    lib.SSL_read(connection._ssl, scratch, 1)
    lib.ERR_clear_error()
    alert = ffi.new("char[]", _MAX_ALERT_RECORD_BYTES)
    length = int(lib.BIO_read(sink, alert, _MAX_ALERT_RECORD_BYTES))
    return bytes(ffi.buffer(alert, max(length, 0))), description


def error_of_connection(
    connection: SSL.Connection, error: SSL.Error, *, writing: bool = False
) -> TransportError:
    """Translate an error that a call on `connection` raised, one that sends if `writing`."""
    result, text = 0, ""
    if "certificate verify failed" in queued_reasons(error):
        result = int(lib.SSL_get_verify_result(connection._ssl))
        text = ffi.string(lib.X509_verify_cert_error_string(result)).decode("ascii", "replace")
    return translate_error(
        error,
        verify_result=result,
        verify_text=text,
        tls_1_3=connection.get_protocol_version() == SSL.TLS1_3_VERSION,
        writing=writing,
    )

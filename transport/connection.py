"""The TLS core under both engines: one connection, no waiting, no clock.

A `TLSCore` drives a pyOpenSSL `Connection`, bound to a non-blocking socket or, without one, to
memory. It never waits: an operation that cannot go on says which direction it wants (`Want.READ`,
`Want.WRITE`), and the engine above decides how to wait and for how long. `transport.blocking` waits
in `poll(2)`, `transport.stream` in the event loop; all rules about TLS itself live here, once.

**States.** A core is *new* until its handshake ends, then *open*; an error makes it *failed* for
good, and every later call raises that error anew. What is kept is how to make it, not the error
itself: one that was raised refers to the frames that it went through and they to this object, so
that its memory would be free at a collection only. There is no way from *new* to the first
application byte around `handshake`: `read` and `write` refuse until the negotiated parameters have
been checked (`transport.negotiated`) and `negotiated` holds the proof.

**The check comes after the handshake.** The library has then sent its Finished, so the peer may
believe that the session stands. A violation is answered with a fatal alert (see
`transport.openssl.draw_fatal_alert` for how, and for which one), after which the library itself
refuses to read or write. No application byte is handed up or sent.

**Writes are whole.** Partial writes are off: a `write` that returns `Want` has put part of its data
on the wire, and OpenSSL demands that the next write repeat the same data. Two things follow. The
engines let one write finish before the next begins. And a connection with a write half done cannot
say close_notify, since the alert would land inside it: `close_notify` does nothing then, and the
peer rightly sees a truncation.

**A peer that is gone** may have said why: an upload is too large, or an alert. That is still in the
socket when nothing more can be sent, but a write that fails inside the library ends the reading
too, with OpenSSL 4.0. So `write` asks the socket first, and if it is broken fails by itself, alone:
`read` goes on to the end. That costs 1.5 microseconds, and leaves the instants inside a call of the
library: a reset that comes in one of those ends both directions.

**Ends.** `read` returns ``b""`` on close_notify alone. The end of the socket without it is a
`TruncatedStream`, and stays one: RFC 9846 section 6.1. TLS lets each direction close by itself
(half-close), so reading goes on after our own close_notify, and writing after the peer's.

**Messages without data.** A peer may send KeyUpdates, tickets or attempts to renegotiate at any
time, and each costs a key derivation, perhaps an answer, and the sender next to nothing. So a read
handles one at a time, and 32 in a row without data, our answers among them, end the connection;
with data between them they cost no more than the data does. An answer that cannot be sent (the peer
asks for KeyUpdates and does not read) makes the read wait to write: one answer is held, and no more
is read. Empty records are bounded by the library, at 32 in a row as well.

**Speed.** In CPU time of the server, a full handshake of TLS 1.3 and its end cost some 400
microseconds, of which a bare loop over the library's calls takes 320. What was measured, in
microseconds: a copy of a failed connection's error at its close, 8; raising where a value says
"wait" or "gone", 5; judging facts that were judged before (`EndpointContext.judge`), 10; reading,
or accepting, a second time before a wait, 15. What bought nothing: doing the handshake in memory,
with one `recv` for the library's three reads; waiting before the first read instead of after it;
and closing a socket whose peer is gone with fewer calls.

A core is not safe for threads: OpenSSL allows one call at a time per connection. The engines see
to that.
"""

from __future__ import annotations

import contextlib
import errno
from enum import Enum
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NoReturn

from OpenSSL import SSL

from transport import failures, openssl
from transport.authorization import PeerNotAuthorized
from transport.context import read_handshake_facts
from transport.errors import (
    AlertDescription,
    APIMisuse,
    CertificateRejected,
    PeerMisbehaved,
    PolicyViolation,
    TransportError,
)
from transport.openssl_peers import error_of_refusal
from transport.server_names import ascii_hostname
from transport.sessions import require_valid_certificate
from transport.sockets import FORKS, close_politely, error_of_sending
from transport.translation import is_plain_http

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from transport.authorization import AuthorizedPeer
    from transport.context import EndpointContext
    from transport.negotiated import NegotiatedSession
    from transport.sessions import ConnectionTickets

__all__ = [
    "MAX_RECORD_BYTES",
    "MAX_WRITE_BYTES",
    "TLSCore",
    "Want",
]

MAX_RECORD_BYTES: Final = 16 * 1024  # RFC 9846 section 5.1: plaintext in one record
MAX_WRITE_BYTES: Final = 1024 * 1024  # what one call into the library is given at most
_MAX_EXPORT_BYTES: Final = 255 * 32  # RFC 5869 section 2.3, for the shorter of the hashes in use
_MAX_READS_FOR_TICKETS: Final = 16
_MAX_MESSAGES_WITHOUT_DATA: Final = 32
_PLAIN_HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 40\r\n\r\nThis port speaks TLS: use https:// here\n"
)


class Want(Enum):
    """What a connection waits for before the same call can go on."""

    READ = "read"
    WRITE = "write"


_WANTS: Final = {openssl.WANT_READ: Want.READ, openssl.WANT_WRITE: Want.WRITE}


class TLSCore:
    """One TLS connection over a non-blocking socket, or over memory if `transport` is None.

    A client needs `server_hostname`, a DNS name or an IP address that the server's certificate must
    carry; the name is also sent as server_name (RFC 6066 section 3). With `tickets` it resumes a
    session if it can. Raises `APIMisuse`.
    """

    __slots__ = (
        "_authorized_peer",
        "_connection",
        "_endpoint",
        "_failure",
        "_forks_as_child",
        "_forks_seen",
        "_last_words",
        "_messages",
        "_negotiated",
        "_sent_close_notify",
        "_tickets",
        "_transport",
        "_write_failure",
        "_write_pending",
    )

    def __init__(
        self,
        endpoint: EndpointContext,
        transport: socket.socket | None,
        *,
        server_hostname: str | None = None,
        tickets: ConnectionTickets | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._forks_seen, self._forks_as_child = FORKS.seen, FORKS.as_child
        self._negotiated: NegotiatedSession | None = None
        self._authorized_peer: AuthorizedPeer | None = None
        self._failure: Callable[[], OSError] | None = None
        self._write_failure: Callable[[], OSError] | None = None  # of our direction alone
        self._sent_close_notify = False
        self._write_pending = False
        self._last_words = b""
        self._messages = 0  # of TLS itself, since the last data
        self._connection = SSL.Connection(endpoint.context, transport)
        if endpoint.revocation is not None:
            endpoint.revocation.watch(self._connection)
        if endpoint.server_side:
            if server_hostname is not None:
                raise APIMisuse(
                    "server_hostname was given for a server",
                    advice="leave it out: it names the peer of a client",
                )
            self._connection.set_accept_state()
        else:
            self._expect(server_hostname)
            self._connection.set_connect_state()
            if tickets is not None:
                tickets.offer(self._connection)
        self._tickets = tickets

    def _expect(self, server_hostname: str | None) -> None:
        if not server_hostname:
            raise APIMisuse(
                "a client needs server_hostname, or it could not tell whom it talks to",
                advice="pass the name or address that the server's certificate carries",
            )
        try:
            address = ip_address(server_hostname)
        except ValueError:
            name = ascii_hostname(server_hostname)
            self._connection.set_tlsext_host_name(name.encode("ascii"))
            openssl.expect_name(self._connection, name)
        else:
            openssl.expect_address(self._connection, address)

    @property
    def negotiated(self) -> NegotiatedSession:
        """The proof of what was negotiated. Raises `APIMisuse` before the handshake is done."""
        if self._negotiated is None:
            raise APIMisuse("the handshake is not done yet", advice="call do_handshake() first")
        return self._negotiated

    @property
    def authorized_peer(self) -> AuthorizedPeer | None:
        """The proof of who was let in; None where no authorization was asked for."""
        return self._authorized_peer

    @property
    def pending_bytes(self) -> int:
        """How many bytes of plaintext can be read without the socket becoming readable."""
        return 0 if self._failure is not None else self._connection.pending()

    @property
    def is_client(self) -> bool:
        """Whether this side began the handshake."""
        return not self._endpoint.server_side

    @property
    def is_established(self) -> bool:
        """Whether the handshake is done and checked, in this process (see `transport.sockets`)."""
        return self._negotiated is not None and self._forks_as_child == FORKS.as_child

    def handshake(self) -> Want | None:
        """Take the handshake as far as it goes; None when it is done and checked.

        Raises `TransportError` of any kind but `HandshakeTimeout`.
        """
        self._require_not_failed()
        if self._negotiated is not None:
            return None
        try:
            result = openssl.do_handshake(self._connection)
        except SSL.Error as error:
            self._fail(error)
        if result:
            return self._wants(result)
        try:
            negotiated = self._endpoint.judge(read_handshake_facts(self._connection))
            if negotiated.resumed and negotiated.peer_certificate is not None:
                require_valid_certificate(negotiated.peer_certificate)
                if self._endpoint.revocation is not None:
                    self._endpoint.revocation.require_resumable(self._connection)
            if self._endpoint.authorization is not None:
                self._authorized_peer = self._endpoint.authorization.authorize(negotiated)
        except (PolicyViolation, PeerNotAuthorized, CertificateRejected) as refusal:
            refusal.alert_sent = self._send_fatal_alert()
            self._failure = refusal.recipe()
            raise
        self._negotiated = negotiated
        self._forks_as_child = FORKS.as_child
        openssl.watch_messages(self._connection)
        if self._tickets is not None:
            self._tickets.established(self._connection, negotiated)
        return None

    def read(self, limit_bytes: int) -> bytes | Want:
        """Return at most `limit_bytes` of plaintext, at most a record; empty on close_notify.

        Raises `TruncatedStream`, `AlertReceived`, `PeerMisbehaved`.
        """
        self._require_open()
        if limit_bytes <= 0:
            return b""
        while True:
            try:
                result = openssl.read(self._connection, min(limit_bytes, MAX_RECORD_BYTES))
            except SSL.Error as error:
                self._fail(error)
            if isinstance(result, bytes):
                self._messages = 0
                return result
            if result == openssl.CLOSE_NOTIFY:
                return b""
            if not self._goes_on(result):
                return self._wants(result)

    def read_into(self, buffer: memoryview) -> int | Want:
        """Read plaintext into `buffer` and return its length; zero on close_notify, else as `read`.

        An empty buffer reads nothing and returns zero.
        """
        self._require_open()
        if not buffer:
            return 0
        while True:
            try:
                result = openssl.read_into(self._connection, buffer)
            except SSL.Error as error:
                self._fail(error)
            if result > 0:
                self._messages = 0
                return result
            if result == -openssl.CLOSE_NOTIFY:
                return 0
            if not self._goes_on(-result):
                return self._wants(-result)

    def _goes_on(self, outcome: int) -> bool:
        """Return whether to read on at once after a read without data, counting messages."""
        if not openssl.take_notice(self._connection):
            return False
        if self._tickets is not None:
            self._tickets.look(self._connection)
        self._messages += 1
        if self._messages > _MAX_MESSAGES_WITHOUT_DATA:
            failure = PeerMisbehaved(
                "the peer sent many messages of TLS itself (KeyUpdate, tickets) and no data",
                advice="look for a broken or hostile peer",
                # Inside a write half done an alert would be garbage.
                alert_sent=None if self._write_pending else self._send_fatal_alert(),
            )
            self._failure = failure.recipe()
            raise failure
        return outcome == openssl.WANT_READ

    def write(self, data: bytes | memoryview) -> int | Want:
        """Send `data`, at most `MAX_WRITE_BYTES`, whole; return its length.

        On `Want`, the next call must repeat the same data. Raises `APIMisuse` after `close_notify`,
        `OSError` with its number where the socket fails, and `AlertReceived` where the peer ended
        the session.
        """
        if self._write_failure is not None:
            raise self._write_failure()
        self._require_open()
        if self._sent_close_notify:
            raise APIMisuse("this side has ended its data", advice="write before closing")
        if not data:
            return 0
        if self._transport is not None and (number := error_of_sending(self._transport)):
            raise self._fail_writing(partial(failures.sending_failed, number))
        try:
            result = openssl.write(self._connection, data)
        except SSL.SysCallError as error:
            self._failure = failures.truncated
            number = max(error.args[0], 0) or errno.EPIPE
            raise self._fail_writing(partial(failures.socket_failed, number)) from error
        except SSL.Error as error:
            self._fail(error, writing=True)
        self._write_pending = result < 0
        return result if result > 0 else self._wants(-result)

    def close_notify(self) -> Want | None:
        """Say that no more data comes, if that can still be said; None when done.

        Does nothing before the handshake is done, after a failure and inside a write. Raises
        nothing: a peer that is gone needs no goodbye.
        """
        if (
            self._sent_close_notify
            or not self.is_established
            or self._failure is not None
            or self._write_pending
        ):
            return None
        openssl.clear_error_queue()
        try:
            self._connection.shutdown()
        except SSL.WantWriteError:
            return Want.WRITE
        except SSL.Error:
            openssl.clear_error_queue()
        self._sent_close_notify = True
        return None

    def discard_input(self) -> bool:
        """Discard what has come from the peer, all but tickets that are wanted; False at its end.

        For the end of a connection with a socket, after `abandon` too. Raises `OSError`.
        """
        if self._tickets is None and self._transport is not None:
            return bool(self._transport.recv(MAX_RECORD_BYTES))
        for _ in range(_MAX_READS_FOR_TICKETS):
            try:
                result = openssl.read(self._connection, MAX_RECORD_BYTES)
            except SSL.Error:
                openssl.clear_error_queue()
                return False
            if result in (openssl.CLOSE_NOTIFY, openssl.GONE):
                return False
            if isinstance(result, int):
                if not openssl.take_notice(self._connection):
                    break
                if self._tickets is not None:
                    self._tickets.look(self._connection)
        return True

    def abandon(self) -> None:
        """Refuse every later call; must precede closing the socket, whose number may be reused."""
        if self._failure is not None or not self._sent_close_notify:
            self._discard_tickets()
        self._write_failure = None
        if self._failure is None:
            self._failure = failures.closed

    def close_transport(self) -> None:
        """Close the socket politely, or only this process's copy if it may be another's too."""
        if self._transport is None:
            return
        if self.is_established or (self._negotiated is None and self._forks_seen == FORKS.seen):
            close_politely(self._transport)
        else:
            self._transport.close()

    def fail(self, error: TransportError) -> None:
        """Make the connection failed for a reason found outside, such as a deadline."""
        if self._failure is None:
            self._failure = error.recipe()
            self._discard_tickets()

    def _discard_tickets(self) -> None:
        if self._tickets is not None:
            self._tickets.discard()

    def export_keying_material(
        self, label: str, length_bytes: int, context: bytes | None = None
    ) -> bytes:
        """Return keying material bound to this session (RFC 9846 section 7.5, RFC 5705).

        Both sides get the same bytes for the same label, length (1 to 8160) and context. Raises
        `APIMisuse` for another length and before the handshake is done.
        """
        self._require_open()
        if not 1 <= length_bytes <= _MAX_EXPORT_BYTES:
            raise APIMisuse(
                f"{length_bytes} bytes of keying material were asked for",
                advice=f"ask for 1 to {_MAX_EXPORT_BYTES}",
            )
        openssl.clear_error_queue()
        return self._connection.export_keying_material(label.encode("utf-8"), length_bytes, context)

    def receive_data(self, data: bytes | memoryview) -> None:
        """Hand over bytes from the peer; only without a socket."""
        self._require_memory()
        if data and self._failure is None:
            self._connection.bio_write(data)

    def receive_end(self) -> None:
        """Say that the peer's bytes have ended; only without a socket."""
        self._require_memory()
        if self._failure is None:
            self._connection.bio_shutdown()

    def data_to_send(self) -> bytes:
        """Return the bytes to take to the peer, perhaps none; only without a socket."""
        self._require_memory()
        last_words, self._last_words = self._last_words, b""
        pending = openssl.pending_output_bytes(self._connection)
        return (self._connection.bio_read(pending) if pending else b"") + last_words

    def _require_memory(self) -> None:
        if self._transport is not None:
            raise APIMisuse("this connection is bound to a socket", advice="use the socket")

    def _require_not_failed(self) -> None:
        if self._failure is not None:
            raise self._failure()

    def _require_open(self) -> None:
        self._require_not_failed()
        if self._negotiated is None:
            raise APIMisuse("the handshake is not done yet", advice="call do_handshake() first")
        if self._forks_as_child != FORKS.as_child:
            self._failure = failures.inherited
            raise self._failure()

    def _wants(self, outcome: int) -> Want:
        """Turn an outcome of `transport.openssl` that is no success into what to wait for."""
        want = _WANTS.get(outcome)
        if want is not None:
            return want
        if outcome == openssl.CLOSE_NOTIFY:
            self._failure = failures.ended_in_handshake
        else:
            established = self._negotiated is not None
            self._failure = failures.truncated if established else failures.truncated_handshake
        self._discard_tickets()
        raise self._failure()

    def _fail(self, error: SSL.Error, *, writing: bool = False) -> NoReturn:
        if isinstance(error, SSL.SysCallError):
            self._failure = partial(failures.socket_failed, error.args[0])
            self._discard_tickets()
            raise self._failure() from error
        failure = error_of_refusal(self._connection) or openssl.error_of_connection(
            self._connection, error, writing=writing
        )
        if self._endpoint.server_side and is_plain_http(error):
            self._answer_plain_http()
        self._failure = failure.recipe()
        self._discard_tickets()
        raise failure from error

    def _fail_writing(self, failure: Callable[[], OSError]) -> OSError:
        """End our direction, and return the error to raise."""
        self._write_failure = failure
        self._write_pending = True  # part of a record may be out, so that nothing can follow it
        self._discard_tickets()
        return failure()

    def _answer_plain_http(self) -> None:
        """Say it in the client's own language: an alert would mean nothing to it."""
        if self._transport is None:
            self._last_words = _PLAIN_HTTP_ANSWER
            return
        with contextlib.suppress(OSError):  # it is gone already
            self._transport.send(_PLAIN_HTTP_ANSWER)

    def _send_fatal_alert(self) -> AlertDescription | None:
        """Send the one fatal alert that can be had; None if the peer is gone already."""
        earlier = self.data_to_send() if self._transport is None else b""
        record, description = openssl.draw_fatal_alert(self._connection)
        if self._transport is None:
            self._last_words = earlier + record
            return description
        try:
            sent = self._transport.send(record)
        except OSError:
            return None
        return description if sent == len(record) else None

"""``pfs connect``: show what is negotiated with a server, then pipe standard input and output.

**Ends.** The end of standard input is said to the server with close_notify (half-close), and what
the server still sends is written out. When the server ends first, it may still be listening
(RFC 9846 section 6.1), even with its direction of TCP ended: nothing tells such a server from one
that is gone until something is sent to it. So sending goes on until the input ends or a write
fails. A write that fails after a proper end means that input was left unsent, which is said, with
exit status 1. While there is no input, TCP's keepalive asks instead, and knows within minutes.

Two ends are the server's to make alone. On TLS 1.2, close_notify ends both directions (RFC 5246
section 7.2.1). And nobody who types at a terminal wants to type on for a server that has ended its
direction of TCP. Input that is there by then is left unsent.

The thread receives, the main thread sends, so that neither waits for the other when both sides have
more to say than the kernel buffers.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from transport.blocking import connect
from transport.commands.addresses import DEFAULT_TLS_PORT, parse_address, show_address
from transport.commands.trust import read_anchors, read_credential, system_anchors
from transport.errors import APIMisuse, TransportError
from transport.policy import ProtocolVersion, get_policy
from transport.revocation import StaplePolicy, read_crl_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from certs.credential import Credential
    from transport.negotiated import NegotiatedSession
    from transport.tls_socket import TLSSocket

__all__ = ["run"]

_BLOCK_BYTES: Final = 64 * 1024
_STDIN, _STDOUT = 0, 1
_LAST_WORDS_SECONDS: Final = 1.0
_KEEPALIVE_SECONDS: Final = 15


def run(
    *,
    address: str,
    ca: Path | None,
    server_name: str | None,
    policy: str,
    certificate: Path | None,
    key: Path | None,
    alpn: Sequence[str],
    crls: Sequence[Path],
    require_ocsp: bool,
    timeout_seconds: float,
    quiet: bool,
) -> int:
    """Connect, show the session on stderr, pipe until both ends are done, and return 0.

    Returns 1, saying so, if the server ended properly and before it took all of the input. Raises
    `TransportError`, `CertsError` and `OSError`.
    """
    host, port = parse_address(address, default_port=DEFAULT_TLS_PORT)
    anchors = system_anchors() if ca is None else read_anchors(ca)
    credential = _credential(certificate, key)
    lists = read_crl_files(crls) if crls else None
    try:
        connected = connect(
            (host, port),
            trust_anchors=anchors,
            server_hostname=server_name or host,
            credential=credential,
            policy=get_policy(policy),
            alpn_protocols=tuple(alpn),
            crls=lists,
            staples=StaplePolicy.REQUIRE if require_ocsp else StaplePolicy.CHECK,
            timeout_seconds=timeout_seconds,
        )
    except TransportError:
        raise
    except OSError as error:
        raise OSError(
            error.errno, error.strerror or str(error), show_address((host, port))
        ) from error
    with connected as connection:
        if not quiet:
            sys.stderr.write(_describe(connection.negotiated, server_name or host))
            sys.stderr.flush()
        pipe = _Pipe(connection)
        if pipe.run():
            return 0
    sys.stderr.write(
        "pfs: the server ended the session before all of standard input was sent; "
        f"{pipe.sent_bytes} bytes were handed to the network, and it need not have taken them all\n"
    )
    return 1


def _credential(certificate: Path | None, key: Path | None) -> Credential | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise APIMisuse("--cert and --key belong together", advice="give both, or neither")
    return read_credential(certificate, key)


def _describe(session: NegotiatedSession, name: str) -> str:
    facts = [
        ("version", str(session.version)),
        ("suite", session.suite),
        ("group", session.group),
        ("forward secrecy", "yes"),
        ("policy", session.policy),
        ("resumed", "yes" if session.resumed else "no"),
        ("ALPN", session.alpn or "none"),
        ("verified as", name),
    ]
    if session.peer_certificate is not None:
        leaf = x509.load_der_x509_certificate(session.peer_certificate)
        facts += [
            ("certificate", ascii(leaf.subject.rfc4514_string() or "(no subject)")[1:-1]),
            ("valid until", leaf.not_valid_after_utc.isoformat()),
            ("sha256", leaf.fingerprint(SHA256()).hex()),
        ]
    width = max(len(what) for what, _value in facts)
    return "".join(f"{what:<{width}}  {value}\n" for what, value in facts)


class _Pipe:
    """Both directions between a connection and standard input and output."""

    def __init__(self, connection: TLSSocket) -> None:
        self._connection = connection
        self._half_closes = connection.negotiated.version == ProtocolVersion.TLS_1_3
        self._peer_is_done, self._peer_done = os.pipe()
        self._failure: OSError | None = None
        self.sent_bytes = 0

    def run(self) -> bool:
        """Pipe until both directions are done; return whether all input was sent, as far as seen.

        Raises what receiving or sending raised.
        """
        receiver = threading.Thread(target=self._receive, daemon=True)
        receiver.start()
        try:
            all_sent = self._send()
        except OSError:
            # The peer went away while we sent; what it said before that is the better reason.
            receiver.join(_LAST_WORDS_SECONDS)
            if self._failure is not None:
                raise self._failure from None
            if receiver.is_alive():
                raise
            return False  # after its proper end
        _wait_until_readable(self._peer_is_done)
        if self._failure is not None:
            raise self._failure
        return all_sent

    def _send(self) -> bool:
        """Send standard input to its end, or while there is anyone to send to.

        Returns whether all was taken, as far as can be seen: what was sent after the server's end
        is doubtful until the connection turns out to have lived on.
        """
        poll = select.poll()
        poll.register(_STDIN, select.POLLIN)
        poll.register(self._peer_is_done, select.POLLIN)
        poll.register(self._connection.fileno(), select.POLLRDHUP)
        peer_is_done = doubtful = False
        while True:
            ready = {descriptor for descriptor, _event in poll.poll()}
            if not peer_is_done and ready != {_STDIN}:
                # Its goodbye is read first: a write that fails would end the reading too.
                _wait_until_readable(self._peer_is_done)
                peer_is_done = True
                if self._failure is not None or not self._may_still_listen():
                    return not _has_input()
                poll.unregister(self._peer_is_done)
                poll.modify(self._connection.fileno(), 0)  # an error, or the end of both directions
                _ask_whether_alive(self._connection)
            elif _STDIN in ready:
                data = os.read(_STDIN, _BLOCK_BYTES)
                if not data:
                    try:
                        self._connection.shutdown(socket.SHUT_WR)
                    except OSError:
                        return not doubtful  # and if it was cut off, the receiver says so
                    return True
                self._connection.sendall(data)
                self.sent_bytes += len(data)
                doubtful = peer_is_done
            else:  # the end of both directions
                return not doubtful and not _has_input()

    def _may_still_listen(self) -> bool:
        return self._half_closes and not os.isatty(_STDIN)

    def _receive(self) -> None:
        try:
            while data := self._connection.recv(_BLOCK_BYTES):
                _write_all(data)
            self._wait_for_the_end_of_tcp()
        except OSError as error:
            self._failure = error
        finally:
            os.close(self._peer_done)

    def _wait_for_the_end_of_tcp(self) -> None:
        descriptor = self._connection.fileno()
        if self._half_closes and descriptor >= 0:
            poll = select.poll()
            poll.register(descriptor, select.POLLRDHUP)
            poll.poll()


def _ask_whether_alive(connection: TLSSocket) -> None:
    """Let TCP find out whether a peer that has ended its direction still holds the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)


def _wait_until_readable(descriptor: int, timeout_milliseconds: int | None = None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_milliseconds))


def _has_input() -> bool:
    """Return whether standard input has data, without waiting; its end is none."""
    return _wait_until_readable(_STDIN, 0) and bool(os.read(_STDIN, 1))


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_STDOUT, view) :]

"""``pfs connect``: show what is negotiated with a server, then pipe standard input and output.

**Ends.** The end of standard input is said to the server with close_notify (half-close), and what
the server still sends is written out. When the server ends first, with close_notify and the end of
TCP, there is nobody left to send to, and the command ends; after close_notify alone, the server may
still be listening (RFC 9846 section 6.1), and sending goes on until the input ends.

The thread receives, the main thread sends, so that neither waits for the other when both sides have
more to say than the kernel buffers.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from certs.credential import MAX_ANCHORS_PEM_BYTES, TrustAnchors
from transport.blocking import connect
from transport.commands.addresses import parse_address
from transport.credentials import CredentialFiles
from transport.errors import APIMisuse
from transport.policy import ProtocolVersion, get_policy
from transport.revocation import StaplePolicy, read_crl_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.credential import Credential
    from transport.negotiated import NegotiatedSession
    from transport.tls_socket import TLSSocket

__all__ = ["run"]

_BLOCK_BYTES: Final = 64 * 1024
_STDIN, _STDOUT = 0, 1
_DEFAULT_PORT: Final = 443


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

    Raises `TransportError`, `CertsError` and `OSError`.
    """
    host, port = parse_address(address, default_port=_DEFAULT_PORT)
    with connect(
        (host, port),
        trust_anchors=_anchors(ca),
        server_hostname=server_name or host,
        credential=_credential(certificate, key),
        policy=get_policy(policy),
        alpn_protocols=tuple(alpn),
        crls=read_crl_files(crls) if crls else None,
        staples=StaplePolicy.REQUIRE if require_ocsp else StaplePolicy.CHECK,
        timeout_seconds=timeout_seconds,
    ) as connection:
        if not quiet:
            sys.stderr.write(_describe(connection.negotiated, server_name or host))
            sys.stderr.flush()
        _Pipe(connection).run()
    return 0


def _anchors(ca: Path | None) -> TrustAnchors:
    if ca is None:
        paths = ssl.get_default_verify_paths()
        if paths.cafile is None:
            raise APIMisuse(
                "this system has no file of trusted authorities", advice="give --ca FILE"
            )
        ca = Path(paths.cafile)
    with ca.open("rb") as file:
        return TrustAnchors.from_pem(file.read(MAX_ANCHORS_PEM_BYTES + 1))


def _credential(certificate: Path | None, key: Path | None) -> Credential | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise APIMisuse("--cert and --key belong together", advice="give both, or neither")
    return CredentialFiles(certificate, key).load()


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
        self._peer_is_done, self._peer_done = os.pipe()
        self._failure: OSError | None = None

    def run(self) -> None:
        """Pipe until both directions are done. Raises what receiving or sending raised."""
        receiver = threading.Thread(target=self._receive, daemon=True)
        receiver.start()
        try:
            if self._send():
                receiver.join()
        except OSError:
            # The peer went away while we sent; what it said before that is the better reason.
            receiver.join(1.0)
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure

    def _send(self) -> bool:
        """Send standard input; return whether its end was reached, rather than the peer's."""
        poll = select.poll()
        poll.register(_STDIN, select.POLLIN)
        poll.register(self._peer_is_done, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _event in poll.poll()}
            if self._peer_is_done in ready:
                return False
            data = os.read(_STDIN, _BLOCK_BYTES)
            if not data:
                self._connection.shutdown(socket.SHUT_WR)
                return True
            self._connection.sendall(data)

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
        if self._connection.negotiated.version != ProtocolVersion.TLS_1_3:
            return  # RFC 5246 section 7.2.1: close_notify ends both directions
        descriptor = self._connection.fileno()
        if descriptor >= 0:
            poll = select.poll()
            poll.register(descriptor, select.POLLRDHUP)
            poll.poll()


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_STDOUT, view) :]

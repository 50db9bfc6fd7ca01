"""DELIBERATELY WEAK. A small TLS 1.3 client that keeps its ephemeral private keys, and tells them.

No library gives away the private keys of its key exchange, and rightly so. The proof needs them:
that a recorded session stays closed to half a hybrid's keys, or to every classical key there was
(harvest now, decrypt later), is worth something only beside the same session opened by both halves.
This client makes real sessions with real servers, our own among them, and keeps what it should have
forgotten. Given the keys of an earlier session it uses them again, as some stacks do for hours.

Never use this to protect anything. It does one full handshake in one group, TLS 1.3 alone, without
retry, resumption or client certificate; it checks chain, name, CertificateVerify and
Finished, so that nobody else is at the other end, and it connects to loopback only. What it does
not understand ends the session with `TelltaleFailed`.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from interop.errors import DissectError
from interop.peers.endpoints import is_ip_address
from interop.peers.telltale_records import (
    HEADER_LENGTH,
    PSS_SCHEMES,
    SCHEMES,
    SERVER_SIGNED,
    SUITES,
    TLS12,
    TLS13,
    Records,
    TelltaleConnection,
    TelltaleFailed,
    TLS13Protection,
    extension,
    generate,
    message_of,
    numbers,
    plain_record,
    public_value,
    vector,
)
from interop.peers.weak import WeakSessionFailed, require_server
from interop.wire import handshake as hs
from interop.wire import key_schedule as ks
from interop.wire.groups import EphemeralKeys, EphemeralPrivateKey, NoSharedSecret, shared_secret
from interop.wire.registry import ContentType, ExtensionType, HandshakeType, NamedGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop.peers.endpoints import Address

__all__ = ["GROUPS", "TelltaleConnection", "TelltaleFailed", "telltale_connect"]

_DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_RANDOM: Final = slice(6, 38)  # in a ClientHello with its header
GROUPS: Final = {
    "x25519": NamedGroup.X25519,
    "secp256r1": NamedGroup.SECP256R1,
    "X25519MLKEM768": NamedGroup.X25519MLKEM768,
}
"""The groups that it can do, by the names of their registry."""


@contextlib.contextmanager
def telltale_connect(
    address: Address,
    ca_pem: bytes,
    server_name: str,
    *,
    group: str,
    ephemeral_keys: tuple[EphemeralPrivateKey, ...] = (),
    key_log: Callable[[bytes], None] | None = None,
    timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
) -> Iterator[TelltaleConnection]:
    """Open a session in `group`, one of `GROUPS`; `ephemeral_keys` of an earlier one are reused.

    `key_log` is called with each key-log line, without its line end. Raises TelltaleFailed where no
    session comes about, or the server is not `server_name`.
    """
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise TelltaleFailed("this client gives its keys away: it connects to loopback only")
    keys = ephemeral_keys or generate(GROUPS[group])
    try:
        sock = socket.create_connection(address, timeout_seconds)
    except OSError as error:
        raise TelltaleFailed(f"cannot connect: {error}") from error
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            handshake = _Handshake(Records(sock), GROUPS[group], keys, server_name, key_log)
            connection = handshake.run(ca_pem)
        except (DissectError, NoSharedSecret, WeakSessionFailed, OSError, ValueError) as error:
            raise TelltaleFailed(f"no session came about: {error}") from error
        try:
            yield connection
        finally:
            connection.close()


def _client_hello(group: NamedGroup, share: bytes, server_name: str) -> bytes:
    """Write a ClientHello (RFC 9846 section 4.2.2)."""
    name = b"\0" + vector(2, server_name.encode("ascii"))
    named = extension(ExtensionType.SERVER_NAME, vector(2, name))
    block = (
        b"" if is_ip_address(server_name) else named,  # RFC 6066 section 3
        extension(ExtensionType.SUPPORTED_VERSIONS, vector(1, TLS13)),
        extension(ExtensionType.SUPPORTED_GROUPS, vector(2, numbers(group))),
        extension(ExtensionType.SIGNATURE_ALGORITHMS, vector(2, numbers(*SCHEMES, *PSS_SCHEMES))),
        extension(ExtensionType.KEY_SHARE, vector(2, numbers(group) + vector(2, share))),
    )
    body = (
        TLS12
        + os.urandom(32)
        + vector(1, b"")
        + vector(2, numbers(*SUITES))
        + vector(1, b"\0")
        + vector(2, b"".join(block))
    )
    return message_of(HandshakeType.CLIENT_HELLO, body)


class _Handshake:
    """One full handshake, message after message."""

    def __init__(
        self,
        records: Records,
        group: NamedGroup,
        keys: tuple[EphemeralPrivateKey, ...],
        server_name: str,
        key_log: Callable[[bytes], None] | None,
    ) -> None:
        self._records = records
        self._key_log = key_log
        self._group = group
        self._keys = keys
        self._server_name = server_name
        self._share = b"".join(map(public_value, keys))
        self._messages: list[bytes] = []
        self._hash = "sha256"

    def run(self, ca_pem: bytes) -> TelltaleConnection:
        hello = _client_hello(self._group, self._share, self._server_name)
        self._messages.append(hello)
        self._records.sock.sendall(plain_record(ContentType.HANDSHAKE, hello, b"\x03\x01"))
        suite, handshake = self._server_hello()
        client, server = (
            self._derive(handshake, label) for label in (b"c hs traffic", b"s hs traffic")
        )
        self._log(hello, b"HANDSHAKE_TRAFFIC_SECRET", client, server)
        reading = TLS13Protection(suite, server)
        self._server_flight(reading, server, ca_pem)
        main = ks.main_secret(self._hash, handshake)
        after = [self._derive(main, label) for label in (b"c ap traffic", b"s ap traffic")]
        self._log(hello, b"TRAFFIC_SECRET_0", *after)
        verify_data = ks.verify_data(self._hash, client, self._transcript())
        finished = message_of(HandshakeType.FINISHED, verify_data)
        sealed = TLS13Protection(suite, client).seal(ContentType.HANDSHAKE, finished)
        self._records.sock.sendall(sealed)
        writing, reading = (TLS13Protection(suite, secret) for secret in after)
        random = hs.parse_client_hello(hello).random
        return TelltaleConnection(self._records, reading, writing, self._keys, client_random=random)

    def _log(self, hello: bytes, label: bytes, client: bytes, server: bytes) -> None:
        """Write the secrets of both directions to the key log (RFC 9850 section 2)."""
        if self._key_log is None:
            return
        random = hello[_RANDOM].hex().encode()
        for side, secret in ((b"CLIENT_", client), (b"SERVER_", server)):
            self._key_log(b"%s%s %s %s" % (side, label, random, secret.hex().encode()))

    def _transcript(self) -> bytes:
        return ks.transcript_hash(self._hash, *self._messages)

    def _derive(self, secret: bytes, label: bytes) -> bytes:
        return ks.derive_secret(self._hash, secret, label, self._transcript())

    def _server_hello(self) -> tuple[int, bytes]:
        """Take the ServerHello; return the suite and the handshake secret."""
        content_type, record = self._records.read()
        if content_type != ContentType.HANDSHAKE:
            raise TelltaleFailed("the server refused the ClientHello")
        message = record[HEADER_LENGTH:]
        hello = hs.parse_server_hello(message)
        share = hello.key_share
        if hello.is_hello_retry_request or share is None or share.group != self._group:
            raise TelltaleFailed("the server wants another key exchange than the one offered")
        if hello.cipher_suite not in SUITES:
            raise TelltaleFailed("the server chose a suite that was not offered")
        self._hash = SUITES[hello.cipher_suite][0]
        self._messages.append(message)
        secret = shared_secret(
            EphemeralKeys(self._keys), self._group, self._share, share.key_exchange
        )
        early = ks.early_secret(self._hash)
        return hello.cipher_suite, ks.handshake_secret(self._hash, early, secret)

    def _server_flight(self, reading: TLS13Protection, secret: bytes, ca_pem: bytes) -> None:
        """Take EncryptedExtensions to Finished, and check who sent them."""
        chain: list[x509.Certificate] = []
        for due in (
            HandshakeType.ENCRYPTED_EXTENSIONS,
            HandshakeType.CERTIFICATE,
            HandshakeType.CERTIFICATE_VERIFY,
            HandshakeType.FINISHED,
        ):
            message = self._records.read_message(reading)
            if message[0] != due:
                raise TelltaleFailed("a message of the server is not the one that is due")
            self._check(message, chain, secret, ca_pem)
            self._messages.append(message)

    def _check(
        self, message: bytes, chain: list[x509.Certificate], secret: bytes, ca_pem: bytes
    ) -> None:
        """Check what one message says of who sent it; `chain` is filled by Certificate."""
        if message[0] == HandshakeType.CERTIFICATE:
            encoded = hs.certificate_chain(message, tls13=True)
            chain += [x509.load_der_x509_certificate(der) for der in encoded]
            require_server(chain, ca_pem, self._server_name)
        elif message[0] == HandshakeType.CERTIFICATE_VERIFY:
            self._require_signature(message, chain[0])
        elif message[0] == HandshakeType.FINISHED:
            due = ks.verify_data(self._hash, secret, self._transcript())
            if not hmac.compare_digest(hs.finished(message), due):
                raise TelltaleFailed("the server's Finished is not right")

    def _require_signature(self, message: bytes, leaf: x509.Certificate) -> None:
        scheme, signature = hs.certificate_verify(message)
        key, signed = leaf.public_key(), SERVER_SIGNED + self._transcript()
        try:
            if isinstance(key, ec.EllipticCurvePublicKey) and scheme in SCHEMES:
                key.verify(signature, signed, ec.ECDSA(SCHEMES[scheme]))
            elif isinstance(key, rsa.RSAPublicKey) and scheme in PSS_SCHEMES:
                algorithm = PSS_SCHEMES[scheme]
                salt = padding.PSS.DIGEST_LENGTH
                key.verify(signature, signed, padding.PSS(padding.MGF1(algorithm), salt), algorithm)
            else:
                raise TelltaleFailed("the server signs with another algorithm than was offered")
        except InvalidSignature:
            raise TelltaleFailed("the server's CertificateVerify is not right") from None

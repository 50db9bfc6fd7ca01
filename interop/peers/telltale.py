"""DELIBERATELY WEAK. A small TLS 1.3 client that keeps its ephemeral private keys, and tells them.

No library gives away the private keys of its key exchange, and rightly so. The proof needs them:
that a recorded session stays closed to half a hybrid's keys, or to every classical key there was
(harvest now, decrypt later), is worth something only beside the same session opened by both halves.
This client makes real sessions with real servers, our own among them, and keeps what it should have
forgotten. Given the keys of an earlier session it uses them again, as some stacks do for hours.

Never use this to protect anything. It does one full handshake in one group, TLS 1.3 alone, without
retry, resumption, client certificate or KeyUpdate; it checks chain, name, CertificateVerify and
Finished, so that nobody else is at the other end, and it connects to loopback only. What it does
not understand ends the session with `TelltaleFailed`.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.errors import DissectError, InteropError
from interop.peers.weak import WeakSessionFailed, require_server
from interop.wire import handshake as hs
from interop.wire import key_schedule as ks
from interop.wire.groups import EphemeralKeys, EphemeralPrivateKey, NoSharedSecret, shared_secret
from interop.wire.record import MAX_CIPHERTEXT_TLS13, MAX_PLAINTEXT, read_header
from interop.wire.registry import ContentType, ExtensionType, HandshakeType, NamedGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.peers.endpoints import Address

__all__ = ["GROUPS", "TelltaleConnection", "TelltaleFailed", "telltale_connect"]

_HEADER_LENGTH: Final = 5
_TLS12, _TLS13 = b"\x03\x03", b"\x03\x04"
_CLOSE_NOTIFY: Final = b"\x01\x00"
_LINGER_SECONDS: Final = 2.0
_DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_MAX_FLIGHT_RECORDS: Final = 64
_SIGNED: Final = b" " * 64 + b"TLS 1.3, server CertificateVerify\0"  # RFC 9846 section 4.5.2

_AEAD = AESGCM | ChaCha20Poly1305
_SUITES: Final[dict[int, tuple[str, int, type[_AEAD]]]] = {  # hash, key length, AEAD
    0x1301: ("sha256", 16, AESGCM),
    0x1302: ("sha384", 32, AESGCM),
    0x1303: ("sha256", 32, ChaCha20Poly1305),
}
_SCHEMES: Final[dict[int, hashes.HashAlgorithm]] = {  # ECDSA with P-256, P-384, P-521
    0x0403: hashes.SHA256(),
    0x0503: hashes.SHA384(),
    0x0603: hashes.SHA512(),
}
GROUPS: Final = {
    "x25519": NamedGroup.X25519,
    "secp256r1": NamedGroup.SECP256R1,
    "X25519MLKEM768": NamedGroup.X25519MLKEM768,
}
"""The groups that it can do, by the names of their registry."""


class TelltaleFailed(InteropError):
    """A session could not be made, or broke."""


class _Protection:
    """One direction's keys (RFC 9846 section 5.2)."""

    def __init__(self, suite: int, secret: bytes) -> None:
        hash_name, key_length, aead = _SUITES[suite]
        keys = ks.traffic_keys(hash_name, secret, key_length)
        self._aead: _AEAD = aead(keys.key)
        self._iv = int.from_bytes(keys.iv, "big")
        self._sequence = 0

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return nonce

    def seal(self, content_type: int, content: bytes) -> bytes:
        inner = content + bytes((content_type,))
        header = b"\x17" + _TLS12 + (len(inner) + 16).to_bytes(2, "big")
        return header + self._aead.encrypt(self._nonce(), inner, header)

    def open(self, record: bytes) -> tuple[int, bytes]:
        header, sealed = record[:_HEADER_LENGTH], record[_HEADER_LENGTH:]
        try:
            inner = self._aead.decrypt(self._nonce(), sealed, header).rstrip(b"\0")
        except InvalidTag:
            raise TelltaleFailed("a record of the server does not authenticate") from None
        if not inner:
            raise TelltaleFailed("a record of the server has no content type")
        return inner[-1], inner[:-1]


@dataclass(frozen=True, slots=True)
class _Records:
    """Whole records from a socket."""

    sock: socket.socket

    def read(self) -> tuple[int, bytes]:
        header = self._exactly(_HEADER_LENGTH)
        try:
            fields = read_header(memoryview(header), 0, MAX_CIPHERTEXT_TLS13)
        except DissectError as error:
            raise TelltaleFailed(f"the server does not speak TLS: {error}") from error
        if fields is None:  # a header's worth of bytes is there
            raise TelltaleFailed("the server does not speak TLS")
        return fields[0], header + self._exactly(fields[2])

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = self.sock.recv(length - len(data))
            except OSError as error:
                raise TelltaleFailed(f"nothing came from the server: {error}") from error
            if not piece:
                raise TelltaleFailed("the server ended the connection")
            data += piece
        return bytes(data)


class TelltaleConnection:
    """An open session. `ephemeral_keys` are its private keys: of a hybrid both, ML-KEM first."""

    def __init__(
        self,
        records: _Records,
        reading: _Protection,
        writing: _Protection,
        ephemeral_keys: tuple[EphemeralPrivateKey, ...],
    ) -> None:
        self._records = records
        self._reading = reading
        self._writing = writing
        self._rest = b""
        self._ended = False
        self.ephemeral_keys = ephemeral_keys

    def recv(self, maximum_bytes: int = MAX_PLAINTEXT) -> bytes:
        """Give at least one byte, or none at the server's close_notify; raises TelltaleFailed."""
        while not self._rest and not self._ended:
            content_type, record = self._records.read()
            if content_type != ContentType.APPLICATION_DATA:
                raise TelltaleFailed("a record of the server is not protected")
            content_type, content = self._reading.open(record)
            if content_type == ContentType.APPLICATION_DATA:
                self._rest = content
            elif content_type == ContentType.ALERT and content == _CLOSE_NOTIFY:
                self._ended = True
            elif content_type != ContentType.HANDSHAKE or (
                content[:1] != bytes((HandshakeType.NEW_SESSION_TICKET,))
            ):
                raise TelltaleFailed("the server sent an alert or asked for what this cannot do")
        data, self._rest = self._rest[:maximum_bytes], self._rest[maximum_bytes:]
        return data

    def sendall(self, data: bytes) -> None:
        """Send all of `data`; raises TelltaleFailed."""
        pieces = (data[at : at + MAX_PLAINTEXT] for at in range(0, len(data), MAX_PLAINTEXT))
        sealed = b"".join(self._writing.seal(ContentType.APPLICATION_DATA, p) for p in pieces)
        try:
            self._records.sock.sendall(sealed)
        except OSError as error:
            raise TelltaleFailed(f"could not send: {error}") from error

    def close(self) -> None:
        """Send close_notify and close; what still comes is dropped, lest we reset the other end."""
        sock = self._records.sock
        with contextlib.suppress(OSError):
            sock.sendall(self._writing.seal(ContentType.ALERT, _CLOSE_NOTIFY))
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(_LINGER_SECONDS)
            while sock.recv(MAX_PLAINTEXT):
                pass
        sock.close()


@contextlib.contextmanager
def telltale_connect(
    address: Address,
    ca_pem: bytes,
    server_name: str,
    *,
    group: str,
    ephemeral_keys: tuple[EphemeralPrivateKey, ...] = (),
    timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
) -> Iterator[TelltaleConnection]:
    """Open a session in `group`, one of `GROUPS`; `ephemeral_keys` of an earlier one are reused.

    Raises TelltaleFailed where no session comes about, or the server is not `server_name`.
    """
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise TelltaleFailed("this client gives its keys away: it connects to loopback only")
    keys = ephemeral_keys or _generate(GROUPS[group])
    try:
        sock = socket.create_connection(address, timeout_seconds)
    except OSError as error:
        raise TelltaleFailed(f"cannot connect: {error}") from error
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = _Handshake(_Records(sock), GROUPS[group], keys, server_name).run(ca_pem)
        except (DissectError, NoSharedSecret, WeakSessionFailed, OSError, ValueError) as error:
            raise TelltaleFailed(f"no session came about: {error}") from error
        try:
            yield connection
        finally:
            connection.close()


def _generate(group: NamedGroup) -> tuple[EphemeralPrivateKey, ...]:
    if group is NamedGroup.SECP256R1:
        return (ec.generate_private_key(ec.SECP256R1()),)
    if group is NamedGroup.X25519:
        return (x25519.X25519PrivateKey.generate(),)
    return mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()


def _public(key: EphemeralPrivateKey) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, x25519.X25519PrivateKey | mlkem.MLKEM768PrivateKey):
        return key.public_key().public_bytes_raw()
    raise TelltaleFailed("a key of another kind cannot be used again")


def _vector(length_bytes: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_bytes, "big") + content


def _numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def _extension(kind: ExtensionType, content: bytes) -> bytes:
    return _numbers(kind) + _vector(2, content)


def _client_hello(group: NamedGroup, share: bytes, server_name: str) -> bytes:
    """Write a ClientHello (RFC 9846 section 4.2.2)."""
    name = b"\0" + _vector(2, server_name.encode("ascii"))
    block = (
        _extension(ExtensionType.SERVER_NAME, _vector(2, name)),
        _extension(ExtensionType.SUPPORTED_VERSIONS, _vector(1, _TLS13)),
        _extension(ExtensionType.SUPPORTED_GROUPS, _vector(2, _numbers(group))),
        _extension(ExtensionType.SIGNATURE_ALGORITHMS, _vector(2, _numbers(*_SCHEMES))),
        _extension(ExtensionType.KEY_SHARE, _vector(2, _numbers(group) + _vector(2, share))),
    )
    body = (
        _TLS12
        + os.urandom(32)
        + _vector(1, b"")
        + _vector(2, _numbers(*_SUITES))
        + _vector(1, b"\0")
        + _vector(2, b"".join(block))
    )
    return bytes((HandshakeType.CLIENT_HELLO,)) + _vector(3, body)


class _Handshake:
    """One full handshake, message after message."""

    def __init__(
        self,
        records: _Records,
        group: NamedGroup,
        keys: tuple[EphemeralPrivateKey, ...],
        server_name: str,
    ) -> None:
        self._records = records
        self._group = group
        self._keys = keys
        self._server_name = server_name
        self._share = b"".join(map(_public, keys))
        self._messages: list[bytes] = []
        self._hash = "sha256"

    def run(self, ca_pem: bytes) -> TelltaleConnection:
        hello = _client_hello(self._group, self._share, self._server_name)
        self._messages.append(hello)
        self._records.sock.sendall(b"\x16\x03\x01" + _vector(2, hello))
        suite, handshake = self._server_hello()
        client, server = (
            self._derive(handshake, label) for label in (b"c hs traffic", b"s hs traffic")
        )
        reading = _Protection(suite, server)
        self._server_flight(reading, server, ca_pem)
        main = ks.main_secret(self._hash, handshake)
        after = [self._derive(main, label) for label in (b"c ap traffic", b"s ap traffic")]
        verify_data = ks.verify_data(self._hash, client, self._transcript())
        finished = bytes((HandshakeType.FINISHED,)) + _vector(3, verify_data)
        self._records.sock.sendall(_Protection(suite, client).seal(22, finished))
        writing, reading = (_Protection(suite, secret) for secret in after)
        return TelltaleConnection(self._records, reading, writing, self._keys)

    def _transcript(self) -> bytes:
        return ks.transcript_hash(self._hash, *self._messages)

    def _derive(self, secret: bytes, label: bytes) -> bytes:
        return ks.derive_secret(self._hash, secret, label, self._transcript())

    def _server_hello(self) -> tuple[int, bytes]:
        """Take the ServerHello; return the suite and the handshake secret."""
        content_type, record = self._records.read()
        if content_type != ContentType.HANDSHAKE:
            raise TelltaleFailed("the server refused the ClientHello")
        message = record[_HEADER_LENGTH:]
        hello = hs.parse_server_hello(message)
        share = hello.key_share
        if hello.is_hello_retry_request or share is None or share.group != self._group:
            raise TelltaleFailed("the server wants another key exchange than the one offered")
        if hello.cipher_suite not in _SUITES:
            raise TelltaleFailed("the server chose a suite that was not offered")
        self._hash = _SUITES[hello.cipher_suite][0]
        self._messages.append(message)
        secret = shared_secret(
            EphemeralKeys(self._keys), self._group, self._share, share.key_exchange
        )
        early = ks.early_secret(self._hash)
        return hello.cipher_suite, ks.handshake_secret(self._hash, early, secret)

    def _server_flight(self, reading: _Protection, secret: bytes, ca_pem: bytes) -> None:
        """Take EncryptedExtensions to Finished, and check who sent them."""
        expected = [
            HandshakeType.ENCRYPTED_EXTENSIONS,
            HandshakeType.CERTIFICATE,
            HandshakeType.CERTIFICATE_VERIFY,
            HandshakeType.FINISHED,
        ]
        assembler = hs.MessageAssembler()
        chain: list[x509.Certificate] = []
        for _ in range(_MAX_FLIGHT_RECORDS):
            content_type, record = self._records.read()
            if content_type == ContentType.CHANGE_CIPHER_SPEC:  # middlebox compatibility
                continue
            content_type, content = reading.open(record)
            if content_type != ContentType.HANDSHAKE:
                raise TelltaleFailed("the server ended the handshake with an alert")
            assembler.feed(content)
            while (message := assembler.next_message()) is not None:
                if not expected or message[0] != expected.pop(0):
                    raise TelltaleFailed("a message of the server is not the one that is due")
                self._check(message, chain, secret, ca_pem)
                self._messages.append(message)
            if not expected:
                return
        raise TelltaleFailed("the server's handshake does not end")

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
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or scheme not in _SCHEMES:
            raise TelltaleFailed("the server signs with another algorithm than ECDSA")
        try:
            key.verify(signature, _SIGNED + self._transcript(), ec.ECDSA(_SCHEMES[scheme]))
        except InvalidSignature:
            raise TelltaleFailed("the server's CertificateVerify is not right") from None

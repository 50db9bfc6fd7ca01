"""DELIBERATELY WEAK. What the telltale client and the telltale servers have in common.

Records under known keys, whole handshake messages, and an open session. None of it is for anything
but `interop.peers.telltale` and `interop.peers.telltale_server`, which say what they are good for.
Sockets are blocking and have Python's own time limit.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.errors import DissectError, InteropError
from interop.wire import handshake as hs
from interop.wire import key_schedule as ks
from interop.wire.record import MAX_CIPHERTEXT_TLS13, MAX_PLAINTEXT, read_header
from interop.wire.registry import ContentType, ExtensionType, HandshakeType, NamedGroup

if TYPE_CHECKING:
    from interop.wire.groups import EphemeralPrivateKey

__all__ = [
    "HEADER_LENGTH",
    "MAX_FLIGHT_RECORDS",
    "PSS_SCHEMES",
    "SCHEMES",
    "SERVER_SIGNED",
    "SUITES",
    "TLS12",
    "TLS13",
    "Protection",
    "Records",
    "TLS13Protection",
    "TelltaleConnection",
    "TelltaleFailed",
    "extension",
    "generate",
    "message_of",
    "numbers",
    "plain_record",
    "public_value",
    "vector",
]

HEADER_LENGTH: Final = 5
TLS12, TLS13 = b"\x03\x03", b"\x03\x04"
MAX_FLIGHT_RECORDS: Final = 64
SERVER_SIGNED: Final = b" " * 64 + b"TLS 1.3, server CertificateVerify\0"  # RFC 9846 section 4.5.2
_CLOSE_NOTIFY: Final = b"\x01\x00"
_LINGER_SECONDS: Final = 2.0

_AEAD = AESGCM | ChaCha20Poly1305
SUITES: Final[dict[int, tuple[str, int, type[_AEAD]]]] = {  # hash, key length, AEAD
    0x1301: ("sha256", 16, AESGCM),
    0x1302: ("sha384", 32, AESGCM),
    0x1303: ("sha256", 32, ChaCha20Poly1305),
}
SCHEMES: Final[dict[int, hashes.HashAlgorithm]] = {  # ECDSA with P-256, P-384, P-521
    0x0403: hashes.SHA256(),
    0x0503: hashes.SHA384(),
    0x0603: hashes.SHA512(),
}
PSS_SCHEMES: Final[dict[int, hashes.HashAlgorithm]] = {  # rsa_pss_rsae
    0x0804: hashes.SHA256(),
    0x0805: hashes.SHA384(),
    0x0806: hashes.SHA512(),
}


class TelltaleFailed(InteropError):
    """A session could not be made, or broke."""


class Protection(Protocol):
    """One direction's keys."""

    def seal(self, content_type: int, content: bytes) -> bytes:
        """Make a record."""

    def open(self, record: bytes) -> tuple[int, bytes]:
        """Give a record's content type and content; raises TelltaleFailed."""


class TLS13Protection:
    """One direction's keys, of one traffic secret (RFC 9846 section 5.2)."""

    def __init__(self, suite: int, secret: bytes) -> None:
        self.secret = secret
        self._suite = suite
        hash_name, key_length, aead = SUITES[suite]
        keys = ks.traffic_keys(hash_name, secret, key_length)
        self._aead: _AEAD = aead(keys.key)
        self._iv = int.from_bytes(keys.iv, "big")
        self._sequence = 0

    def updated(self) -> TLS13Protection:
        """Give the keys of the next generation (RFC 9846 section 7.2)."""
        secret = ks.next_traffic_secret(SUITES[self._suite][0], self.secret)
        return TLS13Protection(self._suite, secret)

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return nonce

    def seal(self, content_type: int, content: bytes) -> bytes:
        """Make a record."""
        inner = content + bytes((content_type,))
        header = b"\x17" + TLS12 + (len(inner) + 16).to_bytes(2, "big")
        return header + self._aead.encrypt(self._nonce(), inner, header)

    def open(self, record: bytes) -> tuple[int, bytes]:
        """Give a record's content type and content; raises TelltaleFailed."""
        if record[0] != ContentType.APPLICATION_DATA:
            raise TelltaleFailed("a record of the peer is not protected")
        header, sealed = record[:HEADER_LENGTH], record[HEADER_LENGTH:]
        try:
            inner = self._aead.decrypt(self._nonce(), sealed, header).rstrip(b"\0")
        except InvalidTag:
            raise TelltaleFailed("a record of the peer does not authenticate") from None
        if not inner:
            raise TelltaleFailed("a record of the peer has no content type")
        return inner[-1], inner[:-1]


class Records:
    """Whole records from a socket, and whole messages of the unprotected ones."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._assembler = hs.MessageAssembler()

    def read(self) -> tuple[int, bytes]:
        """Give the next record's type, and all of it; raises TelltaleFailed."""
        header = self._exactly(HEADER_LENGTH)
        try:
            fields = read_header(memoryview(header), 0, MAX_CIPHERTEXT_TLS13)
        except DissectError as error:
            raise TelltaleFailed(f"the peer does not speak TLS: {error}") from error
        if fields is None:  # a header's worth of bytes is there
            raise TelltaleFailed("the peer does not speak TLS")
        return fields[0], header + self._exactly(fields[2])

    def read_message(self, protection: Protection | None = None) -> bytes:
        """Give the next handshake message; change_cipher_spec is passed over."""
        for _ in range(MAX_FLIGHT_RECORDS):
            if (message := self._assembler.next_message()) is not None:
                return message
            content_type, record = self.read()
            if content_type == ContentType.CHANGE_CIPHER_SPEC:
                continue
            content = record[HEADER_LENGTH:]
            if protection is not None:
                content_type, content = protection.open(record)
            if content_type != ContentType.HANDSHAKE:
                raise TelltaleFailed("the peer ended the handshake, or sent what is not of it")
            self._assembler.feed(content)
        raise TelltaleFailed("the peer's handshake does not end")

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = self.sock.recv(length - len(data))
            except OSError as error:
                raise TelltaleFailed(f"nothing came from the peer: {error}") from error
            if not piece:
                raise TelltaleFailed("the peer ended the connection")
            data += piece
        return bytes(data)


class TelltaleConnection:
    """An open session. `ephemeral_keys` are its private keys: of a hybrid both, ML-KEM first.

    `early_data` came before the handshake ended, and is read first. `client_random` names the
    session in a key log.
    """

    def __init__(
        self,
        records: Records,
        reading: Protection,
        writing: Protection,
        ephemeral_keys: tuple[EphemeralPrivateKey, ...],
        *,
        early_data: bytes = b"",
        client_random: bytes = b"",
    ) -> None:
        self._records = records
        self._reading = reading
        self._writing = writing
        self._rest = memoryview(early_data)
        self._ended = False
        self.ephemeral_keys = ephemeral_keys
        self._client_random = client_random
        self._generation = 0

    def traffic_secret(self) -> bytes:
        """Give the secret that a TLS 1.3 client sends with now, as a key log of one line."""
        if not isinstance(self._writing, TLS13Protection):
            raise TelltaleFailed("TLS 1.2 has no traffic secrets")
        name = f"CLIENT_TRAFFIC_SECRET_{self._generation}"
        return f"{name} {self._client_random.hex()} {self._writing.secret.hex()}\n".encode()

    def update_key(self) -> None:
        """Send with the next generation of keys from now on (RFC 9846 section 4.7.3)."""
        if not isinstance(self._writing, TLS13Protection):
            raise TelltaleFailed("TLS 1.2 has no KeyUpdate")
        message = message_of(HandshakeType.KEY_UPDATE, b"\0")  # the peer need not
        with contextlib.suppress(OSError):  # who has said all may be gone
            self._records.sock.sendall(self._writing.seal(ContentType.HANDSHAKE, message))
        self._writing = self._writing.updated()
        self._generation += 1

    def recv(self, maximum_bytes: int = MAX_PLAINTEXT) -> bytes:
        """Give at least one byte, or none at the peer's close_notify; raises TelltaleFailed."""
        while not self._rest and not self._ended:
            content_type, content = self._reading.open(self._records.read()[1])
            if content_type == ContentType.APPLICATION_DATA:
                self._rest = memoryview(content)
            elif content_type == ContentType.ALERT and content == _CLOSE_NOTIFY:
                self._ended = True
            elif content_type != ContentType.HANDSHAKE or (
                content[:1] != bytes((HandshakeType.NEW_SESSION_TICKET,))
            ):
                raise TelltaleFailed("the peer sent an alert or asked for what this cannot do")
        data, self._rest = self._rest[:maximum_bytes], self._rest[maximum_bytes:]
        return bytes(data)

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


def generate(group: NamedGroup) -> tuple[EphemeralPrivateKey, ...]:
    """Make a client's private keys for a group: of a hybrid both, ML-KEM first."""
    if group is NamedGroup.SECP256R1:
        return (ec.generate_private_key(ec.SECP256R1()),)
    if group is NamedGroup.X25519:
        return (x25519.X25519PrivateKey.generate(),)
    return mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()


def public_value(key: EphemeralPrivateKey) -> bytes:
    """Give the public value of a private key, as it crosses the wire."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, x25519.X25519PrivateKey | mlkem.MLKEM768PrivateKey):
        return key.public_key().public_bytes_raw()
    raise TelltaleFailed("a key of another kind cannot be used again")


def vector(length_bytes: int, content: bytes) -> bytes:
    """Write content behind its length, a number of so many bytes."""
    return len(content).to_bytes(length_bytes, "big") + content


def numbers(*values: int) -> bytes:
    """Write 16-bit numbers."""
    return b"".join(value.to_bytes(2, "big") for value in values)


def extension(kind: ExtensionType, content: bytes) -> bytes:
    """Write an extension."""
    return numbers(kind) + vector(2, content)


def message_of(kind: HandshakeType, body: bytes) -> bytes:
    """Write a handshake message."""
    return bytes((kind,)) + vector(3, body)


def plain_record(content_type: ContentType, content: bytes, version: bytes = TLS12) -> bytes:
    """Write an unprotected record."""
    return bytes((content_type,)) + version + vector(2, content)

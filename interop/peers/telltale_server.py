"""DELIBERATELY WEAK. A small server whose ticket key and ephemeral private keys are known.

No library gives these away, and rightly so. The proof needs them: that a stolen ticket key opens
TLS 1.2 and what TLS 1.3 sends without a key exchange, and stays without effect on the rest, is
worth something only beside sessions that it did open. So this server

- issues *stateless* tickets under a key that it tells, in OpenSSL's layout of 80 octets
  (docs/attack.md), on TLS 1.2 (RFC 5077) and on TLS 1.3 (RFC 9846 section 4.7.1);
- resumes by them whenever the client offers it: with psk_ke where that is offered, otherwise with
  psk_dhe_ke, and takes 0-RTT data without any protection against replay;
- keeps its ephemeral keys, and with `reuse_key` uses one for ever, as some stacks do for hours.

Never use this to protect anything. It does x25519, one suite a version and no retry, listens on
loopback only, and ends a session that it does not understand with `TelltaleFailed`. TLS 1.2 is in
`interop.peers.telltale_tls12`.
"""

from __future__ import annotations

import hmac
import os
import socket
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from interop.errors import DissectError, InputError
from interop.live_servers import DEADLINE_SECONDS, PlainListener, ThreadedServer
from interop.peers.telltale_records import (
    SERVER_SIGNED,
    TLS12,
    TLS13,
    Records,
    TelltaleConnection,
    TelltaleFailed,
    TLS13Protection,
    extension,
    message_of,
    numbers,
    plain_record,
    public_value,
    vector,
)
from interop.peers.telltale_tickets import TICKET_KEY_LENGTH, issue_ticket
from interop.peers.telltale_tls12 import TLS12Handshake
from interop.wire import handshake as hs
from interop.wire import key_schedule as ks
from interop.wire.groups import EphemeralKeys, NoSharedSecret, shared_secret
from interop.wire.learned import LearnedSecrets
from interop.wire.material import KeyMaterial, TicketKey
from interop.wire.registry import (
    ContentType,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    PskKeyExchangeMode,
    SignatureScheme,
)
from interop.wire.suites import CipherSuite
from interop.wire.tls13_secrets import find_psk

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.peers.telltale_records import Protection

__all__ = ["MAX_EARLY_DATA_BYTES", "TelltaleServer"]

MAX_EARLY_DATA_BYTES: Final = 65 * 2**20
_SUITE: Final = CipherSuite.TLS_AES_128_GCM_SHA256
_HASH: Final = "sha256"
_GROUP: Final = NamedGroup.X25519
_TICKET_SECONDS: Final = 7200


class TelltaleServer(ThreadedServer[socket.socket]):
    """A server on loopback; `handler` is called with each session, in a thread of its own.

    `ticket_key` is the key of its tickets, 80 octets, and `ephemeral_key` that of the latest
    session. `key_log` is called with each key log line, without its end of line. Why sessions
    failed is kept in `refused`. The key must be ECDSA with P-256; raises InputError for another.
    """

    def __init__(
        self,
        certificate_chain_pem: bytes,
        private_key_pem: bytes,
        handler: Callable[[TelltaleConnection], None],
        *,
        key_log: Callable[[bytes], None],
        reuse_key: bool = False,
    ) -> None:
        key = load_pem_private_key(private_key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.key_size != 256:  # noqa: PLR2004 - P-256
            raise InputError("the telltale server needs an ECDSA key with P-256")
        self._private_key = key
        chain = x509.load_pem_x509_certificates(certificate_chain_pem)
        self.chain = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
        self._handler = handler
        self.key_log = key_log
        self._reuse_key = reuse_key
        self.ticket_key = os.urandom(TICKET_KEY_LENGTH)
        self.ephemeral_key = X25519PrivateKey.generate()
        self.refused: list[str] = []
        super().__init__(PlainListener(), self._session, self._ended_with)

    def sign(self, content: bytes) -> bytes:
        """Sign with ecdsa_secp256r1_sha256."""
        return self._private_key.sign(content, ec.ECDSA(hashes.SHA256()))

    def exchange_key(self) -> X25519PrivateKey:
        """Give the ephemeral key of a new session."""
        if not self._reuse_key:
            self.ephemeral_key = X25519PrivateKey.generate()
        return self.ephemeral_key

    def _session(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        records = Records(sock)
        try:
            raw = records.read_message()
            hello = hs.parse_client_hello(raw)
            if ProtocolVersion.TLS_1_3 in hello.supported_versions:
                connection = _TLS13Handshake(self, records, raw, hello).run()
            else:
                connection = TLS12Handshake(self, records, raw, hello).run()
        except (DissectError, NoSharedSecret) as error:
            raise TelltaleFailed(f"no session came about: {error}") from error
        try:
            self._handler(connection)
        finally:
            connection.close()

    def _ended_with(self, error: BaseException | None) -> None:
        if error is not None:
            self.refused.append(str(error))


class _TLS13Handshake:
    """One handshake of TLS 1.3, full or resumed."""

    def __init__(
        self, server: TelltaleServer, records: Records, raw: bytes, hello: hs.ClientHello
    ) -> None:
        self._server = server
        self._records = records
        self._hello = hello
        self._messages = [raw]
        stolen = KeyMaterial.of(TicketKey(server.ticket_key))  # our own, here
        psk = find_psk(stolen, LearnedSecrets(), hello, raw, identity=0, hashes=(_HASH,))
        self._psk = None if psk is None else psk.key
        self._private_key: X25519PrivateKey | None = None

    def run(self) -> TelltaleConnection:
        if _SUITE not in self._hello.cipher_suites:
            raise TelltaleFailed(f"the client does not offer {_SUITE.name}")
        early = ks.early_secret(_HASH, self._psk)
        early_traffic = self._derive(early, b"c e traffic")
        takes_early_data = self._psk is not None and self._hello.early_data
        if takes_early_data:
            self._log("CLIENT_EARLY_TRAFFIC_SECRET", early_traffic)
        handshake = self._server_hello(early)
        client, server = self._secrets(handshake, b"hs", "HANDSHAKE_TRAFFIC_SECRET")
        self._server_flight(server, takes_early_data=takes_early_data)
        main = ks.main_secret(_HASH, handshake)
        application = self._secrets(main, b"ap", "TRAFFIC_SECRET_0")
        self._log("EXPORTER_SECRET", self._derive(main, b"exp master"))
        early_data = b""
        if takes_early_data:
            early_data = self._early_data(TLS13Protection(_SUITE, early_traffic))
        due = ks.verify_data(_HASH, client, self._transcript())
        message = self._records.read_message(TLS13Protection(_SUITE, client))
        if not hmac.compare_digest(hs.finished(message), due):
            raise TelltaleFailed("the client's Finished is not right")
        self._messages.append(message)
        reading, writing = (TLS13Protection(_SUITE, secret) for secret in application)
        if self._psk is None:
            self._issue(writing, self._derive(main, b"res master"))
        keys = () if self._private_key is None else (self._private_key,)
        return TelltaleConnection(self._records, reading, writing, keys, early_data=early_data)

    def _transcript(self) -> bytes:
        return ks.transcript_hash(_HASH, *self._messages)

    def _derive(self, secret: bytes, label: bytes) -> bytes:
        return ks.derive_secret(_HASH, secret, label, self._transcript())

    def _secrets(self, secret: bytes, stage: bytes, label: str) -> tuple[bytes, bytes]:
        client, server = (
            self._derive(secret, side + stage + b" traffic") for side in (b"c ", b"s ")
        )
        self._log(f"CLIENT_{label}", client)
        self._log(f"SERVER_{label}", server)
        return client, server

    def _log(self, label: str, secret: bytes) -> None:
        self._server.key_log(f"{label} {self._hello.random.hex()} {secret.hex()}".encode())

    def _server_hello(self, early: bytes) -> bytes:
        """Answer the ClientHello (RFC 9846 section 4.2.3); return the handshake secret."""
        block = extension(ExtensionType.SUPPORTED_VERSIONS, TLS13)
        shared: bytes | None = None
        modes = self._hello.psk_key_exchange_modes
        if self._psk is not None:
            block += extension(ExtensionType.PRE_SHARED_KEY, numbers(0))
        if self._psk is None or PskKeyExchangeMode.PSK_KE not in modes:
            offered = {share.group: share.key_exchange for share in self._hello.key_shares}
            if _GROUP not in offered:
                raise TelltaleFailed("the client has no key share of x25519")
            self._private_key = self._server.exchange_key()
            share = public_value(self._private_key)
            keys = EphemeralKeys((self._private_key,))
            shared = shared_secret(keys, _GROUP, offered[_GROUP], share)
            block += extension(ExtensionType.KEY_SHARE, numbers(_GROUP) + vector(2, share))
        session_id = vector(1, self._hello.session_id)
        body = TLS12 + os.urandom(32) + session_id + numbers(_SUITE) + b"\0" + vector(2, block)
        message = message_of(HandshakeType.SERVER_HELLO, body)
        self._messages.append(message)
        self._records.sock.sendall(plain_record(ContentType.HANDSHAKE, message))
        return ks.handshake_secret(_HASH, early, shared)

    def _server_flight(self, secret: bytes, *, takes_early_data: bool) -> None:
        """Send EncryptedExtensions to Finished; who resumes is shown no certificate."""
        block = extension(ExtensionType.EARLY_DATA, b"") if takes_early_data else b""
        first = len(self._messages)
        self._messages.append(message_of(HandshakeType.ENCRYPTED_EXTENSIONS, vector(2, block)))
        if self._psk is None:
            entries = b"".join(vector(3, der) + vector(2, b"") for der in self._server.chain)
            certificate = vector(1, b"") + vector(3, entries)
            self._messages.append(message_of(HandshakeType.CERTIFICATE, certificate))
            signature = self._server.sign(SERVER_SIGNED + self._transcript())
            verify = numbers(SignatureScheme.ECDSA_SECP256R1_SHA256) + vector(2, signature)
            self._messages.append(message_of(HandshakeType.CERTIFICATE_VERIFY, verify))
        verify_data = ks.verify_data(_HASH, secret, self._transcript())
        self._messages.append(message_of(HandshakeType.FINISHED, verify_data))
        protection = TLS13Protection(_SUITE, secret)
        flight = (protection.seal(ContentType.HANDSHAKE, m) for m in self._messages[first:])
        self._records.sock.sendall(b"".join(flight))

    def _early_data(self, reading: TLS13Protection) -> bytes:
        """Take 0-RTT data to their end (RFC 9846 sections 4.3.10 and 4.6)."""
        data = bytearray()
        while True:
            content_type, record = self._records.read()
            if content_type == ContentType.CHANGE_CIPHER_SPEC:
                continue
            content_type, content = reading.open(record)
            if content_type == ContentType.HANDSHAKE:
                if content != message_of(HandshakeType.END_OF_EARLY_DATA, b""):
                    raise TelltaleFailed("0-RTT data do not end as they should")
                self._messages.append(content)
                return bytes(data)
            data += content
            if content_type != ContentType.APPLICATION_DATA or len(data) > MAX_EARLY_DATA_BYTES:
                raise TelltaleFailed("the client sent something else than 0-RTT data, or too much")

    def _issue(self, writing: Protection, resumption_secret: bytes) -> None:
        """Send a ticket that holds its own pre-shared key (RFC 9846 section 4.7.1)."""
        nonce = os.urandom(8)
        psk = ks.resumption_psk(_HASH, resumption_secret, nonce)
        ticket = issue_ticket(self._server.ticket_key, ProtocolVersion.TLS_1_3, _SUITE, psk)
        limit = MAX_EARLY_DATA_BYTES.to_bytes(4, "big")
        body = (
            _TICKET_SECONDS.to_bytes(4, "big")
            + os.urandom(4)
            + vector(1, nonce)
            + vector(2, ticket)
            + vector(2, extension(ExtensionType.EARLY_DATA, limit))
        )
        message = message_of(HandshakeType.NEW_SESSION_TICKET, body)
        self._records.sock.sendall(writing.seal(ContentType.HANDSHAKE, message))

"""Handshake messages: putting them together from records, and reading them.

A message may span records and a record may hold several messages (RFC 9846 section 5.1), so
`MessageAssembler` stands between the record layer and the parsers. It holds at most one bounded
partial message.

The parsers take whole messages, header included, because transcripts hash them so. They read what
a judge of forward secrecy or a decryptor needs; a TLS 1.3 server's certificate extensions, say,
stay unread. Every failure is a `DissectError`.
"""

from __future__ import annotations

from typing import NamedTuple

from interop.wire import extensions as ext
from interop.wire.codec import Reader
from interop.wire.extensions import ExtensionBlock, KeyShare, OfferedPSKs
from interop.wire.registry import ExtensionType, HandshakeType, ProtocolVersion
from interop.wire.suites import KeyExchange

__all__ = [
    "HEADER_LENGTH",
    "HELLO_RETRY_REQUEST_RANDOM",
    "ClientHello",
    "MessageAssembler",
    "NewSessionTicket",
    "ServerHello",
    "ServerKeyExchange",
    "certificate_chain",
    "certificate_verify",
    "client_key_exchange",
    "encrypted_extensions",
    "finished",
    "key_update",
    "new_session_ticket_tls12",
    "new_session_ticket_tls13",
    "parse_client_hello",
    "parse_server_hello",
    "server_key_exchange",
]

HEADER_LENGTH = 4
DEFAULT_LIMIT = 2**17

# SHA-256 of "HelloRetryRequest" (RFC 9846 section 4.2.3)
HELLO_RETRY_REQUEST_RANDOM = bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)

_NAMED_CURVE = 3
_KEY_UPDATE_VALUES = (0, 1)
_LENGTH_MASK = 0xFFFFFF
_PATHS = {kind: kind.name.lower() for kind in HandshakeType}
_CLIENT_HELLO = _PATHS[HandshakeType.CLIENT_HELLO]


class MessageAssembler:
    """Collects handshake fragments and gives whole messages, header included.

    `limit_bytes` bounds one message; a longer one raises `DissectError` on sight of its header.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT) -> None:
        self._limit = limit_bytes
        self._pending = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of messages not taken yet."""
        return len(self._pending)

    def feed(self, fragment: bytes | memoryview) -> None:
        """Take the next handshake record's content."""
        self._pending += fragment

    def next_message(self) -> bytes | None:
        """Take the next whole message; None if none is complete."""
        if len(self._pending) < HEADER_LENGTH:
            return None
        end = HEADER_LENGTH + int.from_bytes(self._pending[1:HEADER_LENGTH], "big")
        if end > self._limit:
            reader = Reader(bytes(self._pending[:HEADER_LENGTH]), "handshake")
            reader.fail(f"a message of {end} bytes, at most {self._limit} are taken", "length")
        if len(self._pending) < end:
            return None
        message = bytes(self._pending[:end])
        del self._pending[:end]
        return message


class ClientHello(NamedTuple):
    """A ClientHello (RFC 9846 section 4.2.2).

    Its extensions are read when they are asked for, which may raise `DissectError`.
    """

    legacy_version: int
    random: bytes
    session_id: bytes
    cipher_suites: tuple[int, ...]
    compression_methods: bytes
    extensions: ExtensionBlock

    @property
    def server_name(self) -> str | None:
        """The host that the client asks for."""
        return ext.server_name(self.extensions, _CLIENT_HELLO)

    @property
    def supported_versions(self) -> tuple[int, ...]:
        """The versions of TLS that it takes, if it says so there."""
        return ext.supported_versions(self.extensions, _CLIENT_HELLO)

    @property
    def key_shares(self) -> tuple[KeyShare, ...]:
        """Its public values."""
        return ext.client_key_shares(self.extensions, _CLIENT_HELLO)

    @property
    def psk_key_exchange_modes(self) -> tuple[int, ...]:
        """How it would use a pre-shared key."""
        return ext.psk_key_exchange_modes(self.extensions, _CLIENT_HELLO)

    @property
    def pre_shared_keys(self) -> OfferedPSKs | None:
        """The pre-shared keys that it offers."""
        return ext.offered_psks(self.extensions, _CLIENT_HELLO)

    @property
    def early_data(self) -> bool:
        """Whether 0-RTT data may follow."""
        return ExtensionType.EARLY_DATA in self.extensions


class ServerHello(NamedTuple):
    """A ServerHello or HelloRetryRequest (RFC 9846 sections 4.2.3 and 4.2.4).

    `version` is the one negotiated. `key_share` lacks its public value in a HelloRetryRequest,
    where `selected_group` names the group asked for.
    """

    version: int
    random: bytes
    session_id: bytes
    cipher_suite: int
    compression_method: int
    extensions: ExtensionBlock
    key_share: KeyShare | None
    selected_group: int | None
    selected_psk: int | None

    @property
    def is_hello_retry_request(self) -> bool:
        """Whether this asks for a second ClientHello."""
        return self.random == HELLO_RETRY_REQUEST_RANDOM

    @property
    def extended_main_secret(self) -> bool:
        """Whether TLS 1.2's main secret binds the handshake (RFC 7627)."""
        return ExtensionType.EXTENDED_MAIN_SECRET in self.extensions

    @property
    def encrypt_then_mac(self) -> bool:
        """Whether CBC records carry their MAC outside (RFC 7366)."""
        return ExtensionType.ENCRYPT_THEN_MAC in self.extensions


class ServerKeyExchange(NamedTuple):
    """Public half of a TLS 1.2 (EC)DHE exchange (RFC 8422 section 5.4, RFC 5246 section 7.4.3).

    `group` is None for finite-field parameters, which are then in `prime` and `generator`.
    """

    group: int | None
    prime: int | None
    generator: int | None
    public: bytes
    signature_scheme: int | None


class NewSessionTicket(NamedTuple):
    """A ticket; `nonce` is TLS 1.3's alone."""

    lifetime_seconds: int
    ticket: bytes
    nonce: bytes = b""


def _body(message: bytes, kind: HandshakeType) -> Reader:
    reader = Reader(message, _PATHS[kind])
    header = reader.u32("type")
    if header >> 24 != kind:
        reader.fail("another kind of message", "type")
    if header & _LENGTH_MASK != reader.remaining:
        reader.fail("the length is not the message's", "length")
    return reader


def parse_client_hello(message: bytes) -> ClientHello:
    """Read a ClientHello (RFC 9846 section 4.2.2). Raises `DissectError`."""
    reader = _body(message, HandshakeType.CLIENT_HELLO)
    legacy_version = reader.u16("legacy_version")
    random = reader.take(32, "random")
    session_id = reader.opaque(1, "legacy_session_id")
    suites = reader.u16_list(2, "cipher_suites")
    compression = reader.opaque(1, "legacy_compression_methods")
    block = ext.parse_extensions(reader) if reader.remaining else {}
    reader.end()
    return ClientHello(legacy_version, random, session_id, suites, compression, block)


def _u16_extension(block: ExtensionBlock, number: ExtensionType, path: str) -> int | None:
    if (reader := ext.open_extension(block, number, path)) is None:
        return None
    value = reader.u16("value")
    reader.end()
    return value


def parse_server_hello(message: bytes) -> ServerHello:
    """Read a ServerHello or HelloRetryRequest (RFC 9846 section 4.2.3). Raises `DissectError`."""
    reader = _body(message, HandshakeType.SERVER_HELLO)
    path = reader.path
    legacy_version = reader.u16("legacy_version")
    random = reader.take(32, "random")
    session_id = reader.opaque(1, "legacy_session_id_echo")
    suite = reader.u16("cipher_suite")
    compression = reader.u8("legacy_compression_method")
    block = ext.parse_extensions(reader) if reader.remaining else {}
    reader.end()
    selected = _u16_extension(block, ExtensionType.SUPPORTED_VERSIONS, path)
    share = group = psk = None
    if selected == ProtocolVersion.TLS_1_3:
        psk = _u16_extension(block, ExtensionType.PRE_SHARED_KEY, path)
        if random == HELLO_RETRY_REQUEST_RANDOM:
            group = _u16_extension(block, ExtensionType.KEY_SHARE, path)
        elif (inner := ext.open_extension(block, ExtensionType.KEY_SHARE, path)) is not None:
            share = KeyShare(inner.u16("group"), inner.opaque(2, "key_exchange", minimum=1))
            inner.end()
            group = share.group
    return ServerHello(
        legacy_version if selected is None else selected,
        random,
        session_id,
        suite,
        compression,
        block,
        share,
        group,
        psk,
    )


def encrypted_extensions(message: bytes) -> ExtensionBlock:
    """Read EncryptedExtensions (RFC 9846 section 4.4.1). Raises `DissectError`."""
    reader = _body(message, HandshakeType.ENCRYPTED_EXTENSIONS)
    block = ext.parse_extensions(reader)
    reader.end()
    return block


def certificate_chain(message: bytes, *, tls13: bool) -> tuple[bytes, ...]:
    """Read the certificates of a Certificate message, end entity first, in DER.

    RFC 9846 section 4.5.1, RFC 5246 section 7.4.2. Raises `DissectError`.
    """
    reader = _body(message, HandshakeType.CERTIFICATE)
    if tls13:
        reader.opaque(1, "certificate_request_context")
    certificates = []
    inner = reader.vector(3, "certificate_list")
    while inner.remaining:
        certificates.append(inner.opaque(3, "cert_data", minimum=1))
        if tls13:
            ext.parse_extensions(inner)
    reader.end()
    return tuple(certificates)


def certificate_verify(message: bytes) -> tuple[int, bytes]:
    """Read a CertificateVerify: scheme and signature (RFC 9846 section 4.5.2)."""
    reader = _body(message, HandshakeType.CERTIFICATE_VERIFY)
    scheme = reader.u16("algorithm")
    signature = reader.opaque(2, "signature")
    reader.end()
    return scheme, signature


def finished(message: bytes) -> bytes:
    """Read a Finished: its verify_data (RFC 9846 section 4.5.3)."""
    return _body(message, HandshakeType.FINISHED).rest()


def key_update(message: bytes) -> bool:
    """Read a KeyUpdate: whether the peer is asked to update too (RFC 9846 section 4.7.3)."""
    reader = _body(message, HandshakeType.KEY_UPDATE)
    request = reader.u8("request_update")
    reader.end()
    if request not in _KEY_UPDATE_VALUES:
        reader.fail(f"{request} is neither update_not_requested nor update_requested")
    return bool(request)


def new_session_ticket_tls13(message: bytes) -> NewSessionTicket:
    """Read a TLS 1.3 ticket (RFC 9846 section 4.7.1). Raises `DissectError`."""
    reader = _body(message, HandshakeType.NEW_SESSION_TICKET)
    lifetime = reader.u32("ticket_lifetime")
    reader.u32("ticket_age_add")
    nonce = reader.opaque(1, "ticket_nonce")
    ticket = reader.opaque(2, "ticket", minimum=1)
    ext.parse_extensions(reader)
    reader.end()
    return NewSessionTicket(lifetime, ticket, nonce)


def new_session_ticket_tls12(message: bytes) -> NewSessionTicket:
    """Read a TLS 1.2 ticket (RFC 5077 section 3.3). Raises `DissectError`."""
    reader = _body(message, HandshakeType.NEW_SESSION_TICKET)
    lifetime = reader.u32("ticket_lifetime_hint")
    ticket = reader.opaque(2, "ticket")
    reader.end()
    return NewSessionTicket(lifetime, ticket)


def _signature_scheme(reader: Reader) -> int | None:
    if not reader.remaining:  # anonymous suites sign nothing
        return None
    scheme = reader.u16("signature_scheme")
    reader.opaque(2, "signature")
    reader.end()
    return scheme


def server_key_exchange(message: bytes, exchange: KeyExchange) -> ServerKeyExchange | None:
    """Read a TLS 1.2 ServerKeyExchange; None for an exchange without a public value.

    RFC 8422 section 5.4, RFC 5246 section 7.4.3, RFC 4279 section 2. Raises `DissectError`.
    """
    reader = _body(message, HandshakeType.SERVER_KEY_EXCHANGE)
    if exchange.is_ephemeral and exchange.has_psk:
        reader.opaque(2, "psk_identity_hint")
    if exchange in (KeyExchange.ECDHE, KeyExchange.ECDHE_PSK):
        if (kind := reader.u8("curve_type")) != _NAMED_CURVE:
            reader.fail(f"curve type {kind}; only named groups exist any more", "curve_type")
        group = reader.u16("group")
        public = reader.opaque(1, "public", minimum=1)
        return ServerKeyExchange(group, None, None, public, _signature_scheme(reader))
    if exchange in (KeyExchange.DHE, KeyExchange.DHE_PSK):
        prime = int.from_bytes(reader.opaque(2, "dh_p", minimum=1), "big")
        generator = int.from_bytes(reader.opaque(2, "dh_g", minimum=1), "big")
        public = reader.opaque(2, "dh_Ys", minimum=1)
        return ServerKeyExchange(None, prime, generator, public, _signature_scheme(reader))
    return None


# Of each exchange: how many bytes of length stand before the client's value, and its name.
_CLIENT_VALUES = {
    KeyExchange.RSA: (2, "encrypted_premaster_secret"),
    KeyExchange.ECDHE: (1, "ecdh_Yc"),
    KeyExchange.ECDH: (1, "ecdh_Yc"),
    KeyExchange.DHE: (2, "dh_Yc"),
    KeyExchange.DH: (2, "dh_Yc"),
    KeyExchange.DHE_PSK: (2, "dh_Yc"),
    KeyExchange.ECDHE_PSK: (1, "ecdh_Yc"),
    KeyExchange.RSA_PSK: (2, "encrypted_premaster_secret"),
}


def client_key_exchange(message: bytes, exchange: KeyExchange) -> bytes:
    """Read a TLS 1.2 ClientKeyExchange: the encrypted premaster secret or the public value.

    Empty for an exchange that has neither (RFC 5246 section 7.4.7, RFC 8422 section 5.7).
    """
    reader = _body(message, HandshakeType.CLIENT_KEY_EXCHANGE)
    if exchange.has_psk:
        reader.opaque(2, "psk_identity")
    if exchange not in _CLIENT_VALUES:
        return b""
    length_bytes, name = _CLIENT_VALUES[exchange]
    if not reader.remaining:  # a static DH client certificate holds the value (section 7.4.7.2)
        return b""
    value = reader.opaque(length_bytes, name)
    reader.end()
    return value

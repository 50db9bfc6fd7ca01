"""Session tickets under a stolen ticket key (STEK): what lies in them, stack by stack.

A ticket is a server's memory of a session, handed to the client under a key of the server's own
(RFC 5077 section 4, RFC 9846 section 4.7.1). Its form is nobody's business but the server's, so
each stack has its own; those of OpenSSL and the servers upon it, of Go and of tlslite-ng are read.
`docs/attack.md` states them to the byte.

A `TicketKey` is the file as a server's operator keeps it, and its length says which stacks it may
be of. Where several share a length, all are tried: each authenticates its tickets, so at most one
opens. Key names at the head of a ticket are not looked at for the same reason.

What comes out is the main secret of a TLS 1.2 session, or the pre-shared key that a TLS 1.3
ticket stands for; in both cases as the *content* of an authenticated ticket, to be tried on the
session like any other candidate.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR
from cryptography.hazmat.primitives.padding import PKCS7

from interop.errors import DissectError, InputError
from interop.wire import der
from interop.wire.codec import Reader
from interop.wire.key_schedule import (
    HASH_OF_LENGTH,
    derive_secret,
    early_secret,
    expand_label,
    handshake_secret,
    resumption_psk,
    transcript_hash,
)
from interop.wire.prf import MAIN_SECRET_LENGTH
from interop.wire.registry import ProtocolVersion

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TICKET_KEY_LENGTHS", "TicketKey", "TicketState", "openssl_session"]

_NAME_LENGTH = 16
_BLOCK_LENGTH = 16
_MAC_LENGTH = 32
_CCM_8_TAG_LENGTH = 8


class TicketState(NamedTuple):
    """What a ticket stands for: a TLS 1.2 main secret or a TLS 1.3 pre-shared key."""

    version: int
    secret: bytes

    def __repr__(self) -> str:
        return f"TicketState(0x{self.version:04x})"


@dataclass(frozen=True, slots=True, repr=False)
class TicketKey:
    """A stolen ticket key, as its server stores it.

    16, 32, 48 or 80 bytes; raises `InputError` for any other length. The layouts are in
    `docs/attack.md`.
    """

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) not in _READERS:
            lengths = ", ".join(map(str, TICKET_KEY_LENGTHS))
            raise InputError(f"a ticket key of {len(self.key)} bytes: they have {lengths}")

    def open(self, ticket: bytes) -> TicketState | None:
        """Open a ticket; None where it was not made under this key, or holds no session."""
        for read in _READERS[len(self.key)]:
            try:
                if (state := read(self.key, ticket)) is not None:
                    return _checked(state)
            except DissectError:
                continue
        return None

    def __repr__(self) -> str:
        return f"TicketKey({len(self.key)} bytes)"


def _checked(state: TicketState) -> TicketState | None:
    """Refuse a secret that no session of its version can have."""
    if state.version == ProtocolVersion.TLS_1_3:
        return state if len(state.secret) in HASH_OF_LENGTH else None
    return state if len(state.secret) == MAIN_SECRET_LENGTH else None


# OpenSSL, and nginx, Apache and HAProxy above it


def openssl_session(data: bytes) -> TicketState:
    """Read an SSL_SESSION in DER, as OpenSSL stores it. Raises `DissectError`.

    In TLS 1.3 what its definition calls the main secret is the ticket's pre-shared key.
    """
    reader = der.open_element(Reader(data, "session"), der.SEQUENCE, "sequence")
    der.integer(reader, "structure_version")
    version = der.integer(reader, "version")
    der.open_element(reader, der.OCTET_STRING, "cipher_suite")
    der.open_element(reader, der.OCTET_STRING, "session_id")
    return TicketState(version, der.open_element(reader, der.OCTET_STRING, "main_secret").rest())


def _authenticated(ticket: bytes, mac_key: bytes) -> bytes | None:
    """Check the MAC at the ticket's end; give what is before it."""
    body, mac = ticket[:-_MAC_LENGTH], ticket[-_MAC_LENGTH:]
    return body if hmac.compare_digest(hmac.digest(mac_key, body, "sha256"), mac) else None


def _read_openssl(
    key: bytes, ticket: bytes, *, mac_key: slice, cipher_key: slice
) -> TicketState | None:
    body = _authenticated(ticket, key[mac_key])
    if body is None:
        return None
    iv, ciphertext = body[_NAME_LENGTH:][:_BLOCK_LENGTH], body[_NAME_LENGTH + _BLOCK_LENGTH :]
    if not ciphertext or len(ciphertext) % _BLOCK_LENGTH:
        return None
    decryptor = Cipher(AES(key[cipher_key]), CBC(iv)).decryptor()
    unpadder = PKCS7(8 * _BLOCK_LENGTH).unpadder()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    try:
        return openssl_session(unpadder.update(padded) + unpadder.finalize())
    except ValueError:  # no padding: not made by this stack
        return None


# Go


def _read_go(key: bytes, ticket: bytes, *, name_length: int) -> TicketState | None:
    expanded = hashlib.sha512(key).digest()
    body = _authenticated(ticket, expanded[32:48])
    if body is None or len(body) < name_length + _BLOCK_LENGTH:
        return None
    iv, ciphertext = body[name_length:][:_BLOCK_LENGTH], body[name_length + _BLOCK_LENGTH :]
    decryptor = Cipher(AES(expanded[16:32]), CTR(iv)).decryptor()
    return _go_session(decryptor.update(ciphertext) + decryptor.finalize())


def _go_session(data: bytes) -> TicketState:
    """Read the state of a Go server, 1.21 and newer or older."""
    reader = Reader(data, "session")
    version = reader.u16("version")
    kind = reader.u8("type")
    is_tls13 = version == ProtocolVersion.TLS_1_3
    if not is_tls13 and kind not in _GO_TYPES:  # before 1.21: this was half of the suite
        reader.take(1 + 8, "cipher_suite, created_at")
        return TicketState(version, reader.opaque(2, "main_secret"))
    reader.take(2 + 8, "cipher_suite, created_at")
    secret = reader.opaque(1, "secret")
    if is_tls13 and kind == _GO_REVISION_0 and len(secret) in HASH_OF_LENGTH:
        secret = resumption_psk(HASH_OF_LENGTH[len(secret)], secret, b"")
    return TicketState(version, secret)


_GO_REVISION_0 = 0
_GO_TYPES = (1, 2)


# tlslite-ng


def _read_tlslite(
    key: bytes, ticket: bytes, *, cipher: Callable[[bytes], _AEAD], hash_name: str
) -> TicketState | None:
    nonce, sealed = ticket[:_MAC_LENGTH], ticket[_MAC_LENGTH:]
    secret = handshake_secret(hash_name, early_secret(hash_name, nonce), key)
    secret = derive_secret(hash_name, secret, b"SessionTicket secret", transcript_hash(hash_name))
    aead = cipher(expand_label(hash_name, secret, b"key", b"", len(key)))
    try:
        data = aead.decrypt(expand_label(hash_name, secret, b"iv", b"", 12), sealed, b"")
    except InvalidTag:
        return None
    reader = Reader(data, "session")
    reader.u16("structure_version")
    secret = reader.opaque(2, "secret")
    version = reader.u16("version")
    reader.u16("cipher_suite")
    ticket_nonce = reader.opaque(1, "nonce")
    if version == ProtocolVersion.TLS_1_3 and len(secret) in HASH_OF_LENGTH:
        secret = resumption_psk(HASH_OF_LENGTH[len(secret)], secret, ticket_nonce)
    return TicketState(version, secret)


_AEAD = AESGCM | AESCCM | ChaCha20Poly1305
_ccm_8 = partial(AESCCM, tag_length=_CCM_8_TAG_LENGTH)

# By the length of the key: what its tickets may look like.
_READERS: dict[int, tuple[Callable[[bytes, bytes], TicketState | None], ...]] = {
    16: (
        partial(_read_tlslite, cipher=AESGCM, hash_name="sha256"),
        partial(_read_tlslite, cipher=AESCCM, hash_name="sha384"),
        partial(_read_tlslite, cipher=_ccm_8, hash_name="sha384"),
    ),
    32: (
        partial(_read_go, name_length=0),
        partial(_read_go, name_length=_NAME_LENGTH),
        partial(_read_tlslite, cipher=AESGCM, hash_name="sha384"),
        partial(_read_tlslite, cipher=ChaCha20Poly1305, hash_name="sha384"),
        partial(_read_tlslite, cipher=AESCCM, hash_name="sha384"),
        partial(_read_tlslite, cipher=_ccm_8, hash_name="sha384"),
    ),
    48: (
        partial(_read_openssl, cipher_key=slice(16, 32), mac_key=slice(32, 48)),
        partial(_read_openssl, mac_key=slice(16, 32), cipher_key=slice(32, 48)),
    ),
    80: (
        partial(_read_openssl, mac_key=slice(16, 48), cipher_key=slice(48, 80)),
        partial(_read_openssl, cipher_key=slice(16, 48), mac_key=slice(48, 80)),
    ),
}

TICKET_KEY_LENGTHS = tuple(_READERS)

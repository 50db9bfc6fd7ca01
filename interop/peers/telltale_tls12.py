"""DELIBERATELY WEAK. The TLS 1.2 of `interop.peers.telltale_server`, for its tickets.

A full handshake is ECDHE with x25519, signed with ECDSA (RFC 8422), and issues a ticket before
anything is encrypted (RFC 5077 section 3.3); whoever shows one resumes, with the same main secret.
The suite is TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 (RFC 5289). There is no extended main secret.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from interop.peers.telltale_records import (
    HEADER_LENGTH,
    TLS12,
    Records,
    TelltaleConnection,
    TelltaleFailed,
    extension,
    message_of,
    numbers,
    plain_record,
    public_value,
    vector,
)
from interop.peers.telltale_tickets import issue_ticket
from interop.wire import handshake as hs
from interop.wire import key_schedule as ks
from interop.wire import prf
from interop.wire.groups import EphemeralKeys, shared_secret
from interop.wire.material import TicketKey
from interop.wire.registry import (
    ContentType,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from interop.wire.suites import CipherSuite, KeyExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

__all__ = ["TLS12Handshake", "TLS12Server"]

_SUITE: Final = CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
_HASH: Final = "sha256"
_GROUP: Final = NamedGroup.X25519
_NAMED_CURVE: Final = b"\x03"
_TICKET_SECONDS: Final = 7200


class TLS12Server(Protocol):
    """What a handshake needs of its server."""

    chain: tuple[bytes, ...]
    key_log: Callable[[bytes], None]
    ticket_key: bytes

    def sign(self, content: bytes) -> bytes:
        """Sign with ecdsa_secp256r1_sha256."""

    def exchange_key(self) -> X25519PrivateKey:
        """Give the ephemeral key of a new session."""


class _Protection:
    """One direction's keys: AES-128-GCM with an explicit nonce (RFC 5288 section 3)."""

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._aead = AESGCM(key)
        self._iv = iv
        self._sequence = 0

    def _additional(self, header: bytes, length: int) -> bytes:
        sequence = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        return sequence + header[:3] + length.to_bytes(2, "big")

    def seal(self, content_type: int, content: bytes) -> bytes:
        header = bytes((content_type,)) + TLS12
        nonce = self._sequence.to_bytes(8, "big")
        additional = self._additional(header, len(content))
        return header + vector(2, nonce + self._aead.encrypt(self._iv + nonce, content, additional))

    def open(self, record: bytes) -> tuple[int, bytes]:
        nonce, sealed = record[HEADER_LENGTH : HEADER_LENGTH + 8], record[HEADER_LENGTH + 8 :]
        additional = self._additional(record, max(len(sealed) - 16, 0))
        try:
            return record[0], self._aead.decrypt(self._iv + nonce, sealed, additional)
        except (InvalidTag, ValueError):
            raise TelltaleFailed("a record of the peer does not authenticate") from None


class TLS12Handshake:
    """One handshake of TLS 1.2, full or resumed."""

    def __init__(
        self, server: TLS12Server, records: Records, raw: bytes, hello: hs.ClientHello
    ) -> None:
        self._server = server
        self._records = records
        self._hello = hello
        self._messages = [raw]
        self._random = os.urandom(32)

    def run(self) -> TelltaleConnection:
        """Make the session; raises TelltaleFailed or DissectError."""
        if _SUITE not in self._hello.cipher_suites:
            raise TelltaleFailed(f"the client does not offer {_SUITE.name}")
        ticket = self._hello.extensions.get(ExtensionType.SESSION_TICKET)
        if ticket is None:
            raise TelltaleFailed("the client wants no ticket")
        if ticket:
            return self._resume(ticket)
        self._send(self._server_hello(extension(ExtensionType.SESSION_TICKET, b"")))
        private_key = self._server.exchange_key()
        share = public_value(private_key)
        self._send(*self._key_exchange(share), message_of(HandshakeType.SERVER_HELLO_DONE, b""))
        message = self._take()
        client = hs.client_key_exchange(message, KeyExchange.ECDHE)
        premaster = shared_secret(EphemeralKeys((private_key,)), _GROUP, client, share)
        main = prf.main_secret(_HASH, premaster, self._hello.random, self._random)
        reading, writing = self._protections(main)
        self._take_finished(main, reading)
        self._send(self._ticket(main))
        self._send_finished(main, writing)
        return TelltaleConnection(self._records, reading, writing, (private_key,))

    def _resume(self, ticket: bytes) -> TelltaleConnection:
        state = TicketKey(self._server.ticket_key).open(ticket)
        if state is None or state.version != ProtocolVersion.TLS_1_2:
            raise TelltaleFailed("the client's ticket is none of ours")
        self._send(self._server_hello(b"", session_id=self._hello.session_id))
        reading, writing = self._protections(state.secret)
        self._send_finished(state.secret, writing)
        self._take_finished(state.secret, reading)
        return TelltaleConnection(self._records, reading, writing, ())

    def _send(self, *messages: bytes) -> None:
        self._messages += messages
        content = b"".join(messages)
        self._records.sock.sendall(plain_record(ContentType.HANDSHAKE, content))

    def _take(self, protection: _Protection | None = None) -> bytes:
        message = self._records.read_message(protection)
        self._messages.append(message)
        return message

    def _server_hello(self, block: bytes, *, session_id: bytes = b"") -> bytes:
        block = extension(ExtensionType.RENEGOTIATION_INFO, b"\0") + block
        body = TLS12 + self._random + vector(1, session_id) + numbers(_SUITE) + b"\0"
        return message_of(HandshakeType.SERVER_HELLO, body + vector(2, block))

    def _key_exchange(self, share: bytes) -> tuple[bytes, bytes]:
        """Write Certificate and ServerKeyExchange (RFC 8422 section 5.4)."""
        entries = b"".join(vector(3, der) for der in self._server.chain)
        parameters = _NAMED_CURVE + numbers(_GROUP) + vector(1, share)
        signature = self._server.sign(self._hello.random + self._random + parameters)
        signed = numbers(SignatureScheme.ECDSA_SECP256R1_SHA256) + vector(2, signature)
        return (
            message_of(HandshakeType.CERTIFICATE, vector(3, entries)),
            message_of(HandshakeType.SERVER_KEY_EXCHANGE, parameters + signed),
        )

    def _ticket(self, main: bytes) -> bytes:
        ticket = issue_ticket(self._server.ticket_key, ProtocolVersion.TLS_1_2, _SUITE, main)
        body = _TICKET_SECONDS.to_bytes(4, "big") + vector(2, ticket)
        return message_of(HandshakeType.NEW_SESSION_TICKET, body)

    def _protections(self, main: bytes) -> tuple[_Protection, _Protection]:
        line = f"CLIENT_RANDOM {self._hello.random.hex()} {main.hex()}"
        self._server.key_log(line.encode())
        block = prf.key_block(
            _HASH,
            main,
            self._hello.random,
            self._random,
            mac_key_length=0,
            key_length=16,
            iv_length=4,
        )
        return (
            _Protection(block.client_key, block.client_iv),
            _Protection(block.server_key, block.server_iv),
        )

    def _verify_data(self, main: bytes, label: bytes) -> bytes:
        return prf.verify_data(_HASH, main, label, ks.transcript_hash(_HASH, *self._messages))

    def _take_finished(self, main: bytes, reading: _Protection) -> None:
        due = self._verify_data(main, prf.CLIENT_FINISHED)
        if not hmac.compare_digest(hs.finished(self._take(reading)), due):
            raise TelltaleFailed("the client's Finished is not right")

    def _send_finished(self, main: bytes, writing: _Protection) -> None:
        verify_data = self._verify_data(main, prf.SERVER_FINISHED)
        message = message_of(HandshakeType.FINISHED, verify_data)
        self._messages.append(message)
        changed = plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\1")
        sealed = writing.seal(ContentType.HANDSHAKE, message)
        self._records.sock.sendall(changed + sealed)

"""TLS 1.2 from the ServerHello on: which main secret opens which record.

Theory of operation. A handshake is numbered from 0, a renegotiation is the next number, and each
half stands in one of them; the two halves advance on their own, so a message is filed under *its*
half's number and no order of capture matters. ChangeCipherSpec ends a half's plaintext (or its old
keys): the records after it belong to the main secret of its handshake, and if that cannot be said
yet, they wait.

`find_main_secrets` decides, once it can. A key log decides at the ServerHello. Otherwise it needs
ClientKeyExchange and, since an extended main secret covers the whole handshake (RFC 7627), every
message before it, in protocol order: ClientHello, the server's flight up to ServerHelloDone, the
client's up to ClientKeyExchange. A server that changes keys without a ServerHelloDone resumes.
With a stolen ticket key it also needs the ticket that a server announces: what the client encrypts
then waits for the server's ChangeCipherSpec, before which the ticket comes.

A main secret is only ever a candidate (see `tls12_secrets`): each candidate's opener is tried on
the first protected record, and the one that authenticates it is kept for both halves. Nothing is
called opened before that, and nothing is learned for the sessions that resume this one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from interop.wire import handshake as hs
from interop.wire.engine import Engine, Halves, refuse, take_alert
from interop.wire.facts import SeenTicket
from interop.wire.groups import ffdhe_group
from interop.wire.material import Direction, KeyMaterial, SecretSource
from interop.wire.prf import key_block
from interop.wire.protection import RecordOpener, TLS12Keys, tls12_opener
from interop.wire.record import HEADER_LENGTH
from interop.wire.registry import ContentType, HandshakeType, name_of
from interop.wire.suites import KeyExchange, parameters_of
from interop.wire.tls12_secrets import Candidate, Handshake, NoMainSecret, find_main_secrets

if TYPE_CHECKING:
    from interop.wire.facts import SessionFacts
    from interop.wire.half import Half
    from interop.wire.handshake import ClientHello, ServerHello
    from interop.wire.learned import LearnedSecrets
    from interop.wire.protection import Opened

__all__ = ["TLS12Engine"]

_CLIENT, _SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
_CHANGE_CIPHER_SPEC = b"\x01"
_STORE_LIMIT_FACTOR = 4
_MAX_RENEGOTIATIONS = 64


class _Side:
    """Where one half stands."""

    def __init__(self) -> None:
        self.number = 0  # of the handshake its messages belong to
        self.keys_of: int | None = None  # the handshake whose keys protect its records
        self.openers: list[tuple[Candidate, RecordOpener]] = []
        self.proven = False


class TLS12Engine(Engine):
    """Reads a TLS 1.2 session (RFC 5246). Raises `DissectError` from its methods."""

    def __init__(
        self,
        facts: SessionFacts,
        keys: KeyMaterial,
        learned: LearnedSecrets,
        halves: Halves,
        *,
        client_hello: bytes,
        hello: ClientHello,
        handshake_limit_bytes: int,
    ) -> None:
        super().__init__(facts, keys, learned, halves)
        self._store_limit = _STORE_LIMIT_FACTOR * handshake_limit_bytes
        self._handshakes = {0: Handshake()}
        self._sides = {_CLIENT: _Side(), _SERVER: _Side()}
        first = self._handshakes[0]
        first.client_hello = hello
        first.file(_CLIENT, client_hello)

    # Waiting

    def must_wait(self, half: Half, content_type: int) -> bool:
        """Say whether the record after a ChangeCipherSpec still lacks its keys."""
        del content_type
        side = self._sides[half.direction]
        if side.keys_of is None or side.openers:
            return False
        handshake = self._handshakes[side.keys_of]
        other_may_tell = half.other.alive
        try:
            if handshake.candidates is None:
                handshake.candidates = find_main_secrets(
                    self._keys, self._learned, handshake, more_may_come=other_may_tell
                )
            if handshake.candidates is None:
                if other_may_tell:
                    return True
                half.close("the other direction's part of the handshake was not read")
                return False
            self._make_openers(half, side, handshake)
        except NoMainSecret as why:
            half.close(str(why))
        return False

    # Records

    def take_record(self, half: Half, content_type: int, record: memoryview) -> bytes | None:
        """Take one whole record (RFC 5246 section 6.2)."""
        side = self._sides[half.direction]
        if side.keys_of is None:
            content = bytes(record[HEADER_LENGTH:])
            if content_type == ContentType.APPLICATION_DATA:
                self._unexpected(content_type, "in the clear")
            self._take_content(half, side, content_type, content)
            return None
        for candidate, opener in side.openers:
            if (opened := opener.open(record)) is not None:
                if not side.proven:
                    self._prove(side, candidate, opener)
                return self._take_opened(half, side, opened)
        if side.proven:
            half.close("a damaged record: it does not open with its direction's keys")
        else:
            half.close(self._wrong_secret_reason(side))
        return None

    def _prove(self, side: _Side, candidate: Candidate, opener: RecordOpener) -> None:
        """Keep the candidate that opened a record, for the other half too."""
        side.proven = True
        side.openers = [(candidate, opener)]
        self._facts.note_opened(candidate.source.value)
        handshake = self._handshakes[side.keys_of or 0]
        handshake.candidates = [candidate]
        if not candidate.secret:
            return
        self._facts.secrets["main_secret"] = candidate.secret
        if handshake.main_secret is None:
            handshake.main_secret = candidate.secret
            self._learn(handshake, candidate.secret)

    def _learn(self, handshake: Handshake, main_secret: bytes) -> None:
        """Remember a proven main secret under all that other sessions share it by."""
        if handshake.server_hello is not None:
            self._learned.learn_session_id(handshake.server_hello.session_id, main_secret)
        self._learned.learn_ticket(handshake.issued_ticket or b"", main_secret)
        if handshake.resumed:
            self._learned.learn_ticket(handshake.shown_ticket, main_secret)

    def _wrong_secret_reason(self, side: _Side) -> str:
        sources = {candidate.source for candidate, _ in side.openers}
        if sources == {SecretSource.SERVER_RSA_KEY}:
            return "static RSA, but no matching private key (or a damaged record)"
        if sources == {SecretSource.NO_ENCRYPTION}:
            return "a damaged record: its MAC is missing or wrong"
        source = " or ".join(sorted(source.value for source in sources))
        return (
            f"the main secret from the {source} does not open this session's records "
            "(a wrong secret, or a damaged record)"
        )

    def _take_opened(self, half: Half, side: _Side, opened: Opened) -> bytes | None:
        half.protected_records_opened += 1
        if opened.content_type == ContentType.APPLICATION_DATA:
            half.opener = side.openers[0][1]
            return opened.content
        half.opener = None
        self._take_content(half, side, opened.content_type, opened.content)
        return None

    def _take_content(self, half: Half, side: _Side, content_type: int, content: bytes) -> None:
        if content_type == ContentType.HANDSHAKE:
            half.assembler.feed(content)
            self.drain(half)
        elif content_type == ContentType.ALERT:
            is_protected = side.keys_of is not None
            take_alert(self._facts, half, content, protected=is_protected)
        elif content_type == ContentType.CHANGE_CIPHER_SPEC:
            self._change_keys(half, side, content)
        elif content_type != ContentType.HEARTBEAT:
            self._unexpected(content_type, "in TLS 1.2")

    def _change_keys(self, half: Half, side: _Side, content: bytes) -> None:
        if content != _CHANGE_CIPHER_SPEC or side.keys_of == side.number:
            self._unexpected(ContentType.CHANGE_CIPHER_SPEC, "in TLS 1.2")
        if half.assembler.pending_bytes:
            refuse("a handshake message spans a change of keys", "handshake")
        side.keys_of = side.number
        side.openers = []
        passed = min(one.keys_of or 0 for one in self._sides.values())
        self._handshakes = {n: h for n, h in self._handshakes.items() if n >= passed}
        side.proven = False
        half.opener = None
        if half.direction is _SERVER:
            self._handshakes[side.number].server_changed_keys = True
            if side.number == 0 and self._handshakes[0].resumed:
                self._facts.resumed = True
                suite = self._handshakes[0].suite
                if suite is None or suite.encrypts:
                    self._facts.forward_secret = None

    # Messages

    def take_message(self, half: Half, message: bytes) -> None:
        """File a message under its half's handshake, and read what it tells."""
        kind = message[0]
        self._facts.note_message(half.direction, kind)
        if kind == HandshakeType.HELLO_REQUEST:  # not part of any transcript (section 7.4.1.1)
            return
        side = self._sides[half.direction]
        if kind in (HandshakeType.CLIENT_HELLO, HandshakeType.SERVER_HELLO):
            self._take_hello(half, side, kind, message)
            return
        handshake = self._handshakes[side.number]
        self._store(half, message, self._store_limit)
        handshake.file(half.direction, message)
        if side.number == 0:
            self._inform(self._take_facts, half, handshake, kind, message)
        if kind == HandshakeType.NEW_SESSION_TICKET and handshake.main_secret is not None:
            self._learn(handshake, handshake.main_secret)  # the client's half was captured ahead

    def _take_hello(self, half: Half, side: _Side, kind: int, message: bytes) -> None:
        """Take a renegotiation's hello (RFC 5246 section 7.4.1)."""
        is_own = (kind == HandshakeType.CLIENT_HELLO) == (half.direction is _CLIENT)
        if not is_own or side.keys_of != side.number or side.number >= _MAX_RENEGOTIATIONS:
            refuse(f"unexpected {name_of(HandshakeType, kind)}", "handshake")
        side.number += 1
        half.stored_handshake_bytes = half.stored_handshake_messages = 0
        handshake = self._handshakes.setdefault(side.number, Handshake())
        handshake.file(half.direction, message)
        if half.direction is _CLIENT:
            handshake.client_hello = hs.parse_client_hello(message)
            self._facts.renegotiations = side.number
        else:
            self._set_server_hello(handshake, hs.parse_server_hello(message))

    def take_server_hello(self, message: bytes, hello: ServerHello) -> None:
        """Take the first ServerHello."""
        handshake = self._handshakes[0]
        handshake.file(_SERVER, message)
        facts = self._facts
        facts.suite = hello.cipher_suite
        facts.server_random = hello.random
        facts.extended_main_secret = hello.extended_main_secret
        facts.encrypt_then_mac = hello.encrypt_then_mac
        self._set_server_hello(handshake, hello)
        if handshake.suite is not None:
            facts.forward_secret = handshake.suite.forward_secret
        if hello.compression_method:
            for half in self._halves.values():
                half.close("compressed records (CRIME) are not opened here")

    @staticmethod
    def _set_server_hello(handshake: Handshake, hello: ServerHello) -> None:
        handshake.server_hello = hello
        handshake.suite = parameters_of(hello.cipher_suite)

    def _take_facts(self, half: Half, handshake: Handshake, kind: int, message: bytes) -> None:
        """Write what a message of the first handshake tells into the facts."""
        facts = self._facts
        is_server = half.direction is _SERVER
        exchange = handshake.suite.key_exchange if handshake.suite else KeyExchange.OTHER
        if kind == HandshakeType.CERTIFICATE:
            hello = handshake.server_hello
            agreed = {} if hello is None else hello.extensions
            self._take_certificates(half.direction, message, tls13=False, agreed=agreed)
        elif kind == HandshakeType.SERVER_HELLO_DONE:
            facts.resumed = False
        elif kind == HandshakeType.SERVER_KEY_EXCHANGE and is_server:
            value = hs.server_key_exchange(message, exchange)
            if value is not None:
                group = value.group
                if group is None:
                    group = int(ffdhe_group(value.prime or 0) or 0)
                facts.group = group
                facts.server_key_shares[group] = value.public
        elif kind == HandshakeType.CLIENT_KEY_EXCHANGE and not is_server:
            if exchange.is_ephemeral:
                group = facts.group or 0
                facts.client_key_shares[group] = hs.client_key_exchange(message, exchange)
        elif kind == HandshakeType.NEW_SESSION_TICKET and is_server:
            facts.note_ticket(SeenTicket(hs.new_session_ticket_tls12(message).ticket, None))

    # Secrets

    def _make_openers(self, half: Half, side: _Side, handshake: Handshake) -> None:
        client_hello, server_hello, suite = (
            handshake.client_hello,
            handshake.server_hello,
            handshake.suite,
        )
        if client_hello is None or server_hello is None or suite is None or suite.cipher is None:
            raise NoMainSecret("a hello message is missing")
        cipher = suite.cipher
        is_client = half.direction is _CLIENT
        mac_length = hashlib.new(suite.mac_name).digest_size if suite.mac_name else 0
        for candidate in handshake.candidates or ():
            block = key_block(
                suite.hash_name,
                candidate.secret,
                client_hello.random,
                server_hello.random,
                mac_key_length=mac_length,
                key_length=cipher.key_length,
                iv_length=cipher.fixed_iv_length,
            )
            keys = TLS12Keys(*(block[::2] if is_client else block[1::2]))
            if not candidate.secret:
                keys = TLS12Keys(b"", b"", b"")
            opener = tls12_opener(
                cipher, suite.mac_name, keys, encrypt_then_mac=server_hello.encrypt_then_mac
            )
            side.openers.append((candidate, opener))

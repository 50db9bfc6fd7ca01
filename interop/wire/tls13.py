"""TLS 1.3 from the ServerHello on: which keys open which record.

Theory of operation. A direction passes through *epochs*, each with a traffic secret of its own:

    client   [early]  handshake  application
    server            handshake  application

and within *application* through generations, one a KeyUpdate. An `Epoch` is *known* (there are
openers to try), *missing* (and why), or *pending* (its secret will follow from messages that have
not been read yet). Everything else follows from four rules:

1. A record is tried with the current epoch. Where that is missing, or is *early*, whose records a
   server may have rejected, it is also tried with the next known one. A record that opens there is
   the switch; sequence numbers start at zero with each epoch, so no counting of lost records is
   needed. This one rule covers a key log that holds application secrets only, and 0-RTT records
   that nobody can open.
2. A half waits only for a pending epoch. Application secrets are pending until the server's
   Finished, and only where they are derived; that needs the handshake secret, so a handshake epoch
   is never missing while its application epoch is pending, and the two halves cannot wait for each
   other. Between a HelloRetryRequest and the second ClientHello all protected records are rejected
   early data: they wait for nothing, or the ServerHello would wait for a ClientHello behind them.
3. The server's Finished, the client's Finished and EndOfEarlyData end epochs where they can be
   seen. A handshake message must end where its epoch does (RFC 9846 section 5.1).
4. Secrets of a key log count before derived ones, and derived ones fill what it lacks.

The transcript (section 4.4.1) is the hash of messages in *protocol* order, which is not the order
of capture: what the client sends after the ServerHello is held back until the server's Finished.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from interop.wire import handshake as hs
from interop.wire.engine import Engine, Halves, refuse, take_alert
from interop.wire.facts import MAX_LISTED, SeenTicket
from interop.wire.key_schedule import derive_secret, message_hash, resumption_psk
from interop.wire.material import Direction, KeyMaterial, SecretSource
from interop.wire.record import HEADER_LENGTH, MAX_CIPHERTEXT_TLS13
from interop.wire.registry import ContentType, ExtensionType, HandshakeType, name_of
from interop.wire.suites import CipherSuite, KeyExchange, SuiteParameters, parameters_of
from interop.wire.tls13_epochs import Epoch, EpochName, Side
from interop.wire.tls13_secrets import (
    NOTHING_DERIVED,
    HandshakeSecrets,
    derive_application_secrets,
    find_early_secret,
    find_handshake_secrets,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from hashlib import _Hash as Hash

    from interop.wire.extensions import ExtensionBlock
    from interop.wire.facts import SessionFacts
    from interop.wire.half import Half
    from interop.wire.handshake import ClientHello, NewSessionTicket, ServerHello
    from interop.wire.learned import LearnedSecrets
    from interop.wire.protection import Opened

__all__ = ["TLS13Engine"]

_CLIENT, _SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
_APPLICATION_DATA = int(ContentType.APPLICATION_DATA)
_CHANGE_CIPHER_SPEC = b"\x01"
_STORE_LIMIT_FACTOR = 4


def _refuse_message(kind: int, where: str) -> None:
    refuse(f"unexpected {name_of(HandshakeType, kind)} {where}", "handshake")


class TLS13Engine(Engine):
    """Reads a TLS 1.3 session (RFC 9846).

    `client_hello` is the first one, `hello` what it says. Raises `DissectError` from its methods.
    """

    record_limit_bytes = MAX_CIPHERTEXT_TLS13

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
        self._client_hellos = [client_hello]
        self._hellos = [hello]
        self._retry: bytes | None = None
        self._server_hello: ServerHello | None = None
        self._suite: SuiteParameters | None = None
        self._handshake_secret: bytes | None = None
        self._main_secret: bytes | None = None
        self._derived_from: SecretSource | None = None
        self._resumption_secret: bytes | None = None
        self._early_tickets: dict[int, NewSessionTicket] = {}  # by their place in the facts
        self._agreed: ExtensionBlock = {}  # what the server's EncryptedExtensions say
        self._server_flight_done = False
        self._client_flight: list[bytes] = []  # held back until the server's is complete
        self._transcript: Hash | None = None  # where something can be derived from it
        early = (EpochName.EARLY,) if self._hellos[0].early_data else ()
        later = (EpochName.HANDSHAKE, EpochName.APPLICATION)
        self._sides = {
            _CLIENT: Side(_CLIENT, *early, *later),
            _SERVER: Side(_SERVER, *later),
        }

    # Waiting

    def must_wait(self, half: Half, content_type: int) -> bool:
        """Rule 2 of the theory of operation."""
        if self._server_hello is None:
            between_hellos = self._retry is not None and len(self._hellos) == 1
            if half.direction is _SERVER:
                is_hello = content_type == ContentType.HANDSHAKE
                return between_hellos and is_hello and half.other.alive
            is_protected = content_type == _APPLICATION_DATA
            return is_protected and not between_hellos and half.other.alive
        if content_type != _APPLICATION_DATA:
            return False
        epoch = self._sides[half.direction].epoch
        if epoch.proven or not epoch.pending:
            return False
        if half.other.alive:
            return True
        epoch.missing = "the server's flight, which the application secrets cover, was not read"
        half.close(epoch.missing)
        return False

    # Records

    def take_record(self, half: Half, content_type: int, record: memoryview) -> bytes | None:
        """Take one whole record (RFC 9846 section 5)."""
        side = self._sides[half.direction]
        if content_type == ContentType.APPLICATION_DATA:
            if self._server_hello is None:
                return self._take_rejected_early_data(half, side, record)
            return self._take_protected(half, side, record)
        fragment = record[HEADER_LENGTH:]
        if content_type == ContentType.CHANGE_CIPHER_SPEC:
            # Section 5: dropped if it is the one octet 1 and the handshake is not over.
            if side.epoch.name is EpochName.APPLICATION or fragment != _CHANGE_CIPHER_SPEC:
                self._unexpected(content_type, "in TLS 1.3")
        elif side.protected:
            self._unexpected(content_type, "in the clear, after protected records")
        elif content_type == ContentType.ALERT:
            take_alert(self._facts, half, bytes(fragment), protected=False)
        elif content_type == ContentType.HANDSHAKE:
            half.assembler.feed(fragment)
            self.drain(half)
        else:
            self._unexpected(content_type, "in TLS 1.3")
        return None

    def _take_rejected_early_data(self, half: Half, side: Side, record: memoryview) -> bytes | None:
        """Take a protected record that precedes the ServerHello: rejected 0-RTT data."""
        if half.direction is _SERVER:
            self._unexpected(ContentType.APPLICATION_DATA, "before the ServerHello")
        opened = side.epoch.open(record) if side.epoch.name is EpochName.EARLY else None
        if opened is not None:
            return self._take_opened(half, side, opened)
        self._facts.early_records_skipped += 1
        return None

    def _take_protected(self, half: Half, side: Side, record: memoryview) -> bytes | None:
        side.protected = True
        if not half.protected_records_opened and half.assembler.pending_bytes:
            refuse("a handshake message is cut by the change to protected records", "handshake")
        if (opened := side.open(record)) is not None:
            return self._take_opened(half, side, opened)
        epoch = side.epoch
        if epoch.name is EpochName.EARLY:
            self._facts.early_records_skipped += 1
        elif not epoch.known or (half.skips_application_data and not epoch.proven):
            half.skipped_records += 1  # of it only later secrets are known
        elif epoch.proven:
            half.close(f"a damaged record: it does not open with its {epoch.name.value} keys")
        else:
            source = epoch.source.value if epoch.source is not None else "keys"
            half.close(
                f"the {epoch.name.value} secret from the {source} does not open this session's "
                "records (a wrong secret, or a damaged record)"
            )
        return None

    def _take_opened(self, half: Half, side: Side, opened: Opened) -> bytes | None:
        epoch = side.epoch
        half.protected_records_opened += 1
        if not epoch.noted and epoch.source is not None:
            epoch.noted = True
            is_early = epoch.name is EpochName.EARLY
            self._facts.note_opened(epoch.source.value, early=is_early)
        content_type, content = opened
        if content_type == ContentType.APPLICATION_DATA:
            if epoch.name is EpochName.HANDSHAKE:
                self._unexpected(content_type, "under handshake keys")
            if half.assembler.pending_bytes:
                self._unexpected(content_type, "within a handshake message")
            half.opener = epoch.opener
            return content
        half.opener = None
        if content_type == ContentType.HANDSHAKE:
            half.assembler.feed(content)
            self.drain(half)
        elif content_type == ContentType.ALERT:
            take_alert(self._facts, half, content, protected=True)
        else:
            self._unexpected(content_type, "inside a protected record")
        return None

    # Messages

    def take_message(self, half: Half, message: bytes) -> None:
        """Take one whole message, in whatever epoch its half is."""
        kind = message[0]
        self._facts.note_message(half.direction, kind)
        side = self._sides[half.direction]
        if not side.protected:
            self._take_hello(half, side, kind, message)
        elif side.epoch.name is EpochName.APPLICATION:
            self._take_post_handshake(half, side, kind, message)
        elif half.direction is _SERVER:
            self._take_server_flight(half, side, kind, message)
        else:
            self._take_client_flight(half, side, kind, message)

    def _take_hello(self, half: Half, side: Side, kind: int, message: bytes) -> None:
        if half.direction is _SERVER:
            if kind != HandshakeType.SERVER_HELLO or self._server_hello is not None:
                _refuse_message(kind, "in the clear")
            self.take_server_hello(message, hs.parse_server_hello(message))
            return
        if kind == HandshakeType.END_OF_EARLY_DATA and half.protected_records_opened:
            refuse("early data does not end between two ClientHellos", "handshake")
        if kind != HandshakeType.CLIENT_HELLO or len(self._hellos) > 1:
            _refuse_message(kind, "in the clear")
        half.opener = None
        hello = hs.parse_client_hello(message)
        if hello.random != self._hellos[0].random:
            refuse("the second ClientHello has another random", "client_hello.random")
        self._client_hellos.append(message)
        self._hellos.append(hello)
        side.drop_early()
        self._inform(self._take_key_shares, hello)

    def take_server_hello(self, message: bytes, hello: ServerHello) -> None:
        """Take a ServerHello or HelloRetryRequest (RFC 9846 sections 4.2.3 and 4.2.4)."""
        name = name_of(CipherSuite, hello.cipher_suite)
        suite = self._suite = parameters_of(hello.cipher_suite)
        if suite is None or suite.key_exchange is not KeyExchange.TLS13:
            refuse(f"{name} is no suite of TLS 1.3", "server_hello.cipher_suite")
        facts = self._facts
        facts.suite = hello.cipher_suite
        facts.group = hello.selected_group
        if hello.is_hello_retry_request:
            if self._retry is not None:
                refuse("a second HelloRetryRequest", "server_hello")
            self._retry = message
            facts.hello_retry_request = True
        else:
            facts.server_random = hello.random
            facts.resumed = hello.selected_psk is not None
            facts.forward_secret = hello.key_share is not None and suite.encrypts
            if hello.key_share is not None:
                facts.server_key_shares[hello.key_share.group] = hello.key_share.key_exchange
            self._server_hello = hello
        if suite.cipher is None:
            reason = "this suite is not opened here"
            if not suite.encrypts:
                reason = f"integrity only, so that anybody can read its records; {reason}"
            self._close_both(f"{name}: {reason}")
            return
        self._find_early_secret()
        if not hello.is_hello_retry_request:
            self._find_secrets(suite, hello, message)

    def _take_server_flight(self, half: Half, side: Side, kind: int, message: bytes) -> None:
        self._store(half, message, self._store_limit)
        if self._transcript is not None:
            self._transcript.update(message)
        if kind == HandshakeType.ENCRYPTED_EXTENSIONS:
            self._inform(self._take_encrypted_extensions, message)
        elif kind == HandshakeType.CERTIFICATE:
            self._inform_of_certificates(half, message)
        elif kind == HandshakeType.FINISHED:
            self._end_epoch(half, side)
            self._server_flight_done = True
            self._derive_application_secrets()
            held, self._client_flight = self._client_flight, []
            for earlier in held:
                self._add_to_client_flight(earlier)

    def _take_encrypted_extensions(self, message: bytes) -> None:
        self._agreed = hs.encrypted_extensions(message)
        self._facts.early_data_accepted = ExtensionType.EARLY_DATA in self._agreed

    def _inform_of_certificates(self, half: Half, message: bytes) -> None:
        self._inform(
            self._take_certificates, half.direction, message, tls13=True, agreed=self._agreed
        )

    def _take_client_flight(self, half: Half, side: Side, kind: int, message: bytes) -> None:
        self._store(half, message, self._store_limit)
        if kind == HandshakeType.END_OF_EARLY_DATA:
            if side.epoch.name is not EpochName.EARLY:
                _refuse_message(kind, "under handshake keys")
            self._end_epoch(half, side, EpochName.HANDSHAKE)
        elif side.epoch.name is EpochName.EARLY:
            _refuse_message(kind, "under early keys")
        elif kind == HandshakeType.CERTIFICATE:
            self._inform_of_certificates(half, message)
        self._add_to_client_flight(message)
        if kind == HandshakeType.FINISHED:
            self._end_epoch(half, side)

    def _end_epoch(self, half: Half, side: Side, to: EpochName = EpochName.APPLICATION) -> None:
        """Rule 3 of the theory of operation."""
        if half.assembler.pending_bytes:
            refuse("a handshake message spans a change of keys", "handshake")
        half.opener = None
        side.move_to(to)
        ahead = side.epochs[side.index :]
        if all(epoch.missing is not None for epoch in ahead):
            half.close(ahead[0].missing or "")

    def _take_post_handshake(self, half: Half, side: Side, kind: int, message: bytes) -> None:
        if kind == HandshakeType.KEY_UPDATE:
            hs.key_update(message)
            if half.assembler.pending_bytes:
                refuse("a handshake message spans a change of keys", "handshake")
            side.epoch.update()
            updates = self._facts.key_updates
            updates[half.direction] = updates.get(half.direction, 0) + 1
        elif kind == HandshakeType.NEW_SESSION_TICKET and half.direction is _SERVER:
            self._inform(self._take_ticket, message)
        elif kind == HandshakeType.CERTIFICATE and half.direction is _CLIENT:
            self._inform_of_certificates(half, message)

    def _take_ticket(self, message: bytes) -> None:
        """Note a ticket, and learn its pre-shared key (RFC 9846 section 4.7.1).

        That follows from the resumption secret, which covers the client's Finished; a server's
        half may have been captured ahead of it, or a server may not have waited for it.
        """
        ticket = hs.new_session_ticket_tls13(message)
        facts = self._facts
        if self._resumption_secret is None or self._suite is None:
            if self._handshake_secret is not None and len(facts.tickets) < MAX_LISTED:
                self._early_tickets[len(facts.tickets)] = ticket
            facts.note_ticket(SeenTicket(ticket.ticket, None))
            return
        psk = resumption_psk(self._suite.hash_name, self._resumption_secret, ticket.nonce)
        self._learned.learn_ticket(ticket.ticket, psk)
        facts.note_ticket(SeenTicket(ticket.ticket, psk))

    # Transcript

    def _before_last_hello(self, suite: SuiteParameters) -> bytes:
        """Give what the transcript holds before the last ClientHello (section 4.4.1)."""
        if self._retry is None:
            return b""
        return message_hash(suite.hash_name, self._client_hellos[0]) + self._retry

    def _add_to_client_flight(self, message: bytes) -> None:
        if self._transcript is None:
            return
        if not self._server_flight_done:
            self._client_flight.append(message)
            return
        self._transcript.update(message)
        if message[0] == HandshakeType.FINISHED:
            self._derive_resumption_secret()

    # Secrets

    def _find_early_secret(self) -> None:
        epoch = self._sides[_CLIENT].get(EpochName.EARLY)
        if epoch is None or not epoch.pending:
            return
        found = find_early_secret(
            self._keys, self._learned, self._hellos[0], self._client_hellos[0]
        )
        if found is None:
            epoch.missing = "0-RTT data: no early traffic secret"
            return
        self._facts.secrets["client_early_traffic_secret"] = found.secret
        # A server that rejects early data may choose a suite other than the ticket's.
        offered = (parameters_of(number) for number in self._hellos[0].cipher_suites)
        suites = [
            suite
            for suite in offered
            if suite is not None
            and suite.key_exchange is KeyExchange.TLS13
            and suite.hash_name == found.hash_name
        ]
        epoch.provide(found.source, (found.secret,), suites)

    def _find_secrets(self, suite: SuiteParameters, hello: ServerHello, message: bytes) -> None:
        """Rule 4 of the theory of operation."""
        logged = self._keys.key_log.get(self._hellos[0].random, {})
        derived = self._derive_handshake_secrets(suite, hello, message, logged)
        for direction, side in self._sides.items():
            handshake, application = side.epochs[-2:]
            if (secret := logged.get(handshake.log_label)) is not None:
                self._provide(handshake, SecretSource.KEY_LOG, (secret,))
            elif derived.source is not None:
                secrets = (derived.traffic_secrets[direction],)
                self._provide(handshake, derived.source, secrets)
            else:
                handshake.missing = derived.reason
            if (secret := logged.get(application.log_label)) is not None:
                self._provide(application, SecretSource.KEY_LOG, (secret,))
            else:
                self._find_later_secret(direction, side, logged, derived.reason)
            if not any(epoch.known for epoch in side.epochs):
                self._halves[direction].close(application.missing or derived.reason)

    def _derive_handshake_secrets(
        self,
        suite: SuiteParameters,
        hello: ServerHello,
        message: bytes,
        logged: Mapping[str, bytes],
    ) -> HandshakeSecrets:
        """Derive what can be, and begin the transcript that the other secrets need with it.

        Most sessions of a capture are in the key log as a whole, and only a stolen key of their
        exchange could add to that.
        """
        epochs = (epoch for side in self._sides.values() for epoch in side.epochs[-2:])
        if (
            hello.key_share is not None
            and not self._keys.ephemeral_private_keys
            and all(epoch.log_label in logged for epoch in epochs)
        ):
            return NOTHING_DERIVED
        before = self._before_last_hello(suite)
        transcript = hashlib.new(suite.hash_name, before + self._client_hellos[-1] + message)
        derived = find_handshake_secrets(
            self._keys,
            self._learned,
            suite.hash_name,
            self._hellos[-1],
            self._client_hellos[-1],
            server_hello=hello,
            prefix=before,
            transcript=transcript.digest(),
        )
        self._derived_from = derived.source
        if derived.pre_shared_key is not None:
            self._facts.secrets["pre_shared_key"] = derived.pre_shared_key
        if derived.handshake_secret is not None:
            self._transcript = transcript
            self._handshake_secret = derived.handshake_secret
            self._facts.secrets["handshake_secret"] = derived.handshake_secret
        return derived

    def _find_later_secret(
        self, direction: Direction, side: Side, logged: Mapping[str, bytes], reason: str
    ) -> None:
        """Find the secret of an application epoch whose first generation is not in the log."""
        handshake, application = side.epochs[-2:]
        stem = application.log_label.removesuffix("0")
        if later := [secret for label, secret in logged.items() if label.startswith(stem)]:
            # The log begins in mid-session: some later generation will open some record.
            self._provide(application, SecretSource.KEY_LOG, later)
            self._halves[direction].skips_application_data = True
        elif self._handshake_secret is None:
            application.missing = reason
            if handshake.log_label in logged:
                application.missing = (
                    "the key log holds the handshake secret but no application secret"
                )

    def _provide(
        self, epoch: Epoch, source: SecretSource, secrets: tuple[bytes, ...] | list[bytes]
    ) -> None:
        if self._suite is None:
            return
        epoch.provide(source, secrets, (self._suite,))
        if epoch.known:
            self._facts.secrets[epoch.secret_name] = epoch.secret

    def _derive_application_secrets(self) -> None:
        """Derive what the server's Finished completes (RFC 9846 section 7.1)."""
        suite, source = self._suite, self._derived_from
        handshake_secret, transcript = self._handshake_secret, self._transcript
        if suite is None or handshake_secret is None or source is None or transcript is None:
            return
        digest = transcript.digest()
        derived = derive_application_secrets(suite.hash_name, handshake_secret, digest)
        self._main_secret = derived.main_secret
        self._facts.secrets["main_secret"] = derived.main_secret
        self._facts.secrets["exporter_secret"] = derived.exporter_secret
        for direction, side in self._sides.items():
            epoch = side.epochs[-1]
            if epoch.pending:
                secrets = (derived.traffic_secrets[direction],)
                self._provide(epoch, source, secrets)

    def _derive_resumption_secret(self) -> None:
        if self._suite is None or self._main_secret is None or self._transcript is None:
            return
        self._resumption_secret = derive_secret(
            self._suite.hash_name, self._main_secret, b"res master", self._transcript.digest()
        )
        self._facts.secrets["resumption_secret"] = self._resumption_secret
        for index, ticket in self._early_tickets.items():
            psk = resumption_psk(self._suite.hash_name, self._resumption_secret, ticket.nonce)
            self._learned.learn_ticket(ticket.ticket, psk)
            self._facts.tickets[index] = SeenTicket(ticket.ticket, psk)
        self._early_tickets.clear()

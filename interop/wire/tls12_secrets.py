"""From a theft to the main secret of one TLS 1.2 handshake.

Which secrets help is decided by how the handshake came to its main secret:

* *RSA*: the server's private key decrypts the premaster secret (RFC 5246 section 7.4.7.1).
* *(EC)DHE*: either side's ephemeral key gives it (section 8.1.2; RFC 8422 section 5.10).
* *PSK*, alone or beside one of those: the pre-shared key is half of it (RFC 4279, RFC 5489).
* *Resumed*: the main secret is the original session's. It lies in the ticket that the client shows,
  under the server's ticket key, or was learned when the original was recovered.
* In every case a ticket that the handshake *issues* holds its main secret too (RFC 5077 section
  3.3), and crosses the wire before anything is encrypted: a ticket key opens that session as well,
  however it exchanged its keys. So does a session that resumes by that ticket, once it is opened.

* A suite without encryption needs no secret at all: its records are read in any case, and a main
  secret that something gives only adds that their MAC is checked.

RSA needs care. With implicit rejection, decrypting with the *wrong* private key gives no error but
a random premaster secret. So everything found here is a `Candidate` only, and it is the first
record that authenticates which tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

from interop.errors import DissectError
from interop.wire import handshake as hs
from interop.wire.engine import no_key_reason
from interop.wire.groups import NoSharedSecret, finite_field_shared_secret, shared_secret
from interop.wire.key_schedule import transcript_hash
from interop.wire.material import Direction, KeyMaterial, SecretSource
from interop.wire.prf import MAIN_SECRET_LENGTH, extended_main_secret, main_secret
from interop.wire.registry import (
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    name_of,
)
from interop.wire.suites import CipherSuite, KeyExchange, SuiteParameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.wire.handshake import ClientHello, ServerHello
    from interop.wire.learned import LearnedSecrets

__all__ = ["Candidate", "Handshake", "NoMainSecret", "find_main_secrets"]

_CLIENT, _SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
_PREMASTER_LENGTH = 48
_RANDOM = slice(6, 38)  # of a hello message
_WITH_RSA = (KeyExchange.RSA, KeyExchange.RSA_PSK)
# What gave the premaster secret's one half, by what gave it together with the pre-shared key.
_BESIDE_PSK = {
    SecretSource.SERVER_RSA_KEY: SecretSource.SERVER_AND_PRE_SHARED_KEY,
    SecretSource.EPHEMERAL_KEY: SecretSource.EPHEMERAL_AND_PRE_SHARED_KEY,
}


class Candidate(NamedTuple):
    """A main secret that may be the one, and what gave it; empty where none is needed."""

    source: SecretSource
    secret: bytes

    def __repr__(self) -> str:
        return f"Candidate({self.source.value})"


class NoMainSecret(Exception):
    """Why no main secret can be had, in one sentence."""


class Handshake:
    """One handshake, first or renegotiated; messages whole, in each half's order.

    A half that waits asks for the other's messages with every segment, so the first of each kind
    is found without a search.
    """

    def __init__(self) -> None:
        self.messages: dict[Direction, list[bytes]] = {_CLIENT: [], _SERVER: []}
        self._first: dict[tuple[Direction, int], bytes] = {}
        self.client_hello: ClientHello | None = None
        self.server_hello: ServerHello | None = None
        self.suite: SuiteParameters | None = None
        self.server_changed_keys = False
        self.candidates: list[Candidate] | None = None
        self.main_secret: bytes | None = None  # once a record has proven it

    def file(self, direction: Direction, message: bytes) -> None:
        """Keep a half's next message."""
        self.messages[direction].append(message)
        self._first.setdefault((direction, message[0]), message)

    def find(self, direction: Direction, kind: HandshakeType) -> bytes | None:
        """Find a half's first message of a kind."""
        return self._first.get((direction, kind))

    @property
    def resumed(self) -> bool | None:
        """Whether the server skipped the key exchange; None while it may still come."""
        if self.find(_SERVER, HandshakeType.SERVER_HELLO_DONE) is not None:
            return False
        return True if self.server_changed_keys else None

    @property
    def shown_ticket(self) -> bytes:
        """The ticket that the client would resume with; empty if it has none."""
        hello = self.client_hello
        return b"" if hello is None else hello.extensions.get(ExtensionType.SESSION_TICKET, b"")

    @property
    def issued_ticket(self) -> bytes | None:
        """The ticket that the server issues (RFC 5077 section 3.3); None while it may still come.

        Empty where it issues none.
        """
        if (message := self.find(_SERVER, HandshakeType.NEW_SESSION_TICKET)) is not None:
            try:
                return hs.new_session_ticket_tls12(message).ticket
            except DissectError:  # nobody will resume by what is no ticket
                return b""
        hello = self.server_hello
        announced = hello is not None and ExtensionType.SESSION_TICKET in hello.extensions
        return None if announced and not self.server_changed_keys else b""

    def session_hash(self, hash_name: str) -> bytes:
        """Hash the messages up to ClientKeyExchange in protocol order (RFC 7627 section 3)."""
        client, server = self.messages[_CLIENT], self.messages[_SERVER]
        kinds = [message[0] for message in server]
        server_end = kinds.index(HandshakeType.SERVER_HELLO_DONE) + 1
        client_end = [m[0] for m in client].index(HandshakeType.CLIENT_KEY_EXCHANGE) + 1
        ordered = (*client[:1], *server[:server_end], *client[1:client_end])
        return transcript_hash(hash_name, *ordered)


def find_main_secrets(
    keys: KeyMaterial, learned: LearnedSecrets, handshake: Handshake, *, more_may_come: bool
) -> list[Candidate] | None:
    """Find the candidates for a main secret; None if messages are still needed.

    `more_may_come` tells whether the other direction still can bring some. Raises `NoMainSecret`
    where there will be none.
    """
    client_hello, server_hello, suite = (
        handshake.client_hello,
        handshake.server_hello,
        handshake.suite,
    )
    if client_hello is None or server_hello is None:
        return None
    if suite is None or suite.cipher is None:
        name = name_of(CipherSuite, server_hello.cipher_suite)
        raise NoMainSecret(f"{name}: this suite is not opened here")
    if suite.encrypts:
        return _find(keys, learned, handshake, suite, server_hello, more_may_come=more_may_come)
    try:
        found = _find(keys, learned, handshake, suite, server_hello, more_may_come=more_may_come)
    except NoMainSecret:
        found = []
    if found is None and more_may_come:
        return None
    secrets = [candidate.secret for candidate in found or ()]
    return [Candidate(SecretSource.NO_ENCRYPTION, secret) for secret in (*secrets, b"")]


def _find(
    keys: KeyMaterial,
    learned: LearnedSecrets,
    handshake: Handshake,
    suite: SuiteParameters,
    server_hello: ServerHello,
    *,
    more_may_come: bool,
) -> list[Candidate] | None:
    random = handshake.messages[_CLIENT][0][_RANDOM]
    logged = keys.key_log.get(random, {})
    if (secret := logged.get("CLIENT_RANDOM")) is not None:
        return [Candidate(SecretSource.KEY_LOG, secret)]
    if handshake.resumed:
        return _of_resumption(keys, learned, handshake, server_hello)
    exchange = handshake.find(_CLIENT, HandshakeType.CLIENT_KEY_EXCHANGE)
    if handshake.resumed is None or exchange is None:
        return None
    issued = handshake.issued_ticket
    if (keys.ticket_keys or len(learned)) and issued is None and more_may_come:
        return None
    candidates = _of_tickets(keys, issued or b"")
    resumed_since = _of_other_sessions(learned.of_ticket(issued or b""))
    try:
        candidates += _of_exchange(keys, handshake, suite, exchange)
    except NoMainSecret:
        if not candidates and not resumed_since:
            raise
    return candidates + resumed_since


def _of_tickets(keys: KeyMaterial, *tickets: bytes) -> list[Candidate]:
    """Open tickets under the stolen ticket keys."""
    return [
        Candidate(SecretSource.TICKET_KEY, state.secret)
        for ticket in tickets
        for key in keys.ticket_keys
        if ticket and (state := key.open(ticket)) is not None
        if state.version == ProtocolVersion.TLS_1_2
    ]


def _of_other_sessions(*secrets: bytes | None) -> list[Candidate]:
    return [
        Candidate(SecretSource.EARLIER_SESSION, secret)
        for secret in secrets
        if secret is not None and len(secret) == MAIN_SECRET_LENGTH
    ]


def _of_resumption(
    keys: KeyMaterial, learned: LearnedSecrets, handshake: Handshake, hello: ServerHello
) -> list[Candidate]:
    shown = handshake.shown_ticket
    candidates = _of_tickets(keys, shown, handshake.issued_ticket or b"")
    candidates += _of_other_sessions(
        learned.of_ticket(shown), learned.of_session_id(hello.session_id)
    )
    if not candidates:
        raise NoMainSecret(_resumption_reason(keys, shown))
    return candidates


def _resumption_reason(keys: KeyMaterial, ticket: bytes) -> str:
    if keys.is_empty:
        return "resumed: no keys were given"
    reason = "resumed: the main secret is an earlier session's, which the keys given do not hold"
    if keys.ticket_keys:
        reason += (
            ", and no ticket key given opens the ticket"
            if ticket
            else ", and there is no ticket that a ticket key could open"
        )
    if keys.key_log:
        reason += ", and no key log line for this client_random"
    return reason


def _of_exchange(
    keys: KeyMaterial, handshake: Handshake, suite: SuiteParameters, message: bytes
) -> list[Candidate]:
    """Make a main secret of every premaster secret that the keys give."""
    value = hs.client_key_exchange(message, suite.key_exchange)
    found = list(_premaster_secrets(keys, handshake, suite, value))
    if not found:
        raise NoMainSecret("static RSA, but no matching private key")
    return [
        Candidate(source, _main_secret(handshake, suite, premaster)) for source, premaster in found
    ]


def _premaster_secrets(
    keys: KeyMaterial, handshake: Handshake, suite: SuiteParameters, value: bytes
) -> Iterator[tuple[SecretSource, bytes]]:
    exchange = suite.key_exchange
    random = handshake.messages[_CLIENT][0][_RANDOM]
    if not (exchange in _WITH_RSA or exchange.is_ephemeral or exchange.has_psk):
        raise NoMainSecret(no_key_reason(keys, exchange.value, random))
    if exchange.has_psk and not keys.pre_shared_keys:
        reason = f"{exchange.value}: no pre-shared key was given"
        raise NoMainSecret(reason if not keys.is_empty else f"{exchange.value}: no keys were given")
    halves: list[tuple[SecretSource, bytes | None]] = [(SecretSource.PRE_SHARED_KEY, None)]
    if exchange in _WITH_RSA:
        halves = [(SecretSource.SERVER_RSA_KEY, secret) for secret in _of_rsa(keys, value)]
    elif exchange.is_ephemeral:
        secret = _of_ephemeral_key(keys, handshake, suite, value)
        halves = [(SecretSource.EPHEMERAL_KEY, secret)]
    for source, half in halves:
        if not exchange.has_psk:
            yield source, half or b""
            continue
        for key in keys.pre_shared_keys:
            other = bytes(len(key)) if half is None else half  # RFC 4279 section 2
            yield _BESIDE_PSK.get(source, source), _sized(other) + _sized(key)


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _of_rsa(keys: KeyMaterial, value: bytes) -> list[bytes]:
    if not keys.rsa_keys:
        raise NoMainSecret(_no_rsa_key_reason(keys))
    found = []
    for key in keys.rsa_keys:
        try:
            premaster = key.decrypt(value, PKCS1v15())
        except ValueError:  # a value that is not of this key's length
            continue
        if len(premaster) == _PREMASTER_LENGTH:
            found.append(premaster)
    return found


def _no_rsa_key_reason(keys: KeyMaterial) -> str:
    if keys.is_empty:
        return "static RSA: no keys were given"
    reason = "static RSA, but no RSA private key was given"
    return reason + (", and no key log line for this client_random" * bool(keys.key_log))


def _of_ephemeral_key(
    keys: KeyMaterial, handshake: Handshake, suite: SuiteParameters, client: bytes
) -> bytes:
    message = handshake.find(_SERVER, HandshakeType.SERVER_KEY_EXCHANGE)
    value = hs.server_key_exchange(message, suite.key_exchange) if message else None
    label = suite.key_exchange.value
    if value is None:
        raise NoMainSecret(f"{label}: there is no ServerKeyExchange")
    try:
        if value.group is None:
            prime = value.prime or 0
            return finite_field_shared_secret(keys.ephemeral_keys, prime, client, value.public)
        label = f"{label} with {name_of(NamedGroup, value.group)}"
        return shared_secret(keys.ephemeral_keys, value.group, client, value.public)
    except NoSharedSecret as why:
        if suite.key_exchange.has_psk:
            raise NoMainSecret(f"{label}: the pre-shared key is one half, and {why}") from None
        random = handshake.messages[_CLIENT][0][_RANDOM]
        raise NoMainSecret(no_key_reason(keys, label, random, tried=str(why))) from None


def _main_secret(handshake: Handshake, suite: SuiteParameters, premaster: bytes) -> bytes:
    client_hello, server_hello = handshake.client_hello, handshake.server_hello
    if client_hello is None or server_hello is None:
        raise NoMainSecret("a hello message is missing")
    if server_hello.extended_main_secret:
        session_hash = handshake.session_hash(suite.hash_name)
        return extended_main_secret(suite.hash_name, premaster, session_hash)
    return main_secret(suite.hash_name, premaster, client_hello.random, server_hello.random)

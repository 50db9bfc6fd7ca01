"""From a theft to the traffic secrets of one TLS 1.3 session.

A stolen secret helps in one of three ways: a key log names the traffic secret itself; an ephemeral
private key gives the (EC)DHE shared secret, from which the handshake secret follows; a pre-shared
key gives the early secret below it. A session that resumes with (EC)DHE needs both of the latter.
The server's certificate key gives nothing: in TLS 1.3 it only ever signs.

A pre-shared key may be stolen as such, lie in the ticket that is its identity, under a stolen
ticket key, or have been learned when the session that issued the ticket was recovered. Wherever it
is from, it is recognised by its binder (RFC 9846 section 4.3.11.2), an HMAC over the ClientHello,
so that a wrong one is refused before anything is derived from it.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, NamedTuple

from interop.wire.engine import no_key_reason
from interop.wire.groups import NoSharedSecret, shared_secret
from interop.wire.key_schedule import (
    HASH_OF_LENGTH,
    binder_key,
    derive_secret,
    early_secret,
    handshake_secret,
    main_secret,
    transcript_hash,
    verify_data,
)
from interop.wire.material import Direction, SecretSource
from interop.wire.registry import NamedGroup, ProtocolVersion, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from interop.wire.handshake import ClientHello, ServerHello
    from interop.wire.learned import LearnedSecrets
    from interop.wire.material import KeyMaterial

__all__ = [
    "NOTHING_DERIVED",
    "ApplicationSecrets",
    "EarlySecret",
    "HandshakeSecrets",
    "KnownPSK",
    "derive_application_secrets",
    "find_early_secret",
    "find_handshake_secrets",
    "find_psk",
]

_HASHES = tuple(HASH_OF_LENGTH.values())
_WITH_EPHEMERAL_KEY = {
    SecretSource.PRE_SHARED_KEY: SecretSource.EPHEMERAL_AND_PRE_SHARED_KEY,
    SecretSource.TICKET_KEY: SecretSource.EPHEMERAL_AND_TICKET_KEY,
    SecretSource.EARLIER_SESSION: SecretSource.EPHEMERAL_AND_EARLIER_SESSION,
}


class KnownPSK(NamedTuple):
    """The pre-shared key behind an offered identity, and the hash that its binder is made with."""

    source: SecretSource
    key: bytes
    hash_name: str

    def __repr__(self) -> str:
        return f"KnownPSK({self.source.value})"


class EarlySecret(NamedTuple):
    """The client's early traffic secret, and the hash that it was made with."""

    source: SecretSource
    secret: bytes
    hash_name: str

    def __repr__(self) -> str:
        return f"EarlySecret({self.source.value})"


class HandshakeSecrets(NamedTuple):
    """Derived handshake secrets, or the reason why there are none.

    `pre_shared_key` is the one that the binder proves, if it was found.
    """

    handshake_secret: bytes | None
    source: SecretSource | None
    traffic_secrets: Mapping[Direction, bytes]
    reason: str
    pre_shared_key: bytes | None = None

    def __repr__(self) -> str:
        return f"HandshakeSecrets({self.source.value if self.source else self.reason})"


NOTHING_DERIVED = HandshakeSecrets(None, None, {}, "")
"""For a session that no theft tells more of than the key log does."""


class ApplicationSecrets(NamedTuple):
    """What follows from the server's Finished."""

    main_secret: bytes
    traffic_secrets: Mapping[Direction, bytes]
    exporter_secret: bytes

    def __repr__(self) -> str:
        return "ApplicationSecrets()"


def find_psk(
    keys: KeyMaterial,
    learned: LearnedSecrets,
    hello: ClientHello,
    raw: bytes,
    *,
    identity: int,
    prefix: bytes = b"",
    hashes: tuple[str, ...] = _HASHES,
) -> KnownPSK | None:
    """Find the pre-shared key behind an offered identity; None if it cannot be had.

    `raw` is the ClientHello's message; `prefix` the messages before it, after a retry.
    """
    offer = hello.pre_shared_keys
    if offer is None or identity >= len(offer.identities):
        return None
    truncated = prefix + raw[: len(raw) - offer.binders_length]
    _, _, binder = offered = offer.identities[identity]
    for source, key in _possible_psks(keys, learned, offered.identity):
        for hash_name in hashes:
            digest = transcript_hash(hash_name, truncated)
            early = early_secret(hash_name, key)
            for external in (False, True):
                base = binder_key(hash_name, early, external=external)
                if hmac.compare_digest(verify_data(hash_name, base, digest), binder):
                    return KnownPSK(source, key, hash_name)
    return None


def _possible_psks(
    keys: KeyMaterial, learned: LearnedSecrets, identity: bytes
) -> Iterator[tuple[SecretSource, bytes]]:
    for key in keys.pre_shared_keys:
        yield SecretSource.PRE_SHARED_KEY, key
    for ticket_key in keys.ticket_keys:
        state = ticket_key.open(identity)
        if state is not None and state.version == ProtocolVersion.TLS_1_3:
            yield SecretSource.TICKET_KEY, state.secret
    if (known := learned.of_ticket(identity)) is not None:
        yield SecretSource.EARLIER_SESSION, known


def find_early_secret(
    keys: KeyMaterial, learned: LearnedSecrets, hello: ClientHello, raw: bytes
) -> EarlySecret | None:
    """Find the secret of 0-RTT data: logged, or derived of the first PSK (section 4.2.10)."""
    logged = keys.key_log.get(hello.random, {})
    if (secret := logged.get("CLIENT_EARLY_TRAFFIC_SECRET")) is not None:
        return EarlySecret(SecretSource.KEY_LOG, secret, HASH_OF_LENGTH[len(secret)])
    found = find_psk(keys, learned, hello, raw, identity=0)
    if found is None:
        return None
    digest = transcript_hash(found.hash_name, raw)
    early = early_secret(found.hash_name, found.key)
    secret = derive_secret(found.hash_name, early, b"c e traffic", digest)
    return EarlySecret(found.source, secret, found.hash_name)


def _no_secrets(reason: str) -> HandshakeSecrets:
    return HandshakeSecrets(None, None, {}, reason)


def _shared_secret(keys: KeyMaterial, hello: ClientHello, server_hello: ServerHello) -> bytes:
    share = server_hello.key_share
    if share is None:
        raise NoSharedSecret("there is no key share")
    for offered in hello.key_shares:
        if offered.group == share.group:
            client, server = offered.key_exchange, share.key_exchange
            return shared_secret(keys.ephemeral_keys, share.group, client, server)
    raise NoSharedSecret("the server answers a key share that the client did not offer")


def find_handshake_secrets(
    keys: KeyMaterial,
    learned: LearnedSecrets,
    hash_name: str,
    hello: ClientHello,
    raw: bytes,
    *,
    server_hello: ServerHello,
    prefix: bytes,
    transcript: bytes,
) -> HandshakeSecrets:
    """Derive the handshake secrets (RFC 9846 section 7.1).

    `hello` and `raw` are the last ClientHello, `prefix` the messages before it, `transcript` the
    hash up to the ServerHello.
    """
    known: KnownPSK | None = None
    if (psk := server_hello.selected_psk) is not None:
        hashes = (hash_name,)
        known = find_psk(keys, learned, hello, raw, identity=psk, prefix=prefix, hashes=hashes)
        if known is None:
            return _no_secrets(_resumption_reason(keys, hello, server_hello))
    shared: bytes | None = None
    if server_hello.key_share is not None:
        try:
            shared = _shared_secret(keys, hello, server_hello)
        except NoSharedSecret as why:
            group = name_of(NamedGroup, server_hello.key_share.group)
            exchange = f"ECDHE with {group}"
            if known is not None:
                reason = (
                    f"{exchange}: the pre-shared key is known, but {why}, and a psk_dhe_ke session "
                    "needs both"
                )
                return HandshakeSecrets(None, None, {}, reason, known.key)
            return _no_secrets(no_key_reason(keys, exchange, hello.random, tried=str(why)))
        source = SecretSource.EPHEMERAL_KEY
        if known is not None:
            source = _WITH_EPHEMERAL_KEY[known.source]
    elif known is not None:
        source = known.source
    else:
        return _no_secrets("neither a key share nor a pre-shared key was negotiated")
    key = None if known is None else known.key
    secret = handshake_secret(hash_name, early_secret(hash_name, key), shared)
    traffic = {
        Direction.CLIENT_TO_SERVER: derive_secret(hash_name, secret, b"c hs traffic", transcript),
        Direction.SERVER_TO_CLIENT: derive_secret(hash_name, secret, b"s hs traffic", transcript),
    }
    return HandshakeSecrets(secret, source, traffic, "", key)


def _resumption_reason(keys: KeyMaterial, hello: ClientHello, server_hello: ServerHello) -> str:
    if keys.is_empty:
        return "resumed with a pre-shared key: no keys were given"
    mode = "psk_ke" if server_hello.key_share is None else "psk_dhe_ke"
    reason = f"resumed with a pre-shared key ({mode}) that is not among the keys given"
    if keys.ticket_keys:
        reason += ", nor in a ticket that the ticket keys given open"
    if keys.key_log and hello.random not in keys.key_log:
        reason += ", and no key log line for this client_random"
    return reason


def derive_application_secrets(
    hash_name: str, handshake: bytes, transcript: bytes
) -> ApplicationSecrets:
    """Derive what follows the server's Finished; `transcript` is the hash up to it."""
    main = main_secret(hash_name, handshake)
    traffic = {
        Direction.CLIENT_TO_SERVER: derive_secret(hash_name, main, b"c ap traffic", transcript),
        Direction.SERVER_TO_CLIENT: derive_secret(hash_name, main, b"s ap traffic", transcript),
    }
    exporter = derive_secret(hash_name, main, b"exp master", transcript)
    return ApplicationSecrets(main, traffic, exporter)

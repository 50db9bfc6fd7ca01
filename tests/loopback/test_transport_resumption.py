"""Resumption: never unless the policy says so, and then with a fresh key exchange each time.

The client is a bare pyOpenSSL connection that offers back whatever session it was given, which is
more than ours would do. What crossed is read by the judge's own reader, not by the library's word.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
from OpenSSL import SSL

from interop.wire import handshake as hs
from transport import (
    DEFAULT_POLICY,
    PolicyError,
    PolicyViolation,
    SecurityPolicy,
    get_policy,
    policy_names,
)
from transport.context import client_context, read_handshake_facts, server_context
from transport.negotiated import verify_negotiated
from transport.policy import ProtocolVersion, Resumption

if TYPE_CHECKING:
    from conftest import Identities

    from transport.context import EndpointContext
    from transport.negotiated import HandshakeFacts

RESUMING = get_policy("2026-11-tls13-resumption")
P256_BITS, HOUR_SECONDS, HANDSHAKE_RECORD = 256, 3600, 22
PSK_KE, PSK_DHE_KE = 0, 1  # RFC 9846 section 4.3.9
ALLOW_NO_DHE_KEX, PREFER_NO_DHE_KEX = 1 << 10, 1 << 35  # ssl.h; not in pyOpenSSL


class Run(NamedTuple):
    """One handshake in memory: what each side reports, the session, and the first bytes."""

    client: HandshakeFacts
    server: HandshakeFacts
    session: SSL.Session
    client_flight: bytes
    server_flight: bytes


def run(server: EndpointContext, client: SSL.Context, session: SSL.Session | None = None) -> Run:
    ours, theirs = SSL.Connection(server.context), SSL.Connection(client)
    ours.set_accept_state()
    theirs.set_connect_state()
    if session is not None:
        theirs.set_session(session)
    sent: dict[SSL.Connection, bytes] = {ours: b"", theirs: b""}
    for _ in range(4):
        for sender, receiver in ((theirs, ours), (ours, theirs)):
            for step in (sender.do_handshake, lambda: sender.recv(1)):  # noqa: B023 - called at once
                with suppress(SSL.WantReadError):
                    step()
            try:
                data = sender.bio_read(1 << 16)
            except SSL.WantReadError:
                continue
            sent[sender] += data
            receiver.bio_write(data)
    session_now = theirs.get_session()
    assert session_now is not None
    # A connection that ends without close_notify takes its session with it.
    theirs.shutdown()
    ours.shutdown()
    return Run(
        read_handshake_facts(theirs),
        read_handshake_facts(ours),
        session_now,
        sent[theirs],
        sent[ours],
    )


def offer_again(policy: SecurityPolicy, identities: Identities) -> tuple[Run, Run]:
    """Do a handshake, then another one that offers back what the first left."""
    server = server_context(identities.ec, policy)
    client = client_context(identities.anchors, policy).context
    first = run(server, client)
    return first, run(server, client, first.session)


def client_hello(flight: bytes) -> hs.ClientHello:
    return hs.parse_client_hello(first_message(flight))


def server_hello(flight: bytes) -> hs.ServerHello:
    return hs.parse_server_hello(first_message(flight))


def first_message(flight: bytes) -> bytes:
    """Return the message in the first record, which it has to itself in these handshakes."""
    assert flight[0] == HANDSHAKE_RECORD
    return flight[5 : 5 + int.from_bytes(flight[3:5], "big")]


OFF_CASES = [
    pytest.param(policy.narrowed(versions=[version]), id=f"{policy.name} {version}")
    for policy in map(get_policy, policy_names())
    if policy.resumption is Resumption.OFF and policy.minimum_ec_key_bits <= P256_BITS
    for version in policy.versions
]


@pytest.mark.parametrize("policy", OFF_CASES)
def test_nothing_is_ever_resumed_by_default(policy: SecurityPolicy, identities: Identities) -> None:
    _first, second = offer_again(policy, identities)
    assert not second.client.resumed
    assert not second.server.resumed
    if policy.versions == (ProtocolVersion.TLS_1_3,):
        # The offer was made: the tickets are real, there is only nothing behind them.
        assert client_hello(second.client_flight).pre_shared_keys is not None


def test_a_resumed_session_has_a_key_exchange_of_its_own(identities: Identities) -> None:
    first, second = offer_again(RESUMING, identities)
    assert not first.server.resumed
    assert second.client.resumed
    assert second.server.resumed
    proof = verify_negotiated(second.server, RESUMING, require_peer_certificate=False)
    assert proof.resumed
    assert verify_negotiated(second.client, RESUMING, require_peer_certificate=True).resumed
    offers = [client_hello(flight.client_flight) for flight in (first, second)]
    assert offers[1].psk_key_exchange_modes == (PSK_DHE_KE,)
    offered = [{share.key_exchange for share in offer.key_shares} for offer in offers]
    assert all(offered)
    assert offered[0].isdisjoint(offered[1])
    answers = [server_hello(flight.server_flight).key_share for flight in (first, second)]
    assert answers[0] is not None
    assert answers[1] is not None
    assert answers[0].key_exchange
    assert answers[1].key_exchange
    assert answers[0].key_exchange != answers[1].key_exchange


def test_a_client_that_would_rather_have_no_key_exchange_gets_one(identities: Identities) -> None:
    server = server_context(identities.ec, RESUMING)
    weak = SSL.Context(SSL.TLS_METHOD)
    weak.set_options(ALLOW_NO_DHE_KEX | PREFER_NO_DHE_KEX)
    first = run(server, weak)
    second = run(server, weak, first.session)
    assert PSK_KE in client_hello(second.client_flight).psk_key_exchange_modes
    assert server_hello(second.server_flight).key_share is not None


def test_a_state_ends_with_its_context(identities: Identities) -> None:
    client = client_context(identities.anchors, RESUMING).context
    first = run(server_context(identities.ec, RESUMING), client)
    again = run(server_context(identities.ec, RESUMING), client, first.session)
    assert not again.server.resumed


def test_the_lifetime_of_a_ticket_is_bounded_and_early_data_is_not_offered(
    identities: Identities,
) -> None:
    server = server_context(identities.ec, RESUMING).context
    assert server.get_timeout() == HOUR_SECONDS
    assert server.get_session_cache_mode() == SSL.SESS_CACHE_SERVER
    _first, second = offer_again(RESUMING, identities)
    assert not client_hello(second.client_flight).early_data


@pytest.mark.parametrize("versions", [("TLS 1.2",), ("TLS 1.3", "TLS 1.2")])
def test_a_policy_that_resumes_admits_tls_1_3_alone(versions: tuple[str, ...]) -> None:
    narrowed = DEFAULT_POLICY.narrowed(versions=versions)
    with pytest.raises(PolicyError, match=r"TLS 1\.3 alone"):
        dataclasses.replace(narrowed, resumption=Resumption.PSK_DHE_KE)


def test_the_check_refuses_a_resumed_session_that_the_policy_does_not_admit(
    identities: Identities,
) -> None:
    _first, second = offer_again(RESUMING, identities)
    off = get_policy("2026-11-tls13")
    with pytest.raises(PolicyViolation, match="resumed session"):
        verify_negotiated(second.server, off, require_peer_certificate=False)

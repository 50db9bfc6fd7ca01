"""Rules applied to what real mutual handshakes of both engines proved about the peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import transport
from transport.authorization import Authorization, DNSRule, PeerNotAuthorized, SPKIRule, spki_pin

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.credential import Credential


def test_each_side_authorizes_the_other(identities: Any, echo: Callable[..., Any]) -> None:
    server_pin, client_pin = spki_pin(identities.ec.leaf), spki_pin(identities.rsa.leaf)
    with echo(identities.ec, client_anchors=identities.anchors) as server:
        with transport.connect(
            server.address,
            trust_anchors=identities.anchors,
            server_hostname="localhost",
            credential=identities.rsa,
        ) as client:
            seen_by_client = client.negotiated
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        seen_by_server = server.outcome()
    pinned = Authorization(any_of=(SPKIRule(server_pin),)).authorize(seen_by_client)
    assert pinned.certificate == identities.ec.leaf
    admitted = Authorization(any_of=(DNSRule("localhost"),)).authorize(seen_by_server)
    assert admitted.certificate == identities.rsa.leaf
    for pin, session in ((client_pin, seen_by_client), (server_pin, seen_by_server)):
        with pytest.raises(PeerNotAuthorized):
            Authorization(any_of=(SPKIRule(pin),)).authorize(session)


@pytest.mark.parametrize("credential", [None, "foreign"])
def test_a_client_without_a_trusted_certificate_proves_nothing(
    identities: Any, echo: Callable[..., Any], credential: str | None
) -> None:
    offered: Credential | None = None if credential is None else identities.foreign
    anchors = None if credential is None else identities.anchors
    with echo(identities.ec, client_anchors=anchors) as server:
        client = transport.connect(
            server.address,
            trust_anchors=identities.anchors,
            server_hostname="localhost",
            credential=offered,
        )
        with client:
            outcome = server.outcome()
    if credential is None:
        with pytest.raises(PeerNotAuthorized, match="no certificate"):
            Authorization(any_of=(DNSRule("localhost"),)).authorize(outcome)
    else:
        assert isinstance(outcome, transport.CertificateRejected)


def test_a_peer_that_no_rule_admits_is_refused_within_the_handshake(
    identities: Any, echo: Callable[..., Any], exchange: Callable[..., Any]
) -> None:
    admitted = Authorization(any_of=(SPKIRule(spki_pin(identities.ec.leaf)),))
    options = {"trust_anchors": identities.anchors, "server_hostname": "localhost"}
    with echo(identities.rsa, client_anchors=identities.anchors, authorization=admitted) as server:
        exchange(server.address, b"hello", credential=identities.ec, **options)
        assert isinstance(server.outcome(), transport.NegotiatedSession)
        assert server.outcome() == "end"
        # The same authority vouches for this one, and no rule admits it.
        with pytest.raises(OSError):  # noqa: PT011 - told by an alert, or reset already
            exchange(server.address, b"hello", credential=identities.rsa, **options)
        refusal = server.outcome()
        assert isinstance(refusal, PeerNotAuthorized)
        assert refusal.alert_sent is not None


def test_a_client_can_pin_its_server_and_sees_whom_it_admitted(
    identities: Any, echo: Callable[..., Any]
) -> None:
    def connect(address: tuple[str, int]) -> transport.TLSSocket:
        return transport.connect(
            address,
            trust_anchors=identities.anchors,
            server_hostname="localhost",
            authorization=Authorization(any_of=(SPKIRule(spki_pin(identities.ec.leaf)),)),
        )

    with echo(identities.ec) as right, connect(right.address) as client:
        assert client.authorized_peer is not None
        assert client.authorized_peer.certificate == identities.ec.leaf
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    with echo(identities.rsa) as wrong, pytest.raises(PeerNotAuthorized) as refusal:
        connect(wrong.address)
    assert refusal.value.alert_sent is not None


def test_an_authorization_that_would_refuse_everyone_is_a_mistake(identities: Any) -> None:
    rules = Authorization(any_of=(DNSRule("localhost"),))
    with pytest.raises(transport.APIMisuse, match="client_anchors"):
        transport.wrap_socket(
            None,  # type: ignore[arg-type] # never reached
            server_side=True,
            credential=identities.ec,
            authorization=rules,
        )

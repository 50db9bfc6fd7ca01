"""Both engines against each other on real sockets, and against weak or silent strangers."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from OpenSSL import SSL
from OpenSSL._util import lib

import transport
from transport import (
    DEFAULT_POLICY,
    AlertDescription,
    AlertReceived,
    APIMisuse,
    CertificateRejected,
    HandshakeTimeout,
    NegotiatedSession,
    PeerIncompatible,
    PeerMisbehaved,
    PolicyViolation,
    TransportError,
    TruncatedStream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Alert = AlertDescription
COMBINATIONS = [
    ("TLS 1.3", "X25519MLKEM768"),
    ("TLS 1.3", "x25519"),
    ("TLS 1.3", "secp256r1"),
    ("TLS 1.3", "secp384r1"),
    ("TLS 1.2", "x25519"),
    ("TLS 1.2", "secp256r1"),
    ("TLS 1.2", "secp384r1"),
]


@pytest.mark.parametrize(("version", "group"), COMBINATIONS)
def test_every_version_and_group_is_negotiated(
    echo: Callable[..., Any],
    exchange: Callable[..., Any],
    identities: Any,
    version: str,
    group: str,
) -> None:
    policy = DEFAULT_POLICY.narrowed(versions=[version], groups=[group])
    with echo(identities.rsa) as server:
        seen = exchange(server.address, b"payload", trust_anchors=identities.anchors, policy=policy)
        assert seen.received == b"payload"
        other = server.outcome()
        assert server.outcome() == "end"
    for session in (seen.negotiated, other):
        assert isinstance(session, NegotiatedSession)
        assert (session.version, session.group) == (version, group)
        assert session.suite in policy.suites
        assert not session.resumed
        assert session.extended_main_secret


@pytest.mark.parametrize("suite", DEFAULT_POLICY.suites)
def test_every_suite_is_negotiated(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Any, suite: str
) -> None:
    policy = DEFAULT_POLICY.narrowed(
        suites=[suite], versions=["TLS 1.2" if "ECDHE" in suite else "TLS 1.3"]
    )
    with echo(identities.ec if "ECDSA" in suite else identities.rsa) as server:
        seen = exchange(server.address, b"x", trust_anchors=identities.anchors, policy=policy)
    assert seen.negotiated.suite == suite


def test_a_large_payload_crosses_in_both_directions_at_once(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Any
) -> None:
    payload = os.urandom(16 << 20)
    with echo(identities.ec) as server:
        seen = exchange(server.address, payload, trust_anchors=identities.anchors)
    assert seen.received == payload


def test_an_empty_payload_is_an_orderly_end(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Any
) -> None:
    with echo(identities.ec) as server:
        assert exchange(server.address, b"", trust_anchors=identities.anchors).received == b""
        assert isinstance(server.outcome(), NegotiatedSession)
        assert server.outcome() == "end"


def test_the_right_authority_and_name_are_needed(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Any
) -> None:
    with echo(identities.ec) as server:
        good = {"trust_anchors": identities.anchors, "server_hostname": "localhost"}
        assert exchange(server.address, b"x", **good).received == b"x"
        assert isinstance(server.outcome(), NegotiatedSession)
        assert server.outcome() == "end"
        for change, alert in (
            ({"trust_anchors": identities.foreign_anchors}, Alert.unknown_ca),
            ({"server_hostname": "other.example"}, Alert.bad_certificate),
            ({"server_hostname": "127.0.0.2"}, Alert.bad_certificate),
        ):
            with pytest.raises(CertificateRejected) as caught:
                exchange(server.address, b"x", **{**good, **change})
            assert caught.value.alert_sent is alert
            refused = server.outcome()
            assert isinstance(refused, AlertReceived)
            assert refused.alert_received is alert


@pytest.mark.parametrize("version", ["TLS 1.2", "TLS 1.3"])
def test_mutual_authentication(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Any, version: str
) -> None:
    policy = DEFAULT_POLICY.narrowed(versions=[version])
    with echo(identities.ec, client_anchors=identities.anchors, policy=policy) as server:
        options = {"trust_anchors": identities.anchors}
        exchange(server.address, b"x", credential=identities.rsa, **options)
        session = server.outcome()
        assert isinstance(session, NegotiatedSession)
        assert session.peer_certificate is not None
        assert server.outcome() == "end"
        for credential in (None, identities.foreign):
            with pytest.raises(OSError, match=r"alert|close"):
                exchange(server.address, b"x", credential=credential, **options)
            assert isinstance(server.outcome(), CertificateRejected)


def stdlib_context(identities: Any, *, minimum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=identities.anchors.pem().decode())
    if minimum is not None:
        context.minimum_version = minimum
    return context


def test_the_standard_librarys_client_is_served(echo: Callable[..., Any], identities: Any) -> None:
    with (
        echo(identities.ec) as server,
        socket.create_connection(server.address) as raw,
        stdlib_context(identities).wrap_socket(raw, server_hostname="localhost") as client,
    ):
        client.sendall(b"from another stack")
        assert client.recv(100) == b"from another stack"
        client.unwrap()


def weak_stdlib(identities: Any, ciphers: str) -> ssl.SSLContext:
    context = stdlib_context(identities)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    return context


@pytest.mark.parametrize(
    "ciphers",
    ["AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA"],
    ids=["static RSA", "DHE", "CBC"],
)
def test_a_client_that_offers_only_weak_suites_is_refused(
    echo: Callable[..., Any], identities: Any, ciphers: str
) -> None:
    with echo(identities.rsa) as server:
        context = weak_stdlib(identities, ciphers)
        with (
            socket.create_connection(server.address) as raw,
            pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"),
        ):
            context.wrap_socket(raw, server_hostname="localhost")
        refused = server.outcome()
    assert isinstance(refused, PeerIncompatible)
    assert refused.alert_sent is Alert.handshake_failure


def raw_client(
    address: tuple[str, int],
    *setups: Callable[[SSL.Context], object],
    context: SSL.Context | None = None,
) -> SSL.Connection:
    if context is None:
        context = SSL.Context(SSL.TLS_METHOD)
    for setup in setups:
        setup(context)
    connection = SSL.Connection(context, socket.create_connection(address))
    connection.set_tlsext_host_name(b"localhost")
    connection.set_connect_state()
    return connection


def only_group(name: bytes) -> Callable[[SSL.Context], object]:
    return lambda context: lib.SSL_CTX_set1_curves_list(context._context, name)


def old_versions(context: SSL.Context) -> None:
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.set_min_proto_version(SSL.TLS1_VERSION)
    context.set_max_proto_version(SSL.TLS1_1_VERSION)


@pytest.mark.parametrize(
    ("setup", "kind", "alert"),
    [
        (old_versions, PeerIncompatible, Alert.protocol_version),
        (only_group(b"ffdhe2048"), PeerIncompatible, Alert.handshake_failure),
        (only_group(b"secp521r1"), PeerIncompatible, Alert.handshake_failure),
    ],
    ids=["TLS 1.1", "ffdhe2048", "secp521r1"],
)
def test_a_client_that_offers_only_weak_parameters_is_refused(
    echo: Callable[..., Any],
    identities: Any,
    setup: Callable[[SSL.Context], object],
    kind: type[TransportError],
    alert: AlertDescription,
) -> None:
    with echo(identities.ec) as server:
        client = raw_client(server.address, setup)
        with pytest.raises(SSL.Error, match=f"alert {alert.name.replace('_', ' ')}"):
            client.do_handshake()
        client.close()
        refused = server.outcome()
    assert type(refused) is kind
    assert refused.alert_sent is alert


def test_a_client_without_extended_main_secret_is_refused_after_its_handshake(
    echo: Callable[..., Any], identities: Any
) -> None:
    def without(context: SSL.Context) -> None:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(1)  # SSL_OP_NO_EXTENDED_MASTER_SECRET

    with echo(identities.ec) as server:
        client = raw_client(server.address, without)
        client.do_handshake()
        client.send(b"must not be echoed")
        with pytest.raises(SSL.Error, match="alert protocol version"):
            client.recv(100)
        client.close()
        refused = server.outcome()
    assert isinstance(refused, PolicyViolation)
    assert refused.alert_sent is Alert.protocol_version


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_session_is_never_resumed(
    echo: Callable[..., Any], identities: Any, version: int
) -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(version)
    context.set_min_proto_version(version)
    with echo(identities.ec) as server:
        session = None
        for _ in range(3):
            client = raw_client(server.address, context=context)
            if session is not None:
                client.set_session(session)
            client.do_handshake()
            client.send(b"x")
            assert client.recv(1) == b"x"  # tickets, if any, are in by now
            assert lib.SSL_session_reused(client._ssl) == 0
            session = client.get_session()
            client.shutdown()
            client.close()
            negotiated = server.outcome()
            assert isinstance(negotiated, NegotiatedSession)
            assert not negotiated.resumed
            assert server.outcome() == "end"


def test_the_client_that_offers_its_session_could_resume_elsewhere(identities: Any) -> None:
    """The control: the same client, offering its session in the same way, is resumed by another."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate(identities.rsa.leaf)
    context.use_privatekey(identities.rsa.private_key)
    context.set_session_id(b"control")
    reused = []
    session = None
    client_context = SSL.Context(SSL.TLS_METHOD)
    for _ in range(2):
        server, client = SSL.Connection(context), SSL.Connection(client_context)
        server.set_accept_state()
        client.set_connect_state()
        if session is not None:
            client.set_session(session)
        for _ in range(3):
            for one, other in ((client, server), (server, client)):
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(1 << 16))
        reused.append(lib.SSL_session_reused(client._ssl))
        session = client.get_session()
        for one in (client, server):
            one.shutdown()  # without it, OpenSSL marks the session as not to be resumed
    assert reused == [0, 1]


def test_an_end_without_close_notify_is_a_truncation_for_the_server(
    echo: Callable[..., Any], identities: Any
) -> None:
    with echo(identities.ec) as server:
        raw = socket.create_connection(server.address)
        client = transport.wrap_socket(
            raw, trust_anchors=identities.anchors, server_hostname="localhost"
        )
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        raw.shutdown(socket.SHUT_WR)
        assert isinstance(server.outcome(), NegotiatedSession)
        assert isinstance(server.outcome(), TruncatedStream)
        client.close()


def test_a_reset_is_a_truncation_for_the_server(echo: Callable[..., Any], identities: Any) -> None:
    with echo(identities.ec) as server:
        raw = socket.create_connection(server.address)
        client = transport.wrap_socket(
            raw, trust_anchors=identities.anchors, server_hostname="localhost"
        )
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        assert isinstance(server.outcome(), NegotiatedSession)
        assert isinstance(server.outcome(), TruncatedStream)


def test_leaving_by_an_exception_is_a_truncation_for_the_peer(
    echo: Callable[..., Any], identities: Any
) -> None:
    with echo(identities.ec) as server:
        try:
            with transport.connect(server.address, trust_anchors=identities.anchors) as client:
                client.sendall(b"half of the data")
                assert client.recv(100) == b"half of the data"  # so that the server reads on
                _ = 1 // 0
        except ZeroDivisionError:
            pass
        assert isinstance(server.outcome(), NegotiatedSession)
        assert isinstance(server.outcome(), TruncatedStream)


def test_silent_clients_hold_nobody_up(echo: Callable[..., Any], identities: Any) -> None:
    with echo(identities.ec, handshake_timeout_seconds=DEADLINE_SECONDS) as server:
        silent = [socket.create_connection(server.address) for _ in range(20)]
        started = time.monotonic()
        with transport.connect(server.address, trust_anchors=identities.anchors) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert time.monotonic() - started < DEADLINE_SECONDS / 2
        for one in silent:
            one.close()


DEADLINE_SECONDS = 20.0


def test_a_silent_client_meets_its_deadline(echo: Callable[..., Any], identities: Any) -> None:
    with (
        echo(identities.ec, handshake_timeout_seconds=0.2) as server,
        socket.create_connection(server.address) as silent,
    ):
        silent.settimeout(DEADLINE_SECONDS)
        assert silent.recv(1) == b""
        assert isinstance(server.outcome(), HandshakeTimeout)


def test_a_client_that_dribbles_meets_the_same_deadline(
    echo: Callable[..., Any], identities: Any
) -> None:
    with (
        echo(identities.ec, handshake_timeout_seconds=0.3) as server,
        socket.create_connection(server.address) as slow,
    ):
        slow.settimeout(0.02)
        slow.sendall(b"\x16\x03\x01\x02\x00")
        started = time.monotonic()
        ended = False
        while not ended:
            try:
                slow.sendall(b"\x00")
                ended = slow.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionError:
                ended = True
            assert time.monotonic() - started < DEADLINE_SECONDS
        assert isinstance(server.outcome(), HandshakeTimeout)


def test_a_handshake_has_the_earlier_of_its_two_deadlines(identities: Any) -> None:
    near, far = socket.socketpair()
    near.settimeout(0.1)
    client = transport.wrap_socket(
        near,
        trust_anchors=identities.anchors,
        server_hostname="localhost",
        handshake_timeout_seconds=2 * DEADLINE_SECONDS,
    )
    started = time.monotonic()
    for _ in range(2):  # and it stays over
        with pytest.raises(HandshakeTimeout):
            client.recv(1)
    assert time.monotonic() - started < DEADLINE_SECONDS
    client.close()
    far.close()


def test_a_silent_server_meets_the_deadline(exchange: Callable[..., Any], identities: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(HandshakeTimeout):
        exchange(silent.getsockname(), b"x", trust_anchors=identities.anchors, timeout_seconds=0.2)


def test_plain_http_on_the_port_is_refused(echo: Callable[..., Any], identities: Any) -> None:
    with echo(identities.ec) as server, socket.create_connection(server.address) as plain:
        plain.settimeout(DEADLINE_SECONDS)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = plain.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.endswith(b"use https:// here\n")
        refused = server.outcome()
        assert isinstance(refused, PeerMisbehaved)
        assert refused.problem == "plain HTTP on a TLS port"


def test_garbage_after_the_handshake_ends_the_session(
    echo: Callable[..., Any], identities: Any
) -> None:
    with echo(identities.ec) as server:
        raw = socket.create_connection(server.address)
        client = transport.wrap_socket(
            raw, trust_anchors=identities.anchors, server_hostname="localhost"
        )
        client.do_handshake()
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert isinstance(server.outcome(), NegotiatedSession)
        refused = server.outcome()
        assert isinstance(refused, PeerMisbehaved)
        assert refused.alert_sent is Alert.bad_record_mac
        client.settimeout(DEADLINE_SECONDS)
        with pytest.raises(AlertReceived) as caught:
            client.recv(1)
        assert caught.value.alert_received is Alert.bad_record_mac
        client.close()


def test_many_small_writes_arrive_whole(echo: Callable[..., Any], identities: Any) -> None:
    pieces = [bytes([number % 256]) * (number % 7) for number in range(2000)]
    expected = b"".join(pieces)
    with (
        echo(identities.ec) as server,
        transport.connect(server.address, trust_anchors=identities.anchors) as client,
    ):
        client.settimeout(DEADLINE_SECONDS)
        for piece in pieces:
            client.sendall(piece)
        received = b""
        while len(received) < len(expected):
            received += client.recv(len(expected))
    assert received == expected


def test_a_client_needs_anchors_and_a_name_and_a_server_its_credential(identities: Any) -> None:
    near, far = socket.socketpair()
    with near, far:
        for options in (
            {},
            {"trust_anchors": identities.anchors},
            {"server_hostname": "localhost"},
            {"server_side": True},
        ):
            with pytest.raises(APIMisuse):
                transport.wrap_socket(near, **options)

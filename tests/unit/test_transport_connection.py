"""The TLS core in memory: two cores and the bytes between them, one step at a time."""

from __future__ import annotations

import datetime as dt
import pickle
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL._util import lib

from certs.credential import Credential, TrustAnchors
from transport import (
    DEFAULT_POLICY,
    AlertDescription,
    AlertReceived,
    APIMisuse,
    CertificateRejected,
    KeyLogBuffer,
    PeerIncompatible,
    PeerMisbehaved,
    TransportError,
    TruncatedStream,
)
from transport.connection import MAX_RECORD_BYTES, TLSCore, Want
from transport.context import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from transport.policy import SecurityPolicy

Alert = AlertDescription
TLS_1_2 = DEFAULT_POLICY.narrowed(versions=["TLS 1.2"])
TLS_1_3 = DEFAULT_POLICY.narrowed(versions=["TLS 1.3"])
BOTH_VERSIONS = pytest.mark.parametrize("policy", [TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])


class World(NamedTuple):
    ec: Credential
    rsa: Credential
    expired: Credential
    wildcard: Credential
    by_hand: Credential
    common_name: Credential
    anchors: TrustAnchors
    foreign: Credential
    foreign_anchors: TrustAnchors


def issue(authority: trustme.CA, *names: str, **options: object) -> Credential:
    issued = authority.issue_cert(*names, **{"key_type": trustme.KeyType.ECDSA, **options})  # type: ignore[arg-type] # trustme's own
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return Credential.from_pem(chain, issued.private_key_pem.bytes())


def issue_by_hand(authority: trustme.CA, common_name: str, *names: str) -> Credential:
    """Issue what trustme would not: names that are no names, or a common name alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
    return Credential(key, (builder.sign(signer, hashes.SHA256()),))


@pytest.fixture(scope="module")
def world() -> World:
    ours, foreign = (trustme.CA(key_type=trustme.KeyType.ECDSA) for _ in range(2))
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    return World(
        ec=issue(ours, "localhost", "127.0.0.1", "::1"),
        rsa=issue(ours, "localhost", key_type=trustme.KeyType.RSA),
        expired=issue(ours, "localhost", not_after=past),
        wildcard=issue(ours, "*.example.test"),
        by_hand=issue_by_hand(ours, "by hand", "foo*.example.test", "whole.example.test"),
        common_name=issue_by_hand(ours, "cn.example"),
        anchors=TrustAnchors.from_pem(ours.cert_pem.bytes()),
        foreign=issue(foreign, "localhost"),
        foreign_anchors=TrustAnchors.from_pem(foreign.cert_pem.bytes()),
    )


class Pair:
    """A client and a server; `step` carries what either has to say to the other."""

    def __init__(self, client: TLSCore, server: TLSCore) -> None:
        self.client = client
        self.server = server
        self.errors: dict[str, TransportError] = {}

    def step(self) -> None:
        self.server.receive_data(self.client.data_to_send())
        self.client.receive_data(self.server.data_to_send())

    def handshake(self) -> Pair:
        done: set[str] = set()
        for _ in range(10):
            for name, core in (("client", self.client), ("server", self.server)):
                if name in done:
                    continue
                try:
                    if core.handshake() is None:
                        done.add(name)
                except TransportError as error:
                    self.errors[name] = error
                    done.add(name)
                self.step()
            if len(done) == 2:
                return self
        raise AssertionError("the handshake did not come to an end")


def pair(
    world: World,
    policy: SecurityPolicy = DEFAULT_POLICY,
    *,
    client_policy: SecurityPolicy | None = None,
    credential: Credential | None = None,
    anchors: TrustAnchors | None = None,
    name: str = "localhost",
    client_anchors: TrustAnchors | None = None,
    client_credential: Credential | None = None,
    client_alpn: tuple[str, ...] = (),
    server_alpn: tuple[str, ...] = (),
) -> Pair:
    server = server_context(
        credential or world.ec,
        policy,
        client_anchors=client_anchors,
        alpn_protocols=server_alpn,
    )
    client = client_context(
        anchors or world.anchors,
        client_policy or policy,
        credential=client_credential,
        alpn_protocols=client_alpn,
    )
    return Pair(TLSCore(client, None, server_hostname=name), TLSCore(server, None)).handshake()


@BOTH_VERSIONS
def test_data_crosses_in_both_directions(world: World, policy: SecurityPolicy) -> None:
    ends = pair(world, policy)
    assert not ends.errors
    for sender, receiver in ((ends.client, ends.server), (ends.server, ends.client)):
        assert receiver.read(100) is Want.READ
        assert sender.write(b"") == 0
        assert sender.write(memoryview(b"data")) == 4
        ends.step()
        assert receiver.read(0) == b""
        assert receiver.read(2) == b"da"
        assert receiver.pending_bytes == 2
        buffer = bytearray(8)
        assert receiver.read_into(memoryview(buffer)[3:]) == 2
        assert bytes(buffer) == b"\0\0\0ta\0\0\0"


@BOTH_VERSIONS
def test_both_sides_hold_the_same_proof(world: World, policy: SecurityPolicy) -> None:
    ends = pair(world, policy)
    client, server = ends.client.negotiated, ends.server.negotiated
    assert (client.version, client.suite, client.group) == (
        server.version,
        server.suite,
        server.group,
    )
    assert client.version == policy.versions[0]
    assert client.server_name == server.server_name == "localhost"
    assert client.extended_main_secret
    assert server.extended_main_secret
    assert client.peer_certificate is not None
    assert server.peer_certificate is None


@BOTH_VERSIONS
def test_the_exporter_is_equal_on_both_sides(world: World, policy: SecurityPolicy) -> None:
    ends, others = pair(world, policy), pair(world, policy)
    for context in (None, b"", b"context"):
        value = ends.client.export_keying_material("EXPERIMENTAL label", 48, context)
        assert len(value) == 48
        assert value == ends.server.export_keying_material("EXPERIMENTAL label", 48, context)
        assert value != others.client.export_keying_material("EXPERIMENTAL label", 48, context)
        assert value != ends.client.export_keying_material("EXPERIMENTAL other", 48, context)
    for length in (0, -1, 8161):
        with pytest.raises(APIMisuse):
            ends.client.export_keying_material("EXPERIMENTAL label", length)


@BOTH_VERSIONS
def test_records_arrive_a_byte_at_a_time(world: World, policy: SecurityPolicy) -> None:
    ends = pair(world, policy)
    ends.client.write(b"slowly")
    flight = ends.client.data_to_send()
    for position in range(len(flight) - 1):
        ends.server.receive_data(flight[position : position + 1])
        assert ends.server.read(100) is Want.READ
    ends.server.receive_data(flight[-1:])
    assert ends.server.read(100) == b"slowly"


def test_a_write_of_many_records_is_whole(world: World) -> None:
    ends = pair(world)
    data = bytes(range(256)) * 512
    assert ends.client.write(data) == len(data)
    ends.step()
    received = b""
    while len(received) < len(data):
        block = ends.server.read(1 << 20)
        assert isinstance(block, bytes)
        assert 0 < len(block) <= MAX_RECORD_BYTES
        received += block
    assert received == data


@BOTH_VERSIONS
def test_close_notify_ends_one_direction(world: World, policy: SecurityPolicy) -> None:
    ends = pair(world, policy)
    assert ends.client.write(b"last") == 4
    assert ends.client.close_notify() is None
    ends.step()
    assert ends.server.read(100) == b"last"
    assert ends.server.read(100) == b""
    assert ends.server.read(100) == b""
    assert ends.server.write(b"still here") == 10
    ends.step()
    assert ends.client.read(100) == b"still here"
    with pytest.raises(APIMisuse, match="ended its data"):
        ends.client.write(b"more")


@BOTH_VERSIONS
def test_an_end_without_close_notify_is_a_truncation(world: World, policy: SecurityPolicy) -> None:
    ends = pair(world, policy)
    ends.client.write(b"first half")
    ends.step()
    ends.server.receive_end()
    assert ends.server.read(100) == b"first half"
    for _ in range(2):
        with pytest.raises(TruncatedStream, match="incomplete"):
            ends.server.read(100)


def test_an_end_inside_a_record_is_a_truncation(world: World) -> None:
    ends = pair(world)
    ends.client.write(b"first half")
    ends.server.receive_data(ends.client.data_to_send()[:-1])
    ends.server.receive_end()
    with pytest.raises(TruncatedStream):
        ends.server.read(100)


def test_an_end_during_the_handshake_is_a_truncation(world: World) -> None:
    core = TLSCore(server_context(world.ec, DEFAULT_POLICY), None)
    core.receive_end()
    with pytest.raises(TruncatedStream, match="during the handshake"):
        core.handshake()


@pytest.mark.parametrize("position", [5, -1])
def test_an_altered_record_ends_the_session(world: World, position: int) -> None:
    ends = pair(world)
    ends.client.write(b"precious")
    flight = bytearray(ends.client.data_to_send())
    flight[position] ^= 1
    ends.server.receive_data(bytes(flight))
    with pytest.raises(PeerMisbehaved) as caught:
        ends.server.read(100)
    assert caught.value.alert_sent is Alert.bad_record_mac
    ends.step()
    with pytest.raises(AlertReceived) as received:
        ends.client.read(100)
    assert received.value.alert_received is Alert.bad_record_mac


@pytest.mark.parametrize(
    ("data", "alert"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", None),
        (b"CONNECT localhost:443 HTTP/1.1\r\n\r\n", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None),
        (bytes(64), None),
        (b"\x16\x03\x01\xff\xff" + bytes(100), Alert.record_overflow),
        (b"\x17\x03\x03\x00\x05hello", Alert.unexpected_message),
    ],
    ids=["HTTP", "CONNECT", "SSH", "zeros", "oversized", "early data"],
)
def test_what_is_not_tls_is_named(world: World, data: bytes, alert: Alert | None) -> None:
    core = TLSCore(server_context(world.ec, DEFAULT_POLICY), None)
    core.receive_data(data)
    with pytest.raises(PeerMisbehaved) as caught:
        core.handshake()
    assert caught.value.alert_sent is alert
    sent = core.data_to_send()
    if b"HTTP/" in data:  # to whom an alert would mean nothing
        head, _, body = sent.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert caught.value.problem == "plain HTTP on a TLS port"
    else:
        assert (sent[5:7] == bytes([2, alert])) if alert else not sent


def test_http_where_the_server_was_to_answer_is_not_answered(world: World) -> None:
    core = TLSCore(client_context(world.anchors, DEFAULT_POLICY), None, server_hostname="localhost")
    assert core.handshake() is Want.READ
    core.data_to_send()
    core.receive_data(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(PeerMisbehaved):
        core.handshake()
    assert not core.data_to_send()


# Each failure, and the alert that crossed the wire: what the one side says it sent is what the
# other side says it received. This is what keeps the table of `transport.translation` honest.
FAILURES: dict[str, tuple[Callable[[World], Pair], str, type[TransportError], AlertDescription]] = {
    "no shared version": (
        lambda world: pair(world, TLS_1_3, client_policy=TLS_1_2),
        "server",
        PeerIncompatible,
        Alert.protocol_version,
    ),
    "no shared suite on TLS 1.2": (
        lambda world: pair(
            world,
            TLS_1_2.narrowed(suites=["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]),
            client_policy=TLS_1_2.narrowed(suites=["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]),
        ),
        "server",
        PeerIncompatible,
        Alert.handshake_failure,
    ),
    "no shared suite on TLS 1.3": (
        lambda world: pair(
            world,
            TLS_1_3.narrowed(suites=["TLS_AES_128_GCM_SHA256"]),
            client_policy=TLS_1_3.narrowed(suites=["TLS_AES_256_GCM_SHA384"]),
        ),
        "server",
        PeerIncompatible,
        Alert.handshake_failure,
    ),
    "no shared group on TLS 1.3": (
        lambda world: pair(
            world,
            TLS_1_3.narrowed(groups=["x25519"]),
            client_policy=TLS_1_3.narrowed(groups=["secp384r1"]),
        ),
        "server",
        PeerIncompatible,
        Alert.handshake_failure,
    ),
    "no shared group on TLS 1.2": (
        lambda world: pair(
            world,
            TLS_1_2.narrowed(groups=["x25519"]),
            client_policy=TLS_1_2.narrowed(groups=["secp384r1"]),
            credential=world.rsa,
        ),
        "server",
        PeerIncompatible,
        Alert.handshake_failure,
    ),
    "a foreign authority": (
        lambda world: pair(world, anchors=world.foreign_anchors),
        "client",
        CertificateRejected,
        Alert.unknown_ca,
    ),
    "a foreign authority on TLS 1.2": (
        lambda world: pair(world, TLS_1_2, anchors=world.foreign_anchors),
        "client",
        CertificateRejected,
        Alert.unknown_ca,
    ),
    "another name": (
        lambda world: pair(world, name="other.example"),
        "client",
        CertificateRejected,
        Alert.bad_certificate,
    ),
    "another address": (
        lambda world: pair(world, name="127.0.0.2"),
        "client",
        CertificateRejected,
        Alert.bad_certificate,
    ),
    "an expired certificate": (
        lambda world: pair(world, credential=world.expired),
        "client",
        CertificateRejected,
        Alert.certificate_expired,
    ),
    "no client certificate": (
        lambda world: pair(world, client_anchors=world.anchors),
        "server",
        CertificateRejected,
        Alert.certificate_required,
    ),
    "no client certificate on TLS 1.2": (
        lambda world: pair(world, TLS_1_2, client_anchors=world.anchors),
        "server",
        CertificateRejected,
        Alert.handshake_failure,
    ),
    "a foreign client certificate": (
        lambda world: pair(
            world, TLS_1_2, client_anchors=world.anchors, client_credential=world.foreign
        ),
        "server",
        CertificateRejected,
        Alert.unknown_ca,
    ),
    "no shared application protocol": (
        lambda world: pair(world, client_alpn=("h2",), server_alpn=("http/1.1",)),
        "server",
        PeerIncompatible,
        Alert.no_application_protocol,
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_alert_named_is_the_alert_sent(world: World, failure: str) -> None:
    act, who, kind, alert = FAILURES[failure]
    ends = act(world)
    other = "client" if who == "server" else "server"
    error = ends.errors[who]
    assert type(error) is kind
    assert error.alert_sent is alert
    assert error.alert_received is None
    if other not in ends.errors:  # a TLS 1.3 client is done before the server judges it
        with pytest.raises(AlertReceived) as caught:
            ends.client.read(1)
        ends.errors[other] = caught.value
    received = ends.errors[other]
    assert type(received) is AlertReceived
    assert received.alert_received is alert
    assert received.alert_sent is None
    for one in ends.errors.values():
        assert "\n" not in str(one)
        assert isinstance(one, OSError)
        again = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own bytes
        assert (type(again), str(again)) == (type(one), str(one))
        assert (again.alert_sent, again.alert_received) == (one.alert_sent, one.alert_received)


@BOTH_VERSIONS
def test_a_client_with_a_certificate_is_known_to_the_server(
    world: World, policy: SecurityPolicy
) -> None:
    ends = pair(world, policy, client_anchors=world.anchors, client_credential=world.rsa)
    assert not ends.errors
    assert ends.server.negotiated.peer_certificate is not None
    ends.server.write(b"welcome")
    ends.step()
    assert ends.client.read(100) == b"welcome"


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "::1"])
def test_every_name_of_the_certificate_is_right(world: World, name: str) -> None:
    assert not pair(world, name=name).errors


def test_a_wildcard_is_one_whole_label(world: World) -> None:
    assert not pair(world, credential=world.wildcard, name="a.example.test").errors
    for name in ("example.test", "a.b.example.test", "a.example.org"):
        assert "client" in pair(world, credential=world.wildcard, name=name).errors


def test_part_of_a_label_is_no_wildcard(world: World) -> None:
    """RFC 9525 section 6.3: OpenSSL alone would take it."""
    assert not pair(world, credential=world.by_hand, name="whole.example.test").errors
    assert "client" in pair(world, credential=world.by_hand, name="foobar.example.test").errors


def test_the_common_name_is_no_name(world: World) -> None:
    """RFC 9525 section 2: a certificate without subject alternative names names nobody."""
    assert "client" in pair(world, credential=world.common_name, name="cn.example").errors


@BOTH_VERSIONS
def test_an_error_left_over_in_this_thread_is_not_blamed_on_a_connection(
    world: World, policy: SecurityPolicy
) -> None:
    """OpenSSL's error queue is per thread, and shared with whatever else uses OpenSSL in it."""

    def leave_an_error() -> None:
        lib.ERR_put_error(lib.ERR_LIB_EVP, 0, 100, b"elsewhere.c", 1)
        assert lib.ERR_peek_error() != 0

    client = TLSCore(client_context(world.anchors, policy), None, server_hostname="localhost")
    server = TLSCore(server_context(world.ec, policy), None)
    leave_an_error()
    assert client.handshake() is Want.READ
    ends = Pair(client, server)
    ends.step()
    leave_an_error()
    assert server.handshake() is Want.READ
    assert not ends.handshake().errors
    leave_an_error()
    assert server.read(1) is Want.READ
    leave_an_error()
    assert server.read_into(memoryview(bytearray(1))) is Want.READ
    server.receive_end()
    leave_an_error()
    with pytest.raises(TruncatedStream):
        server.read_into(memoryview(bytearray(1)))
    client.receive_end()
    leave_an_error()
    with pytest.raises(TruncatedStream):
        client.read(1)


def test_an_address_is_not_sent_as_server_name(world: World) -> None:
    assert pair(world, name="127.0.0.1").server.negotiated.server_name is None


@pytest.mark.parametrize("name", [None, "", "a" * 300, "x" * 64 + ".example", "nul\0.example", "."])
def test_a_client_without_a_usable_name_cannot_be_made(world: World, name: str | None) -> None:
    with pytest.raises(APIMisuse):
        TLSCore(client_context(world.anchors, DEFAULT_POLICY), None, server_hostname=name)


def test_a_server_takes_no_name(world: World) -> None:
    with pytest.raises(APIMisuse):
        TLSCore(server_context(world.ec, DEFAULT_POLICY), None, server_hostname="localhost")


def test_the_servers_order_of_protocols_decides(world: World) -> None:
    ends = pair(world, client_alpn=("http/1.1", "h2"), server_alpn=("h2", "http/1.1"))
    assert ends.client.negotiated.alpn == ends.server.negotiated.alpn == "h2"
    assert pair(world, server_alpn=("h2",)).server.negotiated.alpn is None


def test_a_key_log_holds_the_secrets_of_both_versions(world: World) -> None:
    labels = {}
    for policy in (TLS_1_2, TLS_1_3):
        log = KeyLogBuffer()
        server = TLSCore(server_context(world.ec, policy, key_log=log), None)
        client = TLSCore(client_context(world.anchors, policy), None, server_hostname="localhost")
        assert not Pair(client, server).handshake().errors
        labels[policy.name] = {line.split()[0] for line in log.getvalue().splitlines()}
    assert labels[TLS_1_2.name] == {b"CLIENT_RANDOM"}
    assert labels[TLS_1_3.name] >= {
        b"CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        b"SERVER_HANDSHAKE_TRAFFIC_SECRET",
        b"CLIENT_TRAFFIC_SECRET_0",
        b"SERVER_TRAFFIC_SECRET_0",
        b"EXPORTER_SECRET",
    }


def test_nothing_shows_the_peers_certificate_or_a_secret(world: World) -> None:
    session = pair(world).client.negotiated
    assert session.peer_certificate is not None
    assert repr(session.peer_certificate)[2:20] not in repr(session)


def test_a_closed_core_refuses_everything(world: World) -> None:
    ends = pair(world)
    ends.client.abandon()
    for operation in (lambda: ends.client.read(1), lambda: ends.client.write(b"x")):
        with pytest.raises(APIMisuse, match="closed"):
            operation()
    assert ends.client.close_notify() is None
    assert ends.client.data_to_send() == b""

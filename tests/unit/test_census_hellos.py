"""Reading randoms, shares and tickets off real handshakes, and off bytes that are none."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs.credential import Credential, TrustAnchors
from interop.census.ends import OpenSSLEnd
from interop.census.hellos import HandshakeWatch
from interop.errors import DissectError
from interop.wire import handshake as hs
from transport import DEFAULT_POLICY, get_policy
from transport.context import client_context, server_context

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=50_000, deadline=None, suppress_health_check=list(HealthCheck))


class Flights(NamedTuple):
    """What both sides sent, in turn: True is the client."""

    sent: tuple[tuple[bool, bytes], ...]

    @property
    def client_hello(self) -> bytes:
        return next(data for client, data in self.sent if client)[5:]

    def watch(self, piece_bytes: int = 1 << 20) -> HandshakeWatch:
        watch = HandshakeWatch()
        for client, data in self.sent:
            show = watch.client if client else watch.server
            for at in range(0, len(data), piece_bytes):
                show(data[at : at + piece_bytes])
        return watch


@cache
def credential() -> Credential:
    issued = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(
        "localhost", key_type=trustme.KeyType.ECDSA
    )
    return Credential.from_pem(issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())


@cache
def handshake(
    version: str,
    client_groups: tuple[str, ...] | None,
    server_groups: tuple[str, ...] | None = None,
    policy_name: str = "default",
) -> Flights:
    policy = get_policy(policy_name)
    anchors = TrustAnchors((credential().leaf,))
    client_policy = policy.narrowed(versions=[version], groups=client_groups)
    server_policy = policy.narrowed(versions=[version], groups=server_groups)
    client = OpenSSLEnd(client_context(anchors, client_policy).context, server_name="localhost")
    server = OpenSSLEnd(server_context(credential(), server_policy).context, server_name=None)
    sent: list[tuple[bool, bytes]] = []
    done = [False, False]
    while not all(done):
        for number, (end, peer) in enumerate(((client, server), (server, client))):
            done[number] = done[number] or end.handshake()
            if data := end.data_to_send():
                sent.append((end is client, data))
                peer.receive_data(data)
    return Flights(tuple(sent))


def kinds(watch: HandshakeWatch) -> list[str]:
    return sorted(kind for kind, _ in watch.values)


def test_a_hybrid_is_split_and_agrees_with_the_full_parser() -> None:
    flights = handshake("TLS 1.3", None)
    watch = flights.watch()
    assert kinds(watch) == [
        "client_key_share.mlkem768",
        "client_key_share.x25519",
        "client_key_share.x25519",
        "client_random",
        "server_key_share.mlkem768",
        "server_key_share.x25519",
        "server_random",
    ]
    values = {value for _, value in watch.values}
    hello = hs.parse_client_hello(flights.client_hello)
    hybrid, classical = (share.key_exchange for share in hello.key_shares)
    assert values >= {hello.random, hybrid[:1184], hybrid[1184:], classical}


@pytest.mark.parametrize(
    ("version", "groups", "policy", "share"),
    [
        ("TLS 1.2", ("x25519", "secp256r1"), "default", "x25519"),
        ("TLS 1.2", ("secp256r1",), "default", "secp256r1"),
        ("TLS 1.3", ("secp384r1",), "default", "secp384r1"),
        ("TLS 1.3", ("SecP384r1MLKEM1024",), "2026-11-pq", "mlkem1024"),
    ],
)
def test_each_version_and_group(
    version: str, groups: tuple[str, ...], policy: str, share: str
) -> None:
    flights = handshake(version, groups, policy_name=policy)
    found = kinds(flights.watch())
    assert {f"{side}_key_share.{share}" for side in ("client", "server")} <= set(found)
    assert found.count("client_random") == found.count("server_random") == 1
    for piece_bytes in (1, 7, 100):
        assert flights.watch(piece_bytes).values == flights.watch().values


def test_one_public_value_in_two_shares_of_one_client_hello_is_one_value() -> None:
    first, *_ = handshake("TLS 1.3", None).sent
    _, data = first
    hello = hs.parse_client_hello(data[5:])
    hybrid, classical = (share.key_exchange for share in hello.key_shares)
    assert len(classical) == 32
    watch = HandshakeWatch()
    watch.client(data.replace(classical, hybrid[1184:]))
    assert kinds(watch).count("client_key_share.x25519") == 1


def test_a_retried_hello_is_one_handshake() -> None:
    flights = handshake("TLS 1.3", ("x25519", "secp384r1"), ("secp384r1",))
    assert [client for client, _ in flights.sent].count(True) == 3  # it was retried
    assert kinds(flights.watch()) == [
        "client_key_share.secp384r1",
        "client_key_share.x25519",
        "client_random",
        "server_key_share.secp384r1",
        "server_random",
    ]


def test_what_follows_a_hello_of_tls13_is_not_looked_at() -> None:
    watch = handshake("TLS 1.3", None).watch()
    before = watch.values
    watch.server(b"\xff" * 100_000)
    watch.client(b"\xff" * 100_000)
    assert watch.values == before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x16\x03\x03\xff\xff" + bytes(10), "a record of 65535 bytes"),
        (b"\x16\x03\x03\x00\x04\x01\xff\xff\xff", "a message of 16777219 bytes"),
        (b"\x16\x03\x03\x00\x05\x01\x00\x00\x01\x03", "cut short"),
    ],
)
def test_what_cannot_be_a_handshake_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(DissectError, match=words):
        HandshakeWatch().client(data)


def look_at_spoiled_bytes(version: str, position: int, octet: int, piece_bytes: int) -> None:
    """Change one octet of one flight; a value or a `DissectError` must come of it."""
    groups = ("x25519", "secp256r1") if version == "TLS 1.2" else None
    sent = list(handshake(version, groups).sent[:2])
    which = position % 2
    client, data = sent[which]
    spoiled = bytearray(data)
    spoiled[position // 2 % len(data)] = octet
    sent[which] = client, bytes(spoiled)
    try:
        values = Flights(tuple(sent)).watch(piece_bytes).values
    except DissectError:
        return
    assert len(values) < 20
    assert all(value for kind, value in values if kind.endswith("random"))


SPOILED = given(
    st.sampled_from(["TLS 1.2", "TLS 1.3"]),
    st.integers(0, 8000),
    st.integers(0, 255),
    st.integers(1, 3000),
)


@SPOILED
@QUICK
def test_spoiled_bytes_give_values_or_a_typed_error(
    version: str, position: int, octet: int, piece_bytes: int
) -> None:
    look_at_spoiled_bytes(version, position, octet, piece_bytes)


@pytest.mark.fuzz
@pytest.mark.long
@SPOILED
@LONG
def test_spoiled_bytes_for_long(version: str, position: int, octet: int, piece_bytes: int) -> None:
    look_at_spoiled_bytes(version, position, octet, piece_bytes)


def test_the_default_policy_has_no_group_that_was_not_read() -> None:
    for group in DEFAULT_POLICY.groups_for("TLS 1.3"):  # type: ignore[arg-type]
        watch = handshake("TLS 1.3", (group,)).watch()
        assert len([kind for kind in kinds(watch) if kind.startswith("server_key_share")]) == (
            2 if "MLKEM" in group else 1
        )

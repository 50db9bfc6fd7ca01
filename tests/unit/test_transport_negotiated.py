"""What was negotiated counts: weak sessions that a TLS library really completed are refused.

The weak endpoints are raw pyOpenSSL contexts made here, on both sides of an in-memory connection.
One side of it is a `TLSCore` under the default policy, so that everything but the check says yes.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL, crypto
from OpenSSL._util import lib

from certs.credential import Credential, TrustAnchors
from transport import DEFAULT_POLICY, AlertDescription, PolicyViolation, ProtocolVersion
from transport.connection import TLSCore, Want
from transport.context import EndpointContext, client_context, server_context
from transport.negotiated import HandshakeFacts, verify_negotiated

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509

    from transport.policy import SecurityPolicy

    Setup = Callable[[SSL.Context], object]

NO_EXTENDED_MAIN_SECRET = 1  # SSL_OP_NO_EXTENDED_MASTER_SECRET of ssl.h
FACTS = HandshakeFacts(
    version="TLS 1.3",
    suite="TLS_AES_128_GCM_SHA256",
    group="x25519",
    resumed=False,
    extended_main_secret=True,
    server_name="localhost",
)


class Identity(NamedTuple):
    credential: Credential
    anchors: TrustAnchors


@pytest.fixture(scope="module")
def identity() -> Identity:
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    issued = authority.issue_cert("localhost", key_type=trustme.KeyType.RSA)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return Identity(
        Credential.from_pem(chain, issued.private_key_pem.bytes()),
        TrustAnchors.from_pem(authority.cert_pem.bytes()),
    )


def raw_context(identity: Identity, *setups: Setup) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(identity.credential.leaf)
    context.use_privatekey(load_pem_private_key(identity.credential.private_key_pem(), None))  # type: ignore[arg-type] # an RSA key
    for setup in setups:
        setup(context)
    return context


def suites(names: str) -> Setup:
    return lambda context: context.set_cipher_list(names.encode())


def groups(names: str) -> Setup:
    return lambda context: lib.SSL_CTX_set1_curves_list(context._context, names.encode())


def up_to(version: int) -> Setup:
    return lambda context: context.set_max_proto_version(version)


def down_to(version: int) -> Setup:
    return lambda context: context.set_min_proto_version(version)


def options(bits: int) -> Setup:
    return lambda context: context.set_options(bits)


def trusting(identity: Identity) -> Setup:
    def setup(context: SSL.Context) -> None:
        context.set_verify(SSL.VERIFY_PEER)
        store = context.get_cert_store()
        assert store is not None
        for certificate in identity.anchors.certificates:
            store.add_cert(crypto.X509.from_cryptography(certificate))

    return setup


TLS_1_2 = up_to(SSL.TLS1_2_VERSION)
OLD = (up_to(SSL.TLS1_1_VERSION), down_to(SSL.TLS1_VERSION), suites("ALL:@SECLEVEL=0"))

# The handshake that both sides agree on, and the part of it that the policy does not admit.
WEAK = {
    "static RSA": ((TLS_1_2, suites("AES128-GCM-SHA256")), "AES128-GCM-SHA256"),
    "CBC": ((TLS_1_2, suites("ECDHE-RSA-AES128-SHA")), "ECDHE-RSA-AES128-SHA"),
    "secp521r1 on TLS 1.2": ((TLS_1_2, groups("secp521r1")), "group secp521r1"),
    "secp521r1": ((groups("secp521r1"),), "group secp521r1"),
    "ffdhe2048": ((groups("ffdhe2048"),), "group ffdhe2048"),
    "TLS 1.1": (OLD, "version TLSv1.1"),
    "CCM": (
        (lambda context: context.set_tls13_ciphersuites(b"TLS_AES_128_CCM_SHA256"),),
        "TLS_AES_128_CCM_SHA256",
    ),
    "no extended main secret": (
        (
            TLS_1_2,
            options(NO_EXTENDED_MAIN_SECRET),
            groups("x25519"),
            suites("ECDHE-RSA-AES128-GCM-SHA256"),
        ),
        "without extended main secret",
    ),
}


class Talk:
    """A `TLSCore` and a raw connection, with bytes carried between them until both stand still."""

    def __init__(self, core: TLSCore, raw: SSL.Connection) -> None:
        self.core = core
        self.raw = raw
        self.raw_error: SSL.Error | None = None
        self.core_error: OSError | None = None

    def run(self) -> None:
        core_done = raw_done = False
        for _ in range(20):
            if not core_done:
                try:
                    core_done = self.core.handshake() is None
                except OSError as error:
                    self.core_error, core_done = error, True
            self.carry()
            if not raw_done:
                try:
                    self.raw.do_handshake()
                    raw_done = True
                except SSL.WantReadError:
                    pass
                except SSL.Error as error:
                    self.raw_error, raw_done = error, True
            self.carry()
            if core_done and raw_done:
                return
        raise AssertionError("the handshake did not come to an end")

    def carry(self) -> None:
        if data := self.core.data_to_send():
            self.raw.bio_write(data)
        try:
            data = self.raw.bio_read(1 << 16)
        except SSL.WantReadError:
            return
        self.core.receive_data(data)


def talk(identity: Identity, setups: tuple[Setup, ...], *, core_is_server: bool) -> Talk:
    if core_is_server:
        endpoint = EndpointContext(raw_context(identity, *setups), DEFAULT_POLICY, True, False)  # noqa: FBT003 - fields
        core = TLSCore(endpoint, None)
        raw = SSL.Connection(raw_context(identity, *setups))
        raw.set_connect_state()
    else:
        context = raw_context(identity, *setups, trusting(identity))
        core = TLSCore(
            EndpointContext(context, DEFAULT_POLICY, False, True),  # noqa: FBT003 - fields
            None,
            server_hostname="localhost",
        )
        raw = SSL.Connection(raw_context(identity, *setups))
        raw.set_accept_state()
    result = Talk(core, raw)
    result.run()
    return result


@pytest.mark.parametrize("core_is_server", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("weakness", WEAK)
def test_a_weak_session_that_the_library_completes_is_refused(
    identity: Identity,
    weakness: str,
    core_is_server: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    setups, named = WEAK[weakness]
    outcome = talk(identity, setups, core_is_server=core_is_server)
    assert isinstance(outcome.core_error, PolicyViolation)
    assert named in str(outcome.core_error)
    # The library finished this handshake: nothing but the check stood in its way.
    assert outcome.raw_error is None or "alert" in str(outcome.raw_error)


@pytest.mark.parametrize("core_is_server", [True, False], ids=["server", "client"])
@pytest.mark.parametrize(
    ("setups", "alert", "reason"),
    [
        (WEAK["static RSA"][0], AlertDescription.protocol_version, "alert protocol version"),
        (WEAK["ffdhe2048"][0], AlertDescription.unexpected_message, "alert unexpected message"),
    ],
    ids=["TLS 1.2", "TLS 1.3"],
)
def test_a_violation_is_answered_with_a_fatal_alert_and_no_data_moves(
    identity: Identity,
    setups: tuple[Setup, ...],
    alert: AlertDescription,
    reason: str,
    core_is_server: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    outcome = talk(identity, setups, core_is_server=core_is_server)
    assert isinstance(outcome.core_error, PolicyViolation)
    assert outcome.core_error.alert_sent is alert
    assert outcome.core_error.alert_received is None
    outcome.raw.send(b"application data that must go nowhere")
    outcome.carry()
    for operation in (
        outcome.core.handshake,
        lambda: outcome.core.read(100),
        lambda: outcome.core.read_into(memoryview(bytearray(100))),
        lambda: outcome.core.write(b"secret"),
        lambda: outcome.core.export_keying_material("label", 32),
    ):
        with pytest.raises(PolicyViolation):
            operation()
    assert not outcome.core.is_established
    assert outcome.core.data_to_send() == b""
    with pytest.raises(SSL.Error, match=reason):
        outcome.raw.recv(100)


def test_the_same_endpoints_agree_on_a_strong_session(identity: Identity) -> None:
    """The control: what is refused above is refused for its weakness and nothing else."""
    for core_is_server in (True, False):
        outcome = talk(identity, (), core_is_server=core_is_server)
        assert outcome.core_error is None
        assert outcome.raw_error is None
        assert outcome.core.negotiated.group == "X25519MLKEM768"
        outcome.raw.send(b"hello")
        outcome.carry()
        assert outcome.core.read(100) == b"hello"


@pytest.mark.parametrize(
    ("setups", "alert"),
    [
        ((TLS_1_2, suites("AES128-GCM-SHA256")), "handshake failure"),
        ((TLS_1_2, suites("DHE-RSA-AES128-GCM-SHA256")), "handshake failure"),
        ((TLS_1_2, suites("ECDHE-RSA-AES128-SHA")), "handshake failure"),
        ((TLS_1_2, groups("secp521r1")), "handshake failure"),
        ((groups("ffdhe2048"), down_to(SSL.TLS1_3_VERSION)), "handshake failure"),
        ((groups("secp521r1"), down_to(SSL.TLS1_3_VERSION)), "handshake failure"),
        (OLD, "protocol version"),
    ],
    ids=["static RSA", "DHE", "CBC", "secp521r1", "ffdhe2048", "secp521r1 1.3", "TLS 1.1"],
)
def test_a_client_that_offers_only_weakness_gets_no_session(
    identity: Identity, setups: tuple[Setup, ...], alert: str
) -> None:
    core = TLSCore(server_context(identity.credential, DEFAULT_POLICY), None)
    raw = SSL.Connection(raw_context(identity, *setups))
    raw.set_connect_state()
    outcome = Talk(core, raw)
    outcome.run()
    assert outcome.core_error is not None
    assert outcome.core_error.alert_sent is AlertDescription[alert.replace(" ", "_")]  # type: ignore[attr-defined] # a TransportError
    assert f"alert {alert}" in str(outcome.raw_error)


def test_a_server_that_has_only_weakness_gets_no_session(identity: Identity) -> None:
    for setups in ((TLS_1_2, suites("AES128-GCM-SHA256")), OLD):
        core = TLSCore(
            client_context(identity.anchors, DEFAULT_POLICY), None, server_hostname="localhost"
        )
        raw = SSL.Connection(raw_context(identity, *setups))
        raw.set_accept_state()
        outcome = Talk(core, raw)
        outcome.run()
        assert outcome.core_error is not None
        assert not core.is_established


def test_a_tls_1_2_client_without_extended_main_secret_is_refused(identity: Identity) -> None:
    core = TLSCore(server_context(identity.credential, DEFAULT_POLICY), None)
    raw = SSL.Connection(raw_context(identity, TLS_1_2, options(NO_EXTENDED_MAIN_SECRET)))
    raw.set_connect_state()
    outcome = Talk(core, raw)
    outcome.run()
    assert isinstance(outcome.core_error, PolicyViolation)
    assert "RFC 7627" in str(outcome.core_error)
    with pytest.raises(SSL.Error, match="alert protocol version"):
        raw.recv(1)


def test_strong_facts_become_a_proof() -> None:
    session = verify_negotiated(FACTS, DEFAULT_POLICY, require_peer_certificate=False)
    assert session.version is ProtocolVersion.TLS_1_3
    assert (session.suite, session.group) == (FACTS.suite, FACTS.group)
    assert session.policy == DEFAULT_POLICY.name
    assert session.server_name == "localhost"
    assert not session.resumed
    assert pickle.loads(pickle.dumps(session)) == session  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "TLSv1.1"},
        {"version": "TLS 1.2"},  # the suite is TLS 1.3's
        {"suite": "TLS_AES_128_CCM_SHA256"},
        {"suite": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"},  # TLS 1.2's
        {"group": None},
        {"group": "secp521r1"},
        {"group": "SecP256r1MLKEM768"},  # admissible, but not in this policy
        {"resumed": True},
        {"extended_main_secret": False},
    ],
)
def test_one_weak_fact_is_enough(changes: dict[str, object]) -> None:
    facts = FACTS._replace(**changes)  # type: ignore[arg-type] # varied on purpose
    with pytest.raises(PolicyViolation):
        verify_negotiated(facts, DEFAULT_POLICY, require_peer_certificate=False)


def test_a_hybrid_group_on_tls_1_2_is_refused() -> None:
    facts = FACTS._replace(
        version="TLS 1.2",
        suite="TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        group="X25519MLKEM768",
    )
    with pytest.raises(PolicyViolation, match="X25519MLKEM768"):
        verify_negotiated(facts, DEFAULT_POLICY, require_peer_certificate=False)


def test_a_missing_peer_certificate_is_refused_where_one_is_required() -> None:
    with pytest.raises(PolicyViolation, match="peer certificate"):
        verify_negotiated(FACTS, DEFAULT_POLICY, require_peer_certificate=True)


def test_a_peer_key_below_the_policys_size_is_refused(identity: Identity) -> None:
    facts = FACTS._replace(peer_certificate=der(identity.credential.leaf))
    verify_negotiated(facts, DEFAULT_POLICY, require_peer_certificate=True)
    strict: SecurityPolicy = dataclasses.replace(DEFAULT_POLICY, minimum_rsa_key_bits=3072)
    with pytest.raises(PolicyViolation, match="2048 bits"):
        verify_negotiated(facts, strict, require_peer_certificate=True)


@pytest.mark.parametrize("certificate", [b"", b"\x30\x00", b"nonsense"])
def test_a_peer_certificate_that_cannot_be_judged_is_refused(certificate: bytes) -> None:
    facts = FACTS._replace(peer_certificate=certificate)
    with pytest.raises(PolicyViolation, match="cannot be judged"):
        verify_negotiated(facts, DEFAULT_POLICY, require_peer_certificate=True)


def test_a_core_refuses_data_before_its_handshake(identity: Identity) -> None:
    core = TLSCore(server_context(identity.credential, DEFAULT_POLICY), None)
    assert core.handshake() is Want.READ
    for operation in (lambda: core.read(1), lambda: core.write(b"x"), lambda: core.negotiated):
        with pytest.raises(OSError, match="do_handshake"):
            operation()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)

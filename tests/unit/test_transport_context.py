"""The context builder: the library really took the policy, whatever the environment says."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from OpenSSL import SSL

from certs.credential import Credential, TrustAnchors
from transport import DEFAULT_POLICY, APIMisuse, PolicyViolation, openssl
from transport.client_hello import parse_client_hello
from transport.context import (
    _IANA_NAMES,
    SUITE_ALIASES,
    client_context,
    server_context,
    shared_client_context,
    verify_context,
)
from transport.policy import GROUPS, SIGNATURE_SCHEMES, SUITES, ProtocolVersion, SecurityPolicy

ROOT = Path(__file__).parent.parent.parent
TLS_1_2 = DEFAULT_POLICY.narrowed(versions=["TLS 1.2"])
TLS_1_3 = DEFAULT_POLICY.narrowed(versions=["TLS 1.3"])
EVERYTHING = SecurityPolicy(
    name="everything",
    versions=tuple(ProtocolVersion),
    suites=tuple(SUITES),
    groups=tuple(GROUPS),
    signature_schemes=tuple(SIGNATURE_SCHEMES),
)


class World(NamedTuple):
    ec: Credential
    rsa: Credential
    anchors: TrustAnchors


def issue(authority: trustme.CA, kind: trustme.KeyType) -> Credential:
    issued = authority.issue_cert("localhost", key_type=kind)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return Credential.from_pem(chain, issued.private_key_pem.bytes())


@pytest.fixture(scope="module")
def world() -> World:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    return World(
        issue(authority, trustme.KeyType.ECDSA),
        issue(authority, trustme.KeyType.RSA),
        TrustAnchors.from_pem(authority.cert_pem.bytes()),
    )


def test_every_admissible_name_is_known_to_the_library(world: World) -> None:
    client_context(world.anchors, EVERYTHING)


def test_every_tls_1_2_suite_has_its_alias() -> None:
    old = {name for name, suite in SUITES.items() if suite.version == ProtocolVersion.TLS_1_2}
    assert set(SUITE_ALIASES) == old
    assert len(_IANA_NAMES) == len(SUITE_ALIASES)


@pytest.mark.parametrize("policy", [DEFAULT_POLICY, TLS_1_2, TLS_1_3], ids=lambda p: p.name)
def test_the_offer_is_the_policy_in_its_order(world: World, policy: SecurityPolicy) -> None:
    connection = SSL.Connection(client_context(world.anchors, policy).context)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    offer = parse_client_hello(connection.bio_read(1 << 16))
    assert offer.groups == {GROUPS[group].code_point for group in policy.groups}
    assert len(offer.versions) == len(policy.versions)
    aliases = [SUITE_ALIASES.get(suite, suite) for suite in policy.suites]
    # A context of TLS 1.3 alone cannot have an empty list for TLS 1.2: it is there, and never sent.
    assert connection.get_cipher_list()[: len(aliases)] == aliases
    assert {SUITES[suite].code_point for suite in policy.suites} == offer.suites - {0x00FF}


def raw(*, groups: str = "x25519", suites: str = "ECDHE-RSA-AES128-GCM-SHA256") -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(suites.encode())
    context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
    openssl.set_groups(context, groups)
    openssl.set_signature_schemes(context, ":".join(DEFAULT_POLICY.signature_schemes))
    return context


SMALL = dataclasses.replace(
    DEFAULT_POLICY,
    name="small",
    suites=("TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    groups=("x25519",),
)


def test_a_context_that_offers_its_policy_passes_the_self_check() -> None:
    verify_context(raw(), SMALL)


@pytest.mark.parametrize(
    ("context", "named"),
    [
        (lambda: raw(suites="ECDHE-RSA-AES128-GCM-SHA256:AES128-GCM-SHA256"), "suites"),
        (lambda: raw(suites="ECDHE-RSA-AES256-GCM-SHA384:NO-SUCH-SUITE"), "suites"),
        (lambda: raw(groups="x25519:secp521r1"), "groups"),
        (lambda: raw(groups="secp384r1"), "groups"),
        (lambda: raw(groups="x25519:?no-such-group:ffdhe2048"), "groups"),
    ],
    ids=["one too many", "unknown name dropped", "extra group", "other group", "ffdhe"],
)
def test_a_context_that_offers_anything_else_fails_it(context: object, named: str) -> None:
    with pytest.raises(PolicyViolation, match=f"did not take the {named}"):
        verify_context(context(), SMALL)  # type: ignore[operator] # a factory


def test_a_context_of_another_version_fails_the_self_check() -> None:
    context = raw()
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with pytest.raises(PolicyViolation, match="versions"):
        verify_context(context, SMALL)


def test_a_context_with_an_option_that_weakens_it_fails_the_self_check() -> None:
    context = raw()
    context.set_options(1 << 7)
    with pytest.raises(PolicyViolation, match="IGNORE_UNEXPECTED_EOF"):
        verify_context(context, SMALL)


def test_an_unknown_group_or_scheme_is_not_dropped_silently() -> None:
    context = SSL.Context(SSL.TLS_METHOD)
    with pytest.raises(PolicyViolation, match="no-such-group"):
        openssl.set_groups(context, "x25519:no-such-group")
    with pytest.raises(PolicyViolation, match="no-such-scheme"):
        openssl.set_signature_schemes(context, "ed25519:no-such-scheme")
    verify_context(raw(), SMALL)  # and their errors do not linger for whoever comes next


@pytest.mark.parametrize("flight", [b"", b"\x16\x03\x01\x00\x05\x01\x00\x00\x09x", b"\x16\x03"])
def test_what_is_no_client_hello_is_refused(flight: bytes) -> None:
    with pytest.raises(PolicyViolation):
        parse_client_hello(flight)


def test_a_tls_1_2_server_needs_its_certificates_curve_among_the_groups(world: World) -> None:
    policy = DEFAULT_POLICY.narrowed(groups=["x25519"])
    with pytest.raises(APIMisuse, match="secp256r1"):
        server_context(world.ec, policy)
    server_context(world.rsa, policy)
    server_context(world.ec, policy.narrowed(versions=["TLS 1.3"]))


def test_a_tls_1_2_server_needs_a_suite_for_its_key(world: World) -> None:
    policy = TLS_1_2.narrowed(suites=["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"])
    with pytest.raises(APIMisuse, match=r"no TLS 1\.2 suite"):
        server_context(world.ec, policy)
    server_context(world.rsa, policy)


def test_a_key_below_the_policys_size_is_refused(world: World) -> None:
    strict = dataclasses.replace(DEFAULT_POLICY, name="strict", minimum_rsa_key_bits=3072)
    with pytest.raises(APIMisuse, match="2048 bits"):
        server_context(world.rsa, strict)


@pytest.mark.parametrize("protocols", ["h2", ("",), ("x" * 256,)])
def test_protocol_names_are_checked(world: World, protocols: tuple[str, ...]) -> None:
    with pytest.raises(APIMisuse):
        server_context(world.ec, DEFAULT_POLICY, alpn_protocols=protocols)
    with pytest.raises(APIMisuse):
        client_context(world.anchors, DEFAULT_POLICY, alpn_protocols=protocols)


def test_a_clients_context_is_shared_unless_it_holds_a_secret(world: World) -> None:
    first = shared_client_context(world.anchors, DEFAULT_POLICY)
    assert shared_client_context(world.anchors, DEFAULT_POLICY) is first
    assert shared_client_context(world.anchors, TLS_1_3) is not first
    private = [
        shared_client_context(world.anchors, DEFAULT_POLICY, credential=world.ec) for _ in range(2)
    ]
    assert private[0] is not private[1]


# What a configuration file can do to a process, and a program that shows whether it did.
HOSTILE = """
    openssl_conf = init
    [init]
    ssl_conf = sections
    [sections]
    system_default = hostile
    [hostile]
    MinProtocol = TLSv1
    MaxProtocol = TLSv1.2
    CipherString = AES128-SHA:@SECLEVEL=0
    Ciphersuites = TLS_AES_128_CCM_SHA256
    Groups = secp521r1
    SignatureAlgorithms = rsa_pkcs1_sha1
"""
PROGRAM = """
    import trustme
    from OpenSSL import SSL
    from certs.credential import Credential, TrustAnchors
    from transport import DEFAULT_POLICY, PolicyViolation
    from transport.connection import TLSCore
    from transport.context import client_context, server_context

    print("moved", SSL.Connection(SSL.Context(SSL.TLS_METHOD)).get_cipher_list())
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    credential = Credential.from_pem(chain, issued.private_key_pem.bytes())
    anchors = TrustAnchors.from_pem(authority.cert_pem.bytes())
    try:
        server = TLSCore(server_context(credential, DEFAULT_POLICY), None)
        client = TLSCore(
            client_context(anchors, DEFAULT_POLICY), None, server_hostname="localhost"
        )
    except PolicyViolation as violation:
        raise SystemExit(f"refused: {violation}")
    for _ in range(3):
        client.handshake()
        server.receive_data(client.data_to_send())
        server.handshake()
        client.receive_data(server.data_to_send())
    print("negotiated", server.negotiated.version, server.negotiated.group)
"""


# The same, with an authority whose RSA key has a size of our choice.
AUTHORITY = """
    import datetime
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from certs.credential import Credential, TrustAnchors

    signer = rsa.generate_private_key(65537, BITS)
    key = ec.generate_private_key(ec.SECP256R1())
    root = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject, public_key, *extensions):
        builder = x509.CertificateBuilder(
            root, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]), public_key, 1,
            now - datetime.timedelta(days=1), now + datetime.timedelta(days=1),
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=extension.oid.dotted_string == CA)
        return builder.sign(signer, hashes.SHA256())

    CA = "2.5.29.19"
    subject_key = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    anchors = TrustAnchors((certificate(
        "root", signer.public_key(), x509.BasicConstraints(True, None), subject_key, usage
    ),))
    credential = Credential(key, (certificate(
        "leaf", key.public_key(), x509.SubjectAlternativeName([x509.DNSName("localhost")]),
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key),
    ),))
"""


def run_under(
    configuration: str, folder: Path, program: str = PROGRAM
) -> subprocess.CompletedProcess[str]:
    path = folder / "openssl.cnf"
    path.write_text(textwrap.dedent(configuration))
    environment = {**os.environ, "OPENSSL_CONF": str(path), "SSLKEYLOGFILE": str(folder / "keys")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_configuration_file_moves_nothing(tmp_path: Path) -> None:
    done = run_under(HOSTILE, tmp_path)
    # The control: the file did reach the library, and moved a context that sets nothing itself.
    assert "moved ['TLS_AES_128_CCM_SHA256', 'AES128-SHA']" in done.stdout
    assert "negotiated TLS 1.3 X25519MLKEM768" in done.stdout, done.stderr
    assert done.returncode == 0


def test_a_configuration_file_does_not_lower_the_security_level(tmp_path: Path) -> None:
    for bits, expected in ((1024, "CertificateRejected"), (2048, "negotiated TLS 1.3")):
        made = AUTHORITY.replace("BITS", str(bits))
        start, end = PROGRAM.index("    authority ="), PROGRAM.index("    try:")
        done = run_under(HOSTILE, tmp_path, program=PROGRAM[:start] + made + PROGRAM[end:])
        assert expected in done.stdout + done.stderr


@pytest.mark.parametrize("option", ["UnsafeLegacyRenegotiation", "AllowNoDHEKEX"])
def test_options_that_cannot_be_taken_off_again_end_the_start(tmp_path: Path, option: str) -> None:
    done = run_under(HOSTILE + f"    Options = {option}\n", tmp_path)
    assert "refused:" in done.stderr
    assert "OPENSSL_CONF" in done.stderr
    assert done.returncode == 1


def test_the_environment_cannot_turn_a_key_log_on(tmp_path: Path) -> None:
    done = run_under("", tmp_path)
    assert "negotiated TLS 1.3" in done.stdout, done.stderr
    assert not (tmp_path / "keys").exists()

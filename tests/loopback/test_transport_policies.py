"""Every dated policy: it negotiates what it prefers, and refuses a peer that is outside of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

import transport
from certs.authority import CertificateAuthority
from certs.key_types import KeyType
from certs.keystore import KeyStore
from certs.keystore.kek import create_kek
from transport import APIMisuse, TransportError, get_policy, policy_names
from transport.connection import TLSCore
from transport.context import client_context, server_context

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from certs.credential import Credential, TrustAnchors
    from transport import NegotiatedSession, SecurityPolicy

# What two ends of one policy come to, with a P-384 certificate.
PREFERRED = {
    "2026-11": ("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
    "2026-11-tls13": ("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
    "2026-11-tls13-resumption": ("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
    "2026-11-pq": ("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
    "2026-11-nist-sp800-52r2": ("TLS 1.3", "TLS_AES_128_GCM_SHA256", "secp256r1"),
    "2026-11-mozilla-modern": ("TLS 1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768"),
    "2026-11-cnsa2": ("TLS 1.3", "TLS_AES_256_GCM_SHA384", "SecP384r1MLKEM1024"),
}
# Pairs that have nothing in common.
STRANGERS = [
    ("2026-11-nist-sp800-52r2", "2026-11-pq"),
    ("2026-11-nist-sp800-52r2", "2026-11-cnsa2"),
    ("2026-11-cnsa2", "2026-11-tls13"),
    ("2026-11-mozilla-modern", "2026-11-cnsa2"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertificateAuthority]:
    folder = tmp_path_factory.mktemp("policies")
    create_kek(f"file:{folder}/kek").close()
    with KeyStore.create(folder / "store", f"file:{folder}/kek") as store:
        now = datetime.now(UTC)
        root = CertificateAuthority.create_root(store, "root", "policies", now)
        yield root.issue_subordinate("issuing", "issuing", now, key_type=KeyType.EC_P384)


def issue(authority: CertificateAuthority, key_type: KeyType) -> Credential:
    return authority.issue_server(
        key_name=f"server-{key_type.value}".lower(),
        dns_names=["localhost"],
        key_type=key_type,
        now=datetime.now(UTC),
    )


def negotiate(
    credential: Credential,
    anchors: TrustAnchors,
    server_policy: SecurityPolicy,
    client_policy: SecurityPolicy,
) -> tuple[NegotiatedSession, NegotiatedSession]:
    server = TLSCore(server_context(credential, server_policy), None)
    client = TLSCore(client_context(anchors, client_policy), None, server_hostname="localhost")
    waiting = {client, server}
    while waiting:
        for sender, receiver in ((client, server), (server, client)):
            try:
                if sender in waiting and sender.handshake() is None:
                    waiting.remove(sender)
            finally:
                receiver.receive_data(sender.data_to_send())
    assert client.negotiated.group == server.negotiated.group
    return client.negotiated, server.negotiated


@pytest.mark.parametrize("name", policy_names())
def test_two_ends_of_a_policy_negotiate_what_it_prefers(
    authority: CertificateAuthority, name: str
) -> None:
    policy = get_policy(name)
    for session in negotiate(
        issue(authority, KeyType.EC_P384), authority.trust_anchors, policy, policy
    ):
        assert (session.version, session.suite, session.group) == PREFERRED[name]
        assert session.policy == name


@pytest.mark.parametrize("name", policy_names())
def test_every_group_and_suite_of_a_policy_really_negotiates(
    authority: CertificateAuthority, name: str
) -> None:
    policy = get_policy(name)
    credential = issue(authority, KeyType.EC_P384)
    for version in policy.versions:
        for group in policy.groups_for(version):
            # On TLS 1.2 the groups govern the certificate's curve as well.
            kept = [group] if version == "TLS 1.3" else [group, "secp384r1"]
            one = policy.narrowed(versions=[version], groups=kept)
            session, _ = negotiate(credential, authority.trust_anchors, policy, one)
            assert (session.version, session.group) == (version, group)
        for suite in policy.suites_for(version):
            if "_RSA_" not in suite:
                one = policy.narrowed(versions=[version], suites=[suite])
                session, _ = negotiate(credential, authority.trust_anchors, policy, one)
                assert session.suite == suite


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_a_peer_outside_the_policy_is_refused(
    authority: CertificateAuthority, one: str, other: str
) -> None:
    credential = issue(authority, KeyType.EC_P384)
    for server, client in ((one, other), (other, one)):
        with pytest.raises(TransportError) as refusal:
            negotiate(credential, authority.trust_anchors, get_policy(server), get_policy(client))
        assert not isinstance(refusal.value, APIMisuse)


def test_a_policy_refuses_keys_that_are_too_small_on_either_side(
    authority: CertificateAuthority,
) -> None:
    small = issue(authority, KeyType.EC_P256)
    cnsa2, permissive = get_policy("2026-11-cnsa2"), get_policy("2026-11-pq")
    with pytest.raises(APIMisuse, match="256 bits, below the 384"):
        server_context(small, cnsa2)
    with pytest.raises(TransportError):
        negotiate(small, authority.trust_anchors, permissive, cnsa2)


def test_the_policies_can_be_listed_shown_and_compared(
    pfs: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    listed = pfs("policy", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(policy_names())
    assert listed.stdout.splitlines()[0].endswith("(default)")
    assert pfs("policy", "show", "2026-11-pq").stdout == get_policy("2026-11-pq").describe()
    shown = json.loads(pfs("policy", "show", "default", "--json").stdout)
    assert shown["groups"] == list(transport.DEFAULT_POLICY.groups)
    differ = pfs("policy", "diff", "default", "2026-11-tls13")
    assert differ.returncode == 1
    assert "-version TLS 1.2" in differ.stdout.splitlines()
    same = pfs("policy", "diff", "default", "2026-11")
    assert (same.returncode, same.stdout) == (0, "")
    unknown = pfs("policy", "show", "2019-01")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "2026-11-pq" in unknown.stderr

"""Who may do what, as a table, and whom a certificate stands for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.errors import AccessDenied, CorruptEnvelope, InvalidInput
from certs.keystore.access import (
    EVERYTHING,
    OWNERS_GRANTS,
    PERMITTED,
    Grant,
    Role,
    encode_grants,
    is_permitted,
    parse_grants,
    principal_of,
    require_principal,
    require_role,
    require_scope,
)
from certs.keystore.gate import OPERATIONS

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def test_roles_permit_what_there_is_and_together_all_of_it() -> None:
    assert frozenset().union(*PERMITTED.values()) == OPERATIONS
    assert all(is_permitted(OWNERS_GRANTS, operation, "") for operation in OPERATIONS)


def test_without_a_grant_nothing_is_permitted() -> None:
    for operation in OPERATIONS:
        for name in ("", "a", "a/b"):
            assert not is_permitted((), operation, name)


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        (Role.CRYPTO_OFFICER, {"create", "delete", "grant", "rekey"}, {"sign", "purge", "export"}),
        (Role.CRYPTO_USER, {"sign", "unwrap", "secret-get"}, {"create", "grant", "purge"}),
        (Role.CERTIFICATE_OFFICER, {"create", "sign"}, {"unwrap", "secret-get", "delete"}),
        (Role.PURGE_OFFICER, {"purge"}, {"delete", "recover", "sign"}),
        (Role.AUDITOR, {"audit-read", "grants"}, {"sign", "create", "grant", "secret-get"}),
        (Role.READER, {"list", "public-key"}, {"sign", "audit-read", "secret-get"}),
    ],
)
def test_a_role_permits_its_part(role: Role, may: set[str], may_not: set[str]) -> None:
    grants = {Grant(role, EVERYTHING)}
    assert all(is_permitted(grants, operation, "a") for operation in may)
    assert not any(is_permitted(grants, operation, "a") for operation in may_not)


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("web", True),
        ("web/a", True),
        ("web/a/b", True),
        ("webmail", False),
        ("", False),
        ("we", False),
        ("other/web", False),
        ("WEB", False),
        ("../web", False),
    ],
)
def test_a_scope_covers_a_name_and_what_is_below_it(name: str, covered: bool) -> None:  # noqa: FBT001 - a table
    assert Grant(Role.READER, "web").covers("show", name) is covered
    assert Grant(Role.READER, EVERYTHING).covers("show", name)


@pytest.mark.parametrize("text", ["", "*x", "/a", "a/", "a//b", "..", "a b", "**"])
def test_what_is_no_scope_is_refused(text: str) -> None:
    assert require_scope("*"), require_scope("a/b")
    with pytest.raises(InvalidInput):
        require_scope(text)


@pytest.mark.parametrize("text", ["", "root", "uri:", "uri:a b", "user:\n", "dns:" + "a" * 252])
def test_what_is_no_principal_is_refused(text: str) -> None:
    assert require_principal("owner"), require_principal("user:" + "a" * 251)
    with pytest.raises(InvalidInput):
        require_principal(text)


def test_what_is_no_role_is_refused() -> None:
    assert require_role("auditor") is Role.AUDITOR
    with pytest.raises(InvalidInput, match="crypto-officer, crypto-user"):
        require_role("admin")


def test_grants_are_read_as_written_and_nothing_else_is() -> None:
    assert parse_grants(encode_grants(OWNERS_GRANTS)) == OWNERS_GRANTS
    assert parse_grants(b"[]") == frozenset()
    for content in (
        b"",
        b"{}x",
        b"[1]",
        b'[["admin","*"]]',
        b'[["reader","a//b"]]',
        b'[["reader"]]',
    ):
        with pytest.raises(CorruptEnvelope):
            parse_grants(content)
    with pytest.raises(InvalidInput, match="at most 256"):
        encode_grants(Grant(Role.READER, f"k{number}") for number in range(257))


def certificate(*names: x509.GeneralName) -> x509.Certificate:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client.example")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(1)
        .public_key(key.public_key())
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, None)


URI = x509.UniformResourceIdentifier("spiffe://example.com/a")
HOST = x509.DNSName("Client.example")


@pytest.mark.parametrize(
    ("names", "principal"),
    [
        ((URI,), "uri:spiffe://example.com/a"),
        ((URI, HOST), "uri:spiffe://example.com/a"),
        ((HOST,), "dns:client.example"),
    ],
)
def test_a_certificate_stands_for_its_one_name(
    names: tuple[x509.GeneralName, ...], principal: str
) -> None:
    assert principal_of(certificate(*names)) == principal


@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.RFC822Name("a@example.com"),),
        (URI, x509.UniformResourceIdentifier("spiffe://example.com/b")),
        (HOST, x509.DNSName("b.example")),
        (x509.DNSName("*.example"),),
        (x509.UniformResourceIdentifier("uri:a b"),),
    ],
)
def test_a_certificate_without_one_name_stands_for_nobody(
    names: tuple[x509.GeneralName, ...],
) -> None:
    with pytest.raises(AccessDenied, match="exactly one"):
        principal_of(certificate(*names))

"""Authorities: what they issue verifies elsewhere; what they read back is held to their keys."""

from __future__ import annotations

import ipaddress
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy import update

from certs import profiles
from certs.authority import CertificateAuthority
from certs.errors import (
    InvalidName,
    IssuanceError,
    KeyNotExportable,
    KeyNotFound,
    StoreError,
    StoreFault,
    ValidationError,
)
from certs.key_types import PRIVATE_KEY_TYPES, generate_private_key, public_key_der
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK
from certs.keystore.tables import certificates
from certs.ledger import Ledger, PlannedCertificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from certs.credential import Credential, TrustAnchors

NOW = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
SERVED_TYPES = [one for one in PRIVATE_KEY_TYPES if one is not KeyType.ML_DSA_65]


@pytest.fixture
def store(tmp_path: Path, store_address: str) -> Iterator[KeyStore]:
    with KeyStore.create(store_address, FileKEK.create(tmp_path / "kek")) as store:
        yield store


@pytest.fixture
def root(store: KeyStore) -> CertificateAuthority:
    return CertificateAuthority.create_root(store, "root", "Test Root", NOW)


@pytest.fixture
def issuing(root: CertificateAuthority) -> CertificateAuthority:
    return root.issue_subordinate("issuing", "Test Issuing CA", NOW)


def verified(
    credential: Credential,
    anchors: TrustAnchors,
    name: str = "localhost",
    at: datetime = NOW,
) -> list[x509.Certificate]:
    """Verify as cryptography's own server verifier does; raise its `VerificationError`."""
    return (
        verification.PolicyBuilder()
        .store(verification.Store(list(anchors.certificates)))
        .time(at)
        .build_server_verifier(x509.DNSName(name))
        .verify(credential.leaf, list(credential.chain[1:]))
    )


@pytest.mark.parametrize("key_type", SERVED_TYPES)
def test_an_issued_chain_verifies_and_only_as_it_should(
    issuing: CertificateAuthority, key_type: KeyType
) -> None:
    credential = issuing.issue_server(
        key_name="web", dns_names=["localhost", "*.Example.test"], key_type=key_type, now=NOW
    )
    chain = verified(credential, issuing.trust_anchors)
    assert [one.subject.rfc4514_string() for one in chain] == [
        "CN=localhost",
        "CN=Test Issuing CA",
        "CN=Test Root",
    ]
    verified(credential, issuing.trust_anchors, name="www.example.test")
    # The peers of this success: another name, another root, and either side of the validity.
    with pytest.raises(verification.VerificationError):
        verified(credential, issuing.trust_anchors, name="example.test")
    foreign = x509.load_pem_x509_certificate(trustme.CA().cert_pem.bytes())
    with pytest.raises(verification.VerificationError):
        verified(credential, type(issuing.trust_anchors)((foreign,)))
    for moment in (NOW - timedelta(minutes=6), NOW + timedelta(days=91)):
        with pytest.raises(verification.VerificationError):
            verified(credential, issuing.trust_anchors, at=moment)
    verified(credential, issuing.trust_anchors, at=NOW - timedelta(minutes=4))


@pytest.mark.peers
@pytest.mark.parametrize("root_type", [KeyType.EC_P384, KeyType.ED25519, KeyType.RSA_3072])
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.ED25519, KeyType.RSA_2048])
def test_an_issued_chain_passes_openssls_strict_check(
    store: KeyStore, tmp_path: Path, root_type: KeyType, key_type: KeyType
) -> None:
    root = CertificateAuthority.create_root(store, "root", "Test Root", NOW, key_type=root_type)
    issuing = root.issue_subordinate("issuing", "Test Issuing CA", NOW)
    credential = issuing.issue_server(
        key_name="web",
        dns_names=["localhost"],
        ip_addresses=["127.0.0.1", "::1"],
        key_type=key_type,
        now=NOW,
    )
    (tmp_path / "root.pem").write_bytes(issuing.trust_anchors.pem())
    (tmp_path / "leaf.pem").write_bytes(credential.leaf.public_bytes(Encoding.PEM))
    (tmp_path / "issuing.pem").write_bytes(issuing.certificate.public_bytes(Encoding.PEM))

    def verify(*extra: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
        command += ["-attime", str(int(NOW.timestamp())), "-CAfile", "root.pem", *extra, "leaf.pem"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    chain = ("-untrusted", "issuing.pem")
    assert verify(*chain, "-verify_hostname", "localhost") == 0
    assert verify(*chain, "-verify_ip", "127.0.0.1") == 0
    assert verify(*chain, "-verify_ip", "::1") == 0
    assert verify(*chain, "-verify_hostname", "elsewhere.test") != 0
    assert verify() != 0


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> tuple[object, bool]:
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def test_certificates_say_what_their_profiles_say(issuing: CertificateAuthority) -> None:
    root = issuing.parent
    assert root is not None
    server = issuing.issue_server(key_name="s", dns_names=["localhost"], now=NOW).leaf
    client = issuing.issue_client(key_name="c", dns_names=["client.test"], now=NOW).leaf
    transport = issuing.issue_server(
        key_name="t",
        ip_addresses=["127.0.0.1"],
        now=NOW,
        key_type=KeyType.RSA_2048,
        profile=profiles.TLS_SERVER_KEY_TRANSPORT,
    ).leaf

    basic = x509.BasicConstraints
    assert extension(root.certificate, basic) == (basic(ca=True, path_length=None), True)
    assert extension(issuing.certificate, basic) == (basic(ca=True, path_length=0), True)
    for leaf in (server, client, transport):
        assert extension(leaf, basic) == (basic(ca=False, path_length=None), True)

    usages = {
        name: {
            usage
            for usage in ("digital_signature", "key_encipherment", "key_cert_sign", "crl_sign")
            if getattr(certificate.extensions.get_extension_for_class(x509.KeyUsage).value, usage)
        }
        for name, certificate in {
            "root": root.certificate,
            "issuing": issuing.certificate,
            "server": server,
            "client": client,
            "transport": transport,
        }.items()
    }
    assert usages == {
        "root": {"key_cert_sign", "crl_sign", "digital_signature"},
        "issuing": {"key_cert_sign", "crl_sign", "digital_signature"},
        "server": {"digital_signature"},
        "client": {"digital_signature"},
        "transport": {"digital_signature", "key_encipherment"},
    }
    extended = x509.ExtendedKeyUsage
    assert extension(server, extended)[0] == extended([ExtendedKeyUsageOID.SERVER_AUTH])
    assert extension(client, extended)[0] == extended([ExtendedKeyUsageOID.CLIENT_AUTH])
    with pytest.raises(x509.ExtensionNotFound):
        extension(issuing.certificate, extended)

    identifier = extension(issuing.certificate, x509.SubjectKeyIdentifier)[0]
    assert isinstance(identifier, x509.SubjectKeyIdentifier)
    assert extension(server, x509.AuthorityKeyIdentifier)[0] == (
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    )
    assert server.not_valid_before_utc == NOW.replace(microsecond=0) - timedelta(minutes=5)
    assert server.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(days=90)


def test_serial_numbers_are_random_positive_and_of_20_octets_at_most(
    issuing: CertificateAuthority,
) -> None:
    serials = [
        issuing.issue_server(
            key_name="s", dns_names=["localhost"], key_type=KeyType.ED25519, now=NOW
        ).leaf.serial_number
        for _ in range(50)
    ]
    assert len(set(serials)) == 50
    assert all(0 < serial < 2**159 for serial in serials)
    assert max(serial.bit_length() for serial in serials) > 150


def test_no_certificate_outlives_its_issuer(issuing: CertificateAuthority) -> None:
    late = issuing.certificate.not_valid_after_utc - timedelta(days=10)
    leaf = issuing.issue_server(key_name="s", dns_names=["localhost"], now=late).leaf
    assert leaf.not_valid_after_utc == issuing.certificate.not_valid_after_utc
    early = issuing.certificate.not_valid_before_utc + timedelta(minutes=1)
    leaf = issuing.issue_server(key_name="s", dns_names=["localhost"], now=early).leaf
    assert leaf.not_valid_before_utc == issuing.certificate.not_valid_before_utc
    for moment in (late + timedelta(days=10), NOW - timedelta(days=1)):
        with pytest.raises(IssuanceError, match="renew it first"):
            issuing.issue_server(key_name="s", dns_names=["localhost"], now=moment)


def test_a_name_too_long_for_a_common_name_leaves_the_subject_empty(
    issuing: CertificateAuthority,
) -> None:
    name = ".".join(["a" * 40] * 3)
    credential = issuing.issue_server(key_name="s", dns_names=[name], now=NOW)
    assert list(credential.leaf.subject) == []
    assert extension(credential.leaf, x509.SubjectAlternativeName)[1]
    verified(credential, issuing.trust_anchors, name=name)


@pytest.mark.parametrize(
    ("dns_names", "ip_addresses"),
    [
        ([], []),
        (["a"] * 101, []),
        ([""], []),
        (["a b"], []),
        (["-a"], []),
        (["a-"], []),
        (["a..b"], []),
        (["a."], []),
        (["*"], []),
        (["a.*.b"], []),
        (["ü.test"], []),
        (["a\n"], []),
        (["a" * 64], []),
        (["10.0.0.1"], []),
        (["127.1"], []),
        (["example.0"], []),
        ([".".join(["a" * 60] * 5)], []),
        ([], ["localhost"]),
        ([], ["127.0.0.1/8"]),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_made(
    issuing: CertificateAuthority, dns_names: list[str], ip_addresses: list[str]
) -> None:
    with pytest.raises(IssuanceError):
        issuing.issue_server(key_name="s", dns_names=dns_names, ip_addresses=ip_addresses, now=NOW)
    with pytest.raises(KeyNotFound):
        issuing.store.key("s")


def test_an_address_among_dns_names_is_told_where_it_belongs(issuing: CertificateAuthority) -> None:
    with pytest.raises(IssuanceError, match=r"'10\.0\.0\.1' .*give an address in ip_addresses"):
        issuing.issue_client(key_name="c", dns_names=["a.test", "10.0.0.1"], now=NOW)


def test_addresses_may_be_objects(issuing: CertificateAuthority) -> None:
    address = ipaddress.ip_address("::1")
    leaf = issuing.issue_server(key_name="s", ip_addresses=[address], now=NOW).leaf
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [address]


def test_each_certificate_gets_a_key_of_its_own(issuing: CertificateAuthority) -> None:
    one, other = (
        issuing.issue_server(key_name="s", dns_names=["localhost"], now=NOW) for _ in range(2)
    )
    assert public_key_der(one.private_key.public_key()) != public_key_der(
        other.private_key.public_key()
    )
    assert issuing.store.key("s").version == 2
    with pytest.raises(IssuanceError, match="not an exportable ed25519 key"):
        issuing.issue_server(
            key_name="s", dns_names=["localhost"], now=NOW, key_type=KeyType.ED25519
        )
    with pytest.raises(IssuanceError, match="'root' exists and is not an exportable"):
        issuing.issue_server(
            key_name="root", dns_names=["localhost"], now=NOW, key_type=KeyType.EC_P384
        )


def test_the_keys_of_authorities_stay_in_the_store(issuing: CertificateAuthority) -> None:
    for name in ("root", "issuing"):
        with pytest.raises(KeyNotExportable):
            issuing.store.export_private_key(name)


def test_an_issuing_ca_issues_no_ca(issuing: CertificateAuthority) -> None:
    with pytest.raises(IssuanceError, match="path length is 0"):
        issuing.issue_subordinate("third", "Third", NOW)
    with pytest.raises(IssuanceError, match="CA profile"):
        issuing.issue_server(
            key_name="s", dns_names=["localhost"], now=NOW, profile=profiles.ISSUING_CA
        )


def test_an_authority_is_made_once(root: CertificateAuthority) -> None:
    with pytest.raises(IssuanceError, match="already; load it"):
        CertificateAuthority.create_root(root.store, "root", "Other", NOW)
    root.store.create_key("taken", KeyType.EC_P384, exportable=True)
    with pytest.raises(IssuanceError, match="not one for an authority"):
        CertificateAuthority.create_root(root.store, "taken", "Other", NOW)
    with pytest.raises(InvalidName):
        CertificateAuthority.create_root(root.store, "a b", "Other", NOW)
    for common_name in ("", "a" * 65, "a\nb"):
        with pytest.raises(IssuanceError, match="common name"):
            CertificateAuthority.create_root(root.store, "new", common_name, NOW)
    with pytest.raises(IssuanceError, match="no time zone"):
        CertificateAuthority.create_root(root.store, "new", "New", NOW.replace(tzinfo=None))


@pytest.mark.parametrize("imported", [True, False])
def test_somebody_elses_key_is_not_taken_for_an_authoritys(
    store: KeyStore,
    root: CertificateAuthority,
    imported: bool,  # noqa: FBT001 - a table
) -> None:
    """It is of the right type and not exportable, and yet others may have its private half."""
    for name, key_type in (("other", KeyType.EC_P384), ("below", KeyType.EC_P256)):
        if imported:
            store.import_key(name, generate_private_key(key_type))
        else:
            store.create_key(name, key_type)
    with pytest.raises(IssuanceError, match="not one for an authority"):
        CertificateAuthority.create_root(store, "other", "Other", NOW)
    with pytest.raises(IssuanceError, match="not one for an authority"):
        root.issue_subordinate("below", "Below", NOW)
    assert root.unfinished() == ()


def test_authorities_are_loaded_after_a_restart(tmp_path: Path) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    with KeyStore.create(tmp_path / "store.db", kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        root.issue_subordinate("issuing", "Test Issuing CA", NOW)
    with KeyStore.open(tmp_path / "store.db", kek) as store:
        issuing = CertificateAuthority.load(store, "issuing")
        assert issuing.trust_anchors == root.trust_anchors
        assert issuing.unfinished() == ()
        credential = issuing.issue_server(key_name="s", dns_names=["localhost"], now=NOW)
        assert len(verified(credential, root.trust_anchors)) == 3
        with pytest.raises(KeyNotFound, match="no authority named 's'"):
            CertificateAuthority.load(store, "s")


def edit(store: KeyStore, *statements: str) -> None:
    with store.database.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@contextmanager
def refused(store: KeyStore, change: str) -> Iterator[None]:
    """Let the database refuse a change, such as ``INSERT ON certificates``, inside the block."""
    if store.database.engine.dialect.name == "sqlite":
        edit(
            store,
            f"CREATE TRIGGER refuse BEFORE {change} BEGIN SELECT RAISE(ABORT, 'no record'); END",
        )
    else:
        edit(
            store,
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE 'no record'; END $$",
            f"CREATE TRIGGER refuse BEFORE {change} FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
    yield
    where = "" if store.database.engine.dialect.name == "sqlite" else " ON certificates"
    edit(store, f"DROP TRIGGER refuse{where}")


def test_a_root_slipped_into_the_database_is_refused(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    """The control of the success above: load holds each certificate to a sealed key."""
    CertificateAuthority.create_root(store, "other", "Test Root", NOW)
    edit(
        store,
        "UPDATE certificates SET certificate = (SELECT certificate FROM certificates"
        " WHERE subject_name = 'other') WHERE subject_name = 'root'",
    )
    for name in ("root", issuing.name):
        with pytest.raises(ValidationError, match="'root' is not for its key"):
            CertificateAuthority.load(store, name)


def test_an_authority_put_under_another_is_refused(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    CertificateAuthority.create_root(store, "other", "Test Root", NOW)
    edit(store, "UPDATE authorities SET parent = 'other' WHERE name = 'issuing'")
    with pytest.raises(ValidationError, match="not issued by its authority"):
        CertificateAuthority.load(store, issuing.name)
    edit(store, "UPDATE authorities SET parent = NULL WHERE name = 'issuing'")
    with pytest.raises(ValidationError, match="not issued by its authority"):
        CertificateAuthority.load(store, issuing.name)


def test_authorities_in_a_circle_are_refused(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    edit(store, "UPDATE authorities SET parent = 'issuing' WHERE name = 'root'")
    with pytest.raises(KeyNotFound):
        CertificateAuthority.load(store, issuing.name)


def test_a_damaged_certificate_is_a_typed_error(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    with store.database.write() as connection:
        connection.execute(
            update(certificates)
            .where(certificates.c.subject_name == "issuing")
            .values(certificate=b"\0")
        )
    with pytest.raises(StoreError) as caught:
        CertificateAuthority.load(store, issuing.name)
    assert caught.value.fault is StoreFault.DAMAGED


# Recorded first, then signed


def test_what_is_signed_was_recorded_before(store: KeyStore) -> None:
    """A signing key whose store cannot record refuses, though the key itself would sign."""
    root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
    with store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT state, certificate FROM certificates").all()
    assert [tuple(row) for row in rows] == [("issued", root.certificate.public_bytes(Encoding.DER))]
    with refused(store, "INSERT ON certificates"), pytest.raises(StoreError):
        root.issue_server(key_name="s", dns_names=["localhost"], now=NOW)
    root.issue_server(key_name="s", dns_names=["localhost"], now=NOW)


def test_an_issuance_that_broke_off_is_named_with_its_serial_and_bytes(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    with refused(store, "UPDATE ON certificates"), pytest.raises(StoreError):
        issuing.issue_server(key_name="s", dns_names=["localhost"], now=NOW)
    (broken,) = CertificateAuthority.load(store, "issuing").unfinished()
    assert broken.signer == ("issuing", 1)
    assert broken.subject == ("s", 1)
    assert broken.profile == "tls-server"
    assert broken.recorded_at == NOW.replace(microsecond=0)
    assert broken.serial.to_bytes(20).lstrip(b"\0") in broken.to_be_signed
    assert Ledger(store.database).certificate(broken.serial) is None
    fresh = issuing.issue_server(key_name="s", dns_names=["localhost"], now=NOW)
    assert store.key("s").version == 2
    assert Ledger(store.database).certificate(fresh.leaf.serial_number) == fresh.leaf
    assert [one.serial for one in issuing.unfinished()] == [broken.serial]


def test_the_ledger_takes_only_the_certificate_that_was_announced(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    ledger = Ledger(store.database)
    leaf = issuing.issue_server(key_name="s", dns_names=["localhost"], now=NOW).leaf
    with pytest.raises(IssuanceError, match="not announced"):
        ledger.record_issued(leaf)  # complete already
    foreign = x509.load_pem_x509_certificate(trustme.CA().cert_pem.bytes())
    with pytest.raises(IssuanceError, match="not announced"):
        ledger.record_issued(foreign)
    planned = PlannedCertificate(
        foreign.serial_number, "tls-server", ("issuing", 1), ("s", 1), b"other bytes", NOW
    )
    ledger.record_signing(planned)
    with pytest.raises(IssuanceError, match="not announced with these bytes"):
        ledger.record_issued(foreign)
    with pytest.raises(IssuanceError, match="was used before"):
        ledger.record_signing(planned)


def test_profiles_and_their_names_are_one_table() -> None:
    assert set(profiles.PROFILES) == {
        "root-ca",
        "issuing-ca",
        "tls-server",
        "tls-server-key-transport",
        "tls-client",
    }
    for serial in (0, -1, 1 << 159):
        with pytest.raises(IssuanceError, match="20 octets"):
            profiles.build(
                profiles.ROOT_CA,
                subject=profiles.common_name("x"),
                public_key=ed25519.Ed25519PrivateKey.generate().public_key(),
                issuer=None,
                serial=serial,
                now=NOW,
            )
    leaf = trustme.CA().issue_cert("localhost").cert_chain_pems[0].bytes()
    with pytest.raises(IssuanceError, match="not that of a CA"):
        profiles.build(
            profiles.TLS_SERVER,
            subject=profiles.common_name("x"),
            public_key=ec.generate_private_key(ec.SECP256R1()).public_key(),
            issuer=x509.load_pem_x509_certificate(leaf),
            serial=1,
            now=datetime.now(UTC),
        )

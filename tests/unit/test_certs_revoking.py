"""An authority revokes and is renewed, and what it says of that is held to the audit log."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete, insert, update

from certs.authority import CertificateAuthority
from certs.errors import (
    AccessDenied,
    AuditLogAltered,
    InvalidInput,
    IssuanceError,
    KeyNotFound,
    NotKnownGood,
)
from certs.keystore import KeyStore
from certs.keystore.access import principal_of
from certs.keystore.address import open_database
from certs.keystore.recovery import restore_backup
from certs.keystore.revocations import Revocation
from certs.keystore.tables import crl_numbers, revocations
from certs.ledger import Ledger, PlannedCertificate
from certs.revocation import RevocationLists

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from certs.credential import Credential
    from certs.keystore.kek import FileKEK

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=365)
WEEK = timedelta(days=7)
COMPROMISE = x509.ReasonFlags.key_compromise


@pytest.fixture
def store(kek: FileKEK, store_address: str) -> Iterator[KeyStore]:
    with KeyStore.create(store_address, kek, clock=lambda: NOW) as store:
        yield store


@pytest.fixture
def issuing(store: KeyStore) -> CertificateAuthority:
    root = CertificateAuthority.create_root(store, "ca/root", "Test Root", NOW)
    return root.issue_subordinate("ca/issuing", "Test Issuing CA", NOW)


def server(ca: CertificateAuthority, now: datetime = NOW) -> Credential:
    return ca.issue_server(key_name="web", dns_names=["localhost"], now=now)


def pem(*lists: x509.CertificateRevocationList) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in lists)


def every_list(ca: CertificateAuthority, now: datetime = NOW) -> bytes:
    """Return the lists of an authority and of its root."""
    assert ca.parent is not None
    return pem(*ca.crls(now, WEEK), *ca.parent.crls(now, WEEK))


def require_good(
    credential: Credential, ca: CertificateAuthority, lists: bytes, at: datetime
) -> None:
    """Hold a path to lists as the endpoints do; raise `NotKnownGood`."""
    path = [*credential.chain, *ca.trust_anchors.certificates]
    RevocationLists(lists).require_good(path, at)


# Names and lifetimes


def test_a_clients_uri_is_its_principal(issuing: CertificateAuthority) -> None:
    leaf = issuing.issue_client(key_name="c", uris=["spiffe://example.com/deploy"], now=NOW).leaf
    assert principal_of(leaf) == "uri:spiffe://example.com/deploy"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "deploy",
        "spiffe:",
        "//host/x",
        "spiffe:///x",
        "spiffe://",
        "spiffe://ü/x",
        "spiffe://h/%zz",
        "http://a b",
        "a:\n",
        "a:<x>",
        "1a:x",
        "a:" + "x" * 250,
    ],
)
def test_what_is_no_absolute_uri_is_refused(issuing: CertificateAuthority, uri: str) -> None:
    with pytest.raises(IssuanceError, match="not an absolute URI"):
        issuing.issue_client(key_name="c", uris=[uri], now=NOW)
    with pytest.raises(KeyNotFound):
        issuing.store.key("c")


def test_a_lifetime_is_within_the_profiles(issuing: CertificateAuthority) -> None:
    for days in (1, 90):
        leaf = issuing.issue_server(
            key_name="s", dns_names=["a.test"], now=NOW, lifetime=timedelta(days=days)
        ).leaf
        assert leaf.not_valid_after_utc == NOW + timedelta(days=days)
    for days in (0, -1, 91):
        with pytest.raises(IssuanceError, match="lives 90 days at most"):
            issuing.issue_client(
                key_name="s", dns_names=["a.test"], now=NOW, lifetime=timedelta(days=days)
            )


# Revoking


def test_what_is_revoked_is_on_the_next_list_and_refused(issuing: CertificateAuthority) -> None:
    good, bad = server(issuing), server(issuing)
    before = every_list(issuing)
    revoked = issuing.revoke(bad.leaf.serial_number, COMPROMISE, NOW)
    assert revoked.revocation == Revocation(
        bad.leaf.serial_number, "ca/issuing", NOW, "keyCompromise"
    )
    after = every_list(issuing)
    for one, lists in ((good, before), (bad, before), (good, after)):
        require_good(one, issuing, lists, NOW)
    with pytest.raises(NotKnownGood, match="revoked"):
        require_good(bad, issuing, after, NOW)
    (entry,) = issuing.crls(NOW, WEEK)[0]
    assert entry.serial_number == bad.leaf.serial_number
    assert entry.revocation_date_utc == NOW
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value
    assert reason == x509.CRLReason(COMPROMISE)
    issuing.store.verify_audit_log()


def test_an_authority_is_revoked_by_the_one_above_it(issuing: CertificateAuthority) -> None:
    root, leaf = issuing.parent, server(issuing)
    assert root is not None
    lists = pem(*issuing.crls(NOW, WEEK))
    root.revoke(issuing.certificate.serial_number, None, NOW)
    lists += pem(*root.crls(NOW, WEEK))
    with pytest.raises(NotKnownGood, match="revoked"):
        require_good(leaf, issuing, lists, NOW)
    (entry,) = root.crls(NOW, WEEK)[0]
    assert list(entry.extensions) == []  # unspecified is said by leaving it out
    with pytest.raises(IssuanceError, match="was revoked, so what it issues is refused; renew it"):
        server(issuing)
    with pytest.raises(IssuanceError, match="good any more; renew it first"):
        issuing.crls(NOW, WEEK)
    renewed = issuing.renew(NOW)
    require_good(server(renewed), renewed, every_list(renewed), NOW)
    assert len(renewed.crls(NOW, WEEK)) == 1


def test_only_what_can_be_revoked_is(issuing: CertificateAuthority) -> None:
    root, serial = issuing.parent, server(issuing).leaf.serial_number
    assert root is not None
    with pytest.raises(IssuanceError, match="issued no certificate 5"):
        issuing.revoke(5, None, NOW)
    for huge in (0, -1, 1 << 160):
        with pytest.raises(IssuanceError, match="issued no certificate"):
            issuing.revoke(huge, None, NOW)
        with pytest.raises(KeyNotFound):
            CertificateAuthority.load_issuer(issuing.store, huge)
    with pytest.raises(IssuanceError, match="'ca/root' issued no certificate"):
        root.revoke(serial, None, NOW)
    with pytest.raises(IssuanceError, match="a root, which no list revokes"):
        root.revoke(root.certificate.serial_number, None, NOW)
    with pytest.raises(IssuanceError, match="certificateHold is no reason"):
        issuing.revoke(serial, x509.ReasonFlags.certificate_hold, NOW)
    with pytest.raises(IssuanceError, match="no time zone"):
        issuing.revoke(serial, None, NOW.replace(tzinfo=None))
    assert issuing.find(serial).revocation is None
    issuing.revoke(serial, None, NOW)
    with pytest.raises(InvalidInput, match="revoked already"):
        issuing.revoke(serial, COMPROMISE, NOW)
    issuing.store.verify_audit_log()


def test_a_serial_whose_signing_broke_off_can_be_revoked(issuing: CertificateAuthority) -> None:
    issuing.store.create_key("s", issuing.store.key("ca/issuing").key_type)
    planned = PlannedCertificate(77, "tls-server", ("ca/issuing", 1), ("s", 1), b"bytes", NOW)
    Ledger(issuing.store.database).record_signing(planned)
    assert [one.serial for one in issuing.unfinished()] == [77]
    revoked = issuing.revoke(77, None, NOW)
    assert (revoked.certificate, revoked.names) == (None, ())
    assert [entry.serial_number for entry in issuing.crls(NOW, WEEK)[0]] == [77]


def test_all_that_was_issued_is_listed(issuing: CertificateAuthority) -> None:
    one = issuing.issue_server(
        key_name="web", dns_names=["a.test"], ip_addresses=["10.0.0.1"], now=NOW
    )
    other = issuing.issue_client(key_name="c", uris=["spiffe://a/b"], now=NOW + WEEK)
    issuing.revoke(one.leaf.serial_number, COMPROMISE, NOW)
    first, second = issuing.issued()
    assert (first.serial, first.names) == (one.leaf.serial_number, ("a.test", "10.0.0.1"))
    assert first.planned.subject == ("web", 1)
    assert first.revocation is not None
    assert (second.names, second.planned.profile) == (("spiffe://a/b",), "tls-client")
    assert (second.certificate, second.revocation) == (other.leaf, None)
    root = issuing.parent
    assert root is not None
    assert {found.names for found in root.issued()} == {("CN=Test Root",), ("CN=Test Issuing CA",)}
    assert CertificateAuthority.load_issuer(issuing.store, first.serial).name == "ca/issuing"


def test_whoever_may_issue_may_revoke_and_nobody_else(issuing: CertificateAuthority) -> None:
    serial, store = server(issuing).leaf.serial_number, issuing.store
    store.grant("user:ra", "certificate-officer", "ca")
    store.grant("user:officer", "crypto-officer", "*")
    with pytest.raises(AccessDenied, match="may not revoke-certificate on 'ca/issuing'"):
        CertificateAuthority.load(store.acting_as("user:officer"), "ca/issuing").revoke(
            serial, None, NOW
        )
    ra = CertificateAuthority.load(store.acting_as("user:ra"), "ca/issuing")
    ra.revoke(serial, COMPROMISE, NOW)
    assert ra.crls(NOW, WEEK)
    told = [entry for _, entry in store.audit_entries() if entry.operation == "revoke-certificate"]
    assert [(entry.principal, entry.outcome) for entry in told] == [
        ("user:officer", "refused"),
        ("user:ra", "done"),
    ]
    assert told[1].details == {
        "serial": f"{serial:x}",
        "reason": "keyCompromise",
        "revoked_at": str(int(NOW.timestamp())),
    }


# Lists


def test_the_number_of_a_list_only_grows(issuing: CertificateAuthority) -> None:
    numbers = [
        one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for ca in (issuing, issuing.renew(NOW), issuing)
        for one in ca.crls(NOW, WEEK)
    ]
    assert len(numbers) == 6  # two keys, three times
    assert all(one < other for one, other in pairwise(numbers))
    # What somebody says of a signature counts no lists.
    key = issuing.store.signing_key("ca/issuing", details={"crl_number": "1000"})
    key.sign(b"m", ec.ECDSA(hashes.SHA256()))
    assert issuing.store.next_crl_number("ca/issuing") == max(numbers) + 1
    issuing.store.verify_audit_log()
    with pytest.raises(IssuanceError, match="later time"):
        issuing.crls(NOW, timedelta(0))


# Renewing


def test_a_renewed_authority_signs_with_a_new_key_and_the_old_one_stays_good(
    issuing: CertificateAuthority,
) -> None:
    old = server(issuing)
    renewed = issuing.renew(LATER)
    assert renewed.key_version == 2
    assert renewed.certificate.subject == issuing.certificate.subject
    assert renewed.certificate.not_valid_after_utc == LATER + timedelta(days=1825)
    assert renewed.trust_anchors == issuing.trust_anchors
    loaded = CertificateAuthority.load(issuing.store, "ca/issuing")
    assert (loaded.certificate, loaded.key_version) == (renewed.certificate, 2)
    new = server(loaded, LATER)
    new.leaf.verify_directly_issued_by(renewed.certificate)
    old.leaf.verify_directly_issued_by(issuing.certificate)
    assert new.chain[1:] == renewed.chain

    # Each is held to the list of its own key, which names what either issued.
    newer = server(renewed, LATER)
    renewed.revoke(old.leaf.serial_number, COMPROMISE, LATER)
    renewed.revoke(newer.leaf.serial_number, COMPROMISE, LATER)
    lists = every_list(renewed, LATER)
    require_good(new, renewed, lists, LATER)
    for bad in (old, newer):
        with pytest.raises(NotKnownGood, match="revoked"):
            require_good(bad, renewed, lists, LATER)
    serials = {old.leaf.serial_number, newer.leaf.serial_number}
    both = renewed.crls(LATER, WEEK)
    assert [{entry.serial_number for entry in one} for one in both] == [serials, serials]

    # When the old certificate has ended, so have its lists.
    end = issuing.certificate.not_valid_after_utc
    assert [len(renewed.crls(end + timedelta(days=days), WEEK)) for days in (-1, 0)] == [2, 1]


def test_an_authority_is_renewed_once_at_a_time_and_a_root_never(
    issuing: CertificateAuthority,
) -> None:
    same = CertificateAuthority.load(issuing.store, "ca/issuing")
    issuing.renew(NOW)
    with pytest.raises(IssuanceError, match="renewed by somebody else"):
        same.renew(NOW)
    assert CertificateAuthority.load(issuing.store, "ca/issuing").key_version == 2
    assert same.parent is not None
    with pytest.raises(IssuanceError, match="a root, which is not renewed; make another root"):
        same.parent.renew(NOW)
    end = same.parent.certificate.not_valid_after_utc
    with pytest.raises(IssuanceError, match="make a new root first"):
        issuing.renew(end)


@pytest.mark.peers
def test_openssl_checks_chains_lists_and_renewal(
    issuing: CertificateAuthority, tmp_path: Path
) -> None:
    old, gone = server(issuing), server(issuing)
    renewed = issuing.renew(LATER - timedelta(days=310))
    at = LATER - timedelta(days=309)
    new = server(renewed, at)
    renewed.revoke(gone.leaf.serial_number, COMPROMISE, at)
    (tmp_path / "lists.pem").write_bytes(every_list(renewed, at))
    (tmp_path / "anchors.pem").write_bytes(renewed.trust_anchors.pem())

    def verify(credential: Credential, *options: str) -> str:
        (tmp_path / "leaf.pem").write_bytes(credential.leaf.public_bytes(Encoding.PEM))
        (tmp_path / "chain.pem").write_bytes(credential.certificates_pem())
        command = ["openssl", "verify", "-x509_strict", "-attime", str(int(at.timestamp()))]
        command += ["-CAfile", "anchors.pem", "-untrusted", "chain.pem", *options, "leaf.pem"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
        )
        return done.stdout + done.stderr

    lists = ("-crl_check_all", "-CRLfile", "lists.pem")
    assert verify(old, *lists) == "leaf.pem: OK\n"
    assert verify(new, *lists) == "leaf.pem: OK\n"
    assert verify(gone) == "leaf.pem: OK\n"
    assert "certificate revoked" in verify(gone, *lists)


# What the log tells


@pytest.fixture
def revoked(issuing: CertificateAuthority) -> int:
    serial = server(issuing).leaf.serial_number
    issuing.revoke(serial, COMPROMISE, NOW)
    assert issuing.crls(NOW, WEEK)
    issuing.store.verify_audit_log()
    return serial


def test_a_revocation_taken_back_in_the_database_is_found(store: KeyStore, revoked: int) -> None:
    with store.database.write() as connection:
        connection.execute(delete(revocations))
    with pytest.raises(AuditLogAltered, match=f"{revoked:x} is not revoked, and row") as caught:
        store.verify_audit_log()
    row = caught.value.row
    assert row is not None
    ((_, entry),) = [one for one in store.audit_entries(row) if one[0] == row]
    assert entry.operation == "revoke-certificate"


def test_a_revocation_edited_or_added_in_the_database_is_found(
    store: KeyStore, revoked: int
) -> None:
    with store.database.write() as connection:
        connection.execute(update(revocations).values(reason="superseded"))
    with pytest.raises(AuditLogAltered, match=f"revocation of {revoked:x} is not that"):
        store.verify_audit_log()
    with store.database.write() as connection:
        connection.execute(update(revocations).values(reason="keyCompromise"))
    store.verify_audit_log()
    with store.database.write() as connection:
        connection.execute(
            insert(revocations).values(
                serial=bytes(20), signer_name="ca/issuing", revoked_at=1, reason="superseded"
            )
        )
    with pytest.raises(AuditLogAltered, match="revocation of 0 is not that"):
        store.verify_audit_log()


@pytest.mark.usefixtures("revoked")
def test_lists_counted_back_in_the_database_are_found(
    store: KeyStore, issuing: CertificateAuthority
) -> None:
    assert issuing.crls(NOW, WEEK)
    with store.database.write() as connection:
        connection.execute(update(crl_numbers).values(number=1))
    with pytest.raises(AuditLogAltered, match=r"'ca/issuing' were counted back: row .* list 2"):
        store.verify_audit_log()


def test_a_restore_revokes_again_even_what_it_lost(
    store: KeyStore, issuing: CertificateAuthority, kek: FileKEK, tmp_path: Path, revoked: int
) -> None:
    kept = server(issuing).leaf.serial_number
    store.backup(tmp_path / "backup")
    lost = server(issuing).leaf.serial_number
    for serial in (kept, lost):
        issuing.revoke(serial, COMPROMISE, NOW)
    numbers = [
        one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for one in issuing.crls(NOW, WEEK)
    ]
    lines: list[bytes] = []
    store.export_audit_log(lambda data: lines.extend(data.splitlines(keepends=True)))
    done = restore_backup(tmp_path / "backup", tmp_path / "restored", kek, later_log=lines)
    assert set(done.done_again) == {
        f"revoke-certificate {serial:x} of ca/issuing" for serial in (kept, lost)
    }
    assert f"certificate {lost:x}, signed by ca/issuing" in done.lost
    with KeyStore.open(tmp_path / "restored", kek) as restored:
        restored.verify_audit_log()
        (crl,) = CertificateAuthority.load(restored, "ca/issuing").crls(NOW, WEEK)
        assert {entry.serial_number for entry in crl} == {revoked, kept, lost}
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert number > max(numbers)


def test_a_store_of_schema_4_revokes_what_it_issued_before(
    kek: FileKEK, store_address: str
) -> None:
    with KeyStore.create(store_address, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        serial = server(root).leaf.serial_number
    with open_database(store_address) as database, database.write() as connection:
        for statement in (
            "DROP TABLE revocations",
            "DROP TABLE crl_numbers",
            "UPDATE store_info SET schema_version = 4",
            "UPDATE alembic_version SET version_num = '4'",
        ):
            connection.exec_driver_sql(statement)
    with KeyStore.open(store_address, kek) as store:
        root = CertificateAuthority.load(store, "root")
        assert root.find(serial).revocation is None
        root.revoke(serial, COMPROMISE, NOW)
        assert [entry.serial_number for entry in root.crls(NOW, WEEK)[0]] == [serial]
        store.verify_audit_log()

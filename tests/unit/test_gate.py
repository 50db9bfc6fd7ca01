"""One gate for every operation: refused or admitted, and recorded before anything is given out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.authority import CertificateAuthority
from certs.errors import (
    AccessDenied,
    CertsError,
    InvalidInput,
    KeyDisabled,
    KeyExists,
    KeyNotFound,
    StoreError,
)
from certs.keystore import KeyStore, KeyType
from certs.keystore.access import EVERYTHING, PERMITTED, Role
from certs.keystore.gate import OPERATIONS
from certs.keystore.kek import FileKEK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from certs.keystore.audit import AuditEntry

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ALICE = "uri:spiffe://example.com/alice"


@pytest.fixture
def store(store_address: str, kek: FileKEK) -> Iterator[KeyStore]:
    with KeyStore.create(store_address, kek, clock=lambda: NOW) as made:
        made.create_key("signs", KeyType.ED25519, exportable=True)
        made.create_key("wraps", KeyType.AES_256, purpose="wrap")
        made.create_key("makes", KeyType.AES_256)
        made.set_secret("secret", b"value")
        made.create_key("gone", KeyType.ED25519)
        made.delete("gone")
        yield made


def last(store: KeyStore, count: int = 1) -> list[AuditEntry]:
    """Return the newest entries but that of reading them."""
    entries = [entry for _, entry in store.audit_entries()]
    return entries[-count - 1 : -1]


def signature_and_wrapped(store: KeyStore) -> tuple[bytes, bytes]:
    return store.sign("signs", b"m").signature, store.wrap("wraps", b"key")


# Every operation of the store, as somebody calls it.
CALLS: dict[str, Callable[[KeyStore, Path, tuple[bytes, bytes]], object]] = {
    "create": lambda store, *_: store.create_key("new", KeyType.ED25519),
    "import": lambda store, *_: store.import_key("new", Ed25519PrivateKey.generate()),
    "show": lambda store, *_: store.key("signs"),
    "versions": lambda store, *_: store.versions("signs"),
    "rotate": lambda store, *_: store.rotate("signs"),
    "disable": lambda store, *_: store.disable("signs"),
    "enable": lambda store, *_: store.enable("signs"),
    "public-key": lambda store, *_: store.public_key("signs"),
    "sign": lambda store, *_: store.sign("signs", b"m"),
    "verify": lambda store, _, made: store.verify("signs", made[0], b"m"),
    "wrap": lambda store, *_: store.wrap("wraps", b"key"),
    "unwrap": lambda store, _, made: store.unwrap("wraps", made[1]),
    "generate-data-key": lambda store, *_: store.generate_data_key("makes"),
    "export": lambda store, *_: store.export_private_key("signs"),
    "secret-set": lambda store, *_: store.set_secret("secret", b"other"),
    "secret-get": lambda store, *_: store.get_secret("secret"),
    "delete": lambda store, *_: store.delete("signs"),
    "recover": lambda store, *_: store.recover("gone"),
    "purge": lambda store, *_: store.purge("gone"),
    "revoke-certificate": lambda store, *_: store.revoke_certificate(
        "signs", 1, reason="superseded", revoked_at=NOW
    ),
    "number-crl": lambda store, *_: store.next_crl_number("signs"),
    "list": lambda store, *_: list(store.keys()),
    "snapshot": lambda store, folder, _: store.snapshot(folder / "copy.db"),
    "backup": lambda store, folder, _: store.backup(folder / "backup"),
    "rotate-store": lambda store, *_: store.rotate_term(),
    "rewrap": lambda store, *_: store.rewrap(),
    "rekey": lambda store, folder, _: store.rekey(
        f"file:{folder}/kek", FileKEK.create(folder / token_hex(8))
    ),
    "grant": lambda store, *_: store.grant("user:bob", "reader", "web"),
    "revoke": lambda store, *_: store.revoke("owner", "reader", "*"),
    "grants": lambda store, *_: store.grants(),
    "audit-read": lambda store, *_: list(store.audit_entries()),
    "audit-verify": lambda store, *_: store.verify_audit_log(),
}


def test_every_operation_is_tried_here() -> None:
    assert set(CALLS) == OPERATIONS


@pytest.mark.parametrize("operation", CALLS)
def test_an_operation_is_done_or_refused_and_recorded_once_either_way(
    store: KeyStore, tmp_path: Path, operation: str
) -> None:
    made = signature_and_wrapped(store)
    alice = store.acting_as(ALICE)
    with pytest.raises(AccessDenied, match=r"may not .*pfs keys grant"):
        CALLS[operation](alice, tmp_path, made)
    before, refused = last(store, 2)
    assert (refused.principal, refused.operation, refused.outcome) == (ALICE, operation, "refused")
    assert before.principal == "owner"
    role = next(role for role in Role if operation in PERMITTED[role])
    store.grant(ALICE, role, EVERYTHING)
    CALLS[operation](alice, tmp_path, made)
    before, done = last(store, 2)
    assert (done.principal, done.operation, done.outcome) == (ALICE, operation, "done")
    assert done.time == int(NOW.timestamp())
    assert before.principal == "owner"
    store.verify_audit_log()


def test_a_refused_change_changed_nothing(store: KeyStore, tmp_path: Path) -> None:
    alice = store.acting_as(ALICE)
    before = list(store.keys(deleted=True))
    for call in ("rotate", "disable", "delete", "create", "purge", "secret-set"):
        with pytest.raises(AccessDenied):
            CALLS[call](alice, tmp_path, (b"", b""))
    assert list(store.keys(deleted=True)) == before


def test_a_role_reaches_as_far_as_its_scope(store: KeyStore) -> None:
    for name in ("web/a", "webmail", "other"):
        store.create_key(name, KeyType.ED25519)
    store.grant(ALICE, "crypto-user", "web")
    alice = store.acting_as(ALICE)
    alice.sign("web/a", b"m")
    for name in ("webmail", "other", "signs"):
        with pytest.raises(AccessDenied):
            alice.sign(name, b"m")
    with pytest.raises(AccessDenied, match="list on the store"):
        list(alice.keys())
    assert [info.name for info in alice.keys("web")] == ["web/a"]
    with pytest.raises(AccessDenied, match="list on 'webmail'"):
        list(alice.keys("webmail"))


def test_a_signing_key_obeys_the_gate_each_time(store: KeyStore) -> None:
    store.grant(ALICE, "crypto-user", "signs")
    key = store.acting_as(ALICE).signing_key("signs")
    assert isinstance(key, Ed25519PrivateKey)
    key.sign(b"one")
    (entry,) = last(store)
    assert entry.operation == "sign"
    assert entry.signed_sha256 == sha256(b"one").digest()
    store.revoke(ALICE, "crypto-user", "signs")
    with pytest.raises(AccessDenied):
        key.sign(b"two")
    (entry,) = last(store)
    assert (entry.outcome, entry.signed_sha256) == ("refused", None)


def test_a_failure_is_recorded_with_its_kind(store: KeyStore) -> None:
    failures: list[tuple[Callable[[], object], type[CertsError], str, str]] = [
        (lambda: store.sign("none", b"m"), KeyNotFound, "sign", "none"),
        (lambda: store.create_key("signs", KeyType.ED25519), KeyExists, "create", "signs"),
        (lambda: store.revoke(ALICE, "reader", "*"), InvalidInput, "revoke", ""),
    ]
    for call, kind, operation, name in failures:
        with pytest.raises(kind):
            call()
        (entry,) = last(store)
        assert (entry.operation, entry.name) == (operation, name)
        assert (entry.outcome, entry.reason) == ("failed", kind.__name__)
    store.disable("signs")
    with pytest.raises(KeyDisabled):
        store.sign("signs", b"m")
    (entry,) = last(store)
    assert (entry.version, entry.reason) == (1, "KeyDisabled")
    assert entry.signed_sha256 == sha256(b"m").digest()


def test_what_cannot_be_recorded_is_not_given_out(store: KeyStore, tmp_path: Path) -> None:
    written: list[bytes] = []
    assert store.get_secret("secret") == b"value"
    refuse, allow = {
        "sqlite": ("PRAGMA query_only = ON", "PRAGMA query_only = OFF"),
        "postgresql": (
            "ALTER TABLE audit_log RENAME TO kept_away",
            "ALTER TABLE kept_away RENAME TO audit_log",
        ),
    }[store.database.engine.dialect.name]
    with store.database.transaction(None) as connection:
        connection.exec_driver_sql(refuse)
    for call in (
        lambda: store.get_secret("secret"),
        lambda: store.sign("signs", b"m"),
        lambda: store.backup(tmp_path / "backup"),
        lambda: store.snapshot(tmp_path / "copy.db"),
        lambda: store.export_audit_log(written.append),
    ):
        with pytest.raises(StoreError, match=r"read-only|is not a key store"):
            call()
    assert not {"backup", "copy.db"} & {each.name for each in tmp_path.iterdir()}
    assert written == []
    with store.database.transaction(None) as connection:
        connection.exec_driver_sql(allow)
    assert store.get_secret("secret") == b"value"


def test_what_a_row_of_the_log_cannot_hold_is_refused_before_anything_is_signed(
    store: KeyStore,
) -> None:
    many = {f"fact {number}": "x" * 500 for number in range(20)}
    with pytest.raises(InvalidInput, match="8192 bytes"):
        store.signing_key("signs", details=many)
    key = store.signing_key("signs", details={"fact": "x" * 10_000})
    assert isinstance(key, Ed25519PrivateKey)
    key.sign(b"m")
    (entry,) = last(store)
    assert entry.details == {"fact": "x" * 512}


def test_the_log_names_serial_and_subject_of_what_an_authority_signs(store: KeyStore) -> None:
    root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
    store.grant(ALICE, "certificate-officer", "*")
    issuing = CertificateAuthority.load(store.acting_as(ALICE), "root")
    made = issuing.issue_subordinate("issuing", "Test Issuing", NOW)
    leaf = made.issue_client(key_name="web", dns_names=["localhost"], now=NOW + timedelta(hours=1))
    signed = [entry for _, entry in store.audit_entries() if entry.operation == "sign"]
    certificates = (root.certificate, made.certificate, leaf.chain[0])
    for certificate, entry in zip(certificates, signed[-3:], strict=True):
        assert entry.details["serial"] == f"{certificate.serial_number:x}"
        assert entry.details["subject"] == certificate.subject.rfc4514_string()
        assert entry.signed_sha256 == sha256(certificate.tbs_certificate_bytes).digest()
    assert signed[-1].details["names"] == "localhost"


def test_nobody_can_lock_everybody_out(store: KeyStore) -> None:
    with pytest.raises(InvalidInput, match="nobody could grant"):
        store.revoke("owner", "crypto-officer", "*")
    assert len(store.grants()["owner"]) == len(Role)
    store.grant(ALICE, "crypto-officer", "*")
    store.revoke("owner", "crypto-officer", "*")
    with pytest.raises(AccessDenied):
        store.grant("user:bob", "reader", "*")
    store.acting_as(ALICE).grant("owner", "crypto-officer", "*")
    assert len(store.grants()["owner"]) == len(Role)


def test_a_store_is_opened_for_a_principal(tmp_path: Path, kek: FileKEK) -> None:
    path = tmp_path / "other.db"
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)
        store.grant(ALICE, "reader", "a")
    with KeyStore.open(path, kek, principal=ALICE) as store:
        assert store.principal == ALICE
        assert store.key("a").version == 1
        with pytest.raises(AccessDenied):
            store.sign("a", b"m")
    with pytest.raises(InvalidInput, match="a principal is"):
        KeyStore.open(path, kek, principal="alice")

"""Backups: whole, encrypted, restored into either database, and never a silent way back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import CertificateAuthority
from certs.errors import (
    AuditLogAltered,
    BadSignature,
    CertsError,
    CorruptEnvelope,
    InvalidInput,
    KeyDeleted,
    KeyDisabled,
    StoreError,
    StoreFault,
    WrongKEK,
)
from certs.keystore import KeyStore, KeyType
from certs.keystore.audit import AuditEntry
from certs.keystore.kek import FileKEK
from certs.keystore.recovery import check_backup, restore_backup
from certs.keystore.rows import every_row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import PostgreSQLServer

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
BOB = "user:bob"


@pytest.fixture
def store(store_address: str, kek: FileKEK) -> Iterator[KeyStore]:
    """A store with some of everything."""
    with KeyStore.create(store_address, kek, clock=lambda: NOW) as made:
        root = CertificateAuthority.create_root(made, "root", "Test Root", NOW)
        root.issue_subordinate("a-below", "Test Below", NOW).issue_server(
            key_name="web", dns_names=["localhost"], now=NOW
        )
        made.create_key("signs", KeyType.ED25519)
        made.rotate("signs")
        made.set_secret("secret", b"the value of the secret")
        made.create_key("gone", KeyType.AES_256)
        made.delete("gone")
        made.purge("gone")
        made.disable("signs", 1)
        made.grant(BOB, "crypto-user", "signs")
        yield made


def export(store: KeyStore) -> list[bytes]:
    pieces: list[bytes] = []
    store.export_audit_log(pieces.append)
    return b"".join(pieces).splitlines(keepends=True)


def rows_of(store: KeyStore) -> list[object]:
    with store.database.read() as connection:
        return list(every_row(connection))


def test_a_store_comes_back_as_it_was(
    store: KeyStore, kek: FileKEK, tmp_path: Path, postgresql: PostgreSQLServer
) -> None:
    backup = tmp_path / "backup"
    signature = store.sign("signs", b"m").signature
    before = rows_of(store)
    assert store.backup(backup) == len(before)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert check_backup(backup, kek).keys == 6
    for address in (str(tmp_path / "restored.db"), postgresql.new_database()):
        restored = restore_backup(backup, address, kek, as_of_backup=True, clock=lambda: NOW)
        assert restored.store_id == store.store_id
        assert (restored.rows, restored.lost, restored.done_again) == (len(before), (), ())
        with KeyStore.open(address, kek, clock=lambda: NOW) as back:
            told = [row for row in rows_of(back) if row not in before]
            assert {row[0] for row in told} == {"audit_log", "audit_head"}
            assert back.get_secret("secret") == b"the value of the secret"
            back.verify("signs", signature, b"m")
            back.acting_as(BOB).sign("signs", b"n")
            with pytest.raises(KeyDisabled):
                back.sign("signs", b"m", version=1)
            with pytest.raises(KeyDeleted):
                back.recover("gone")
            chain = CertificateAuthority.load(back, "a-below")
            assert chain.trust_anchors == CertificateAuthority.load(store, "root").trust_anchors
            back.verify_audit_log()
            entries = [entry for _, entry in back.audit_entries()]
            (note,) = [entry for entry in entries if entry.operation == "restore"]
            assert note.details["log_rows"] == str(restored.log_rows)
            assert note.details["later_rows"] == "unknown"


def test_a_backup_shows_nothing_but_its_store(store: KeyStore, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    content = (tmp_path / "backup").read_bytes()
    certificate = CertificateAuthority.load(store, "root").certificate
    assert store.store_id.encode() in content
    for word in (b"signs", b"the value", b"secret", certificate.public_bytes(Encoding.DER)[50:90]):
        assert word not in content
    other = FileKEK.create(tmp_path / "other.kek")
    with pytest.raises(WrongKEK):
        check_backup(tmp_path / "backup", other)
    assert not list(tmp_path.glob(".backup*"))


def test_a_restore_asks_what_is_to_become_of_what_came_after(
    store: KeyStore, kek: FileKEK, tmp_path: Path
) -> None:
    store.backup(tmp_path / "backup")
    with pytest.raises(InvalidInput, match=r"would be there again.*audit export"):
        restore_backup(tmp_path / "backup", tmp_path / "restored", kek)
    with pytest.raises(InvalidInput):
        restore_backup(
            tmp_path / "backup", tmp_path / "restored", kek, later_log=[], as_of_backup=True
        )
    assert not (tmp_path / "restored").exists()


def test_what_was_taken_away_after_the_backup_stays_away(
    store: KeyStore, kek: FileKEK, tmp_path: Path
) -> None:
    store.create_key("purged", KeyType.ED25519)
    store.create_key("kept", KeyType.ED25519)
    store.create_key("back", KeyType.ED25519)
    store.disable("kept")
    store.backup(tmp_path / "backup")
    store.delete("web", retention=timedelta(days=3))
    store.disable("signs", 2)
    store.enable("kept")
    store.delete("back")
    store.recover("back")
    store.delete("purged")
    store.purge("purged")
    store.revoke(BOB, "crypto-user", "signs")
    store.grant("user:carol", "reader", "*")
    store.rotate("signs")
    store.create_key("late", KeyType.ED25519)
    store.disable("late")
    root = CertificateAuthority.load(store, "root")
    late = root.issue_subordinate("late-ca", "Test Late", NOW)
    later = export(store)
    checkpoint = store.verify_audit_log()

    target = tmp_path / "restored.db"
    done = restore_backup(tmp_path / "backup", target, kek, later_log=later, clock=lambda: NOW)
    assert done.lost == (
        "key signs version 3",
        "key late version 1",
        "key late-ca version 1",
        f"certificate {late.certificate.serial_number:x}, signed by root",
    )
    assert done.done_again == (
        "delete web",
        "disable signs version 2",
        "enable kept",
        "delete back",
        "recover back",
        "delete purged",
        "purge purged",
        f"revoke crypto-user for signs to {BOB}",
        "grant reader for * to user:carol",
    )
    with KeyStore.open(target, kek, clock=lambda: NOW) as back:
        for name in ("web", "signs", "kept", "back", "purged"):
            was, now = store.key(name), back.key(name)
            assert (was.deleted_at, was.purge_at, was.purged, was.enabled) == (
                now.deleted_at,
                now.purge_at,
                now.purged,
                now.enabled,
            )
        assert back.key("signs").disabled_versions == {1, 2}
        assert back.grants() == store.grants()
        with pytest.raises(KeyDeleted):
            back.sign("purged", b"m")
        back.verify_audit_log()
        with pytest.raises(AuditLogAltered, match=r"older copy|cut off"):
            back.verify_audit_log(checkpoint)  # it does not pass for the old store


def test_a_later_log_of_another_store_or_an_earlier_one_is_refused(
    store: KeyStore, kek: FileKEK, tmp_path: Path
) -> None:
    early = export(store)
    store.sign("signs", b"m")
    store.backup(tmp_path / "backup")
    with KeyStore.create(tmp_path / "other", kek) as other:
        foreign = export(other)
    later = export(store)
    edited = [*later[:-1], later[-1].replace(b'"owner"', b'"ownes"')]
    cases: list[tuple[list[bytes], type[CertsError]]] = [
        (early, AuditLogAltered),
        (foreign, BadSignature),
        (edited, AuditLogAltered),
        ([], InvalidInput),
    ]
    for lines, kind in cases:
        with pytest.raises(kind):
            restore_backup(tmp_path / "backup", tmp_path / "restored", kek, later_log=lines)
        assert not (tmp_path / "restored").exists()
    restore_backup(tmp_path / "backup", tmp_path / "restored", kek, later_log=later)


def test_a_restore_never_overwrites(store: KeyStore, kek: FileKEK, tmp_path: Path) -> None:
    store.backup(tmp_path / "backup")
    (tmp_path / "taken").write_bytes(b"precious")
    with pytest.raises(StoreError) as caught:
        restore_backup(tmp_path / "backup", tmp_path / "taken", kek, as_of_backup=True)
    assert caught.value.fault is StoreFault.EXISTS
    with pytest.raises(StoreError) as caught:
        store.backup(tmp_path / "taken")
    assert caught.value.fault is StoreFault.EXISTS
    assert (tmp_path / "taken").read_bytes() == b"precious"


def test_a_damaged_store_makes_no_backup_that_passes(kek: FileKEK, tmp_path: Path) -> None:
    with KeyStore.create(tmp_path / "store", kek) as store:
        for name in ("a", "b"):
            store.create_key(name, KeyType.ED25519)
        with store.database.write() as connection:
            connection.exec_driver_sql(
                "UPDATE key_versions SET sealed ="
                " (SELECT sealed FROM key_versions WHERE name = 'b') WHERE name = 'a'"
            )
        store.backup(tmp_path / "backup")
        with pytest.raises(CorruptEnvelope, match="'a'"):
            check_backup(tmp_path / "backup", kek)
        with store.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM audit_log WHERE number = 1")
        store.backup(tmp_path / "backup.2")
        with pytest.raises(AuditLogAltered) as caught:
            check_backup(tmp_path / "backup.2", kek)
        assert caught.value.row == 1


def refuses(backup: Path, kek: FileKEK) -> bool:
    try:
        check_backup(backup, kek)
    except (InvalidInput, CorruptEnvelope, WrongKEK, StoreError):
        return True
    return False


@pytest.mark.fuzz
def test_every_flipped_byte_of_a_backup_is_found(kek: FileKEK, tmp_path: Path) -> None:
    with KeyStore.create(tmp_path / "store", kek) as store:
        store.create_key("a", KeyType.ED25519)
        store.backup(tmp_path / "backup")
    content = (tmp_path / "backup").read_bytes()
    assert check_backup(tmp_path / "backup", kek).keys == 1
    damaged = tmp_path / "damaged"
    step = max(1, len(content) // 400)
    unnoticed: list[int] = []
    positions = [*range(600), *range(600, len(content), step)]
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        damaged.write_bytes(flipped)
        if not refuses(damaged, kek):
            unnoticed.append(position)
    assert unnoticed == []
    for length in (0, 1, 20, 400, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises((InvalidInput, CorruptEnvelope)):
            check_backup(damaged, kek)


def test_entries_of_a_restore_are_entries_of_a_log() -> None:
    entry = AuditEntry(1, "owner", "restore", "", "done", details={"log_rows": "1"})
    assert AuditEntry.parse(entry.encode()) == entry

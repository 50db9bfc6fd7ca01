"""The log in the database: who edits the file is found out, and eight processes make one log."""

from __future__ import annotations

import io
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, select, update

from certs.errors import AccessDenied, AuditLogAltered, CorruptEnvelope
from certs.keystore import KeyStore, KeyType
from certs.keystore.audit import verify_export
from certs.keystore.tables import key_states, key_versions, keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from certs.keystore.kek import FileKEK

ALICE = "user:alice"
ROWS = 12


@pytest.fixture
def path(tmp_path: Path, kek: FileKEK) -> Path:
    """A store whose log has twelve rows."""
    where = tmp_path / "store.db"
    with KeyStore.create(where, kek) as store:
        store.create_key("a", KeyType.ED25519)
        store.grant(ALICE, "crypto-user", "a")
        store.revoke(ALICE, "crypto-user", "a")
        for number in range(ROWS - 4):
            store.sign("a", str(number).encode())
    return where


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def verify(path: Path, kek: FileKEK, earlier: bytes | None = None) -> bytes:
    with KeyStore.open(path, kek) as store:
        return store.verify_audit_log(earlier)


def rows(note: bytes) -> int:
    return int(note.split(b"\n")[1])


def test_the_log_of_a_store_is_whole(path: Path, kek: FileKEK) -> None:
    assert rows(verify(path, kek)) == ROWS
    assert rows(verify(path, kek)) == ROWS + 1  # verifying is recorded as well


SHIFT = (
    "UPDATE audit_log SET number = -number - 1 WHERE number > {at}",
    "UPDATE audit_log SET number = -number - 2 WHERE number < 0",
)
ATTACKS: dict[str, Sequence[str]] = {
    "edited": (
        "UPDATE audit_log SET entry = CAST(replace(entry, 'n', 'm') AS BLOB) WHERE number = {at}",
    ),
    "signature edited": ("UPDATE audit_log SET signature = zeroblob(64) WHERE number = {at}",),
    "deleted": ("DELETE FROM audit_log WHERE number = {at}",),
    "deleted, renumbered": ("DELETE FROM audit_log WHERE number = {at}", *SHIFT),
    "swapped": (
        "UPDATE audit_log SET number = 1000 WHERE number = {at}",
        "UPDATE audit_log SET number = {at} WHERE number = {at} + 1",
        "UPDATE audit_log SET number = {at} + 1 WHERE number = 1000",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("at", [0, 1, 5, ROWS - 3])
def test_an_altered_row_is_found_and_located(
    path: Path, kek: FileKEK, attack: str, at: int
) -> None:
    verify(path, kek)
    edit(
        path,
        "PRAGMA ignore_check_constraints = ON",
        *(text.format(at=at) for text in ATTACKS[attack]),
    )
    with KeyStore.open(path, kek) as store, pytest.raises(AuditLogAltered, match="row") as caught:
        store.verify_audit_log()
    assert caught.value.row == at
    with KeyStore.open(path, kek) as store, pytest.raises(AuditLogAltered):
        store.export_audit_log(lambda _: None)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_log WHERE number > 8",
        "DELETE FROM audit_log",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET size = 11",
        "UPDATE audit_head SET frontier = zeroblob(64)",
        "UPDATE audit_log SET signature = zeroblob(64) WHERE number = 11",
        "UPDATE audit_log SET entry = entry, number = 12 WHERE number = 11",
    ],
)
def test_an_altered_end_is_not_continued_and_nothing_is_given_out(
    path: Path, kek: FileKEK, statement: str
) -> None:
    edit(path, statement)
    with KeyStore.open(path, kek) as store:
        for _ in range(2):
            with pytest.raises(AuditLogAltered):
                store.sign("a", b"m")
        with pytest.raises(AuditLogAltered):
            store.verify_audit_log()


def test_a_log_key_of_another_store_is_refused(path: Path, kek: FileKEK, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    KeyStore.create(other, kek).close()
    with closing(sqlite3.connect(other)) as connection:
        ((key,),) = connection.execute("SELECT key FROM audit_head")
    edit(path, f"UPDATE audit_head SET key = x'{key.hex()}'")  # noqa: S608 - from here
    with KeyStore.open(path, kek) as store, pytest.raises(CorruptEnvelope):
        store.sign("a", b"m")


def test_an_older_copy_put_back_is_found_by_a_checkpoint_kept_elsewhere(
    path: Path, kek: FileKEK, tmp_path: Path
) -> None:
    shutil.copyfile(path, tmp_path / "old.db")
    with KeyStore.open(path, kek) as store:
        store.disable("a")
    kept = verify(path, kek)
    assert rows(verify(path, kek, kept)) == rows(kept) + 1
    shutil.copyfile(tmp_path / "old.db", path)
    with pytest.raises(AuditLogAltered, match="an older copy of the store was put back"):
        verify(path, kek, kept)
    with KeyStore.open(path, kek) as store:
        for _ in range(5):
            store.sign("a", b"m")  # the older copy goes on, past where the checkpoint was
    with pytest.raises(AuditLogAltered, match="went its own way") as caught:
        verify(path, kek, kept)
    assert caught.value.row == rows(kept) - 1
    verify(path, kek)  # by itself it is genuine: that is why the checkpoint is kept elsewhere


def test_rows_and_head_cut_off_together_are_found_by_the_checkpoint(
    path: Path, kek: FileKEK
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        ((size, frontier),) = connection.execute("SELECT size, frontier FROM audit_head")
    with KeyStore.open(path, kek) as store:
        store.sign("a", b"hidden")
    kept = verify(path, kek)
    edit(
        path,
        f"DELETE FROM audit_log WHERE number >= {size}",  # noqa: S608 - from here
        f"UPDATE audit_head SET size = {size}, frontier = x'{frontier.hex()}'",  # noqa: S608 - same
    )
    with pytest.raises(AuditLogAltered, match=f"ends with row {size - 1}"):
        verify(path, kek, kept)


def test_nobody_grants_himself_anything_by_editing_the_file(path: Path, kek: FileKEK) -> None:
    edit(path, "UPDATE grants SET principal = 'user:mallory' WHERE principal = 'owner'")
    with (
        KeyStore.open(path, kek, principal="user:mallory") as store,
        pytest.raises(CorruptEnvelope),
    ):
        store.sign("a", b"m")
    with KeyStore.open(path, kek) as store, pytest.raises(AccessDenied):
        store.sign("a", b"m")


def test_a_revoked_grant_put_back_is_found(path: Path, kek: FileKEK) -> None:
    with KeyStore.open(path, kek) as store:
        store.grant(ALICE, "crypto-user", "a")
    with closing(sqlite3.connect(path)) as connection:
        ((revision, sealed),) = connection.execute(
            "SELECT revision, sealed FROM grants WHERE principal = ?", (ALICE,)
        )
    with KeyStore.open(path, kek) as store:
        store.revoke(ALICE, "crypto-user", "a")
    verify(path, kek)
    edit(
        path,
        f"UPDATE grants SET revision = {revision}, sealed = x'{sealed.hex()}'"  # noqa: S608 - from here
        f" WHERE principal = '{ALICE}'",
    )
    with pytest.raises(AuditLogAltered, match=r"grants of user:alice .* revision 4"):
        verify(path, kek)
    edit(path, f"DELETE FROM grants WHERE principal = '{ALICE}'")  # noqa: S608 - from here
    with pytest.raises(AuditLogAltered, match=r"grants of user:alice"):
        verify(path, kek)


@pytest.mark.parametrize("claimed", ["1", "7"])
def test_what_a_signature_says_it_is_about_is_no_revision(
    store_address: str, kek: FileKEK, claimed: str
) -> None:
    """A signer must neither vouch for a state that was put back nor contradict a genuine one."""
    with KeyStore.create(store_address, kek) as store:
        store.create_key("firmware", KeyType.ED25519)
        store.grant(ALICE, "crypto-user", "firmware")
        state = select(key_states).where(key_states.c.name == "firmware")
        with store.database.read() as connection:
            older = connection.execute(state).one()
        key = store.acting_as(ALICE).signing_key("firmware", details={"revision": claimed})
        assert isinstance(key, Ed25519PrivateKey)
        key.sign(b"m")
        store.verify_audit_log()
        store.disable("firmware")
        store.verify_audit_log()
        with store.database.write() as connection:
            connection.execute(update(key_states).values(older._asdict()))
        key.sign(b"m")
        with pytest.raises(AuditLogAltered, match="state of key 'firmware'"):
            store.verify_audit_log()


def test_an_export_is_checked_without_the_store(path: Path, kek: FileKEK) -> None:
    pieces: list[bytes] = []
    with KeyStore.open(path, kek) as store:
        note = store.export_audit_log(pieces.append)
    key, checkpoint = verify_export(io.BytesIO(b"".join(pieces)), earlier=note)
    assert checkpoint.size == rows(note) == ROWS + 1  # that it was exported is in it
    with KeyStore.open(path, kek) as store:
        assert key.name == f"pfs-key-store/{store.store_id}"


APPEND = """
import sys
from certs.keystore import KeyStore
with KeyStore.open(sys.argv[1], "file:" + sys.argv[2], busy_timeout_seconds=60) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(15):
        store.sign("a", f"{sys.argv[3]} {turn}".encode())
        store.set_secret("s", sys.argv[3].encode())
"""


@pytest.mark.slow
def test_eight_processes_make_one_log(path: Path, kek: FileKEK, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, path, tmp_path / "kek", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert errors == [""] * 8
    assert rows(verify(path, kek)) == ROWS + 8 * 15 * 2
    with KeyStore.open(path, kek) as store:
        versions = [
            entry.version for _, entry in store.audit_entries() if entry.operation == "secret-set"
        ]
    assert versions == list(range(1, 8 * 15 + 1))


def test_a_state_put_back_to_an_older_one_is_found_and_named(
    store_address: str, kek: FileKEK
) -> None:
    """A disabled key that somebody enables by its older row: genuine, in its place, and too old."""
    with KeyStore.create(store_address, kek) as store:
        for name in ("a", "b"):
            store.create_key(name, KeyType.ED25519)
        with store.database.read() as connection:
            older = connection.execute(select(key_states).where(key_states.c.name == "a")).one()
        store.disable("a")
        store.verify_audit_log()
        put_back = update(key_states).where(key_states.c.name == "a").values(older._asdict())
        with store.database.write() as connection:
            connection.execute(put_back)
        store.sign("a", b"m")  # what the file says is genuine, and only the log knows better
        with pytest.raises(AuditLogAltered, match=r"state of key 'a' .* revision 2") as caught:
            store.verify_audit_log()
        assert caught.value.row == 3


def test_a_name_deleted_with_all_its_rows_is_found_and_named(
    store_address: str, kek: FileKEK
) -> None:
    with KeyStore.create(store_address, kek) as store:
        for name in ("a", "b"):
            store.create_key(name, KeyType.ED25519)
        with store.database.write() as connection:
            for table in (key_versions, key_states, keys):
                connection.execute(delete(table).where(table.c.name == "a"))
        with pytest.raises(AuditLogAltered, match="state of key 'a'") as caught:
            store.verify_audit_log()
        assert caught.value.row == 1

"""Rotate, rewrap and rekey: what they change, what they keep, and what a kill leaves."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from certs.errors import CertsError, CorruptEnvelope, StoreError, WrongKEK
from certs.key_types import public_key_der
from certs.keystore import KeyStore, KeyType
from certs.keystore.hazmat import unseal_every_private_key
from certs.keystore.kek import FileKEK

if TYPE_CHECKING:
    from pathlib import Path

KEYS = 5


@pytest.fixture
def new_kek(tmp_path: Path) -> FileKEK:
    return FileKEK.create(tmp_path / "new")


@pytest.fixture
def path(tmp_path: Path, kek: FileKEK) -> Path:
    where = tmp_path / "store.db"
    with KeyStore.create(where, kek) as store:
        for number in range(KEYS):
            store.create_key(f"k{number}", KeyType.ED25519)
        store.set_secret("s", b"secret")
    return where


def contents(path: Path, kek: FileKEK) -> dict[str, bytes]:
    with KeyStore.open(path, kek) as store:
        found = {f"k{n}": public_key_der(store.public_key(f"k{n}")) for n in range(KEYS)}
        return {**found, "s": store.get_secret("s")}


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def terms_in_use(path: Path) -> dict[int, int]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT term, count(*) FROM (SELECT term FROM key_versions UNION ALL"
            " SELECT term FROM key_states) GROUP BY term"
        ).fetchall()
    return dict(rows)


def test_rotating_touches_no_record_and_rewrapping_moves_all(path: Path, kek: FileKEK) -> None:
    before = contents(path, kek)
    records = 2 * (KEYS + 1)
    with KeyStore.open(path, kek) as store:
        assert store.rotate_term() == 2
        assert terms_in_use(path) == {1: records}
        store.create_key("later", KeyType.ED25519)
        assert terms_in_use(path) == {1: records, 2: 2}
        seen: list[int] = []
        report = store.rewrap(records_a_batch=5, progress=seen.append)
        assert (report.term, report.moved, report.left) == (2, records, 0)
        assert max(seen) <= 5
        assert store.rewrap().moved == 0
    assert terms_in_use(path) == {2: records + 2}
    assert contents(path, kek) == before


def test_a_record_put_back_to_its_older_ciphertext_is_detected(path: Path, kek: FileKEK) -> None:
    with closing(sqlite3.connect(path)) as connection:
        ((old,),) = connection.execute("SELECT sealed FROM key_versions WHERE name = 'k0'")
    with KeyStore.open(path, kek) as store:
        store.rotate_term()
        store.rewrap()
    edit(path, f"UPDATE key_versions SET sealed = x'{old.hex()}' WHERE name = 'k0'")  # noqa: S608 - from here
    with pytest.raises(CorruptEnvelope, match=r"'k0' version 1.*term 1"):
        contents(path, kek)


def test_a_state_put_back_to_its_older_ciphertext_is_detected(path: Path, kek: FileKEK) -> None:
    with closing(sqlite3.connect(path)) as connection:
        ((old,),) = connection.execute("SELECT sealed FROM key_states WHERE name = 'k0'")
    with KeyStore.open(path, kek) as store:
        store.disable("k0")
    edit(path, f"UPDATE key_states SET sealed = x'{old.hex()}' WHERE name = 'k0'")  # noqa: S608 - from here
    with KeyStore.open(path, kek) as store, pytest.raises(CorruptEnvelope, match="'k0'"):
        store.sign("k0", b"m")


def test_rewrapping_keeps_tampering_visible_and_moves_the_rest(path: Path, kek: FileKEK) -> None:
    edit(
        path,
        "UPDATE key_versions SET sealed = (SELECT sealed FROM key_versions WHERE name = 'k1')"
        " WHERE name = 'k0'",
    )
    with KeyStore.open(path, kek) as store:
        store.rotate_term()
        with pytest.raises(CorruptEnvelope, match=r"1 do not open .*'k0'"):
            store.rewrap(records_a_batch=2)
        assert terms_in_use(path) == {1: 1, 2: 2 * (KEYS + 1) - 1}
        store.public_key("k1")
        with pytest.raises(CorruptEnvelope):
            store.public_key("k0")


def test_only_the_new_kek_opens_a_rekeyed_store(
    path: Path, kek: FileKEK, new_kek: FileKEK, tmp_path: Path
) -> None:
    before = contents(path, kek)
    with KeyStore.open(path, kek) as store:
        with pytest.raises(WrongKEK):
            store.rekey(FileKEK.create(tmp_path / "third"), new_kek)
        store.rekey(kek, new_kek)
        store.sign("k0", b"m")  # who has it open goes on
    with pytest.raises(WrongKEK):
        contents(path, kek)
    assert contents(path, new_kek) == before


PREAMBLE = """
import os, signal, sys
from sqlalchemy import event
from certs.keystore import KeyStore, KeyType
from certs.keystore.hazmat import unseal_every_private_key
folder, moment, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0

def watch(store):
    def at(connection, *_):
        # "commit" comes right before a commit, "checkin" right after it has returned.
        global seen
        seen += 1
        if seen == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
    if moment == "before":
        @event.listens_for(store.database.engine, "commit")
        def commit(connection):
            if connection.get_execution_options().get("pfs_transaction") == "write":
                at(connection)
    else:
        event.listen(store.database.engine, "checkin", at)

with KeyStore.open(folder + "/store.db", "file:" + folder + "/kek") as store:
    watch(store)
"""


def run(program: str, folder: Path, moment: str, wanted: int) -> bool:
    """Run a program that kills itself at one moment; return whether it lived to its end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PREAMBLE}    {program}", folder, moment, str(wanted)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_commit_a_rewrap_is_taken_up_again(
    path: Path, kek: FileKEK, tmp_path: Path, moment: str
) -> None:
    before = contents(path, kek)
    records = 2 * (KEYS + 1)
    with KeyStore.open(path, kek) as store:
        store.rotate_term()
    left = []
    for wanted in range(1 if moment == "before" else 2, 30):  # may one, is read first
        ended = run("store.rewrap(records_a_batch=4)", tmp_path, moment, wanted)
        assert contents(path, kek) == before  # every record opens, whichever term it is under
        left.append(terms_in_use(path).get(1, 0))
        if ended:
            break
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)
    assert left[0] == (records if moment == "before" else records - 4)
    assert len(left) > 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_commit_a_rotation_is_there_or_not(
    path: Path, kek: FileKEK, tmp_path: Path, moment: str
) -> None:
    before = contents(path, kek)
    assert not run("store.rotate_term()", tmp_path, moment, 1 if moment == "before" else 2)
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM terms").fetchone()
    assert count == (1 if moment == "before" else 2)
    assert contents(path, kek) == before
    with KeyStore.open(path, kek) as store:
        assert store.rotate_term() == count + 1


@pytest.mark.parametrize(("moment", "wanted"), [("before", 1), ("after", 2), ("after", 3)])
def test_killed_at_any_commit_a_rekey_leaves_one_kek_that_opens(
    path: Path, kek: FileKEK, new_kek: FileKEK, tmp_path: Path, moment: str, wanted: int
) -> None:
    """Commits and returns: may one, reading the present wrapping, then storing the new one."""
    before = contents(path, kek)
    program = 'store.rekey("file:" + folder + "/kek", "file:" + folder + "/new")'
    assert not run(program, tmp_path, moment, wanted)
    rekeyed = (moment, wanted) == ("after", 3)
    right, wrong = (new_kek, kek) if rekeyed else (kek, new_kek)
    assert contents(path, right) == before
    with pytest.raises(WrongKEK):
        contents(path, wrong)


LIFE = [
    'store.create_key("new", KeyType.ED25519)',
    'store.rotate("k0")',
    'store.set_secret("s", b"other")',
    'store.disable("k0")',
    'store.delete("k0")',
]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("program", LIFE)
def test_killed_at_its_commit_an_operation_happened_wholly_or_not(
    path: Path, kek: FileKEK, tmp_path: Path, program: str, moment: str
) -> None:
    def shown() -> list[str]:
        with KeyStore.open(path, kek) as store:
            infos = list(store.keys(deleted=True))
            for info in infos:
                store.versions(info.name)
                if info.deleted_at is None and info.key_type is KeyType.ED25519:
                    store.public_key(info.name)
            return [f"{one.name} {one.version} {one.enabled} {one.deleted_at}" for one in infos]

    before = shown()
    reads = 2 if program.startswith(("store.rotate", "store.set_secret")) else 1
    assert not run(program, tmp_path, moment, 1 if moment == "before" else 1 + reads)
    assert (shown() == before) is (moment == "before")


SCHEMA_4 = (
    "DROP TABLE revocations",
    "DROP TABLE crl_numbers",
    "UPDATE store_info SET schema_version = 4",
    "UPDATE alembic_version SET version_num = '4'",
)
SCHEMA_3 = (
    *SCHEMA_4,
    "DROP TABLE alembic_version",
    "UPDATE store_info SET schema_version = 3",
)
SCHEMA_2 = (
    *SCHEMA_3,
    *(f"DROP TABLE {table}" for table in ("grants", "audit_log", "audit_head")),
    "UPDATE store_info SET schema_version = 2",
)
SCHEMA_1 = (*SCHEMA_2, "DROP TABLE key_states", "UPDATE store_info SET schema_version = 1")


@pytest.mark.parametrize("older", [SCHEMA_1, SCHEMA_2, SCHEMA_3, SCHEMA_4], ids="1234")
def test_a_store_of_an_older_schema_is_brought_up_once(
    path: Path, kek: FileKEK, older: tuple[str, ...]
) -> None:
    before = contents(path, kek)
    edit(path, *older)
    content = path.read_bytes()
    stolen = {key.name for key in unseal_every_private_key(path, kek)}  # by way of a copy
    assert path.read_bytes() == content
    assert contents(path, kek) == before
    assert stolen == {key.name for key in unseal_every_private_key(path, kek)} != set()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT schema_version FROM store_info").fetchone() == (5,)


def test_an_edited_mark_of_the_first_schema_is_not_sealed(path: Path, kek: FileKEK) -> None:
    edit(path, *SCHEMA_1, "UPDATE keys SET exportable = 1 WHERE name = 'k0'")
    for _ in range(2):
        with pytest.raises(CorruptEnvelope, match="exportable mark of 'k0'"):
            contents(path, kek)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM key_states WHERE name = 'k0'",
        "UPDATE key_states SET revision = 2 WHERE name = 'k0'",
        (
            "UPDATE key_states SET sealed = (SELECT sealed FROM key_states WHERE name = 'k1')"
            " WHERE name = 'k0'"
        ),
        "UPDATE key_states SET sealed = x'' WHERE name = 'k0'",
        "UPDATE key_states SET term = 9 WHERE name = 'k0'",
        "UPDATE keys SET created_at = 1 WHERE name = 'k0'",
        "UPDATE keys SET purpose = 'wrap' WHERE name = 'k0'",
    ],
)
def test_an_edited_state_is_detected_and_named(path: Path, kek: FileKEK, statement: str) -> None:
    contents(path, kek)
    edit(path, statement)
    with KeyStore.open(path, kek) as store:
        for call in (store.key, store.public_key, store.disable, store.delete, store.rotate):
            with pytest.raises(CorruptEnvelope, match="'k0'"):
                call("k0")
        store.public_key("k1")


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("store_info", "wrapped_root_key"),
        ("terms", "sealed"),
        ("key_versions", "sealed"),
        ("key_versions", "public_key"),
        ("key_states", "sealed"),
    ],
)
def test_every_flipped_byte_of_every_record_is_detected(
    path: Path, kek: FileKEK, table: str, column: str
) -> None:
    before = contents(path, kek)
    with closing(sqlite3.connect(path)) as connection:
        records = [
            row[0]
            for row in connection.execute(f"SELECT {column} FROM {table}")  # noqa: S608 - from here
            if row[0]
        ][:2]
    assert records
    content = path.read_bytes()
    for record in records:
        start = content.index(record)
        assert content.count(record) == 1
        for position in range(start, start + len(record)):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            with pytest.raises((CorruptEnvelope, WrongKEK)):
                contents(path, kek)
    path.write_bytes(content)
    assert contents(path, kek) == before


def test_two_who_rekey_at_once_do_not_undo_each_other(
    path: Path, kek: FileKEK, new_kek: FileKEK
) -> None:
    class Slow:
        """The new KEK, which takes so long that another process rekeys meanwhile."""

        def uri(self) -> str:
            return new_kek.uri()

        def wrap(self, key: bytes, associated_data: bytes) -> bytes:
            with KeyStore.open(path, kek) as other:
                other.rekey(kek, new_kek)
            return new_kek.wrap(key, associated_data)

        def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
            return new_kek.unwrap(wrapped, associated_data)

        def close(self) -> None:
            pass

    with KeyStore.open(path, kek) as store, pytest.raises(StoreError, match="another process"):
        store.rekey(kek, Slow())
    with pytest.raises(CertsError):
        contents(path, kek)
    contents(path, new_kek)

"""Someone who can write the database file, but has no KEK, changes what is in it.

Whatever they do to sealed records ends in a typed error or in the right key; never in a wrong key,
never in another exception. Each attack has its control: before it, the same call succeeds.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from certs.errors import (
    CertsError,
    CorruptEnvelope,
    KeyNotExportable,
    KeyNotFound,
    StoreError,
    WrongKEK,
)
from certs.key_types import public_key_der
from certs.keystore import KeyStore, KeyType
from certs.keystore.hazmat import unseal_every_private_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from certs.keystore.kek import FileKEK

SEALED_COLUMNS = (
    ("store_info", "wrapped_root_key"),
    ("terms", "sealed"),
    ("key_versions", "sealed"),
)


@pytest.fixture
def path(tmp_path: Path, kek: FileKEK) -> Path:
    """A store of three small keys, one of them with two versions."""
    where = tmp_path / "store.db"
    with KeyStore.create(where, kek) as store:
        store.create_key("a", KeyType.ED25519)
        store.create_key("b", KeyType.ED25519)
        store.create_key("c", KeyType.ED25519, exportable=True)
        store.rotate("a")
    return where


def public_keys(path: Path, kek: FileKEK) -> dict[tuple[str, int], bytes]:
    with KeyStore.open(path, kek) as store:
        listed = list(store.keys())
        return {
            (info.name, version): public_key_der(store.public_key(info.name, version))
            for info in listed
            for version in range(1, info.version + 1)
        }


def edit(path: Path, *statements: str) -> None:
    """Run statements as the attacker, whom no foreign key holds back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def flips(content: bytes, needle: bytes) -> Iterator[bytes]:
    """Yield the file with each byte of `needle`, wherever it first stands, changed in turn."""
    start = content.index(needle)
    for position in range(start, start + len(needle)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        yield bytes(changed)


@pytest.mark.parametrize(("table", "column"), SEALED_COLUMNS)
def test_every_flipped_byte_of_a_sealed_record_is_detected(
    path: Path, kek: FileKEK, table: str, column: str
) -> None:
    original = public_keys(path, kek)
    content = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        records = [row[0] for row in connection.execute(f"SELECT {column} FROM {table}")]  # noqa: S608 - from this file
    assert len(records) == {"key_versions": 4}.get(table, 1)
    for record in records:
        assert content.count(record) == 1
        for changed in flips(content, record):
            path.write_bytes(changed)
            with pytest.raises((CorruptEnvelope, WrongKEK)):
                public_keys(path, kek)
    path.write_bytes(content)
    assert public_keys(path, kek) == original


@pytest.mark.fuzz
def test_every_changed_byte_of_the_whole_file_gives_the_right_keys_or_a_typed_error(
    path: Path, kek: FileKEK
) -> None:
    original = public_keys(path, kek)
    content = path.read_bytes()
    outcomes = {"right": 0, "refused": 0}
    for position in range(0, len(content), 401):
        for change in (0x01, 0xFF):
            changed = bytearray(content)
            changed[position] ^= change
            path.write_bytes(changed)
            try:
                found = public_keys(path, kek)
            except CertsError:
                outcomes["refused"] += 1
                continue
            finally:
                for side in ("-wal", "-shm"):
                    path.with_name(path.name + side).unlink(missing_ok=True)
            assert found.items() <= original.items()
            outcomes["right"] += 1
    assert min(outcomes.values()) > 3


def test_a_truncated_file_is_refused_unless_every_key_is_still_in_it(
    path: Path, kek: FileKEK
) -> None:
    original = public_keys(path, kek)
    content = path.read_bytes()
    refused = 0
    for length in [0, 1, 50, 99, 100, 101, 4095, *range(4096, len(content), 2048)]:
        path.write_bytes(content[:length])
        try:
            assert public_keys(path, kek) == original  # only an empty table's page was cut off
        except (StoreError, CorruptEnvelope):
            refused += 1
    assert refused >= 15
    path.write_bytes(content)
    assert public_keys(path, kek) == original


ATTACKS = {
    "two rows swapped": (
        "b",
        (
            "UPDATE key_versions SET sealed = CASE name"
            " WHEN 'b' THEN (SELECT sealed FROM key_versions WHERE name = 'c')"
            " WHEN 'c' THEN (SELECT sealed FROM key_versions WHERE name = 'b')"
            " END WHERE name IN ('b', 'c')"
        ),
    ),
    "one row put over another, public key and all": (
        "b",
        (
            "UPDATE key_versions SET (public_key, sealed) ="
            " (SELECT public_key, sealed FROM key_versions WHERE name = 'c') WHERE name = 'b'"
        ),
    ),
    "a key renamed": (
        "d",
        "UPDATE keys SET name = 'd' WHERE name = 'b'",
        "UPDATE key_versions SET name = 'd' WHERE name = 'b'",
    ),
    "rolled back to the older ciphertext": (
        "a",
        (
            "UPDATE key_versions SET (public_key, sealed) = (SELECT public_key, sealed"
            " FROM key_versions WHERE name = 'a' AND version = 1) WHERE name = 'a' AND version = 2"
        ),
    ),
    "the newest version removed": (
        "a",
        "DELETE FROM key_versions WHERE name = 'a' AND version = 2",
    ),
    "the newest version lowered": ("a", "UPDATE keys SET latest_version = 1 WHERE name = 'a'"),
    "a version invented": (
        "b",
        (
            "INSERT INTO key_versions SELECT name, 2, term, public_key, sealed, created_at"
            " FROM key_versions WHERE name = 'b'"
        ),
        "UPDATE keys SET latest_version = 2 WHERE name = 'b'",
    ),
    "another public key": (
        "b",
        (
            "UPDATE key_versions SET public_key ="
            " (SELECT public_key FROM key_versions WHERE name = 'c') WHERE name = 'b'"
        ),
    ),
    "another key type": ("b", "UPDATE keys SET key_type = 'ec-p256' WHERE name = 'b'"),
    "another term": (
        "b",
        "INSERT INTO terms SELECT 2, sealed, 0, created_at FROM terms",
        "UPDATE key_versions SET term = 2 WHERE name = 'b'",
    ),
    "the term removed": ("b", "DELETE FROM terms"),
    "another root generation": ("b", "UPDATE store_info SET root_generation = 2"),
    "another store id": ("b", "UPDATE store_info SET store_id = zeroblob(16)"),
    "an oversized record": ("b", "UPDATE key_versions SET sealed = zeroblob(100000)"),
    "an empty record": ("b", "UPDATE key_versions SET sealed = x''"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_record_out_of_its_place_is_detected(path: Path, kek: FileKEK, attack: str) -> None:
    name, *statements = ATTACKS[attack]
    with KeyStore.open(path, kek) as store:
        store.public_key("b" if name == "d" else name)
    edit(path, *statements)
    with pytest.raises(CorruptEnvelope) as caught, KeyStore.open(path, kek) as store:
        store.public_key(name)
    assert attack.startswith("another") or attack == "the term removed" or name in str(caught.value)
    with pytest.raises(CorruptEnvelope):
        unseal_every_private_key(path, kek)


def test_what_was_put_out_of_place_does_not_hide_the_rest(path: Path, kek: FileKEK) -> None:
    edit(path, *ATTACKS["rolled back to the older ciphertext"][1:])
    with KeyStore.open(path, kek) as store:
        for name, version in (("a", 1), ("b", 1), ("c", 1)):
            store.public_key(name, version)
        for use in (store.signing_key, store.public_key, store.rotate, store.export_private_key):
            with pytest.raises(CorruptEnvelope, match="'a' version 2"):
                use("a")


def test_an_edited_exportable_mark_exports_nothing(path: Path, kek: FileKEK) -> None:
    with KeyStore.open(path, kek) as store, pytest.raises(KeyNotExportable):
        store.export_private_key("b")
    edit(path, "UPDATE keys SET exportable = 1 WHERE name IN ('a', 'b')")
    with KeyStore.open(path, kek) as store:
        with pytest.raises(CorruptEnvelope, match="exportable mark of 'b'"):
            store.export_private_key("b")
        # Nor does a rotation take the edited mark over into a new version.
        with pytest.raises(CorruptEnvelope, match="exportable mark of 'a'"):
            store.rotate("a")


def test_records_moved_to_another_store_are_detected(
    path: Path, kek: FileKEK, tmp_path: Path
) -> None:
    """Both stores are under one KEK, and the foreign row brings its own term with it."""
    other = tmp_path / "other.db"
    with KeyStore.create(other, kek) as store:
        store.create_key("b", KeyType.ED25519)
    edit(
        path,
        f"ATTACH '{other}' AS other",
        "UPDATE key_versions SET (public_key, sealed) = (SELECT public_key, sealed"
        " FROM other.key_versions) WHERE name = 'b'",
    )
    with KeyStore.open(path, kek) as store, pytest.raises(CorruptEnvelope, match="'b' version 1"):
        store.public_key("b")
    edit(
        path,
        f"ATTACH '{other}' AS other",
        "UPDATE terms SET sealed = (SELECT sealed FROM other.terms)",
    )
    with KeyStore.open(path, kek) as store, pytest.raises(CorruptEnvelope, match="term"):
        store.public_key("b")


def test_a_root_key_moved_to_another_store_is_detected(
    path: Path, kek: FileKEK, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    KeyStore.create(other, kek).close()
    edit(
        path,
        f"ATTACH '{other}' AS other",
        "UPDATE store_info SET wrapped_root_key = (SELECT wrapped_root_key FROM other.store_info)",
    )
    with pytest.raises(CorruptEnvelope, match="another store"):
        KeyStore.open(path, kek)


def test_a_deleted_name_is_not_found(path: Path, kek: FileKEK) -> None:
    edit(
        path,
        "DELETE FROM key_versions WHERE name = 'b'",
        "DELETE FROM keys WHERE name = 'b'",
    )
    with KeyStore.open(path, kek) as store, pytest.raises(KeyNotFound):
        store.public_key("b")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys SET name = CAST(x'ff' AS TEXT) WHERE name = 'b'",
        "UPDATE keys SET name = 'no name' WHERE name = 'b'",
        "UPDATE keys SET key_type = 'rsa-1' WHERE name = 'b'",
        "UPDATE keys SET purpose = 'wrap' WHERE name = 'b'",
        "UPDATE keys SET created_at = -1 WHERE name = 'b'",
        "UPDATE keys SET created_at = 9000000000000000000 WHERE name = 'b'",
        "UPDATE keys SET latest_version = 9223372036854775807 WHERE name = 'b'",
        "UPDATE key_versions SET public_key = x'' WHERE name = 'b'",
        "UPDATE terms SET number = 4294967296",
        "UPDATE store_info SET store_id = x'00'",
        "UPDATE store_info SET wrapped_root_key = zeroblob(5000)",
        "UPDATE store_info SET root_generation = 0",
        "UPDATE store_info SET schema_version = -1",
        "DELETE FROM store_info",
        "DROP TABLE keys",
        "DROP TABLE store_info",
        "ALTER TABLE keys RENAME COLUMN purpose TO other",
        "UPDATE key_versions SET sealed = zeroblob(2000000) WHERE name = 'b'",
    ],
)
def test_a_forged_row_is_a_typed_error(path: Path, kek: FileKEK, statement: str) -> None:
    edit(path, statement)
    with pytest.raises((StoreError, CorruptEnvelope)):
        public_keys(path, kek)
    with pytest.raises((StoreError, CorruptEnvelope)):
        unseal_every_private_key(path, kek)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("keys", "name"),
        ("keys", "exportable"),
        ("keys", "latest_version"),
        ("key_versions", "sealed"),
        ("key_versions", "public_key"),
        ("key_versions", "term"),
        ("terms", "sealed"),
        ("store_info", "store_id"),
        ("store_info", "schema_version"),
        ("store_info", "wrapped_root_key"),
    ],
)
@pytest.mark.parametrize("value", ["NULL", "1.5", "'text'", "x'00'", "77", "1000000000000000"])
def test_a_value_of_another_type_is_a_typed_error(
    path: Path, kek: FileKEK, table: str, column: str, value: str
) -> None:
    """A damaged page can yield any type in any column: here, tables that never promised one."""
    edit(
        path,
        f"CREATE TABLE loose AS SELECT * FROM {table}",  # noqa: S608 - from this file
        f"DROP TABLE {table}",
        f"ALTER TABLE loose RENAME TO {table}",
        f"UPDATE {table} SET {column} = {value}",  # noqa: S608 - from this file
    )
    original: dict[tuple[str, int], bytes] = {}
    try:
        original = public_keys(path, kek)
    except CertsError:
        return
    assert original == {}, "the edited column was not looked at"


def test_damage_that_only_a_write_meets_is_a_typed_error(path: Path, kek: FileKEK) -> None:
    edit(path, "DELETE FROM terms")
    with KeyStore.open(path, kek) as store, pytest.raises(CorruptEnvelope, match="no term"):
        store.create_key("new", KeyType.ED25519)


def test_a_store_put_back_whole_is_not_detected_as_documented(
    path: Path, kek: FileKEK, tmp_path: Path
) -> None:
    """The limit that docs/formats.md names; this test fails when the store learns better."""
    shutil.copy(path, tmp_path / "older.db")
    with KeyStore.open(path, kek) as store:
        store.rotate("a")
    shutil.copy(tmp_path / "older.db", path)
    with KeyStore.open(path, kek) as store:
        assert store.key("a").version == 2
        store.public_key("a")

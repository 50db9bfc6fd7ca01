"""The key store as its users see it."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from sqlalchemy import update
from stores import every_key, names_in, private_bytes

from certs.errors import (
    CertsError,
    InvalidName,
    KeyExists,
    KeyNotExportable,
    KeyNotFound,
    StoreError,
    StoreFault,
    UnsupportedKey,
    WrongKEK,
)
from certs.key_types import (
    PRIVATE_KEY_TYPES,
    generate_private_key,
    key_type_of,
    public_key_der,
)
from certs.keystore import KeyStore, KeyType
from certs.keystore.hazmat import unseal_every_private_key
from certs.keystore.kek import FileKEK
from certs.keystore.keyring import INVOCATION_LIMIT
from certs.keystore.store import KeyInfo
from certs.keystore.tables import terms

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


def clock() -> datetime:
    return NOW


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_file_of_a_store_has_mode_0600_under_any_umask(path: Path, kek: FileKEK) -> None:
    before = os.umask(0)
    try:
        with KeyStore.create(path, kek) as store:
            store.create_key("a", KeyType.ED25519)
            store.snapshot(path.with_name("copy.db"))
            files = {each.name: mode_of(each) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert files == dict.fromkeys(
        ["kek", "store.db", "store.db-wal", "store.db-shm", "copy.db"], 0o600
    )


def test_a_closed_store_is_one_file(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)
    assert sorted(each.name for each in path.parent.iterdir()) == ["kek", "store.db"]


def test_the_database_is_as_durable_as_promised(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store, store.database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "busy_timeout": 10_000,
    }


@pytest.mark.parametrize("key_type", PRIVATE_KEY_TYPES)
def test_a_key_survives_a_restart(path: Path, kek: FileKEK, key_type: KeyType) -> None:
    with KeyStore.create(path, kek, clock=clock) as store:
        made = store.create_key("web/server", key_type, exportable=True)
        assert made == KeyInfo(
            name="web/server",
            key_type=key_type,
            purpose="sign",
            exportable=True,
            version=1,
            created_at=NOW,
        )
        before = private_bytes(store.export_private_key("web/server"))
    with KeyStore.open(path, kek.uri()) as store:
        assert store.key("web/server") == made
        exported = store.export_private_key("web/server")
        assert private_bytes(exported) == before
        assert key_type_of(exported) is key_type
        assert public_key_der(store.public_key("web/server")) == public_key_der(
            exported.public_key()
        )


def test_keys_are_listed_in_the_order_of_their_names(path: Path, kek: FileKEK) -> None:
    names = ["z", "a/b", "a", "A", "a.b", *(f"n{number:04}" for number in range(600))]
    with KeyStore.create(path, kek) as store:
        for name in names:
            store.create_key(name, KeyType.ED25519)
        assert [info.name for info in every_key(store)] == sorted(names)


def test_a_name_is_never_overwritten_but_rotated(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.EC_P256, exportable=True)
        first = private_bytes(store.export_private_key("a"))
        with pytest.raises(KeyExists, match="rotate it"):
            store.create_key("a", KeyType.EC_P256)
        with pytest.raises(KeyExists):
            store.import_key("a", generate_private_key(KeyType.EC_P256))
        assert store.rotate("a").version == 2
        assert store.rotate("a").version == 3
        versions = [private_bytes(store.export_private_key("a", version)) for version in (1, 2, 3)]
        assert versions[0] == first
        assert len(set(versions)) == 3
        assert private_bytes(store.export_private_key("a")) == versions[2]
        assert store.key("a").version == 3


def test_what_does_not_exist_is_not_found(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        for call in (store.key, store.public_key, store.signing_key, store.rotate):
            with pytest.raises(KeyNotFound, match="no key named 'a'"):
                call("a")
        store.create_key("a", KeyType.ED25519)
        for version in (0, -1, 2, 2**70):
            with pytest.raises(KeyNotFound, match="versions 1 to 1"):
                store.public_key("a", version)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 129,
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        ".a",
        "-a",
        "a b",
        "a\n",
        "é",
        "a\0",
        "\u0430",
        "\ud800",
    ],
)
def test_a_name_outside_the_grammar_is_refused(path: Path, kek: FileKEK, name: str) -> None:
    with KeyStore.create(path, kek) as store:
        with pytest.raises(InvalidName, match="is not a name"):
            store.create_key(name, KeyType.ED25519)
        with pytest.raises(InvalidName):
            store.import_key(name, generate_private_key(KeyType.ED25519))
        with pytest.raises(KeyNotFound):
            store.public_key(name)
        store.create_key("a/B-1_2.3" + "x" * 119, KeyType.ED25519)


@pytest.mark.parametrize("key_type", PRIVATE_KEY_TYPES)
def test_an_imported_key_is_the_same_key(path: Path, kek: FileKEK, key_type: KeyType) -> None:
    key = generate_private_key(key_type)
    with KeyStore.create(path, kek) as store:
        assert store.import_key("a", key, exportable=True).key_type is key_type
        assert private_bytes(store.export_private_key("a")) == private_bytes(key)
        # A key that stays in its store cannot be taken into another by way of import.
        with pytest.raises(KeyNotExportable):
            store.import_key("b", store.signing_key("a"))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        x25519.X25519PrivateKey.generate(),
        b"bytes",
    ],
    ids=["P-521", "secp256k1", "X25519", "bytes"],
)
def test_a_key_of_another_type_is_not_imported(path: Path, kek: FileKEK, key: object) -> None:
    with KeyStore.create(path, kek) as store:
        with pytest.raises(UnsupportedKey):
            store.import_key("a", key)
        assert list(store.keys()) == []


def test_a_key_is_exported_only_if_it_was_created_so(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("kept", KeyType.ED25519)
        store.create_key("given", KeyType.ED25519, exportable=True)
        store.rotate("kept")
        store.rotate("given")
        for version in (None, 1, 2):
            with pytest.raises(KeyNotExportable, match="'kept' was not created exportable"):
                store.export_private_key("kept", version)
            assert store.export_private_key("given", version) is not None


def test_a_closed_store_does_nothing_more(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)
        key = store.signing_key("a")
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    for call in (lambda: key.sign(b"m"), lambda: store.key("a"), lambda: list(store.keys())):
        with pytest.raises(StoreError, match="closed") as caught:
            call()
        assert caught.value.fault is StoreFault.CLOSED


def test_threads_share_a_store(path: Path, kek: FileKEK) -> None:
    failures: list[CertsError] = []
    with KeyStore.create(path, kek) as store:
        store.create_key("shared", KeyType.ED25519)
        key = store.signing_key("shared")
        assert isinstance(key, ed25519.Ed25519PrivateKey)

        def work(number: int) -> None:
            try:
                for turn in range(10):
                    store.create_key(f"t{number}/{turn}", KeyType.ED25519)
                    store.rotate("shared")
                    key.public_key().verify(key.sign(b"m"), b"m")
            except CertsError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(list(store.keys())) == 41
        assert store.key("shared").version == 41


def test_a_term_rotates_by_count_and_both_terms_stay_open(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("before", KeyType.ED25519)
        with store.database.write() as connection:
            connection.execute(update(terms).values(invocations=INVOCATION_LIMIT - 2))
        store.create_key("last", KeyType.ED25519)
        store.create_key("first", KeyType.ED25519)
        store.create_key("second", KeyType.ED25519)
        with store.database.read() as connection:
            counts = connection.exec_driver_sql("SELECT number, invocations FROM terms").all()
            used = connection.exec_driver_sql("SELECT name, term FROM key_versions").all()
        assert [tuple(row) for row in counts] == [(1, INVOCATION_LIMIT), (2, 4)]
        assert {row.name: row.term for row in used} == {
            "before": 1,
            "last": 1,
            "first": 2,
            "second": 2,
        }
    with KeyStore.open(path, kek) as store:
        assert len({public_key_der(store.public_key(info.name)) for info in every_key(store)}) == 4


def test_the_count_of_a_term_counts_every_record(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)
        store.rotate("a")
        store.import_key("b", generate_private_key(KeyType.ED25519))
        with store.database.read() as connection:  # a version and the key's state, each time
            assert connection.exec_driver_sql("SELECT invocations FROM terms").scalar() == 6


# What cannot be opened


def test_another_kek_does_not_open_a_store(path: Path, kek: FileKEK, tmp_path: Path) -> None:
    KeyStore.create(path, kek).close()
    other = FileKEK.create(tmp_path / "other")
    with pytest.raises(WrongKEK, match="other"):
        KeyStore.open(path, other)
    with pytest.raises(WrongKEK):
        unseal_every_private_key(path, other)
    KeyStore.open(path, kek).close()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, StoreFault.MISSING),
        (b"", StoreFault.NOT_A_STORE),
        (b"just some text\n" * 100, StoreFault.NOT_A_STORE),
        (b"SQLite format 3\0" + bytes(84), StoreFault.NOT_A_STORE),
    ],
    ids=["missing", "empty", "text", "header only"],
)
def test_what_is_not_a_store_is_told(
    path: Path, kek: FileKEK, content: bytes | None, fault: StoreFault
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        KeyStore.open(path, kek)
    assert caught.value.fault is fault
    with pytest.raises(StoreError, match="not a key store"):
        KeyStore.open(path.parent, kek)


def test_somebody_elses_database_is_refused_and_left_alone(path: Path, kek: FileKEK) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE store_info (a)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a key store"):
        KeyStore.open(path, kek)
    assert path.read_bytes() == before
    assert names_in(path.parent) == ["kek", "store.db"]


def test_an_existing_file_is_never_overwritten(path: Path, kek: FileKEK) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(StoreError, match="never overwritten") as caught:
        KeyStore.create(path, kek)
    assert caught.value.fault is StoreFault.EXISTS
    assert path.read_bytes() == b"precious"
    KeyStore.create(path.with_name("new.db"), kek).close()
    with KeyStore.open(path.with_name("new.db"), kek) as store, pytest.raises(StoreError) as caught:
        store.snapshot(path)
    assert caught.value.fault is StoreFault.EXISTS
    assert path.read_bytes() == b"precious"
    assert names_in(path.parent) == ["kek", "new.db", "store.db"]


def test_a_folder_that_is_not_there_is_told(path: Path, kek: FileKEK) -> None:
    with pytest.raises(StoreError, match=r"no folder .*none; make it first"):
        KeyStore.create(path.parent / "none" / "store.db", kek)
    with KeyStore.create(path, kek) as store, pytest.raises(StoreError, match="No such file"):
        store.snapshot(path.parent / "none" / "copy.db")


def test_a_newer_schema_is_told(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store, store.database.write() as connection:
        connection.exec_driver_sql("UPDATE store_info SET schema_version = 6")
    with pytest.raises(StoreError, match=r"schema 6 .* reads 5; upgrade") as caught:
        KeyStore.open(path, kek)
    assert caught.value.fault is StoreFault.NEWER_SCHEMA


def test_a_locked_store_is_told_and_nothing_is_written(path: Path, kek: FileKEK) -> None:
    KeyStore.create(path, kek).close()
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        KeyStore.open(path, kek, busy_timeout_seconds=0.05) as store,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another") as caught:
            store.create_key("a", KeyType.ED25519)
        assert caught.value.fault is StoreFault.LOCKED
        with pytest.raises(StoreError, match="locked by another"):
            list(store.keys())  # what cannot be recorded is not told
        other.execute("ROLLBACK")
        store.create_key("a", KeyType.ED25519)


def test_a_full_disk_is_told_and_nothing_is_half_written(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        with store.database.read() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        made: list[KeyInfo] = []

        def fill() -> None:
            while len(made) < 10_000:
                made.append(store.create_key(f"k{len(made):05}", KeyType.EC_P256))

        with pytest.raises(StoreError, match="disk is full") as caught:
            fill()
        assert caught.value.fault is StoreFault.FULL
        with store.database.read() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        assert every_key(store) == made != []
        for info in every_key(store):
            store.public_key(info.name)


def test_a_read_only_store_is_told(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        with store.database.read() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="read-only") as caught:
            store.create_key("a", KeyType.ED25519)
        assert caught.value.fault is StoreFault.READ_ONLY


# Copies


def test_a_snapshot_of_a_store_in_use_is_a_store(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        for number in range(20):
            store.create_key(f"k{number}", KeyType.ED25519)
        store.snapshot(path.with_name("copy.db"))
        store.create_key("later", KeyType.ED25519)
        originals = {
            info.name: public_key_der(store.public_key(info.name)) for info in every_key(store)
        }
    with KeyStore.open(path.with_name("copy.db"), kek) as copied:
        names = [info.name for info in every_key(copied)]
        assert len(names) == 20
        assert all(public_key_der(copied.public_key(name)) == originals[name] for name in names)
        copied.create_key("of-the-copy", KeyType.ED25519)

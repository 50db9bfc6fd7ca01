"""What a thief of a key store gets, with its KEK and without."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certs.errors import (
    KeyNotExportable,
)
from certs.key_types import (
    PRIVATE_KEY_TYPES,
    public_key_der,
)
from certs.keystore import KeyStore, KeyType
from certs.keystore.hazmat import unseal_every_private_key

if TYPE_CHECKING:
    from pathlib import Path

    from certs.keystore.kek import FileKEK

from stores import every_key, names_in, private_bytes

NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_a_thief_with_file_and_kek_gets_every_key_and_leaves_no_trace(
    path: Path, kek: FileKEK, tmp_path: Path
) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("kept", KeyType.EC_P256)
        store.rotate("kept")
        for key_type in PRIVATE_KEY_TYPES:
            store.create_key(f"given/{key_type}", key_type, exportable=True)
        store.snapshot(tmp_path / "loot.db")
        public = {
            (info.name, version): public_key_der(store.public_key(info.name, version))
            for info in every_key(store)
            for version in range(1, info.version + 1)
        }
        kept = store.signing_key("kept")
        with pytest.raises(KeyNotExportable):
            store.export_private_key("kept")
    loot = tmp_path / "loot.db"
    loot.chmod(0o400)
    before, folder = loot.read_bytes(), names_in(tmp_path)
    stolen = unseal_every_private_key(loot, kek.uri())
    assert {
        (name, version): public_key_der(key.public_key()) for name, version, _, key in stolen
    } == public
    assert [one.key_type for one in stolen if one.name == "kept"] == [KeyType.EC_P256] * 2
    assert private_bytes(stolen[-1].private_key) is not None
    assert isinstance(kept, ec.EllipticCurvePrivateKey)
    assert loot.read_bytes() == before
    assert names_in(tmp_path) == folder


def test_a_plain_copy_of_a_closed_store_is_loot_too_and_is_not_changed(
    path: Path, kek: FileKEK, tmp_path: Path
) -> None:
    """Unlike a snapshot, such a copy calls for a write-ahead log, which SQLite would then make."""
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)
    folder = tmp_path / "loot"
    folder.mkdir()
    shutil.copy(path, folder / "copy.db")
    before = (folder / "copy.db").read_bytes()
    touched = folder.stat().st_mtime_ns
    assert [one.name for one in unseal_every_private_key(folder / "copy.db", kek)] == ["a"]
    assert (folder / "copy.db").read_bytes() == before
    assert names_in(folder) == ["copy.db"]
    assert folder.stat().st_mtime_ns == touched  # nor did anything come and go in between


def test_a_thief_reads_a_live_store_too(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)  # still in the write-ahead log
        assert [one.name for one in unseal_every_private_key(path, kek)] == ["a"]


def test_the_file_alone_holds_no_key(path: Path, kek: FileKEK) -> None:
    """The control: the same search finds an exported key in a file that holds it in the clear."""
    with KeyStore.create(path, kek) as store:
        store.create_key("e", KeyType.EC_P256, exportable=True)
        store.create_key("d", KeyType.ED25519, exportable=True)
        elliptic, edwards = store.export_private_key("e"), store.export_private_key("d")
    assert isinstance(elliptic, ec.EllipticCurvePrivateKey)
    assert isinstance(edwards, ed25519.Ed25519PrivateKey)
    secrets = [
        elliptic.private_numbers().private_value.to_bytes(32),
        edwards.private_bytes_raw(),
        (path.parent / "kek").read_bytes(),
    ]
    control = private_bytes(elliptic) + private_bytes(edwards) + (path.parent / "kek").read_bytes()
    assert all(secret in control for secret in secrets)
    content = path.read_bytes()
    assert not any(secret in content for secret in secrets)
    assert public_key_der(elliptic.public_key()) in content

"""Not a row is edited but the index by which rows are found: every record is genuine, in its place.

Nothing of what is sealed can tell; the store has to notice that it was led to another row.
"""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from certs.errors import CertsError, CorruptEnvelope
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK

if TYPE_CHECKING:
    from pathlib import Path

# An entry of the index of key_versions, as SQLite's file format has it ("Record Format"): the bytes
# of the header, the types of name (a text of 6), version (the constant 1) and row number, then the
# name and the row number.
ENTRY = bytes.fromhex("04 19 09 01") + b"secret" + b"\x03"
MISSPELT = ENTRY.replace(b"secret", b"secre|")


def test_an_index_that_leads_to_an_older_version_is_detected(tmp_path: Path) -> None:
    """One bit of the index, and a search for version 2 ends at the row of version 1."""
    kek, path = FileKEK.create(tmp_path / "kek"), tmp_path / "store.db"
    with KeyStore.create(path, kek) as store:
        store.create_key("pair", KeyType.ED25519)
        store.create_key("wrap", KeyType.AES_256)
        store.set_secret("secret", b"first")
        store.set_secret("secret", b"second")
        store.create_key("disabled", KeyType.ED25519)
        store.create_key("deleted", KeyType.ED25519)
    with KeyStore.open(path, kek) as store:
        assert store.get_secret("secret") == b"second"
    content = path.read_bytes()
    assert content.count(ENTRY) == 1
    path.write_bytes(content.replace(ENTRY, MISSPELT))
    with KeyStore.open(path, kek) as store:
        with pytest.raises(CorruptEnvelope, match="version 2 of key 'secret' leads to another row"):
            store.get_secret("secret")
        store.public_key("pair")


# The same of version 2, which is a byte of its own.
NEWER = bytes.fromhex("04 19 01 01") + b"secret" + b"\x02\x03"


def misled(tmp_path: Path) -> tuple[Path, FileKEK]:
    """Make a store in which a search for "secrev" finds version 2 of "secret" as well."""
    kek, path = FileKEK.create(tmp_path / "kek"), tmp_path / "store.db"
    with KeyStore.create(path, kek) as store:
        store.create_key("pair", KeyType.ED25519)
        store.set_secret("secret", b"first")
        store.set_secret("secret", b"second")
        store.set_secret("secrev", b"another's")
        store.rotate_term()
    content = path.read_bytes()
    assert content.count(NEWER) == 1
    path.write_bytes(content.replace(NEWER, NEWER.replace(b"secret", b"secrev")))
    return path, kek


@pytest.mark.parametrize("change", ["rewrap", "purge"])
def test_a_change_led_astray_by_an_index_touches_no_other_row(tmp_path: Path, change: str) -> None:
    path, kek = misled(tmp_path)
    with KeyStore.open(path, kek) as store, contextlib.suppress(CertsError):
        if change == "rewrap":
            store.rewrap()
        else:
            store.delete("secrev", retention=timedelta(0))
            store.purge("secrev")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("REINDEX")
    with KeyStore.open(path, kek) as store:
        assert store.get_secret("secret", 1) == b"first"
        assert store.get_secret("secret", 2) == b"second"

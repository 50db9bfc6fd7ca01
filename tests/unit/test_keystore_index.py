"""Not a row is edited but the index by which rows are found: every record is genuine, in its place.

Nothing of what is sealed can tell; the store has to notice that it was led to another row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from certs.errors import CorruptEnvelope
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

"""Every byte of a small store's file, flipped in turn: what was stored, or a typed error.

Never a wrong key, never a secret that differs, never a disabled key that signs, never a traceback.
Each part flips every seventeenth byte, so each reaches into all of the file; `scripts/test-long`
runs them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from certs.errors import CertsError, CorruptEnvelope, KeyDeleted, KeyDisabled, WrongKEK
from certs.key_types import public_key_der
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]

PARTS = 17  # odd, so that none has all the bytes at round addresses


def make(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("pair", KeyType.ED25519, exportable=True)
        store.create_key("wrap", KeyType.AES_256, purpose="wrap", exportable=True)
        store.set_secret("secret", b"first")
        store.set_secret("secret", b"second")
        store.create_key("disabled", KeyType.ED25519)
        store.disable("disabled")
        store.create_key("deleted", KeyType.ED25519)
        store.delete("deleted")


def observed(path: Path, kek: FileKEK) -> dict[str, bytes | str]:
    """Return what a user of the store gets, each thing or the type of its error."""
    found: dict[str, bytes | str] = {}
    with KeyStore.open(path, kek) as store:
        calls = {
            "pair": lambda: public_key_der(store.public_key("pair")),
            "exported": lambda: public_key_der(store.export_private_key("pair").public_key()),
            "wrap": lambda: store.export_symmetric_key("wrap"),
            "secret": lambda: store.get_secret("secret"),
            "older secret": lambda: store.get_secret("secret", 1),
            "disabled": lambda: store.sign("disabled", b"m").signature,
            "deleted": lambda: store.sign("deleted", b"m").signature,
        }
        for what, call in calls.items():
            try:
                found[what] = call()
            except CertsError as error:
                found[what] = type(error).__name__
    return found


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, PARTS))]
)
def test_every_flipped_byte_gives_what_was_stored_or_a_typed_error(
    tmp_path: Path, part: int
) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    path = tmp_path / "store.db"
    make(path, kek)
    right = observed(path, kek)
    assert right["disabled"] == KeyDisabled.__name__
    assert right["deleted"] == KeyDeleted.__name__
    assert right["secret"] == b"second"
    content = path.read_bytes()
    allowed = {error.__name__ for error in (CorruptEnvelope, WrongKEK)}
    allowed |= {"KeyNotFound", "StoreError"}
    # A grant that is not found permits nothing; a log whose end is damaged is not continued.
    allowed |= {"AccessDenied", "AuditLogAltered"}
    refused = 0
    for position in range(part, len(content), PARTS):
        if content[position] == 0 and position % 64:
            continue  # the file is mostly zeros between its cells; some of them are enough
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = observed(path, kek)
        except CertsError:
            refused += 1
            continue
        finally:
            for side in ("-wal", "-shm"):
                path.with_name(path.name + side).unlink(missing_ok=True)
        wrong = {
            what: value
            for what, value in found.items()
            if value != right[what] and value not in allowed
        }
        assert wrong == {}, position
        refused += found != right
    assert refused > 50

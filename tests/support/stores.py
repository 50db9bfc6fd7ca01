"""What tests of key stores look at: keys, and the files beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization

from certs.key_types import (
    require_private_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from certs.keystore import KeyStore
    from certs.keystore.store import KeyInfo


def private_bytes(key: object) -> bytes:
    return require_private_key(key).private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def every_key(store: KeyStore) -> list[KeyInfo]:
    return list(store.keys())


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())

"""Providers of the key-encryption key, which lives outside the store."""

from __future__ import annotations

from certs.keystore.kek.file import FileKEK
from certs.keystore.kek.passphrase import PassphraseKEK
from certs.keystore.kek.provider import (
    KeepsPrivateKeys,
    KEKProvider,
    create_kek,
    open_kek,
    using_provider,
)

__all__ = [
    "FileKEK",
    "KEKProvider",
    "KeepsPrivateKeys",
    "PassphraseKEK",
    "create_kek",
    "open_kek",
    "using_provider",
]

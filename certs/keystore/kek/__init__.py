"""Providers of the key-encryption key, which lives outside the store."""

from __future__ import annotations

from certs.keystore.kek.file import FileKEK
from certs.keystore.kek.provider import KEKProvider, create_kek, open_kek

__all__ = ["FileKEK", "KEKProvider", "create_kek", "open_kek"]

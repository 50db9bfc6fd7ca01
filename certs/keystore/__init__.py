"""The key store: named, versioned keys sealed under a key-encryption key (KEK)."""

from __future__ import annotations

from certs.key_types import KeyType
from certs.keystore.store import KeyInfo, KeyStore

__all__ = ["KeyInfo", "KeyStore", "KeyType"]

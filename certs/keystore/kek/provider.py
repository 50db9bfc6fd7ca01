"""The seam between a store and its key-encryption key (KEK), and the choice of a provider by URI.

Four methods are all that a store asks of a provider. What only some can do (keep private keys where
the KEK is) are protocols of their own, so that a cloud service and a key file need not pretend to
each other's powers.

Each provider's module is imported when its scheme is first used: whoever keeps a KEK in a file
needs no cloud's software.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

from certs.errors import KEKUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from certs.key_types import KeyType, PrivateKey

__all__ = [
    "MAX_WRAPPED_BYTES",
    "KEKProvider",
    "KeepsPrivateKeys",
    "create_kek",
    "open_kek",
    "using_provider",
]

MAX_WRAPPED_BYTES = 4096


@runtime_checkable
class KEKProvider(Protocol):
    """Wraps and unwraps root keys under a key that the store never sees."""

    def uri(self) -> str:
        """Return the URI that finds this KEK again; it holds no secret."""
        ...

    def wrap(self, key: bytes, associated_data: bytes) -> bytes:
        """Return `key` (32 bytes) wrapped, bound to `associated_data`, in at most 4,096 bytes."""
        ...

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the key again; raise `WrongKEK` or `CorruptEnvelope`, never another key."""
        ...

    def close(self) -> None:
        """Forget the key, or end the session with whoever holds it."""
        ...


@runtime_checkable
class KeepsPrivateKeys(Protocol):
    """An optional power: private keys are made where the KEK is, sign there, and never leave."""

    def generate_private_key(self, label: str, key_type: KeyType) -> PrivateKey:
        """Make a key pair under a label that is free, and return the key that signs with it.

        Raises `KeyExists`, `UnsupportedKey` for a type that is not made there, `KEKUnavailable`.
        """
        ...

    def private_key(self, label: str) -> PrivateKey:
        """Return the key that signs with the pair of this label; raise `KeyNotFound`."""
        ...


class _Opens(Protocol):
    """What the class of a provider offers to this module."""

    def from_uri(self, uri: str) -> KEKProvider: ...


class _Creates(Protocol):
    def create_from_uri(self, uri: str) -> KEKProvider: ...


class _Provider(NamedTuple):
    """Where a scheme's class is; which extra brings what it imports; how its KEK is made."""

    module: str
    name: str
    extra: str = ""
    made_by: str = ""


_PROVIDERS = {
    "file": _Provider("certs.keystore.kek.file", "FileKEK"),
    "passphrase": _Provider("certs.keystore.kek.passphrase", "PassphraseKEK"),
    "pkcs11": _Provider("certs.keystore.kek.pkcs11", "PKCS11KEK", extra="pkcs11"),
    "awskms": _Provider(
        "certs.keystore.kek.awskms",
        "AWSKMSKEK",
        extra="awskms",
        made_by="run: aws kms create-key",
    ),
    "azurekeyvault": _Provider(
        "certs.keystore.kek.azurekeyvault",
        "AzureKeyVaultKEK",
        extra="azurekeyvault",
        made_by="run: az keyvault key create --kty RSA --size 3072 --ops wrapKey unwrapKey",
    ),
}


def open_kek(uri: str) -> KEKProvider:
    """Return the provider of an existing KEK, such as ``file:/etc/pfs/kek``.

    Raises `KEKUnavailable` for an unknown scheme and for whatever keeps the provider from its key,
    now or, where it is only asked for when it is needed, by `wrap` and `unwrap`.
    """
    return cast("_Opens", _class_of(_choose(uri))).from_uri(uri)


def create_kek(uri: str) -> KEKProvider:
    """Make a new KEK where the URI says, and return its provider; never replace an existing one.

    A passphrase is chosen when something is first wrapped. A cloud's keys are made with its own
    tools: for those schemes `KEKUnavailable` says how.
    """
    provider = _choose(uri)
    if provider.made_by:
        raise KEKUnavailable(f"this kind of KEK is made with its own tools; {provider.made_by}")
    return cast("_Creates", _class_of(provider)).create_from_uri(uri)


def _choose(uri: str) -> _Provider:
    scheme, colon, _ = uri.partition(":")
    provider = _PROVIDERS.get(scheme.lower())
    if not colon or provider is None:
        # The URI itself is not repeated: its scheme may be the start of a mistyped secret.
        known = ", ".join(f"{name}:" for name in sorted(_PROVIDERS))
        raise KEKUnavailable(f"the KEK URI has no known scheme; use one of {known}")
    return provider


def _class_of(provider: _Provider) -> object:
    try:
        return cast("object", getattr(importlib.import_module(provider.module), provider.name))
    except ModuleNotFoundError as error:
        if not provider.extra or (error.name or "").startswith("certs"):
            raise
        raise KEKUnavailable(
            f"this kind of KEK needs the package {error.name}; "
            f"run: pip install 'pfs-transport[{provider.extra}]'"
        ) from None


@contextmanager
def using_provider(kek: KEKProvider | str, *, make: bool = False) -> Iterator[KEKProvider]:
    """Yield the provider; one that is opened from a URI here, or made with `make`, is closed."""
    if not isinstance(kek, str):
        yield kek
        return
    provider = create_kek(kek) if make else open_kek(kek)
    try:
        yield provider
    finally:
        provider.close()

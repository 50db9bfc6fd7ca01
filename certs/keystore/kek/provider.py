"""The seam between a store and its key-encryption key (KEK), and the choice of a provider by URI.

Four methods are all that a store asks of a provider. What only some can do (make a new key, keep
private keys inside, attest) are protocols of their own, so that a cloud service and a key file need
not pretend to each other's powers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from certs.errors import KEKUnavailable
from certs.keystore.kek.file import FileKEK

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_WRAPPED_BYTES", "KEKProvider", "create_kek", "open_kek"]

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


_OPENERS: dict[str, Callable[[str], KEKProvider]] = {"file": FileKEK.from_uri}
_CREATORS: dict[str, Callable[[str], KEKProvider]] = {"file": FileKEK.create_from_uri}


def open_kek(uri: str) -> KEKProvider:
    """Return the provider of an existing KEK, such as ``file:/etc/pfs/kek``.

    Raises `KEKUnavailable` for an unknown scheme and for whatever keeps the provider from its key.
    """
    return _choose(_OPENERS, uri)(uri)


def create_kek(uri: str) -> KEKProvider:
    """Make a new KEK where the URI says, and return its provider; never replace an existing one."""
    return _choose(_CREATORS, uri)(uri)


def _choose(
    providers: dict[str, Callable[[str], KEKProvider]], uri: str
) -> Callable[[str], KEKProvider]:
    scheme, colon, _ = uri.partition(":")
    provider = providers.get(scheme.lower())
    if not colon or provider is None:
        # The URI itself is not repeated: its scheme may be the start of a mistyped secret.
        known = ", ".join(f"{name}:" for name in sorted(providers))
        raise KEKUnavailable(f"the KEK URI has no known scheme; use one of {known}")
    return provider

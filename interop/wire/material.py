"""What an attacker holds, and the words for what came of it.

`KeyMaterial` is a theft: keys of every kind, none of them tied to a session. A kind added later (a
ticket key, say) is one more field with an empty default. `Undecryptable` is a result, not an
error: "the records stay closed, because …" is what the experiments count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from interop.direction import Direction
from interop.wire.groups import EphemeralKeys, EphemeralPrivateKey
from interop.wire.key_log import KeyLog

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = ["Direction", "KeyMaterial", "Undecryptable"]


@dataclass(frozen=True, repr=False)
class KeyMaterial:
    """Everything that was stolen. Its repr shows how much, never what."""

    server_private_keys: tuple[PrivateKeyTypes, ...] = ()
    key_log: KeyLog = field(default_factory=KeyLog)
    ephemeral_private_keys: tuple[EphemeralPrivateKey, ...] = ()
    pre_shared_keys: tuple[bytes, ...] = ()

    @cached_property
    def rsa_keys(self) -> tuple[RSAPrivateKey, ...]:
        """Server keys that can open an RSA key exchange."""
        return tuple(key for key in self.server_private_keys if isinstance(key, RSAPrivateKey))

    @cached_property
    def ephemeral_keys(self) -> EphemeralKeys:
        """The ephemeral keys, found by public value."""
        return EphemeralKeys(self.ephemeral_private_keys)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was stolen."""
        return not (
            self.server_private_keys
            or self.key_log
            or self.ephemeral_private_keys
            or self.pre_shared_keys
        )

    def __repr__(self) -> str:
        return (
            f"KeyMaterial(server_private_keys={len(self.server_private_keys)}, "
            f"key_log={self.key_log!r}, "
            f"ephemeral_private_keys={len(self.ephemeral_private_keys)}, "
            f"pre_shared_keys={len(self.pre_shared_keys)})"
        )


@dataclass(frozen=True, slots=True)
class Undecryptable:
    """Why records stay closed, in one sentence."""

    reason: str

    def __str__(self) -> str:
        return self.reason

"""What an attacker holds, and the words for what came of it.

A theft is one `Secret` or several: each kind of it is a small frozen value that says what was
taken, none of them tied to a session. `KeyMaterial` is the theft as the decryptor uses it; `of`
makes one. A kind added later is one more class, and one more field with an empty default.

`Undecryptable` is a result, not an error: "the records stay closed, because …" is what the
experiments count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, TypeAlias

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from interop.direction import Direction
from interop.wire.groups import EphemeralKeys, EphemeralPrivateKey
from interop.wire.key_log import KeyLog
from interop.wire.tickets import TicketKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

__all__ = [
    "Direction",
    "EphemeralKey",
    "KeyMaterial",
    "PreSharedKey",
    "Secret",
    "SecretSource",
    "ServerKey",
    "SessionSecrets",
    "TicketKey",
    "Undecryptable",
]


@dataclass(frozen=True, slots=True, repr=False)
class ServerKey:
    """A server's long-term private key, the one of its certificate."""

    private_key: PrivateKeyTypes


@dataclass(frozen=True, slots=True)
class SessionSecrets:
    """The secrets of one session, or of many: a key log (RFC 9850)."""

    key_log: KeyLog


@dataclass(frozen=True, slots=True, repr=False)
class EphemeralKey:
    """One private key of an (EC)DHE exchange, or one half of a hybrid's."""

    private_key: EphemeralPrivateKey


@dataclass(frozen=True, slots=True, repr=False)
class PreSharedKey:
    """A pre-shared key, provisioned or of a resumption (RFC 9846 section 2.2)."""

    key: bytes


Secret: TypeAlias = ServerKey | SessionSecrets | EphemeralKey | TicketKey | PreSharedKey


@dataclass(frozen=True, repr=False)
class KeyMaterial:
    """Everything that was stolen. Its repr shows how much, never what."""

    server_private_keys: tuple[PrivateKeyTypes, ...] = ()
    key_log: KeyLog = field(default_factory=KeyLog)
    ephemeral_private_keys: tuple[EphemeralPrivateKey, ...] = ()
    pre_shared_keys: tuple[bytes, ...] = ()
    ticket_keys: tuple[TicketKey, ...] = ()

    @classmethod
    def of(cls, *secrets: Secret) -> KeyMaterial:
        """Put secrets of any kinds together."""
        logs = [secret.key_log for secret in secrets if isinstance(secret, SessionSecrets)]
        return cls(
            server_private_keys=tuple(s.private_key for s in secrets if isinstance(s, ServerKey)),
            key_log=reduce(or_, logs, KeyLog()),
            ephemeral_private_keys=tuple(
                s.private_key for s in secrets if isinstance(s, EphemeralKey)
            ),
            pre_shared_keys=tuple(s.key for s in secrets if isinstance(s, PreSharedKey)),
            ticket_keys=tuple(s for s in secrets if isinstance(s, TicketKey)),
        )

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
            or self.ticket_keys
        )

    def __repr__(self) -> str:
        return (
            f"KeyMaterial(server_private_keys={len(self.server_private_keys)}, "
            f"key_log={self.key_log!r}, "
            f"ephemeral_private_keys={len(self.ephemeral_private_keys)}, "
            f"pre_shared_keys={len(self.pre_shared_keys)}, "
            f"ticket_keys={len(self.ticket_keys)})"
        )


class SecretSource(Enum):
    """What gave a session's secret; the words are what reports print."""

    KEY_LOG = "key log"
    SERVER_RSA_KEY = "server RSA key"
    EPHEMERAL_KEY = "ephemeral key"
    TICKET_KEY = "ticket key"
    PRE_SHARED_KEY = "pre-shared key"
    EARLIER_SESSION = "earlier session"  # whose secret was recovered, and which this one resumes
    EPHEMERAL_AND_TICKET_KEY = "ephemeral key and ticket key"
    EPHEMERAL_AND_PRE_SHARED_KEY = "ephemeral key and pre-shared key"
    EPHEMERAL_AND_EARLIER_SESSION = "ephemeral key and earlier session"
    SERVER_AND_PRE_SHARED_KEY = "server RSA key and pre-shared key"
    NO_ENCRYPTION = "no key, as it was never encrypted"


@dataclass(frozen=True, slots=True)
class Undecryptable:
    """Why records stay closed, in one sentence."""

    reason: str

    def __str__(self) -> str:
        return self.reason

"""What each type of key is good for: its kind of record and the purposes it may be created for.

A key has one purpose for life, sealed with it. One key for two purposes would let an attacker play
one against the other (a signature oracle that decrypts), so nothing here combines them.
"""

from __future__ import annotations

from dataclasses import dataclass

from certs.errors import UnsupportedKey, WrongPurpose
from certs.key_types import PRIVATE_KEY_TYPES, KeyType

__all__ = [
    "DATA",
    "PURPOSES",
    "SECRET",
    "SIGN",
    "WRAP",
    "default_purpose",
    "kind_of",
    "purposes_of",
    "require_key_type",
    "require_purpose",
]

SIGN, WRAP, DATA, SECRET = "sign", "wrap", "data", "secret"
PURPOSES = (SIGN, WRAP, DATA, SECRET)


@dataclass(frozen=True, slots=True)
class _Use:
    kind: str  # the kind in the record's associated data
    purposes: tuple[str, ...]  # the first is the default


_SIGNS = _Use("private-key", (SIGN,))
_USES: dict[KeyType, _Use] = {
    **dict.fromkeys(PRIVATE_KEY_TYPES, _SIGNS),
    KeyType.RSA_3072: _Use("private-key", (SIGN, WRAP)),
    KeyType.RSA_4096: _Use("private-key", (SIGN, WRAP)),
    KeyType.AES_256: _Use("symmetric-key", (DATA, WRAP)),
    KeyType.SECRET: _Use("secret", (SECRET,)),
}


def kind_of(key_type: KeyType) -> str:
    """Return the kind of record that holds such a key."""
    return _USES[key_type].kind


def purposes_of(key_type: KeyType) -> tuple[str, ...]:
    """Return the purposes that a key of this type may have."""
    return _USES[key_type].purposes


def default_purpose(key_type: KeyType) -> str:
    """Return the purpose that a key of this type has unless another is asked for."""
    return _USES[key_type].purposes[0]


def require_key_type(text: str) -> KeyType:
    """Return the type of this name; raise `UnsupportedKey` for any other text."""
    try:
        return KeyType(text)
    except ValueError:
        raise UnsupportedKey(f"a key's type is one of {', '.join(KeyType)}") from None


def require_purpose(key_type: KeyType, purpose: str) -> None:
    """Raise `WrongPurpose` unless a key of this type may have this purpose."""
    allowed = purposes_of(key_type)
    if purpose not in allowed:
        raise WrongPurpose(f"the purpose of a {key_type} key is one of {', '.join(allowed)}")

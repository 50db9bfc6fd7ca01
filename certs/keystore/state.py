"""What may change about a key: sealed, so that whoever edits the database cannot change it.

The versions of a key never change once written; whether they may be used does. That a key is
disabled or deleted must hold against someone who can write the database but has no KEK, so it is a
sealed record of its own, bound to the key's name and to a *revision* that each change raises.
docs/formats.md ("Key state") has the layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.errors import CorruptEnvelope
from certs.keystore.payload import TYPE_CODES

if TYPE_CHECKING:
    from certs.key_types import KeyType

__all__ = ["MAX_DISABLED_VERSIONS", "KeyState"]

MAX_DISABLED_VERSIONS = 4096

_VERSION = 1
_EXPORTABLE, _DISABLED, _PURGE_PROTECTED, _DELETED, _PURGED = 1, 2, 4, 8, 16
_KNOWN_FLAGS = 31
_HEADER = struct.Struct(">BBBQQQQI")
_ONE = struct.Struct(">Q")
_TYPES = {code: key_type for key_type, code in TYPE_CODES.items()}


@dataclass(frozen=True, slots=True)
class KeyState:
    """Everything about a key but its name, its purpose and its versions. Times are in seconds.

    `deleted_at` and `purge_at` are 0 unless `deleted`.
    """

    key_type: KeyType
    exportable: bool
    latest_version: int
    created_at: int
    disabled: bool = False
    disabled_versions: frozenset[int] = frozenset()
    purge_protected: bool = False
    deleted: bool = False
    deleted_at: int = 0
    purge_at: int = 0
    purged: bool = False

    def encode(self) -> bytes:
        """Return the plaintext of the record."""
        flags = (
            (_EXPORTABLE if self.exportable else 0)
            | (_DISABLED if self.disabled else 0)
            | (_PURGE_PROTECTED if self.purge_protected else 0)
            | (_DELETED if self.deleted else 0)
            | (_PURGED if self.purged else 0)
        )
        header = _HEADER.pack(
            _VERSION,
            flags,
            TYPE_CODES[self.key_type],
            self.latest_version,
            self.created_at,
            self.deleted_at,
            self.purge_at,
            len(self.disabled_versions),
        )
        return header + b"".join(_ONE.pack(one) for one in sorted(self.disabled_versions))

    @classmethod
    def parse(cls, plaintext: bytes) -> KeyState:
        """Read a plaintext that was sealed here; raise `CorruptEnvelope` for anything else."""
        if len(plaintext) < _HEADER.size:
            raise CorruptEnvelope("a key's state is too short; restore from a backup")
        version, flags, code, latest, created, deleted_at, purge_at, count = _HEADER.unpack_from(
            plaintext
        )
        known = version == _VERSION and not flags & ~_KNOWN_FLAGS and code in _TYPES
        if not known or len(plaintext) != _HEADER.size + count * _ONE.size:
            raise CorruptEnvelope(
                "a key's state is of a form not known to this version of the program; upgrade it"
            )
        return cls(
            key_type=_TYPES[code],
            exportable=bool(flags & _EXPORTABLE),
            latest_version=latest,
            created_at=created,
            disabled=bool(flags & _DISABLED),
            disabled_versions=frozenset(
                one for (one,) in _ONE.iter_unpack(plaintext[_HEADER.size :])
            ),
            purge_protected=bool(flags & _PURGE_PROTECTED),
            deleted=bool(flags & _DELETED),
            deleted_at=deleted_at,
            purge_at=purge_at,
            purged=bool(flags & _PURGED),
        )

"""What can go wrong with keys and certificates.

Every error is a `CertsError` whose text is one line: what is wrong, then what to do. No text ever
holds a secret: messages are built from names, versions, lengths and paths, never from key bytes.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto

__all__ = [
    "AccessDenied",
    "AuditLogAltered",
    "BadSignature",
    "CertsError",
    "CorruptEnvelope",
    "CredentialError",
    "InvalidInput",
    "InvalidName",
    "IssuanceError",
    "KEKUnavailable",
    "KeyDeleted",
    "KeyDisabled",
    "KeyExists",
    "KeyNotExportable",
    "KeyNotFound",
    "NotKnownGood",
    "PurgeProtected",
    "RevocationFault",
    "StoreError",
    "StoreFault",
    "UnsupportedKey",
    "UnusableCRL",
    "UnusableOCSPResponse",
    "ValidationError",
    "WrongKEK",
    "WrongPurpose",
]


class CertsError(Exception):
    """Base of this package's errors; its text is one line that says what to do."""


class WrongKEK(CertsError):
    """The key-encryption key (KEK) given is not the one that this store is sealed under."""


class KEKUnavailable(CertsError):
    """The key-encryption key cannot be had: bad URI, missing file, loose mode, wrong length."""


class CorruptEnvelope(CertsError):
    """A sealed record is damaged, or is not where it was sealed.

    Swapped, renamed, foreign and rolled-back records end here: each is bound to its place by its
    associated data, and authenticated encryption cannot tell a wrong place from a wrong byte.
    """


class KeyNotFound(CertsError):
    """No key of that name, or no such version of it."""


class KeyExists(CertsError):
    """The name is taken; a name is never overwritten."""


class KeyDisabled(CertsError):
    """The key, or this version of it, is disabled: it takes no part in anything until enabled."""


class KeyDeleted(CertsError):
    """The key was deleted; until its retention time is over it can be recovered."""


class PurgeProtected(CertsError):
    """The key cannot be purged yet: it is not deleted, or protected until its retention is over."""


class AccessDenied(CertsError):
    """The principal has no role that permits this; the refusal is in the audit log."""


class AuditLogAltered(CertsError):
    """The audit log is not what was logged; `row` is the first that is not, None if unknown."""

    def __init__(self, message: str, *, row: int | None) -> None:
        super().__init__(message)
        self.row = row


class BadSignature(CertsError):
    """A signature was not made by this version of this key over these bytes."""


class KeyNotExportable(CertsError):
    """The key was not created exportable, so its private part never leaves the store."""


class WrongPurpose(CertsError):
    """The key exists, but not for this use: a signing key neither decrypts nor agrees on keys."""


class UnsupportedKey(CertsError):
    """A key of a type or size that this package does not handle."""


class InvalidInput(CertsError):
    """A value that is too long, too short, or otherwise outside of what is taken."""


class InvalidName(CertsError):
    """A key or authority name outside the grammar (docs/formats.md, "Names")."""


class StoreFault(Enum):
    """Why a store cannot be used; carried by `StoreError.fault`."""

    MISSING = auto()
    EXISTS = auto()
    NOT_A_STORE = auto()
    NEWER_SCHEMA = auto()
    LOCKED = auto()
    READ_ONLY = auto()
    FULL = auto()
    DAMAGED = auto()
    UNREADABLE = auto()
    CLOSED = auto()


class StoreError(CertsError):
    """The store's database cannot be used; `fault` says which kind of trouble it is."""

    def __init__(self, message: str, *, fault: StoreFault) -> None:
        super().__init__(message)
        self.fault = fault


class ValidationError(CertsError):
    """A certificate path was refused; `errors` holds one line for each reason."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


class IssuanceError(CertsError):
    """A certificate cannot be issued as asked, or its issuance broke off."""


class CredentialError(CertsError):
    """A private key and its certificates cannot be used together, or cannot be read."""


class UnusableCRL(CertsError):
    """A certificate revocation list (CRL) that cannot be read, or that says nothing reliable."""


class UnusableOCSPResponse(CertsError):
    """An OCSP response that proves nothing about the certificate at hand."""


class RevocationFault(StrEnum):
    """Why a certificate is not known to be good."""

    REVOKED = "revoked"
    NO_LIST = "no list"
    BAD_SIGNATURE = "bad signature"
    NOT_YET_VALID = "not yet valid"
    EXPIRED = "expired"


class NotKnownGood(CertsError):
    """A certificate of a path is revoked, or nothing says that it is not; `fault` says which."""

    def __init__(self, message: str, fault: RevocationFault) -> None:
        super().__init__(message)
        self.fault = fault

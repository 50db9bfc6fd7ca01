"""The signed list of every file in an evidence directory.

``manifest.intoto.json`` is a DSSE envelope (`interop.proof.envelope`) around an in-toto Statement
(`interop.proof.statement`) whose subjects are all the other files, so any tool that reads in-toto
attestations can check the files too. docs/formats.md ("Manifest") specifies it.

The signature is over the payload as stored, never over a re-serialisation. It proves that nothing
changed since it was made; it says who made it only to a reader who knows the key's fingerprint from
elsewhere, which is why `pfs prove` prints it and `pfs verify` takes it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import stat
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.errors import InputError
from interop.proof import layout
from interop.proof.directory import shown_path
from interop.proof.envelope import Envelope, EnvelopeError, seal_envelope
from interop.proof.statement import (
    PAYLOAD_TYPE,
    Digest,
    Length,
    Predicate,
    Statement,
    Subject,
    predicate_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from interop.proof.model import Report

__all__ = [
    "MANIFEST_NAME",
    "Change",
    "Manifest",
    "check_manifest",
    "is_evidence",
    "key_fingerprint",
    "sign_manifest",
]

MANIFEST_NAME = "manifest.intoto.json"
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
# Of the format before this one, pfs-manifest/1.
_EARLIER_NAMES = ("manifest.json", "manifest.sig")


class Change(msgspec.Struct, frozen=True):
    """One difference between what was signed and what is there."""

    path: str
    problem: str


class Manifest(NamedTuple):
    """What came of checking a manifest.

    `fingerprint` is the signing key's, and `predicate` what it signed; empty and None where there
    is no signature that holds.
    """

    fingerprint: str
    changes: list[Change]
    predicate: Predicate | None


def key_fingerprint(public_key: Ed25519PublicKey) -> str:
    """Return ``SHA256:`` and the hex SHA-256 of the key's SubjectPublicKeyInfo."""
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{hashlib.sha256(spki).hexdigest()}"


def is_evidence(directory: Path) -> bool:
    """Say whether `directory` holds evidence, of this or of the earlier format."""
    return (directory / MANIFEST_NAME).is_file() or _is_earlier(directory)


def _is_earlier(directory: Path) -> bool:
    return all((directory / name).is_file() for name in _EARLIER_NAMES)


def sign_manifest(directory: Path, key: Ed25519PrivateKey, report: Report) -> str:
    """Write the signed manifest of all files in `directory`; return the key's fingerprint."""
    public_key = key.public_key()
    raw = public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    statement = Statement(
        subject=tuple(_subject(directory, path) for path in _files(directory)),
        predicate=predicate_of(report, public_key=base64.b64encode(raw).decode()),
    )
    fingerprint = key_fingerprint(public_key)
    payload = msgspec.json.encode(statement)
    envelope = seal_envelope(PAYLOAD_TYPE, payload, key, key_id=fingerprint)
    (directory / MANIFEST_NAME).write_bytes(envelope.encode())
    return fingerprint


def check_manifest(directory: Path, *, fingerprint: str | None = None) -> Manifest:
    """Check the signature, and find everything that is not as it was signed.

    With `fingerprint`, a manifest by any other key is a change too. Raises `InputError` where
    `directory` is no evidence directory, or one of the earlier format.
    """
    _require_evidence(directory)
    try:
        envelope = _read_envelope(directory / MANIFEST_NAME)
        statement = _read_statement(envelope)
        public_key = Ed25519PublicKey.from_public_bytes(
            base64.b64decode(statement.predicate.public_key, validate=True)
        )
        actual = key_fingerprint(public_key)
        public_key.verify(envelope.signature, envelope.signed_bytes)
    except EnvelopeError as error:
        return Manifest("", [Change(MANIFEST_NAME, str(error))], None)
    except (binascii.Error, ValueError):
        return Manifest("", [Change(MANIFEST_NAME, "it holds no Ed25519 key")], None)
    except InvalidSignature:
        return Manifest("", [Change(MANIFEST_NAME, "the signature does not match")], None)
    changes = []
    if envelope.key_id != actual:
        changes.append(Change(MANIFEST_NAME, "its keyid is not that of the key that signed"))
    if fingerprint is not None and not hmac.compare_digest(
        fingerprint.strip().lower().encode(), actual.lower().encode()
    ):
        changes.append(Change(MANIFEST_NAME, f"signed by another key, {actual}"))
    subjects = {subject.name: subject for subject in statement.subject}
    if len(subjects) != len(statement.subject):
        changes.append(Change(MANIFEST_NAME, "it names a file twice"))
    return Manifest(actual, changes + list(_compare(directory, subjects)), statement.predicate)


def _require_evidence(directory: Path) -> None:
    if not directory.is_dir():
        problem = "not a directory" if directory.exists() else "no such directory"
        raise InputError(f"{directory}: {problem}; name one that `pfs prove` has written")
    if (directory / MANIFEST_NAME).is_file():
        return
    if _is_earlier(directory):
        raise InputError(
            f"{directory}: evidence of the earlier format pfs-manifest/1, made by pfs-transport "
            f"{_earlier_version(directory)}; verify it with that version, or run `pfs prove` anew"
        )
    if not (directory / layout.REPORT_JSON).is_file():
        raise InputError(f"{directory}: not an evidence directory (it has no {MANIFEST_NAME})")
    # A report without a manifest is evidence that somebody took the manifest from.


def _earlier_version(directory: Path) -> str:
    try:
        report = json.loads(_read_bounded(directory / layout.REPORT_JSON))
        return str(report["versions"]["pfs-transport"])[:40]
    except (EnvelopeError, ValueError, KeyError, TypeError, RecursionError):
        return "of unknown version"


def _read_envelope(path: Path) -> Envelope:
    envelope = Envelope.decode(_read_bounded(path))
    if envelope.payload_type != PAYLOAD_TYPE:
        raise EnvelopeError(f"its payload is not {PAYLOAD_TYPE}")
    return envelope


def _read_statement(envelope: Envelope) -> Statement:
    try:
        return msgspec.json.decode(envelope.payload, type=Statement)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EnvelopeError("its payload is not a statement about evidence") from error


def _read_bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise EnvelopeError("missing") from error
    except OSError as error:
        raise EnvelopeError(f"cannot be read: {error.strerror}") from error
    if len(data) > _MAX_MANIFEST_BYTES:
        raise EnvelopeError(f"larger than {_MAX_MANIFEST_BYTES} bytes")
    return data


def _files(directory: Path) -> list[str]:
    """All paths below `directory` that are not folders, without the manifest itself.

    A symbolic link is one of them, whatever it points to.
    """
    found = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    return sorted(found - {MANIFEST_NAME})


def _subject(directory: Path, path: str) -> Subject:
    with (directory / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Subject(name=path, digest=Digest(digest), annotations=Length(file.tell()))


def _compare(directory: Path, subjects: dict[str, Subject]) -> Iterator[Change]:
    present = set(_files(directory))
    for path in sorted(present - subjects.keys()):
        yield Change(shown_path(path), "added since it was signed")
    for path, signed in sorted(subjects.items()):
        if path not in present:
            yield Change(path, "missing")
            continue
        length_bytes = signed.annotations.length_bytes
        try:
            status = (directory / path).lstat()
            if not stat.S_ISREG(status.st_mode):
                yield Change(path, "no longer a regular file")
            elif status.st_size != length_bytes:
                yield Change(path, f"changed: {status.st_size} bytes instead of {length_bytes}")
            elif _subject(directory, path) != signed:
                yield Change(path, "changed")
        except OSError as error:
            yield Change(path, f"cannot be read: {error.strerror}")

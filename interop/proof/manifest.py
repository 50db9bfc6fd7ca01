"""The signed list of every file in an evidence directory.

Format ``pfs-manifest/1`` (docs/formats.md specifies it):

- ``manifest.json``: UTF-8 JSON naming each file by its path relative to the directory (POSIX
  separators, sorted), its length in bytes and its SHA-256, and the Ed25519 public key that signed.
- ``manifest.sig``: the 64 octets of the Ed25519 signature (RFC 8032) over the ASCII string
  ``pfs-manifest/1``, one zero octet, and the octets of ``manifest.json`` as they are.

The signature is over the file as stored, never over a re-serialisation, so no two different
manifests share a signature, and Ed25519 signatures are not malleable. A signature proves that
nothing changed since it was made; it says who made it only to a reader who knows the key's
fingerprint from elsewhere, which is why `pfs prove` prints it and `pfs verify` takes it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import stat
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "MANIFEST_NAME",
    "SIGNATURE_NAME",
    "Change",
    "check_manifest",
    "is_evidence",
    "key_fingerprint",
    "sign_manifest",
]

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
_FORMAT = "pfs-manifest/1"
_SIGNATURE_BYTES = 64
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class Change(msgspec.Struct, frozen=True):
    """One difference between what was signed and what is there."""

    path: str
    problem: str


def key_fingerprint(public_key: Ed25519PublicKey) -> str:
    """Return ``SHA256:`` and the hex SHA-256 of the key's SubjectPublicKeyInfo."""
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{hashlib.sha256(spki).hexdigest()}"


def is_evidence(directory: Path) -> bool:
    """Say whether `directory` holds (or held) evidence: a manifest or its signature is there."""
    return any((directory / name).is_file() for name in (MANIFEST_NAME, SIGNATURE_NAME))


def sign_manifest(directory: Path, key: Ed25519PrivateKey, *, created: datetime) -> str:
    """Write the manifest of all files in `directory` and its signature; return the fingerprint."""
    public_key = key.public_key()
    manifest = {
        "format": _FORMAT,
        "created": created.isoformat(timespec="seconds"),
        "public_key": base64.b64encode(
            public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        ).decode(),
        "files": [_entry(directory, path) for path in _files(directory)],
    }
    encoded = json.dumps(manifest, indent=1).encode() + b"\n"
    (directory / MANIFEST_NAME).write_bytes(encoded)
    (directory / SIGNATURE_NAME).write_bytes(key.sign(_signed_bytes(encoded)))
    return key_fingerprint(public_key)


def check_manifest(directory: Path, *, fingerprint: str | None = None) -> tuple[str, list[Change]]:
    """Return the fingerprint of the signing key, and everything that is not as it was signed.

    With `fingerprint`, a manifest by any other key is a change too. Raises `InputError` where
    `directory` is no evidence directory.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; name one that `pfs prove` has written")
    if not is_evidence(directory):
        raise InputError(f"{directory}: not an evidence directory (it has no {MANIFEST_NAME})")
    try:
        encoded = _read_bounded(directory / MANIFEST_NAME, _MAX_MANIFEST_BYTES)
        signature = _read_bounded(directory / SIGNATURE_NAME, _SIGNATURE_BYTES)
        public_key, entries = _parse(encoded)
    except _ManifestError as error:
        return "", [Change(MANIFEST_NAME, str(error))]
    actual = key_fingerprint(public_key)
    try:
        public_key.verify(signature, _signed_bytes(encoded))
    except InvalidSignature:
        return actual, [Change(MANIFEST_NAME, "the signature does not match")]
    changes = []
    if fingerprint is not None and not hmac.compare_digest(
        fingerprint.strip().lower().encode(), actual.lower().encode()
    ):
        changes.append(Change(MANIFEST_NAME, f"signed by another key, {actual}"))
    return actual, changes + list(_compare(directory, entries))


class _ManifestError(Exception):
    """The manifest is not what a writer of this format writes."""


def _signed_bytes(encoded: bytes) -> bytes:
    return _FORMAT.encode() + b"\0" + encoded


def _files(directory: Path) -> list[str]:
    """All paths below `directory` that are not folders, without the manifest itself.

    A symbolic link is one of them, whatever it points to.
    """
    found = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    return sorted(found - {MANIFEST_NAME, SIGNATURE_NAME})


def _entry(directory: Path, path: str) -> dict[str, object]:
    with (directory / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": path, "bytes": file.tell(), "sha256": digest}


def _read_bounded(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise _ManifestError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise _ManifestError(f"{path.name} is larger than {limit_bytes} bytes")
    return data


def _parse(encoded: bytes) -> tuple[Ed25519PublicKey, dict[str, tuple[int, str]]]:
    try:
        manifest = json.loads(encoded)
        if manifest["format"] != _FORMAT:
            raise _ManifestError("the manifest is of another format")
        public_key = Ed25519PublicKey.from_public_bytes(
            base64.b64decode(manifest["public_key"], validate=True)
        )
        entries = {
            str(file["path"]): (int(file["bytes"]), str(file["sha256"]))
            for file in manifest["files"]
        }
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise _ManifestError("the manifest cannot be parsed") from error
    return public_key, entries


def _compare(directory: Path, entries: dict[str, tuple[int, str]]) -> Iterator[Change]:
    present = set(_files(directory))
    for path in sorted(present - entries.keys()):
        yield Change(path, "added since it was signed")
    for path, (length_bytes, sha256) in sorted(entries.items()):
        if path not in present:
            yield Change(path, "missing")
            continue
        try:
            status = (directory / path).lstat()
            if not stat.S_ISREG(status.st_mode):
                yield Change(path, "no longer a regular file")
            elif status.st_size != length_bytes:
                yield Change(path, f"changed: {status.st_size} bytes instead of {length_bytes}")
            elif _entry(directory, path)["sha256"] != sha256:
                yield Change(path, "changed")
        except OSError as error:
            yield Change(path, f"cannot be read: {error.strerror}")

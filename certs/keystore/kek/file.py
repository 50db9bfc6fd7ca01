"""``file:/path``: a KEK of 32 random bytes in a file that only its owner can read.

Two keys are derived from the file's bytes (HKDF-Expand, RFC 5869): one wraps, the other is a public
identifier. The identifier is what lets a wrong key file be told from a damaged store, which
authenticated encryption alone cannot do. docs/formats.md ("Wrapped root key, file provider").
"""

from __future__ import annotations

import hmac
import secrets
import struct
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from certs.errors import CorruptEnvelope, KEKUnavailable, StoreError, StoreFault, WrongKEK
from certs.keystore.files import create_file
from certs.keystore.kek.secret_input import read_owner_only_file

if TYPE_CHECKING:
    import os

__all__ = ["KEK_FILE_BYTES", "FileKEK"]

KEK_FILE_BYTES = 32
_ROOT_KEY_BYTES = 32
_MAGIC = b"PFSK"
_VERSION = 1
_IDENTIFIER_BYTES = 16
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEADER = struct.Struct(f">4sB{_IDENTIFIER_BYTES}s{_NONCE_BYTES}s")
_WRAPPED_BYTES = _HEADER.size + _ROOT_KEY_BYTES + _TAG_BYTES


class FileKEK:
    """The KEK in one key file. Make one with `create`, read one with `open`."""

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path = path
        self._identifier = _derive(secret, b"pfs kek 1 identifier", _IDENTIFIER_BYTES)
        self._wrapper: AESGCM | None = AESGCM(_derive(secret, b"pfs kek 1 wrap", 32))

    def __repr__(self) -> str:
        return f"<FileKEK {self.uri()}>"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> FileKEK:
        """Write 32 random bytes to a new file of mode 0600; raise `KEKUnavailable` if it exists."""
        where = Path(path).absolute()
        try:
            create_file(where, secrets.token_bytes(KEK_FILE_BYTES))
        except FileExistsError:
            raise KEKUnavailable(
                f"{where} exists and a KEK is never overwritten; choose another path"
            ) from None
        except OSError as error:
            raise KEKUnavailable(f"cannot write the KEK file {where}: {error.strerror}") from None
        return cls.open(where)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FileKEK:
        """Read a key file.

        Raises `KEKUnavailable` if it is missing, open to group or others, or not 32 bytes long.
        """
        where = Path(path).absolute()
        secret = read_owner_only_file(where, "KEK file", KEK_FILE_BYTES + 1)
        if len(secret) != KEK_FILE_BYTES:
            raise KEKUnavailable(
                f"{where} is not a KEK file: it must hold exactly {KEK_FILE_BYTES} bytes"
            )
        return cls(where, secret)

    @classmethod
    def from_uri(cls, uri: str) -> FileKEK:
        """Read the key file of a ``file:/path`` URI (RFC 8089; percent-encoding is decoded)."""
        return cls.open(_path_of(uri))

    @classmethod
    def create_from_uri(cls, uri: str) -> FileKEK:
        """Make the key file of a ``file:/path`` URI."""
        return cls.create(_path_of(uri))

    def uri(self) -> str:
        """Return ``file:/path``, percent-encoded where needed."""
        return f"file:{quote(str(self._path))}"

    def wrap(self, key: bytes, associated_data: bytes) -> bytes:
        """Return a root key (32 bytes) wrapped with AES-256-GCM: 81 bytes."""
        if len(key) != _ROOT_KEY_BYTES:
            raise ValueError(f"a root key has {_ROOT_KEY_BYTES} bytes, not {len(key)}")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        header = _HEADER.pack(_MAGIC, _VERSION, self._identifier, nonce)
        return header + self._open_wrapper().encrypt(nonce, key, associated_data)

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the root key.

        Raises `WrongKEK` if another key file wrapped it, `CorruptEnvelope` if it is damaged.
        """
        wrapper = self._open_wrapper()
        if len(wrapped) != _WRAPPED_BYTES:
            raise CorruptEnvelope(
                f"the wrapped root key has {len(wrapped)} bytes instead of {_WRAPPED_BYTES}; "
                "restore the store from a backup"
            )
        magic, version, identifier, nonce = _HEADER.unpack_from(wrapped)
        if magic != _MAGIC or version != _VERSION:
            raise CorruptEnvelope(
                "the root key was not wrapped by a key file; give the KEK URI the store was "
                "made with, or restore the store from a backup"
            )
        if not hmac.compare_digest(identifier, self._identifier):
            raise WrongKEK(f"{self._path} is not the KEK of this store; give the right key file")
        try:
            return wrapper.decrypt(nonce, wrapped[_HEADER.size :], associated_data)
        except InvalidTag:
            raise CorruptEnvelope(
                "the wrapped root key was altered, or comes from another store; "
                "restore the store from a backup"
            ) from None

    def close(self) -> None:
        """Forget the key."""
        self._wrapper = None

    def _open_wrapper(self) -> AESGCM:
        if self._wrapper is None:
            raise StoreError("the KEK was closed; open it again", fault=StoreFault.CLOSED)
        return self._wrapper


def _derive(secret: bytes, label: bytes, length: int) -> bytes:
    return HKDFExpand(hashes.SHA256(), length, label).derive(secret)


def _path_of(uri: str) -> Path:
    """Return the absolute path of ``file:/path`` or ``file:///path``."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise KEKUnavailable("the KEK URI is malformed; write file:/path/to/kek") from None
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or not path.startswith("/"):
        raise KEKUnavailable("the KEK URI needs an absolute path; write file:/path/to/kek")
    if parts.query or parts.fragment or "\0" in path:
        raise KEKUnavailable(
            "the KEK URI has a part beside its path; encode '?' as %3F, '#' as %23"
        )
    return Path(path)

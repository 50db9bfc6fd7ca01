"""``passphrase:``, a KEK that somebody remembers, made into a key by Argon2id (RFC 9106).

The URI says where the passphrase comes from, never what it is: ``passphrase:`` asks on the
terminal, ``passphrase:?file=/path`` reads a file that only its owner can read, and
``passphrase:?descriptor=3`` an inherited descriptor. It is asked for when it is first needed, and
twice before something new is wrapped: a slip of the finger must not lock a store for ever.

Salt and cost are stored with what is wrapped, so raising the cost does not shut old stores out.
What is read back is bounded before a byte of memory is spent on it: an edited record can neither
weaken the derivation below the least cost nor ask for more memory than `MAX_MEMORY_KIB`.
docs/formats.md ("Wrapped root key, other providers").
"""

from __future__ import annotations

import hmac
import secrets
import struct
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from certs.errors import KEKUnavailable, StoreError, StoreFault, WrongKEK
from certs.keystore.kek.options import split_uri
from certs.keystore.kek.secret_input import ask_on_terminal, read_descriptor, read_secret_line
from certs.keystore.kek.wrapped import ProviderNumber, WrappedKey, damaged, require_root_key

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_MEMORY_KIB", "MIN_MEMORY_KIB", "MIN_PASSPHRASE_CHARACTERS", "PassphraseKEK"]

MIN_PASSPHRASE_CHARACTERS = 12
MIN_MEMORY_KIB = 64 * 1024
MAX_MEMORY_KIB = 2 * 1024 * 1024
_PASSES = 3  # with 64 MiB and 4 lanes: RFC 9106, 4, the second recommended choice
_LANES = 4
_MAX_PASSES = 16
_MAX_LANES = 16
_SALT_BYTES = 16
_IDENTIFIER_BYTES = 16
_PARAMETERS = struct.Struct(f">{_IDENTIFIER_BYTES}s{_SALT_BYTES}sIII")
_INSTEAD = "give the passphrase as passphrase:?file=/path or passphrase:?descriptor=NUMBER"


class PassphraseKEK:
    """The KEK that a passphrase gives.

    `read` is called at most once, with whether a new passphrase is wanted, and returns it in UTF-8.
    """

    def __init__(
        self,
        read: Callable[[bool], bytes],
        *,
        uri: str = "passphrase:",
        memory_kib: int = MIN_MEMORY_KIB,
    ) -> None:
        if not MIN_MEMORY_KIB <= memory_kib <= MAX_MEMORY_KIB:
            raise ValueError(f"Argon2id takes {MIN_MEMORY_KIB} to {MAX_MEMORY_KIB} KiB here")
        self._uri = uri
        self._memory_kib = memory_kib
        self._read: Callable[[bool], bytes] | None = read
        self._passphrase: bytes | None = None

    def __repr__(self) -> str:
        return f"<PassphraseKEK {self._uri}>"

    @classmethod
    def from_uri(cls, uri: str) -> PassphraseKEK:
        """Return the provider of a ``passphrase:`` URI; nothing is read or asked for yet."""
        path, options = split_uri(uri, "passphrase", ("descriptor", "file"))
        if path or len(options) > 1:
            raise KEKUnavailable(
                "a passphrase never stands in its URI; write passphrase: to be asked for it, "
                "passphrase:?file=/path or passphrase:?descriptor=NUMBER"
            )
        if "file" in options:
            where = Path(options["file"])
            if not where.is_absolute() or "\0" in options["file"]:
                raise KEKUnavailable("the KEK URI needs an absolute path; write ?file=/path")
            return cls(lambda _new: read_secret_line(where, "passphrase file"), uri=uri)
        if "descriptor" in options:
            text = options["descriptor"]
            if not (text.isascii() and text.isdigit() and len(text) < 6):  # noqa: PLR2004 - digits
                raise KEKUnavailable("the KEK URI needs a number; write ?descriptor=NUMBER")
            return cls(lambda _new: read_descriptor(int(text), "passphrase"), uri=uri)
        return cls(_ask, uri="passphrase:")

    @classmethod
    def create_from_uri(cls, uri: str) -> PassphraseKEK:
        """Return the same: a passphrase is chosen when something is first wrapped."""
        return cls.from_uri(uri)

    def uri(self) -> str:
        """Return where the passphrase comes from."""
        return self._uri

    def wrap(self, key: bytes, associated_data: bytes) -> bytes:
        """Return a root key (32 bytes) wrapped under the passphrase: 112 bytes.

        Raises `KEKUnavailable` if no passphrase can be had, or it has under 12 characters.
        """
        passphrase = self._normalised(new=True)
        if len(passphrase.decode()) < MIN_PASSPHRASE_CHARACTERS:
            raise KEKUnavailable(
                f"a passphrase has at least {MIN_PASSPHRASE_CHARACTERS} characters; "
                "choose a longer one"
            )
        salt = secrets.token_bytes(_SALT_BYTES)
        cost = (self._memory_kib, _PASSES, _LANES)
        identifier, wrapper = _derive(passphrase, salt, *cost)
        parameters = _PARAMETERS.pack(identifier, salt, *cost)
        empty = WrappedKey(ProviderNumber.PASSPHRASE, parameters, b"")
        return empty.seal(wrapper, require_root_key(key), associated_data).encode()

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the root key; raise `WrongKEK` for another passphrase, or `CorruptEnvelope`."""
        self._require_open()
        parts = WrappedKey.parse(wrapped, ProviderNumber.PASSPHRASE)
        if len(parts.parameters) != _PARAMETERS.size:
            raise damaged("its parameters have another length")
        sealed = parts.require_sealed(parts.body)
        stored, salt, memory_kib, passes, lanes = _PARAMETERS.unpack(parts.parameters)
        if not (
            MIN_MEMORY_KIB <= memory_kib <= MAX_MEMORY_KIB
            and 1 <= passes <= _MAX_PASSES
            and 1 <= lanes <= _MAX_LANES
        ):
            raise damaged("its cost is outside of what is ever written")
        passphrase = self._normalised(new=False)
        identifier, wrapper = _derive(passphrase, salt, memory_kib, passes, lanes)
        if not hmac.compare_digest(identifier, stored):
            raise WrongKEK("this is not the passphrase of this store; give the right one")
        return parts.unseal(wrapper, sealed, associated_data)

    def close(self) -> None:
        """Forget the passphrase."""
        self._read = self._passphrase = None

    def _normalised(self, *, new: bool) -> bytes:
        """Return the passphrase as UTF-8 in Unicode's form C, so that keyboards do not matter."""
        read = self._require_open()
        if self._passphrase is None:
            try:
                text = read(new).decode()
            except UnicodeDecodeError:
                raise KEKUnavailable("a passphrase is text in UTF-8; write it so") from None
            self._passphrase = unicodedata.normalize("NFC", text).encode()
        return self._passphrase

    def _require_open(self) -> Callable[[bool], bytes]:
        if self._read is None:
            raise StoreError("the KEK was closed; open it again", fault=StoreFault.CLOSED)
        return self._read


def _ask(new: bool) -> bytes:  # noqa: FBT001 - one question with two forms
    if not new:
        return ask_on_terminal("Passphrase of the key store", _INSTEAD)
    first = ask_on_terminal("New passphrase for the key store", _INSTEAD)
    if not hmac.compare_digest(first, ask_on_terminal("The same again", _INSTEAD)):
        raise KEKUnavailable("the two passphrases differ; try again")
    return first


def _derive(
    passphrase: bytes, salt: bytes, memory_kib: int, passes: int, lanes: int
) -> tuple[bytes, bytes]:
    """Return the public identifier and the wrapping key."""
    try:
        secret = Argon2id(
            salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory_kib
        ).derive(passphrase)
    except MemoryError:
        raise KEKUnavailable(
            f"deriving the key takes {memory_kib // 1024} MiB of memory, which are not free; "
            "free them and try again"
        ) from None
    return (
        HKDFExpand(hashes.SHA256(), _IDENTIFIER_BYTES, b"pfs kek 2 identifier").derive(secret),
        HKDFExpand(hashes.SHA256(), 32, b"pfs kek 2 wrap").derive(secret),
    )

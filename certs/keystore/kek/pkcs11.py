"""``pkcs11:``, a KEK that lives in a hardware security module, a smart card or SoftHSM.

The URI is that of RFC 7512::

    pkcs11:token=vault;object=pfs-kek?module-path=/usr/lib/module.so&pin-source=file:/etc/pfs/pin

Without ``pin-source`` the PIN is asked for on the terminal. The KEK is an AES-256 key that the
token made and never hands out: one that can be extracted, or read, is refused.

The token wraps the fresh key that seals the root key (`wrapped`): with AES-GCM where the token and
the key can, else with AES key wrap (RFC 3394). Which one is stored.

When a wrapped key does not open, a token says "general error" as often as anything more exact. So
the KEK is then asked to open something that it has just wrapped: if it does, the token works and
another KEK wrapped the root key; if not, the token is what is wrong.
"""

from __future__ import annotations

import contextlib
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pkcs11
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as token_errors

from certs.errors import KEKUnavailable, WrongKEK
from certs.keystore.kek.pkcs11_keys import TokenKeys
from certs.keystore.kek.pkcs11_token import TokenUse, use_token
from certs.keystore.kek.pkcs11_uri import PKCS11URI, parse_pkcs11_uri
from certs.keystore.kek.secret_input import ask_on_terminal, read_secret_line
from certs.keystore.kek.wrapped import (
    ProviderNumber,
    WrappedKey,
    damaged,
    open_root_key,
    seal_root_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from certs.key_types import KeyType, PrivateKey

__all__ = ["PKCS11KEK"]

_KEY_BYTES = 32
_NONCE_BYTES = 12
_BOUND = b"pfs kek 2 pkcs11"
_GCM = 1
_KEY_WRAP = 2
_OUTER_BYTES = {_GCM: _NONCE_BYTES + _KEY_BYTES + 16, _KEY_WRAP: _KEY_BYTES + 8}
_NOT_OPENED = (
    token_errors.DataInvalid,
    token_errors.DataLenRange,
    token_errors.EncryptedDataInvalid,
    token_errors.EncryptedDataLenRange,
    token_errors.FunctionFailed,
    token_errors.GeneralError,
    token_errors.WrappedKeyInvalid,
    token_errors.WrappedKeyLenRange,
)


class PKCS11KEK:
    """The KEK in one token. Open one with `from_uri`; `create_from_uri` makes its key first.

    May be shared by threads. Private keys can be kept in the same token: `KeepsPrivateKeys`.
    """

    def __init__(self, uri: str, use: TokenUse, key: pkcs11.SecretKey, modes: list[int]) -> None:
        self._uri = uri
        self._use = use
        self._key = key
        self._modes = modes
        self._keys = TokenKeys(use)

    def __repr__(self) -> str:
        return f"<PKCS11KEK {self._uri}>"

    @classmethod
    def from_uri(cls, uri: str) -> PKCS11KEK:
        """Log in and find the key; raise `KEKUnavailable` if any of it fails."""
        wanted = parse_pkcs11_uri(uri)
        with _logged_in(wanted) as use:
            return cls._found(uri, wanted, use)

    @classmethod
    def create_from_uri(cls, uri: str) -> PKCS11KEK:
        """Make a new key in the token; raise `KEKUnavailable` if one has its label or id."""
        wanted = parse_pkcs11_uri(uri)
        with _logged_in(wanted) as use:
            if _find(use, wanted):
                raise KEKUnavailable(
                    "the token has such a key and a KEK is never overwritten; choose another label"
                )
            _generate(use, wanted)
            return cls._found(uri, wanted, use)

    @classmethod
    def _found(cls, uri: str, wanted: PKCS11URI, use: TokenUse) -> PKCS11KEK:
        found = _find(use, wanted)
        if len(found) != 1:
            raise KEKUnavailable(
                f"{len(found) or 'no'} AES keys of the token fit the KEK URI and one must; "
                "name it by object=LABEL or id=%XX, or make it"
            )
        return cls(uri, use, found[0], _modes_of(use, found[0]))

    def uri(self) -> str:
        """Return the URI; it holds no PIN."""
        return self._uri

    def wrap(self, key: bytes, associated_data: bytes) -> bytes:
        """Return a root key (32 bytes) wrapped: 131 bytes by AES-GCM, 111 by AES key wrap."""
        mode = self._modes[0]
        return seal_root_key(
            ProviderNumber.PKCS11,
            bytes([mode]),
            key,
            associated_data,
            lambda fresh: self._wrap(mode, fresh),
        )

    def unwrap(self, wrapped: bytes, associated_data: bytes) -> bytes:
        """Return the root key.

        Raises `WrongKEK` if another key wrapped it, `CorruptEnvelope` if it is damaged, and
        `KEKUnavailable` if the token does not answer.
        """
        parts = WrappedKey.parse(wrapped, ProviderNumber.PKCS11)
        if parts.parameters not in {bytes([mode]) for mode in _OUTER_BYTES}:
            raise damaged("its parameters are unknown")
        return open_root_key(
            parts, associated_data, lambda outer: self._unwrap(parts.parameters[0], outer)
        )

    def generate_private_key(self, label: str, key_type: KeyType) -> PrivateKey:
        """Make a key pair in the token (see `KeepsPrivateKeys`)."""
        return self._keys.generate(label, key_type)

    def private_key(self, label: str) -> PrivateKey:
        """Return the token's key of this label (see `KeepsPrivateKeys`)."""
        return self._keys.find(label)

    def close(self) -> None:
        """Leave the token."""
        self._use.close()

    def _wrap(self, mode: int, fresh: bytes) -> bytes:
        with self._use.call("wrap with the token's key") as session:
            if mode == _GCM:
                nonce = secrets.token_bytes(_NONCE_BYTES)
                sealed = cast("pkcs11.EncryptMixin", self._key).encrypt(
                    fresh,
                    mechanism=Mechanism.AES_GCM,
                    mechanism_param=pkcs11.GCMParams(nonce, _BOUND),
                )
                return nonce + cast("bytes", sealed)
            imported = session.create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: pkcs11.KeyType.AES,
                    Attribute.VALUE: fresh,
                    **_FOR_A_MOMENT,
                }
            )
            try:
                wrapping = cast("pkcs11.WrapMixin", self._key)
                return wrapping.wrap_key(
                    cast("pkcs11.SecretKey", imported), mechanism=Mechanism.AES_KEY_WRAP
                )
            finally:
                imported.destroy()

    def _unwrap(self, mode: int, outer: bytes) -> bytes:
        if len(outer) != _OUTER_BYTES[mode]:
            raise damaged("its outer part has another length")
        if mode not in self._modes:
            raise WrongKEK(
                "the token's key does not unwrap in the way that this store's root key was "
                "wrapped; name the key that the store was made with"
            )
        with self._use.call("unwrap with the token's key"):
            try:
                return self._open(mode, outer)
            except _NOT_OPENED as error:
                self._require_working(mode, error)
        raise WrongKEK(
            "the token's key is not the KEK of this store; name the key that the store was made "
            "with, and the token that holds it"
        )

    def _open(self, mode: int, outer: bytes) -> bytes:
        if mode == _GCM:
            plaintext = cast("pkcs11.DecryptMixin", self._key).decrypt(
                outer[_NONCE_BYTES:],
                mechanism=Mechanism.AES_GCM,
                mechanism_param=pkcs11.GCMParams(outer[:_NONCE_BYTES], _BOUND),
            )
            return cast("bytes", plaintext)
        opened = cast("pkcs11.UnwrapMixin", self._key).unwrap_key(
            ObjectClass.SECRET_KEY,
            pkcs11.KeyType.AES,
            outer,
            mechanism=Mechanism.AES_KEY_WRAP,
            template=_FOR_A_MOMENT,
        )
        try:
            return bytes(opened[Attribute.VALUE])
        finally:
            opened.destroy()

    def _require_working(self, mode: int, error: token_errors.PKCS11Error) -> None:
        """Raise `error` again unless the key opens what it has just wrapped."""
        probe = secrets.token_bytes(_KEY_BYTES)
        if self._open(mode, self._wrap(mode, probe)) != probe:
            raise error


_FOR_A_MOMENT = {
    Attribute.TOKEN: False,
    Attribute.SENSITIVE: False,
    Attribute.EXTRACTABLE: True,
}


@contextmanager
def _logged_in(wanted: PKCS11URI) -> Iterator[TokenUse]:
    """Yield a login, which ends here only if what is done with it fails."""

    def read_pin(label: str) -> bytes:
        if wanted.pin_file is not None:
            return read_secret_line(Path(wanted.pin_file), "PIN file")
        return ask_on_terminal(
            f"PIN of the token {label!r}", "name the PIN's file by pin-source=file:/path"
        )

    use = use_token(wanted.module_path, wanted.token, read_pin)
    with contextlib.ExitStack() as undo:
        undo.callback(use.close)
        yield use
        undo.pop_all()


def _find(use: TokenUse, wanted: PKCS11URI) -> list[pkcs11.SecretKey]:
    sought: dict[Attribute, object] = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: pkcs11.KeyType.AES,
        Attribute.TOKEN: True,
    }
    if wanted.label is not None:
        sought[Attribute.LABEL] = wanted.label
    if wanted.identifier is not None:
        sought[Attribute.ID] = wanted.identifier
    with use.call("look for the KEK in the token") as session:
        return [key for key in session.get_objects(sought) if isinstance(key, pkcs11.SecretKey)]


def _modes_of(use: TokenUse, key: pkcs11.SecretKey) -> list[int]:
    """Return how this key can wrap, the better way first; refuse one that can leave the token."""
    there = use.mechanisms()
    with use.call("read what the KEK may be used for"):
        if key[Attribute.VALUE_LEN] != _KEY_BYTES:
            raise KEKUnavailable("the token's key is no AES-256 key; name one, or make one")
        if not key[Attribute.SENSITIVE] or key[Attribute.EXTRACTABLE]:
            raise KEKUnavailable(
                "the token's key can be taken out of the token, so it is no KEK; make one that is "
                "sensitive and cannot be extracted"
            )
        may = {
            _GCM: Mechanism.AES_GCM in there and key[Attribute.ENCRYPT] and key[Attribute.DECRYPT],
            _KEY_WRAP: Mechanism.AES_KEY_WRAP in there
            and key[Attribute.WRAP]
            and key[Attribute.UNWRAP],
        }
    modes = [mode for mode, possible in may.items() if possible]
    if not modes:
        raise KEKUnavailable(
            "the token's key can neither AES-GCM (encrypt, decrypt) nor AES key wrap (wrap, "
            "unwrap); make one that can"
        )
    return modes


def _generate(use: TokenUse, wanted: PKCS11URI) -> None:
    uses = (
        MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
        if Mechanism.AES_GCM in use.mechanisms()
        else MechanismFlag.WRAP | MechanismFlag.UNWRAP
    )
    with use.writing("make a key in the token") as session:
        made = session.generate_key(
            pkcs11.KeyType.AES,
            _KEY_BYTES * 8,
            id=wanted.identifier or secrets.token_bytes(16),
            label=wanted.label or "pfs-kek",
            store=True,
            capabilities=uses,
            template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
        )
        # A token does not keep labels apart: of two who make one at once, neither may stay.
        if len(_find(use, wanted)) != 1:
            made.destroy()
            raise KEKUnavailable("another process made such a key at the same time; try again")

"""What private keys that sign where they are kept have in common, in a store or in a token.

A mixin under cryptography's own private-key interfaces: the public half is at hand, and whatever
would hand out or copy the private one is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NoReturn, Self, TypeVar

from certs.errors import KeyNotExportable, WrongPurpose
from certs.key_types import PublicKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import serialization

__all__ = ["KeptPrivateKey"]

_Public = TypeVar("_Public", bound=PublicKey)


class KeptPrivateKey(Generic[_Public]):
    """A private key that stays where it is kept.

    `described` names it, `where_it_signs` goes on from that: where it does, and what to do instead
    of exporting it.
    """

    def __init__(self, public_key: _Public, described: str, where_it_signs: str) -> None:
        self._public_key = public_key
        self._described = described
        self._where_it_signs = where_it_signs

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._described}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        self._refuse_export()

    def public_key(self) -> _Public:
        """Return the public key."""
        return self._public_key

    def private_numbers(self) -> NoReturn:
        """Raise `KeyNotExportable`."""
        self._refuse_export()

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002 - the interface's own name
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> NoReturn:
        """Raise `KeyNotExportable`."""
        del encoding, format, encryption_algorithm
        self._refuse_export()

    def _refuse_export(self) -> NoReturn:
        raise KeyNotExportable(f"key {self._described} signs inside its {self._where_it_signs}")

    def _refuse_use(self, use: str) -> NoReturn:
        raise WrongPurpose(f"key {self._described} signs and cannot {use}; use another key")

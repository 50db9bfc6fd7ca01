"""Which credential answers which server name: a table of exact names and wildcards.

RFC 6066 section 3 lets a client name the server it wants; RFC 9525 section 6.3 says what a wildcard
covers: one whole leftmost label, never more. The table is asked from inside a handshake, so a
lookup is two dictionary reads: the name itself, then the name with ``*`` for its first label.

`ascii_hostname` is the client's side of it: the name that it asks for and expects.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from transport.errors import APIMisuse

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NameTable", "ascii_hostname", "normalize_name"]

_MAX_NAME_CHARACTERS: Final = 253
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_Value = TypeVar("_Value")


class NameTable(Generic[_Value]):
    """What belongs to each name; the first to claim a name keeps it."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[tuple[str, _Value]] = ()) -> None:
        self._entries: dict[str, _Value] = {}
        for name, value in entries:
            self._entries.setdefault(normalize_name(name), value)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, as they are looked up."""
        return tuple(self._entries)

    def get(self, name: str) -> _Value | None:
        """Return what belongs to `name`, exact before wildcard; None if it is unknown.

        Takes any text, such as a peer sends; what is no name is unknown.
        """
        name = name.lower().rstrip(".")
        exact = self._entries.get(name)
        if exact is not None:
            return exact
        first, _dot, rest = name.partition(".")
        return self._entries.get(f"*.{rest}") if first and first != "*" else None


def normalize_name(name: str) -> str:
    """Return a DNS name or wildcard as the table spells it: lower case, A-labels, no final dot.

    Raises `APIMisuse` for what is neither.
    """
    star, text = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    try:
        encoded = star + text.rstrip(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        encoded = ""
    if len(encoded) > _MAX_NAME_CHARACTERS or _NAME.fullmatch(encoded) is None:
        raise APIMisuse(
            f"{name!r} is not a server name",
            advice="give a DNS name, or one whose first label is *",
        )
    return encoded


def ascii_hostname(name: str) -> str:
    """Return the name as certificates spell it (IDNA A-labels), without a final dot."""
    try:
        encoded = name.rstrip(".").encode("idna").decode("ascii")
    except UnicodeError as error:
        raise APIMisuse(
            f"{name!r} is not a host name", advice="pass a DNS name or an IP address"
        ) from error
    if not encoded or len(encoded) > _MAX_NAME_CHARACTERS or "\0" in encoded:
        raise APIMisuse(f"{name!r} is not a host name", advice="pass a DNS name or an IP address")
    return encoded

"""The grammar of names, checked before a name reaches the database or a sealed record.

Slashes make a hierarchy by which access is granted later, so the grammar admits no spelling that
two readers could take for different places: no empty part, no part of dots alone, no blanks, and
ASCII only (no two characters that look alike).
"""

from __future__ import annotations

import re

from certs.errors import InvalidName

__all__ = ["MAX_NAME_LENGTH", "is_name", "is_under", "just_before", "require_name"]

MAX_NAME_LENGTH = 128
_SHOWN = 40
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)


def is_name(text: str) -> bool:
    """Return whether `text` is a name: 1 to 128 characters in parts separated by slashes."""
    return len(text) <= MAX_NAME_LENGTH and _NAME.fullmatch(text) is not None


def is_under(name: str, scope: str) -> bool:
    """Return whether a name is the scope's own or below it: ``web`` has ``web/a``, not ``webs``."""
    return name == scope or name.startswith(f"{scope}/")


def just_before(name: str) -> str:
    """Return a text that sorts before a name and after every name that does."""
    return f"{name[:-1]}{chr(ord(name[-1]) - 1)}\N{DELETE}"


def require_name(text: str) -> str:
    """Return `text` if it is a name; raise `InvalidName` if it is not."""
    if not is_name(text):
        shown = ascii(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")
        raise InvalidName(
            f"{shown} is not a name: use up to {MAX_NAME_LENGTH} letters, digits, '.', '_', '-', "
            "in parts separated by '/', each part starting with a letter or digit"
        )
    return text

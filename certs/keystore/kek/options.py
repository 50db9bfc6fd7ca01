"""The part after ``?`` of a KEK URI, read strictly: known names, each at most once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from certs.errors import KEKUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["MAX_URI_CHARACTERS", "split_uri"]

MAX_URI_CHARACTERS = 4096


def split_uri(uri: str, scheme: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return what stands between ``scheme:`` and ``?``, and the options after it, decoded.

    Raises `KEKUnavailable`; no part of the URI that may be a mistyped secret is repeated.
    """
    found, _, rest = uri.partition(":")
    if found.lower() != scheme or len(uri) > MAX_URI_CHARACTERS or not uri.isprintable():
        raise KEKUnavailable(f"the KEK URI is malformed; it begins with {scheme}:")
    path, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if name not in known or not equals or name in options:
            names = ", ".join(sorted(known))
            raise KEKUnavailable(f"a {scheme}: KEK URI has options {names}, each once")
        options[name] = unquote(value)
    return path, options

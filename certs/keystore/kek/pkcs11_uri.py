"""``pkcs11:`` URIs (RFC 7512), read strictly.

Strictly means: an attribute that is unknown, repeated or badly encoded is an error, never ignored,
since each one narrows what the URI may find, and a URI that finds more than was meant finds the
wrong key. Two things that the RFC allows are refused for good: a PIN in the URI (``pin-value``),
because URIs are seen by every process and kept in logs, and a program that prints the PIN
(``pin-source=|command``).

This module does not touch a token: `PKCS11URI` only says what to look for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from certs.errors import KEKUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_URI_CHARACTERS", "PKCS11URI", "parse_pkcs11_uri"]

MAX_URI_CHARACTERS = 4096

_TEXT_ATTRIBUTES = frozenset(
    {
        "token",
        "manufacturer",
        "serial",
        "model",
        "library-manufacturer",
        "library-description",
        "slot-manufacturer",
        "slot-description",
    }
)
_PATH_ATTRIBUTES = _TEXT_ATTRIBUTES | {"library-version", "slot-id", "object", "id", "type"}
_QUERY_ATTRIBUTES = frozenset({"pin-source", "pin-value", "module-name", "module-path"})
_ENCODED = r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,={extra}]|%[0-9A-Fa-f]{{2}})*"
_PATH_VALUE = re.compile(_ENCODED.format(extra="&"))
_QUERY_VALUE = re.compile(_ENCODED.format(extra="/?|"))
_NUMBER = re.compile(r"[0-9]{1,10}")
_VERSION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PKCS11URI:
    """What a URI asks for.

    `token` holds the attributes that find the token, under their names of RFC 7512, 2.3. `label` is
    the attribute ``object``; `identifier` (``id``) is bytes. `module_path` is absolute;
    `pin_file` is the absolute path of the file that holds the PIN, None to ask for it.
    """

    token: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    identifier: bytes | None = None
    module_path: str
    pin_file: str | None = None


def parse_pkcs11_uri(uri: str) -> PKCS11URI:
    """Return what the URI of a KEK asks for.

    Raises `KEKUnavailable`; its text never repeats a value, which may be a secret.
    """
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "pkcs11" or len(uri) > MAX_URI_CHARACTERS:
        raise _refused("it begins with pkcs11: and has at most 4,096 characters")
    path_text, _, query_text = rest.partition("?")
    path = _attributes(path_text, ";", _PATH_ATTRIBUTES, _PATH_VALUE)
    query = _attributes(query_text, "&", _QUERY_ATTRIBUTES, _QUERY_VALUE)
    if "pin-value" in query:
        raise _refused("a PIN never stands in a URI; write pin-source=file:/path, or be asked")
    if "module-name" in query or "module-path" not in query:
        raise _refused("it needs module-path=/path/to/the/module.so, and no module-name")
    if path.pop("type", b"secret-key") != b"secret-key":
        raise _refused("a KEK has type=secret-key")
    identifier = path.pop("id", None)
    texts = {name: _text(name, value) for name, value in path.items()}
    label = texts.pop("object", None)
    if not label and not identifier:
        raise _refused("it names the key by object=LABEL, by id=%XX, or by both")
    if not _NUMBER.fullmatch(texts.get("slot-id", "0")):
        raise _refused("slot-id is a number")
    if not _VERSION.fullmatch(texts.get("library-version", "0")):
        raise _refused("library-version is a number, or two with a dot between")
    return PKCS11URI(
        token=texts,
        label=label,
        identifier=identifier,
        module_path=_absolute("module-path", _text("module-path", query["module-path"])),
        pin_file=_pin_file(query.get("pin-source")),
    )


def _attributes(
    text: str, separator: str, known: frozenset[str], value_grammar: re.Pattern[str]
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in text.split(separator) if text else ():
        name, equals, value = item.partition("=")
        if name not in known or not equals:
            raise _refused(
                f"between each '{separator}' stands NAME=VALUE with a name of RFC 7512, 2.3 or 2.4"
            )
        if name in found:
            raise _refused(f"{name} stands in it twice")
        if not value_grammar.fullmatch(value):
            raise _refused(f"{name} holds a character that must be percent-encoded")
        found[name] = unquote_to_bytes(value)
    return found


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise _refused(f"{name} is not UTF-8") from None
    if not text.isprintable():
        raise _refused(f"{name} holds a character that no name has")
    return text


def _pin_file(value: bytes | None) -> str | None:
    if value is None:
        return None
    source = _text("pin-source", value)
    if source.startswith("|"):
        raise _refused("a PIN is read from a file, not from a command; write pin-source=file:/path")
    path = source.removeprefix("file:")
    if path.startswith("///"):
        path = path[2:]
    return _absolute("pin-source", path)


def _absolute(name: str, path: str) -> str:
    if not path.startswith("/") or path.startswith("//"):
        raise _refused(f"{name} needs an absolute path")
    return path


def _refused(reason: str) -> KEKUnavailable:
    return KEKUnavailable(f"the PKCS #11 KEK URI is malformed: {reason}")

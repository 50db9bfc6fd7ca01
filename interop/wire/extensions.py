"""Extensions of hello messages, certificates and tickets (RFC 9846 section 4.3).

`parse_extensions` keeps every extension's bytes by number; the functions after it read the ones
that decide something. They run only when somebody asks, so an extension that nobody needs
cannot spoil a message that is otherwise sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from interop.wire.codec import Reader
from interop.wire.registry import ExtensionType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ExtensionBlock",
    "KeyShare",
    "OfferedPSK",
    "OfferedPSKs",
    "client_key_shares",
    "offered_psks",
    "open_extension",
    "parse_extensions",
    "psk_key_exchange_modes",
    "server_name",
    "supported_versions",
]

ExtensionBlock = dict[int, bytes]

_HOST_NAME = 0
_PATHS = {number: f"extensions.{number.name.lower()}" for number in ExtensionType}


class KeyShare(NamedTuple):
    """A public value and the group it belongs to (RFC 9846 section 4.3.8)."""

    group: int
    key_exchange: bytes


class OfferedPSK(NamedTuple):
    """One identity that a client offers, with its binder (section 4.2.11)."""

    identity: bytes
    obfuscated_ticket_age: int
    binder: bytes


class OfferedPSKs(NamedTuple):
    """The pre_shared_key extension of a ClientHello.

    `binders_length` is how many bytes at the end of the message the binders take, with their
    length: a binder is computed over the message without them.
    """

    identities: tuple[OfferedPSK, ...]
    binders_length: int


def parse_extensions(reader: Reader, name: str = "extensions") -> ExtensionBlock:
    """Read an extensions vector; an extension given twice is refused (section 4.2)."""
    block: ExtensionBlock = {}
    inner = reader.vector(2, name)
    for number, data in inner.numbered_vectors("type", "data"):
        if number in block:
            inner.fail(f"extension {number} occurs twice")
        block[number] = data
    return block


def open_extension(
    extensions: Mapping[int, bytes], number: ExtensionType, path: str
) -> Reader | None:
    """Open an extension of the message at `path`; None if it is not there."""
    data = extensions.get(number)
    if data is None:
        return None
    return Reader(data, f"{path}.{_PATHS[number]}")


def supported_versions(extensions: Mapping[int, bytes], path: str) -> tuple[int, ...]:
    """Read a client's versions (section 4.2.1); empty if it sent none."""
    if (reader := open_extension(extensions, ExtensionType.SUPPORTED_VERSIONS, path)) is None:
        return ()
    versions = reader.u16_list(1, "list")
    reader.end()
    return versions


def psk_key_exchange_modes(extensions: Mapping[int, bytes], path: str) -> tuple[int, ...]:
    """Read how a client would use a PSK (section 4.2.9)."""
    if (reader := open_extension(extensions, ExtensionType.PSK_KEY_EXCHANGE_MODES, path)) is None:
        return ()
    modes = reader.opaque(1, "modes")
    reader.end()
    return tuple(modes)


def server_name(extensions: Mapping[int, bytes], path: str) -> str | None:
    """Read the host a client asks for (RFC 6066 section 3).

    None without one. A name that is not ASCII is given with escapes: it is shown to people.
    """
    reader = open_extension(extensions, ExtensionType.SERVER_NAME, path)
    if reader is None or not reader.remaining:  # a server acknowledges with an empty extension
        return None
    names = reader.vector(2, "names")
    while names.remaining:
        kind = names.u8("kind")
        name = names.opaque(2, "name")
        if kind == _HOST_NAME:
            return name.decode("ascii", "backslashreplace")
    return None


def client_key_shares(extensions: Mapping[int, bytes], path: str) -> tuple[KeyShare, ...]:
    """Read the shares a client offers (section 4.2.8)."""
    if (reader := open_extension(extensions, ExtensionType.KEY_SHARE, path)) is None:
        return ()
    inner = reader.vector(2, "client_shares")
    pairs = inner.numbered_vectors("group", "key_exchange", minimum=1)
    shares = tuple(KeyShare(group, key_exchange) for group, key_exchange in pairs)
    reader.end()
    return shares


def offered_psks(extensions: Mapping[int, bytes], path: str) -> OfferedPSKs | None:
    """Read the PSKs a client offers (section 4.2.11); as many binders as identities."""
    if (reader := open_extension(extensions, ExtensionType.PRE_SHARED_KEY, path)) is None:
        return None
    identities = []
    inner = reader.vector(2, "identities")
    while inner.remaining:
        identity = inner.opaque(2, "identity", minimum=1)
        identities.append((identity, inner.u32("obfuscated_ticket_age")))
    binders_length = reader.remaining
    binders = []
    inner = reader.vector(2, "binders")
    while inner.remaining:
        binders.append(inner.opaque(1, "binder"))
    reader.end()
    if len(binders) != len(identities):
        reader.fail(f"{len(identities)} identities, {len(binders)} binders")
    offers = tuple(
        OfferedPSK(identity, age, binder)
        for (identity, age), binder in zip(identities, binders, strict=True)
    )
    return OfferedPSKs(offers, binders_length)

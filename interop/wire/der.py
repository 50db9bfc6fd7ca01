"""The few pieces of DER (X.690) that stolen secrets are stored in.

cryptography reads certificates and keys; what it does not read (any more) are OpenSSL's stored
sessions and finite-field Diffie-Hellman keys. Both are a handful of definite-length elements, read
here through the bounded `Reader`; every failure is a `DissectError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interop.wire.codec import Reader

__all__ = ["INTEGER", "OBJECT_IDENTIFIER", "OCTET_STRING", "SEQUENCE", "integer", "open_element"]

INTEGER = 0x02
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
SEQUENCE = 0x30

_LONG_FORM = 0x80
_MAX_LENGTH_OCTETS = 4


def open_element(reader: Reader, tag: int, name: str) -> Reader:
    """Open the next element, which must have this tag, and give a reader of its contents."""
    if (found := reader.u8(name)) != tag:
        reader.fail(f"tag 0x{found:02x} where 0x{tag:02x} is expected", name)
    length = reader.u8(name)
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        if not 0 < count <= _MAX_LENGTH_OCTETS:
            reader.fail(f"a length of {count} octets", name)
        length = reader.uint(count, name)
    return reader.nested(length, name)


def integer(reader: Reader, name: str) -> int:
    """Take an INTEGER; a negative or empty one is refused."""
    octets = open_element(reader, INTEGER, name).rest()
    if not octets or octets[0] & _LONG_FORM:
        reader.fail("not a number from 0 up", name)
    return int.from_bytes(octets, "big")

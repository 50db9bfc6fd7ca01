"""The bounded reader that every parser of this package goes through.

A `Reader` is a window on a memoryview. Each read states what it is for, checks the window before
it touches a byte, and on failure raises `DissectError` with the field's path and its offset from
the start of the dissected unit, so that a report can say *where* a peer's message is wrong. A
nested vector gets a `Reader` of its own: what it declares as its length is all it can see. That
is the invariant which keeps a hostile inner length from reaching a neighbour's bytes.
"""

from __future__ import annotations

from struct import unpack
from typing import Never

from interop.errors import DissectError

__all__ = ["Reader"]


class Reader:
    """Reads big-endian fields from `view`, never past its end.

    `offset` is where the view starts within the dissected unit, in bytes; `path` names it.
    """

    __slots__ = ("_base", "_end", "_position", "_view", "path")

    def __init__(self, view: memoryview, path: str, offset: int = 0) -> None:
        self._view = view
        self._position = 0
        self._end = len(view)
        self._base = offset
        self.path = path

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self._end - self._position

    def fail(self, message: str, name: str = "") -> Never:
        """Raise `DissectError` at the current position, for the field `name` if given."""
        path = f"{self.path}.{name}" if name else self.path
        raise DissectError(message, offset=self._base + self._position, path=path)

    def view(self, length: int, name: str) -> memoryview:
        """Take `length` bytes without copying."""
        start = self._position
        if length > self._end - start:
            self.fail(f"{length} bytes are announced, {self._end - start} are there", name)
        self._position = start + length
        return self._view[start : start + length]

    def take(self, length: int, name: str) -> bytes:
        """Take a copy of `length` bytes."""
        return bytes(self.view(length, name))

    def uint(self, length: int, name: str) -> int:
        """Take an unsigned integer of `length` bytes."""
        start = self._position
        end = start + length
        if end > self._end:  # `view` says what is wrong; this is the path most reads take
            self.view(length, name)
        self._position = end
        return int.from_bytes(self._view[start:end], "big")

    def u8(self, name: str) -> int:
        """Take an unsigned 8-bit integer."""
        return self.uint(1, name)

    def u16(self, name: str) -> int:
        """Take an unsigned 16-bit integer."""
        return self.uint(2, name)

    def u24(self, name: str) -> int:
        """Take an unsigned 24-bit integer."""
        return self.uint(3, name)

    def u32(self, name: str) -> int:
        """Take an unsigned 32-bit integer."""
        return self.uint(4, name)

    def vector(self, length_bytes: int, name: str, minimum: int = 0) -> Reader:
        """Open a vector whose length stands before it in `length_bytes` bytes.

        A vector shorter than `minimum` bytes is refused (RFC 9846 section 3.4).
        """
        length = self.uint(length_bytes, name)
        if length < minimum:
            self.fail(f"{length} bytes, at least {minimum} are required", name)
        return self.nested(length, name)

    def nested(self, length: int, name: str) -> Reader:
        """Open the next `length` bytes as a structure of their own."""
        offset = self._base + self._position
        return Reader(self.view(length, name), f"{self.path}.{name}", offset)

    def opaque(self, length_bytes: int, name: str, minimum: int = 0) -> bytes:
        """Take a copy of the contents of a vector."""
        inner = self.vector(length_bytes, name, minimum)
        return inner.take(inner.remaining, "")

    def u16_list(self, length_bytes: int, name: str) -> tuple[int, ...]:
        """Take a vector of 16-bit integers; an odd length is refused."""
        inner = self.vector(length_bytes, name)
        if inner.remaining % 2:
            inner.fail("an odd number of bytes in a list of 16-bit numbers")
        return unpack(f"!{inner.remaining // 2}H", inner.view(inner.remaining, ""))

    def rest(self) -> bytes:
        """Take a copy of everything that is left."""
        return self.take(self.remaining, "")

    def end(self) -> None:
        """Refuse bytes that nothing has claimed."""
        if self.remaining:
            self.fail(f"{self.remaining} bytes follow the end of the structure")

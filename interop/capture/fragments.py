"""Fragments of IP datagrams, held until their datagram is whole.

They are held within a byte bound. Fragments that overlap without being the same bytes drop their
datagram (RFC 5722), for both versions of IP: a capture cannot tell which version of the bytes the
receiver believed, and this is evidence, not a guess.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from typing import Final, TypeAlias

from interop.errors import DissectError

__all__ = ["FragmentBuffer", "FragmentKey"]

FragmentKey: TypeAlias = tuple[bytes, int, int]
"""Both addresses, the identification, and the protocol."""

_MAXIMUM_DATAGRAM_BYTES: Final = 65_535


class _Datagram:
    """The fragments of one datagram: pieces that do not overlap, in order of their offsets."""

    __slots__ = ("held_bytes", "length", "offsets", "pieces")

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.pieces: dict[int, bytes] = {}
        self.held_bytes = 0
        self.length: int | None = None  # known once the last fragment is here

    def add(self, offset: int, piece: bytes, *, more: bool) -> bool:
        """Insert a piece; return whether it agrees with the others."""
        if self.pieces.get(offset) == piece:
            return True
        end = offset + len(piece)
        index = bisect_left(self.offsets, offset)
        if index and self.offsets[index - 1] + len(self.pieces[self.offsets[index - 1]]) > offset:
            return False
        if index < len(self.offsets) and end > self.offsets[index]:
            return False
        if not more:
            if self.length is not None:
                return False
            self.length = end
        last = self.offsets[-1] if self.offsets else 0
        highest = max(end, last + len(self.pieces.get(last, b"")))
        if self.length is not None and highest > self.length:
            return False
        self.offsets.insert(index, offset)
        self.pieces[offset] = piece
        self.held_bytes += len(piece)
        return True


class FragmentBuffer:
    """Fragments whose datagrams are not complete, within `maximum_bytes` (oldest go first).

    Identifications repeat, and there is no clock here: what stays incomplete is dropped when
    the bound is reached or a later datagram under its identification contradicts it.
    """

    _PIECE_OVERHEAD_BYTES: Final = 160  # what a held piece costs beside its bytes

    def __init__(self, maximum_bytes: int = 4 * 1024 * 1024) -> None:
        self._maximum_bytes = maximum_bytes
        self._held_bytes = 0
        self._datagrams: OrderedDict[FragmentKey, _Datagram] = OrderedDict()

    def add(
        self, key: FragmentKey, offset: int, data: memoryview, *, more: bool
    ) -> memoryview | None:
        """Add a fragment; return its datagram's payload when that is now complete.

        Raises `DissectError` for impossible fragments, and for ones that overlap others or
        contradict them; those drop the datagram (RFC 5722).
        """
        if not data or offset + len(data) > _MAXIMUM_DATAGRAM_BYTES or (more and len(data) % 8):
            raise DissectError("impossible length", offset=offset, path="fragment")
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._datagrams[key] = _Datagram()
        self._held_bytes -= self._cost(datagram)
        if not datagram.add(offset, bytes(data), more=more):
            del self._datagrams[key]
            raise DissectError("overlapping fragments", offset=offset, path="fragment")
        if datagram.held_bytes == datagram.length:
            del self._datagrams[key]
            return memoryview(b"".join(datagram.pieces[start] for start in datagram.offsets))
        self._held_bytes += self._cost(datagram)
        while self._held_bytes > self._maximum_bytes:
            _, oldest = self._datagrams.popitem(last=False)
            self._held_bytes -= self._cost(oldest)
        return None

    def _cost(self, datagram: _Datagram) -> int:
        return datagram.held_bytes + len(datagram.pieces) * self._PIECE_OVERHEAD_BYTES

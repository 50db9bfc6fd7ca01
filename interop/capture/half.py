"""One direction of an open connection, as reassembly keeps it.

Apart from `reassembly`, which says what comes of a segment: here is where a direction has come to,
and the arithmetic of sequence numbers, which wrap.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from interop.capture.streams import Connection
    from interop.direction import Direction

__all__ = ["SEQUENCE_MASK", "UNKNOWN", "Half", "Piece", "first_difference"]

SEQUENCE_MASK: Final = 0xFFFFFFFF
UNKNOWN: Final = -1  # never equal to a sequence number


class Piece(NamedTuple):
    """Bytes that wait for those before them; no data where the capture had cut them off."""

    start: int
    end: int
    data: bytes | None


class Half:
    """One direction of an open connection."""

    __slots__ = (
        "closed",
        "connection",
        "direction",
        "fin_offset",
        "flow",
        "history",
        "initial_sequence",
        "mark",
        "next_sequence",
        "offset",
        "other",
        "pieces",
        "waiting_bytes",
    )

    other: Half

    def __init__(self, flow: bytes, connection: Connection, direction: Direction) -> None:
        self.flow = flow
        self.connection = connection
        self.direction = direction
        self.initial_sequence = UNKNOWN  # of the SYN
        self.next_sequence = UNKNOWN
        self.offset = 0  # of the byte at next_sequence
        self.fin_offset: int | None = None
        self.closed = False
        self.mark = 0  # `offset` when eviction last passed over the connection
        self.pieces: list[Piece] = []  # by start, without overlaps
        self.waiting_bytes = 0  # what the pieces cost
        self.history: list[tuple[int, memoryview]] = []  # recent payloads by offset

    def expects(self, sequence: int) -> bool:
        """Say whether payload at `sequence` can be passed on at once, with no consequences."""
        return sequence == self.next_sequence and not self.pieces and self.fin_offset is None

    def may_begin_after(self, syn: int) -> bool:
        """Say whether a SYN of that number can be this half's, whose data may have come first."""
        if self.closed or self.initial_sequence != UNKNOWN:
            return False
        first = (self.next_sequence - self.offset) & SEQUENCE_MASK
        return self.next_sequence == UNKNOWN or first == (syn + 1) & SEQUENCE_MASK

    def mark_connection(self) -> bool:
        """Mark how far the connection has come; say whether it came further since the last time."""
        before = self.mark, self.other.mark
        self.mark, self.other.mark = self.offset, self.other.offset
        return before != (self.mark, self.other.mark)

    def advance(self, size: int) -> None:
        """Note that `size` bytes were passed on, or given up."""
        self.offset += size
        self.next_sequence = (self.next_sequence + size) & SEQUENCE_MASK

    def distance(self, sequence: int) -> int:
        """Return how far ahead of the next number another one is; negative where it is behind."""
        return ((sequence - self.next_sequence + (1 << 31)) & SEQUENCE_MASK) - (1 << 31)

    def conflict(self, start: int, old: memoryview) -> int | None:
        """Return the offset of the first byte that a retransmission from `start` on has changed."""
        end = start + len(old)
        index = max(0, bisect_right(self.history, start, key=itemgetter(0)) - 1)
        for offset, payload in self.history[index:]:
            if offset >= end:
                break
            low, high = max(start, offset), min(end, offset + len(payload))
            if low >= high:
                continue
            ours = bytes(payload[low - offset : high - offset])
            difference = first_difference(ours, bytes(old[low - start : high - start]))
            if difference is not None:
                return low + difference
        return None


def first_difference(one: bytes, other: bytes) -> int | None:
    """Return the index of the first byte in which two strings of one length differ."""
    if one == other:
        return None
    return next(
        index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]
    )

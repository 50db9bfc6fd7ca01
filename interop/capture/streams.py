"""What reassembly says about connections: the vocabulary between captures and their readers.

Apart from `reassembly`, so that whoever only consumes events need not know how they come about.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from interop.direction import Direction

__all__ = [
    "CloseReason",
    "Connection",
    "Direction",
    "Endpoint",
    "StreamClosed",
    "StreamConflict",
    "StreamData",
    "StreamEvent",
    "StreamGap",
    "StreamOpened",
]


class CloseReason(Enum):
    """Why a direction of a connection ended."""

    FIN = "fin"
    RST = "rst"
    REPLACED = "replaced"  # its addresses and ports were used again
    EVICTED = "evicted"  # more connections were open than are kept
    CAPTURE_ENDED = "capture ended"


class Endpoint(NamedTuple):
    """One end of a connection."""

    address: str
    port: int


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """A TCP connection; `index` counts from 0 in order of appearance, by SYN or payload.

    `client_known` is False where neither SYN nor SYN-ACK was captured, so that client and server
    may be the wrong way round.
    """

    index: int
    client: Endpoint
    server: Endpoint
    first_timestamp_ns: int
    client_known: bool


class StreamOpened(NamedTuple):
    """A connection appeared."""

    connection: Connection


class StreamData(NamedTuple):
    """The next bytes of one direction, as a view of bytes of their own."""

    connection: Connection
    direction: Direction
    data: memoryview


class StreamGap(NamedTuple):
    """Bytes of one direction that were sent and are not in the capture."""

    connection: Connection
    direction: Direction
    missing_bytes: int


class StreamConflict(NamedTuple):
    """The capture holds two versions of a byte; the first one is used.

    `offset` is where they first differ, in bytes from the beginning of the direction's stream.
    """

    connection: Connection
    direction: Direction
    offset: int


class StreamClosed(NamedTuple):
    """One direction of a connection ended; there is exactly one for each."""

    connection: Connection
    direction: Direction
    how: CloseReason


StreamEvent: TypeAlias = StreamOpened | StreamData | StreamGap | StreamConflict | StreamClosed

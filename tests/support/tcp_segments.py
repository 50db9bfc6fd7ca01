"""Segments of TCP as a capture gives them, and what a reassembler makes of them, in short."""

from __future__ import annotations

import struct
from collections import defaultdict
from ipaddress import ip_address
from typing import TYPE_CHECKING

from interop.capture.items import Interface, PacketBatch
from interop.capture.packets import (
    FLAG_ACK,
    FLAG_SYN,
    TCPSegment,
    parse_tcp_batch,
)
from interop.capture.reassembly import Reassembler
from interop.capture.streams import (
    CloseReason,
    Direction,
    StreamClosed,
    StreamConflict,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interop.capture.fragments import FragmentBuffer
    from interop.errors import DissectError

C2S, S2C = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
CLIENT, SERVER = ("10.0.0.1", 50000), ("10.0.0.2", 443)


BASE = 0xFFFFFFF0  # the client's first data byte: sequence numbers wrap after 16 bytes


SERVER_BASE = 7001


def segment(
    sequence: int,
    payload: bytes = b"",
    flags: int = FLAG_ACK,
    source: tuple[str, int] = CLIENT,
    destination: tuple[str, int] = SERVER,
    *,
    truncated_bytes: int = 0,
) -> TCPSegment:
    flow = (
        ip_address(source[0]).packed
        + ip_address(destination[0]).packed
        + struct.pack("!HH", source[1], destination[1])
    )
    return TCPSegment(flow, sequence & 0xFFFFFFFF, flags, memoryview(payload), truncated_bytes)


def parse_tcp(
    link_type: int,
    data: memoryview,
    fragments: FragmentBuffer | None = None,
    original_length: int = 0,
) -> TCPSegment | None:
    """Return the segment of a packet by itself; raise what would be reported of it."""

    def fail(_index: int, error: DissectError) -> None:
        raise error

    frame = (Interface(link_type), 0, 0, 0, len(data), original_length)
    for _, *fields in parse_tcp_batch(PacketBatch(data, [frame]), fragments, fail):
        return TCPSegment(*fields)
    return None


def client(offset: int, payload: bytes = b"", flags: int = FLAG_ACK, cut: int = 0) -> TCPSegment:
    return segment(BASE + offset, payload, flags, truncated_bytes=cut)


def server(offset: int, payload: bytes = b"", flags: int = FLAG_ACK) -> TCPSegment:
    return segment(SERVER_BASE + offset, payload, flags, SERVER, CLIENT)


HANDSHAKE = [client(-1, flags=FLAG_SYN), server(-1, flags=FLAG_SYN | FLAG_ACK), client(0)]


def feed(
    segments: Iterable[TCPSegment], reassembler: Reassembler | None = None, *, finish: bool = True
) -> list[StreamEvent]:
    reassembler = reassembler or Reassembler()
    events: list[StreamEvent] = []
    for number, each in enumerate(segments):
        events += reassembler.feed(each, 1000 + number)
    return events + reassembler.finish() if finish else events


def streams(events: Iterable[StreamEvent]) -> dict[tuple[int, Direction], bytes]:
    found: dict[tuple[int, Direction], bytes] = defaultdict(bytes)
    for event in events:
        if isinstance(event, StreamData):
            found[event.connection.index, event.direction] += event.data
    return found


def story(events: Iterable[StreamEvent]) -> list[object]:
    """Tell the events of one connection in short."""
    told: list[object] = []
    for event in events:
        match event:
            case StreamOpened():
                told.append("open")
            case StreamData():
                told.append((event.direction, bytes(event.data)))
            case StreamGap():
                told.append((event.direction, event.missing_bytes))
            case StreamConflict():
                told.append((event.direction, "conflict", event.offset))
            case StreamClosed():
                told.append((event.direction, event.how))
    return told


def ended(how: CloseReason) -> list[object]:
    return [(C2S, how), (S2C, how)]


def feed_all(segments: Iterable[TCPSegment], reassembler: Reassembler) -> list[StreamEvent]:
    """Feed segments as the reader of a file does, a chunk's at a time."""
    numbered = ((number, *each) for number, each in enumerate(segments))
    return reassembler.feed_all(numbered, lambda number: 1000 + number)


def take(segments: Iterable[TCPSegment]) -> tuple[Reassembler, list[StreamEvent]]:
    reassembler = Reassembler()
    return reassembler, feed_all(segments, reassembler)


def datas(events: Iterable[StreamEvent]) -> list[tuple[Direction, bytes]]:
    return [(e.direction, bytes(e.data)) for e in events if isinstance(e, StreamData)]


def in_runs(events: Iterable[StreamEvent]) -> list[tuple[int, object]]:
    """Tell the events of any connections, with data that is side by side joined."""
    told: list[tuple[int, object]] = []
    joinable: tuple[int, Direction] | None = None
    run = b""
    for event in events:
        number = event.connection.index
        if not isinstance(event, StreamData):
            joinable = None
            told += [(number, what) for what in story([event])]
            continue
        if joinable == (number, event.direction):
            told.pop()
        else:
            joinable, run = (number, event.direction), b""
        run += event.data
        told.append((number, (event.direction, run)))
    return told

"""TCP reassembly: segments of many interleaved connections in, two byte streams each out.

Theory of operation
-------------------
A connection is two `Half` objects, one per direction, found by the segment's `flow`. A half
knows the sequence number it expects next. The usual segment has exactly that number, no SYN, FIN
or RST, and nothing is waiting: it continues the present run, or begins one. Everything else goes
through `_take_unusual`.

Sequence numbers wrap, so beyond the comparison everything is in *offsets*: bytes since the first
one of the stream, which only grow. A segment is placed by the signed distance of its sequence
number from the expected one; distances beyond 1 GiB, the largest window there is (RFC 7323,
section 2.3), cannot belong to the stream and are counted in `ignored_segments`.

*Which bytes count.* The first ones captured, always: buffered bytes win over a later segment
that fills the hole before them. When two captured versions of a byte differ, `StreamConflict`
says so, once a segment. For bytes still buffered that is exact; for bytes already passed on it
holds for as long as they are remembered, see below. A keep-alive's one byte of garbage (RFC
9293, section 3.8.4) is not a conflict.

*Holes.* Out-of-order payload is copied, because a view would pin the whole chunk of the file it
came in, and waits. A hole is given up, as `StreamGap`, when the bytes waiting behind it exceed
a bound for the direction, or when all waiting bytes exceed a bound in total (then the direction
that has waited longest gives up), or when the connection ends. Each piece is charged its
overhead too, so one-byte segments cannot multiply the bound. Payload that was sent and
not captured (a snapshot length) is a gap at once: no retransmission will bring it.

*Beginnings.* A SYN, or a SYN-ACK, tells who the client is. Without either, the end with the
higher port is taken for the client, `client_known` is False, and whoever reads the streams may
find it is the other way round. Such a half begins at its first payload. A segment without
payload opens nothing: stray acknowledgements after a close must not look like connections. A SYN
with a new sequence number on a known flow is a new connection.

*Ends.* A half closes at its FIN, once everything before it was delivered; a later FIN where the
stream is replaces one that it never reached. A RST counts at exactly the number that its receiver
expects (RFC 5961, section 3.2). Even that is a mark and no stop, since the other side's bytes in
flight are captured after it: both halves stay readable until their ports are used again, the
capture ends, or `_RESET_CONNECTIONS` others were reset after the last of their bytes.

Each half of each connection gets exactly one `StreamClosed`, whatever happened; then the
connection is forgotten. What is left of it is its flow in `_lingering`, the counterpart of
TIME-WAIT: retransmissions after the end must not open it again.

*Memory* is bounded by open connections. Beyond `maximum_connections` one is evicted by second
chance: the oldest that delivered nothing since it was last passed over, so that a flood of SYNs
does not push out a connection that is alive.

*Runs.* In-order data of one half is passed on a run at a time: `feed_all` collects payloads, as
views, while they follow one another, and joins them once something else comes in between or the
segments it was given end. A run never outlives the call, because what its views look into does
not. While one is open, `run_flow` and `next_sequence` say what continues it, and its half says
where it began; so a segment of that half which does not continue the run ends it before the half
is looked at. Acknowledgements without payload, from the other half or within the run, end nothing.
For a bulk transfer in 1,460-byte segments a run is one event for each chunk of a file in place of
350, and a segment that continues it takes 0.4 µs, half of it the copying of its payload.

*Remembered bytes* are the runs that were passed on: they are copies, so nothing pins the chunk of
the file they came in. The oldest are forgotten when all of them exceed `history_bytes`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from interop.capture.half import SEQUENCE_MASK, UNKNOWN, Half, Piece, first_difference
from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, TCPSegment
from interop.capture.streams import (
    CloseReason,
    Connection,
    Endpoint,
    StreamClosed,
    StreamConflict,
    StreamData,
    StreamGap,
    StreamOpened,
)
from interop.direction import Direction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from interop.capture.packets import NumberedSegment
    from interop.capture.streams import StreamEvent

__all__ = ["Reassembler"]

_MIB: Final = 1024 * 1024
_LARGEST_WINDOW_BYTES: Final = 1 << 30
_PIECE_OVERHEAD_BYTES: Final = 200  # what a buffered piece costs beside its bytes
_LINGERING_FLOWS: Final = 5120
_RESET_CONNECTIONS: Final = 256
_UNUSUAL_FLAGS: Final = FLAG_SYN | FLAG_FIN | FLAG_RST


class Reassembler:
    """Reassembles any number of interleaved connections.

    `direction_bytes` and `total_bytes` bound what waits behind holes, `maximum_connections` the
    connections open at a time, `history_bytes` the chunks kept to compare retransmissions with.
    `ignored_segments` counts segments whose sequence numbers cannot belong to their connection.
    """

    def __init__(
        self,
        *,
        direction_bytes: int = 8 * _MIB,
        total_bytes: int = 32 * _MIB,
        maximum_connections: int = 65_536,
        history_bytes: int = 4 * _MIB,
    ) -> None:
        self.ignored_segments = 0
        self._direction_bytes = direction_bytes
        self._total_bytes = total_bytes
        self._maximum_connections = maximum_connections
        self._history_bytes = history_bytes
        # Ordered dictionaries, since the oldest keys of plain ones take ever longer to find.
        self._halves: dict[bytes, Half] = {}
        # The client's halves, oldest first.
        self._connections: OrderedDict[Connection, Half] = OrderedDict()
        self._connection_count = 0
        # Of these the ones that were reset, the longest ago first.
        self._reset: OrderedDict[Connection, Half] = OrderedDict()
        self._lingering: OrderedDict[bytes, None] = OrderedDict()
        # Halves with a hole, the longest-waiting first.
        self._waiting: OrderedDict[Half, None] = OrderedDict()
        self._waiting_bytes = 0
        self._remembered: deque[tuple[int, Half]] = deque()
        self._remembered_bytes = 0

    def feed(self, segment: TCPSegment, timestamp_ns: int) -> list[StreamEvent]:
        """Return what `segment`, captured at `timestamp_ns`, means for its connection."""
        return self.feed_all([(0, *segment)], lambda _number: timestamp_ns)

    def feed_all(
        self, segments: Iterable[NumberedSegment], timestamp_ns: Callable[[int], int]
    ) -> list[StreamEvent]:
        """Return what the segments of one chunk of a file mean for their connections.

        `timestamp_ns` is asked when a segment was captured, by the segment's number.
        """
        events: list[StreamEvent] = []
        find_half = self._halves.get
        run: list[memoryview] = []
        run_half: Half | None = None
        run_flow, next_sequence = b"", UNKNOWN  # what a segment that continues the run has
        for number, flow, sequence, flags, payload, truncated_bytes in segments:
            unusual = flags & _UNUSUAL_FLAGS or truncated_bytes
            if sequence != next_sequence or flow != run_flow or unusual:
                half = find_half(flow)
                # Of the half whose run it is, only the run knows where it has come to.
                if half is None or half is run_half or unusual or not half.expects(sequence):
                    unusual = True
                elif not payload:
                    continue  # an acknowledgement from the other side leaves a run whole
                if run_half is not None:
                    self._deliver(run_half, b"".join(run), events)
                    run_half, run_flow, next_sequence = None, b"", UNKNOWN
                if unusual:
                    segment = TCPSegment(flow, sequence, flags, payload, truncated_bytes)
                    self._take_unusual(half, segment, timestamp_ns(number), events)
                    continue
                run, run_half, run_flow = [], half, flow
            run.append(payload)
            next_sequence = (sequence + len(payload)) & SEQUENCE_MASK
        if run_half is not None:
            self._deliver(run_half, b"".join(run), events)
        return events

    def finish(self) -> list[StreamEvent]:
        """Close every connection: the capture has ended."""
        events: list[StreamEvent] = []
        for half in list(self._connections.values()):
            self._close_connection(half, CloseReason.CAPTURE_ENDED, events)
        return events

    # Beginnings

    def _take_unusual(
        self,
        half: Half | None,
        segment: TCPSegment,
        timestamp_ns: int,
        events: list[StreamEvent],
    ) -> None:
        flow, sequence, flags, payload, truncated_bytes = segment
        syn = flags & FLAG_SYN
        if half is not None and syn and half.initial_sequence != sequence:
            if half.may_begin_after(sequence):
                half.initial_sequence = sequence
            else:
                self._close_connection(half, CloseReason.REPLACED, events)
                half = None
        if half is None:
            if not syn and (
                flags & FLAG_RST or not (payload or truncated_bytes) or flow in self._lingering
            ):
                return
            half = self._open(segment, timestamp_ns, events)
        if flags & FLAG_RST:
            self._note_reset(half, sequence, events)
            return
        if half.closed:
            return
        if syn:
            sequence = (sequence + 1) & SEQUENCE_MASK
        if half.next_sequence == UNKNOWN:
            if not (syn or payload or truncated_bytes or flags & FLAG_FIN):
                return
            half.next_sequence = sequence
        self._place(half, sequence, segment, events)

    def _open(self, segment: TCPSegment, timestamp_ns: int, events: list[StreamEvent]) -> Half:
        """Open a connection and return the half that `segment` belongs to."""
        if len(self._connections) >= self._maximum_connections:
            self._evict(self._connections, events)
        source = Endpoint(segment.source, segment.source_port)
        destination = Endpoint(segment.destination, segment.destination_port)
        syn = bool(segment.flags & FLAG_SYN)
        from_client = (
            not segment.flags & FLAG_ACK if syn else segment.source_port >= segment.destination_port
        )
        client, server = (source, destination) if from_client else (destination, source)
        connection = Connection(self._connection_count, client, server, timestamp_ns, syn)
        self._connection_count += 1
        direction = Direction.CLIENT_TO_SERVER if from_client else Direction.SERVER_TO_CLIENT
        half = Half(segment.flow, connection, direction)
        half.other = Half(_reverse(segment.flow), connection, direction.opposite)
        half.other.other = half
        if syn:
            half.initial_sequence = segment.sequence
        for each in (half.other, half):  # a socket connected to itself has one flow: the first
            self._halves[each.flow] = each
            self._lingering.pop(each.flow, None)
        self._connections[connection] = half if from_client else half.other
        events.append(StreamOpened(connection))
        return half

    def _evict(self, kept: OrderedDict[Connection, Half], events: list[StreamEvent]) -> None:
        """Close the oldest of the connections kept that delivered nothing since it was marked."""
        connection, half = next(iter(kept.items()))
        while half.mark_connection():
            kept.move_to_end(connection)
            connection, half = next(iter(kept.items()))
        self._close_connection(half, CloseReason.EVICTED, events)

    # Placing payload

    def _place(
        self, half: Half, sequence: int, segment: TCPSegment, events: list[StreamEvent]
    ) -> None:
        """Put the segment's payload, which begins at `sequence`, where it belongs."""
        payload, truncated_bytes = segment.payload, segment.truncated_bytes
        distance = half.distance(sequence)
        if abs(distance) > _LARGEST_WINDOW_BYTES:
            self.ignored_segments += 1
            return
        start = half.offset + distance
        end = start + len(payload)
        beyond = end + truncated_bytes
        # A FIN before what was passed on already is an old one, or forged: receivers ignore it.
        # One that is next replaces a forged one ahead.
        replaces = half.fin_offset is None or start <= half.offset
        if segment.flags & FLAG_FIN and beyond >= half.offset and replaces:
            half.fin_offset = beyond
        if distance < 0:
            old = payload[:-distance]
            if not (distance == -1 and len(payload) <= 1):  # else it is a keep-alive
                conflict = half.conflict(start, old)
                if conflict is not None:
                    events.append(StreamConflict(half.connection, half.direction, conflict))
            payload = payload[len(old) :]
            start, end = half.offset, max(half.offset, end)
            truncated_bytes = max(0, beyond - end)
        if start == half.offset and not half.pieces:
            if payload:
                self._deliver(half, bytes(payload), events)
            if truncated_bytes:
                self._skip(half, truncated_bytes, events)
        else:
            self._insert(half, start, payload, events)
            if truncated_bytes:
                self._insert_piece(half, Piece(end, beyond, None))
            self._drain(half, events)
            self._enforce_bounds(half, events)
        self._close_at_fin(half, events)

    def _deliver(self, half: Half, data: bytes, events: list[StreamEvent]) -> None:
        view = memoryview(data)
        self._remember(half, view)
        half.advance(len(view))
        events.append(StreamData(half.connection, half.direction, view))

    def _skip(self, half: Half, missing_bytes: int, events: list[StreamEvent]) -> None:
        half.advance(missing_bytes)
        events.append(StreamGap(half.connection, half.direction, missing_bytes))

    def _insert(
        self, half: Half, start: int, payload: memoryview, events: list[StreamEvent]
    ) -> None:
        """Buffer the parts of `payload` that no waiting piece covers; compare the others."""
        end = start + len(payload)
        position, conflict = start, UNKNOWN
        index = bisect_right(half.pieces, start, key=itemgetter(0))
        if index and half.pieces[index - 1].end > start:
            index -= 1
        parts = []
        for piece in half.pieces[index : bisect_left(half.pieces, end, key=itemgetter(0))]:
            if piece.start > position:
                parts.append((position, piece.start))
            low, high = max(position, piece.start), min(end, piece.end)
            if piece.data is not None and conflict == UNKNOWN:
                ours = piece.data[low - piece.start : high - piece.start]
                difference = first_difference(ours, bytes(payload[low - start : high - start]))
                conflict = UNKNOWN if difference is None else low + difference
            position = high
        if position < end:
            parts.append((position, end))
        for low, high in parts:
            data = bytes(payload[low - start : high - start])
            self._insert_piece(half, Piece(low, high, data))
        if conflict != UNKNOWN:
            events.append(StreamConflict(half.connection, half.direction, conflict))

    def _insert_piece(self, half: Half, piece: Piece) -> None:
        """Insert a piece unless others cover its beginning; cut it where the next one begins."""
        index = bisect_right(half.pieces, piece.start, key=itemgetter(0))
        if index and half.pieces[index - 1].end > piece.start:
            return
        if index < len(half.pieces) and half.pieces[index].start < piece.end:
            piece = piece._replace(end=half.pieces[index].start)
        half.pieces.insert(index, piece)
        self._charge(half, len(piece.data or b"") + _PIECE_OVERHEAD_BYTES)

    def _charge(self, half: Half, cost: int) -> None:
        """Account for waiting bytes that came (or, negative, went)."""
        half.waiting_bytes += cost
        self._waiting_bytes += cost
        if half.waiting_bytes:
            self._waiting.setdefault(half)
        else:
            self._waiting.pop(half, None)

    def _drain(self, half: Half, events: list[StreamEvent]) -> None:
        """Pass on the waiting pieces that nothing is missing before."""
        count = cost = 0
        for piece in half.pieces:
            if piece.start != half.offset:
                break
            if piece.data is None:
                self._skip(half, piece.end - piece.start, events)
            else:
                self._deliver(half, piece.data, events)
            count += 1
            cost += len(piece.data or b"") + _PIECE_OVERHEAD_BYTES
        if count:
            del half.pieces[:count]
            self._charge(half, -cost)

    def _give_up_hole(self, half: Half, events: list[StreamEvent]) -> None:
        self._skip(half, half.pieces[0].start - half.offset, events)
        self._drain(half, events)

    def _enforce_bounds(self, half: Half, events: list[StreamEvent]) -> None:
        while half.waiting_bytes > self._direction_bytes:
            self._give_up_hole(half, events)
        while self._waiting_bytes > self._total_bytes:
            longest = next(iter(self._waiting))
            self._give_up_hole(longest, events)
            self._close_at_fin(longest, events)

    # Ends

    def _close_at_fin(self, half: Half, events: list[StreamEvent]) -> None:
        if half.closed or half.fin_offset is None or half.offset < half.fin_offset:
            return
        self._close_half(half, CloseReason.FIN, events)
        if half.other.closed:
            self._forget(half)

    def _note_reset(self, half: Half, sequence: int, events: list[StreamEvent]) -> None:
        """Note that the connection was reset, if the RST is one that its receiver believed."""
        # A refused SYN is answered with a RST of a half that never began, and a closed half
        # no longer tracks its sequence numbers.
        if half.next_sequence != UNKNOWN:
            distance = half.distance(sequence)
            self.ignored_segments += abs(distance) > _LARGEST_WINDOW_BYTES
            # Before a hole the receiver may have had what was not captured.
            waiting = half.pieces[-1].end - half.offset if half.pieces else 0
            if distance not in {0, waiting}:
                return
        if half.connection not in self._reset:
            half.mark_connection()
            self._reset[half.connection] = half
        if len(self._reset) > _RESET_CONNECTIONS:
            self._evict(self._reset, events)

    def _close_connection(self, half: Half, how: CloseReason, events: list[StreamEvent]) -> None:
        if half.connection in self._reset:
            how = CloseReason.RST
        first = half if half.direction is Direction.CLIENT_TO_SERVER else half.other
        for each in (first, first.other):
            if each.closed:
                continue
            while each.pieces:
                self._give_up_hole(each, events)
            reason = how
            if each.fin_offset is not None:
                reason = CloseReason.FIN
                if each.offset < each.fin_offset:
                    self._skip(each, each.fin_offset - each.offset, events)
            self._close_half(each, reason, events)
        self._forget(half)

    def _close_half(self, half: Half, how: CloseReason, events: list[StreamEvent]) -> None:
        half.closed = True
        half.next_sequence = UNKNOWN
        half.pieces = []
        half.history = []
        self._charge(half, -half.waiting_bytes)
        events.append(StreamClosed(half.connection, half.direction, how))

    def _forget(self, half: Half) -> None:
        other = half.other
        self._connections.pop(half.connection, None)
        self._reset.pop(half.connection, None)
        for each in (half, other):
            self._halves.pop(each.flow, None)
            self._lingering[each.flow] = None
        while len(self._lingering) > _LINGERING_FLOWS:
            self._lingering.popitem(last=False)
        # Without the cycle between them both halves are freed now, not at some collection.
        del half.other, other.other

    # Remembered bytes

    def _remember(self, half: Half, data: memoryview) -> None:
        """Keep what is passed on at the half's offset, and forget what was kept longest."""
        half.history.append((half.offset, data))
        cost = len(data) + _PIECE_OVERHEAD_BYTES
        self._remembered.append((cost, half))
        self._remembered_bytes += cost
        while self._remembered_bytes > self._history_bytes and len(self._remembered) > 1:
            cost, oldest = self._remembered.popleft()
            self._remembered_bytes -= cost
            del oldest.history[:1]  # none where it has closed since


def _reverse(flow: bytes) -> bytes:
    middle = len(flow) // 2 - 2
    return flow[middle:-4] + flow[:middle] + flow[-2:] + flow[-4:-2]

"""Reassembly: what the network does to segments, and what the streams must look like after it."""

from __future__ import annotations

import struct
import tracemalloc
from collections import defaultdict
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, TCPSegment
from interop.capture.reassembly import Reassembler
from interop.capture.streams import (
    CloseReason,
    Connection,
    Direction,
    Endpoint,
    StreamClosed,
    StreamConflict,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def test_a_whole_connection() -> None:
    events = feed(
        [
            *HANDSHAKE,
            client(0, b"request"),
            server(0, b"reply"),
            client(7, flags=FLAG_ACK | FLAG_FIN),
            server(5, b"!", flags=FLAG_ACK | FLAG_FIN),
            client(8),
        ]
    )
    assert story(events) == [
        "open",
        (C2S, b"request"),
        (S2C, b"reply"),
        (C2S, CloseReason.FIN),
        (S2C, b"!"),
        (S2C, CloseReason.FIN),
    ]
    opened = events[0]
    assert isinstance(opened, StreamOpened)
    connection = opened.connection
    assert (connection.index, connection.first_timestamp_ns) == (0, 1000)
    assert (connection.client, connection.server) == (Endpoint(*CLIENT), Endpoint(*SERVER))
    assert connection.client_known


def feed_all(segments: Iterable[TCPSegment], reassembler: Reassembler) -> list[StreamEvent]:
    """Feed segments as the reader of a file does, a chunk's at a time."""
    numbered = ((number, *each) for number, each in enumerate(segments))
    return reassembler.feed_all(numbered, lambda number: 1000 + number)


def take(segments: Iterable[TCPSegment]) -> tuple[Reassembler, list[StreamEvent]]:
    reassembler = Reassembler()
    return reassembler, feed_all(segments, reassembler)


def datas(events: Iterable[StreamEvent]) -> list[tuple[Direction, bytes]]:
    return [(e.direction, bytes(e.data)) for e in events if isinstance(e, StreamData)]


def test_a_run_of_one_direction_is_passed_on_as_one() -> None:
    _, events = take([*HANDSHAKE, client(0, b"ab"), client(2, b"c"), client(3, b"def")])
    assert datas(events) == [(C2S, b"abcdef")]


def test_a_run_ends_where_the_other_direction_or_another_connection_speaks() -> None:
    other = segment(5, b"hello", source=("10.0.0.9", 50001))
    story = [client(0, b"ab"), server(0, b"x"), client(2, b"cd"), other, client(4, b"e")]
    _, events = take([*HANDSHAKE, *story])
    assert datas(events) == [(C2S, b"ab"), (S2C, b"x"), (C2S, b"cd"), (C2S, b"hello"), (C2S, b"e")]


def test_a_run_ends_at_its_fin_and_before_the_unusual() -> None:
    _, events = take(
        [
            *HANDSHAKE,
            client(0, b"ab"),
            client(4, b"ef"),  # out of order
            client(2, b"cd"),
            client(6, b"gh", flags=FLAG_ACK | FLAG_FIN),
        ]
    )
    assert b"".join(data for _, data in datas(events)) == b"abcdefgh"
    assert isinstance(events[-1], StreamClosed)


def test_a_run_that_reaches_a_fin_seen_earlier_closes() -> None:
    fin_first = client(4, flags=FLAG_ACK | FLAG_FIN)
    _, events = take([*HANDSHAKE, client(0, b"ab"), fin_first, client(2, b"cd")])
    assert datas(events) == [(C2S, b"ab"), (C2S, b"cd")]
    assert isinstance(events[-1], StreamClosed)


def test_a_retransmission_into_the_present_run_is_compared_with_it() -> None:
    run = [client(0, b"abc"), client(3, b"def")]
    _, same = take([*HANDSHAKE, *run, client(2, b"cd"), client(6, b"g")])
    assert not [event for event in same if isinstance(event, StreamConflict)]
    assert b"".join(data for _, data in datas(same)) == b"abcdefg"
    _, other = take([*HANDSHAKE, *run, client(2, b"cX")])
    assert [event.offset for event in other if isinstance(event, StreamConflict)] == [3]


def test_a_run_ends_with_its_chunk_and_goes_on_in_the_next() -> None:
    reassembler, first = take([*HANDSHAKE, client(0, b"abc")])
    second = feed_all([client(3, b"def"), client(6, b"ghi")], reassembler)
    assert datas(first) == [(C2S, b"abc")]
    assert datas(second) == [(C2S, b"defghi")]
    assert datas(reassembler.finish()) == []


def test_a_segment_out_of_order_at_a_chunks_end_waits_for_the_next_chunk() -> None:
    reassembler, first = take([*HANDSHAKE, client(0, b"abc"), client(6, b"ghi")])
    second = feed_all([client(3, b"def"), client(9, b"jkl"), client(12, b"mno")], reassembler)
    assert datas(first) == [(C2S, b"abc")]
    assert datas(second) == [(C2S, b"def"), (C2S, b"ghi"), (C2S, b"jklmno")]


def test_acknowledgements_leave_a_run_whole() -> None:
    run = [client(0, b"ab"), server(0), client(2), client(2, b"cd"), server(0), client(4, b"ef")]
    _, events = take([*HANDSHAKE, *run])
    assert datas(events) == [(C2S, b"abcdef")]


def test_a_run_takes_nothing_of_others_that_are_at_the_same_sequence_number() -> None:
    source = ("10.0.0.9", 50001)
    other = [segment(BASE + n, bytes([n]), source=source) for n in (2, 3)]
    _, events = take([*HANDSHAKE, client(0, b"ab"), *other, client(2, b"cd")])
    assert in_runs(events)[1:] == [
        (0, (C2S, b"ab")),
        (1, "open"),
        (1, (C2S, b"\2\3")),
        (0, (C2S, b"cd")),
    ]


def test_a_run_over_the_wrap_of_sequence_numbers_is_one() -> None:
    _, events = take([*HANDSHAKE, *(client(n * 8, bytes([n]) * 8) for n in range(5))])
    assert datas(events) == [(C2S, b"".join(bytes([n]) * 8 for n in range(5)))]


def test_the_first_segment_of_the_present_run_again_is_no_new_data() -> None:
    first = client(0, b"abc")
    _, events = take([*HANDSHAKE, first, first, client(3, b"def"), first, client(6, b"g")])
    assert datas(events) == [(C2S, b"abc"), (C2S, b"def"), (C2S, b"g")]


def test_a_run_ends_at_a_reset_and_at_a_new_connection() -> None:
    _, events = take([*HANDSHAKE, client(0, b"ab"), client(2, b"cd"), client(4, flags=FLAG_RST)])
    assert story(events) == ["open", (C2S, b"abcd"), *ended(CloseReason.RST)]
    again = segment(5000, flags=FLAG_SYN)
    _, events = take([*HANDSHAKE, client(0, b"ab"), again, segment(5001, b"cd")])
    assert story(events)[1:5] == [(C2S, b"ab"), *ended(CloseReason.REPLACED), "open"]
    assert datas(events) == [(C2S, b"ab"), (C2S, b"cd")]


def test_a_cut_segment_ends_a_run_and_its_gap_comes_after_it() -> None:
    run = [client(0, b"ab"), client(2, b"cd", cut=3), client(7, b"hi"), client(9, b"jk")]
    _, events = take([*HANDSHAKE, *run])
    assert story(events)[1:] == [(C2S, b"ab"), (C2S, b"cd"), (C2S, 3), (C2S, b"hijk")]


@pytest.mark.parametrize(("offset", "wrong"), [(0, 0), (1, 4), (5, 6), (7, 8), (3, 9), (10, 11)])
def test_conflicts_are_found_anywhere_in_remembered_runs(offset: int, wrong: int) -> None:
    runs = [client(n * 2, b"ab") for n in range(3)], [client(6 + n * 3, b"abc") for n in range(2)]
    sent = bytearray(b"ababab" + b"abcabc")
    sent[wrong] = ord("?")
    late = client(offset, bytes(sent[offset : wrong + 1]))
    _, events = take([*HANDSHAKE, *runs[0], server(0, b"x"), *runs[1], server(1, b"y"), late])
    assert [each.offset for each in events if isinstance(each, StreamConflict)] == [wrong]


def test_a_connection_has_the_time_of_its_own_first_segment() -> None:
    other = segment(1, flags=FLAG_SYN, source=("10.0.0.9", 50001))
    _, events = take([*HANDSHAKE, client(0, b"ab"), client(2, b"cd"), other])
    opened = [each.connection for each in events if isinstance(each, StreamOpened)]
    assert [connection.first_timestamp_ns for connection in opened] == [1000, 1005]


def test_sequence_numbers_wrap() -> None:
    events = feed([*HANDSHAKE, *(client(n, bytes([n])) for n in range(40))])
    assert streams(events)[0, C2S] == bytes(range(40))


def test_retransmissions_and_overlaps_count_once() -> None:
    events = feed(
        [*HANDSHAKE, client(0, b"abcd"), client(0, b"abcd"), client(2, b"cdef"), client(0, b"abc")]
    )
    assert story(events)[1:-2] == [(C2S, b"abcd"), (C2S, b"ef")]


def test_segments_out_of_order_wait_for_those_before_them() -> None:
    events = feed(
        [*HANDSHAKE, client(6, b"gh"), client(3, b"def"), client(8, b"i"), client(0, b"abc")]
    )
    assert story(events)[1:-2] == [(C2S, b"abc"), (C2S, b"def"), (C2S, b"gh"), (C2S, b"i")]


def test_the_first_version_of_a_byte_wins_and_another_is_reported() -> None:
    events = feed([*HANDSHAKE, client(0, b"abcdef"), client(2, b"cDEfgh")])
    assert story(events)[1:-2] == [(C2S, b"abcdef"), (C2S, "conflict", 3), (C2S, b"gh")]


def test_bytes_that_wait_win_over_the_later_segment_that_reaches_them() -> None:
    events = feed([*HANDSHAKE, client(2, b"cd"), client(6, b"gh"), client(0, b"abCDefGHi")])
    assert streams(events)[0, C2S] == b"abcdefghi"
    assert (C2S, "conflict", 2) in story(events)
    events = feed([*HANDSHAKE, client(2, b"cd"), client(6, b"gh"), client(0, b"abcdefghi")])
    assert streams(events)[0, C2S] == b"abcdefghi"
    assert not any(isinstance(event, StreamConflict) for event in events)


def test_conflicts_are_found_in_all_that_is_remembered() -> None:
    pieces = [client(n * 10, bytes([65 + n % 26]) * 10) for n in range(200)]
    late = client(1000, b"?" * 10)
    remembering = feed([*HANDSHAKE, *pieces, late])
    assert (C2S, "conflict", 1000) in story(remembering)
    forgetful = Reassembler(history_bytes=0)
    assert (C2S, "conflict", 1000) not in story(feed([*HANDSHAKE, *pieces, late], forgetful))


def test_keep_alives_and_window_probes_do_no_harm() -> None:
    events = feed(
        [
            *HANDSHAKE,
            client(0, b"abc"),
            client(2, b"\0"),
            client(2),
            server(-1, b"\0"),
            client(3, b"d"),
            client(3, b"d"),
            client(4, b"e"),
        ]
    )
    assert story(events)[1:-2] == [(C2S, b"abc"), (C2S, b"d"), (C2S, b"e")]


def test_a_syn_may_carry_data_that_is_sent_again() -> None:
    syn = client(-1, b"early", flags=FLAG_SYN)
    events = feed([syn, syn, server(-1, flags=FLAG_SYN | FLAG_ACK), client(0, b"early data")])
    assert story(events)[:3] == ["open", (C2S, b"early"), (C2S, b" data")]


def test_a_fin_before_the_bytes_it_follows_closes_after_them() -> None:
    events = feed(
        [*HANDSHAKE, client(3, b"def", FLAG_ACK | FLAG_FIN), client(0, b"abc")], finish=False
    )
    assert story(events)[1:] == [(C2S, b"abc"), (C2S, b"def"), (C2S, CloseReason.FIN)]
    events = feed([*HANDSHAKE, client(3, flags=FLAG_ACK | FLAG_FIN), client(0, b"abc")])
    assert story(events)[1:3] == [(C2S, b"abc"), (C2S, CloseReason.FIN)]


def test_an_old_fin_closes_nothing() -> None:
    events = feed([*HANDSHAKE, client(0, b"abcdef"), client(2, flags=FLAG_FIN), client(6, b"g")])
    assert story(events)[1:] == [
        (C2S, b"abcdef"),
        (C2S, b"g"),
        *ended(CloseReason.CAPTURE_ENDED),
    ]


def test_a_rst_closes_both_directions_after_what_waited() -> None:
    events = feed([*HANDSHAKE, client(3, b"def"), client(6, flags=FLAG_RST)], finish=False)
    assert story(events)[1:] == [(C2S, 3), (C2S, b"def"), *ended(CloseReason.RST)]


def test_a_rst_that_no_receiver_would_believe_is_ignored() -> None:
    reassembler = Reassembler()
    events = feed([*HANDSHAKE, client(1 << 31, flags=FLAG_RST), client(0, b"abc")], reassembler)
    assert (C2S, b"abc") in story(events)
    assert reassembler.ignored_segments == 1


def test_a_refused_connection() -> None:
    refusal = segment(0, b"", FLAG_RST | FLAG_ACK, SERVER, CLIENT)
    assert story(feed([HANDSHAKE[0], refusal], finish=False)) == ["open", *ended(CloseReason.RST)]


def test_segments_far_from_the_stream_are_counted_and_ignored() -> None:
    reassembler = Reassembler()
    far = [client((1 << 30) + 10, b"far"), client(-(1 << 30) - 10, b"far")]
    events = feed([*HANDSHAKE, *far, client(0, b"near")], reassembler)
    assert streams(events)[0, C2S] == b"near"
    assert reassembler.ignored_segments == 2


def test_nothing_after_the_end_opens_the_connection_again() -> None:
    fins = [client(0, flags=FLAG_ACK | FLAG_FIN), server(0, flags=FLAG_ACK | FLAG_FIN)]
    late = [client(0, b"again"), client(1), server(0, flags=FLAG_FIN), client(1, flags=FLAG_RST)]
    events = feed([*HANDSHAKE, *fins, *late])
    assert story(events) == ["open", *ended(CloseReason.FIN)]


def test_segments_without_payload_open_nothing() -> None:
    assert feed([client(0), server(0), client(0, flags=FLAG_FIN), client(0, flags=FLAG_RST)]) == []


def test_a_new_syn_on_known_addresses_is_a_new_connection() -> None:
    events = feed(
        [
            *HANDSHAKE,
            client(0, b"one"),
            segment(5000, flags=FLAG_SYN),
            segment(9000, b"", FLAG_SYN | FLAG_ACK, SERVER, CLIENT),
            segment(5001, b"two"),
            segment(9001, b"answer", source=SERVER, destination=CLIENT),
        ]
    )
    assert streams(events) == {(0, C2S): b"one", (1, C2S): b"two", (1, S2C): b"answer"}
    assert story(events)[2:5] == [*ended(CloseReason.REPLACED), "open"]


def test_addresses_reused_after_an_end_are_a_new_connection() -> None:
    fins = [client(0, flags=FLAG_ACK | FLAG_FIN), server(0, flags=FLAG_ACK | FLAG_FIN)]
    events = feed([*HANDSHAKE, *fins, segment(5000, flags=FLAG_SYN), segment(5001, b"two")])
    assert streams(events) == {(1, C2S): b"two"}


def test_a_retransmitted_syn_is_not_a_new_connection() -> None:
    syn, syn_ack, _ = HANDSHAKE
    events = feed([syn, syn, syn_ack, syn_ack, client(0, b"abc"), syn, syn_ack])
    assert [each for each in story(events) if each == "open"] == ["open"]
    assert streams(events) == {(0, C2S): b"abc"}


@pytest.mark.parametrize("first", [0, 1])
def test_without_a_handshake_the_higher_port_is_taken_for_the_client(first: int) -> None:
    both = [client(0, b"abc"), server(0, b"xyz")]
    events = feed([both[first], both[1 - first]])
    opened = events[0]
    assert isinstance(opened, StreamOpened)
    assert opened.connection.client == Endpoint(*CLIENT)
    assert not opened.connection.client_known
    assert streams(events) == {(0, C2S): b"abc", (0, S2C): b"xyz"}


def test_a_syn_ack_alone_tells_who_the_client_is() -> None:
    low, high = ("10.0.0.9", 80), ("10.0.0.8", 9000)
    answer = segment(1, b"", FLAG_SYN | FLAG_ACK, source=high, destination=low)
    opened = feed([answer])[0]
    assert isinstance(opened, StreamOpened)
    assert (opened.connection.client, opened.connection.client_known) == (Endpoint(*low), True)


def test_bytes_never_captured_are_a_gap_when_the_capture_ends() -> None:
    events = feed([*HANDSHAKE, client(0, b"ab"), client(5, b"fg"), client(9, b"j")])
    assert story(events)[1:] == [
        (C2S, b"ab"),
        (C2S, 3),
        (C2S, b"fg"),
        (C2S, 2),
        (C2S, b"j"),
        *ended(CloseReason.CAPTURE_ENDED),
    ]


def test_a_gap_before_a_fin_is_reported() -> None:
    events = feed([*HANDSHAKE, client(10, flags=FLAG_ACK | FLAG_FIN)])
    assert story(events)[1:] == [
        (C2S, 10),
        (C2S, CloseReason.FIN),
        (S2C, CloseReason.CAPTURE_ENDED),
    ]


def test_payload_that_the_capture_cut_is_a_gap_at_once() -> None:
    events = feed(
        [*HANDSHAKE, client(0, b"abc", cut=7), client(10, b"k", cut=1), client(12, b"m")],
        finish=False,
    )
    assert story(events)[1:] == [(C2S, b"abc"), (C2S, 7), (C2S, b"k"), (C2S, 1), (C2S, b"m")]


def test_cut_payload_out_of_order_and_repeated_is_the_same_gap() -> None:
    pieces = [client(0, b"abc", cut=7), client(10, b"k", cut=1), client(12, b"m")]
    events = feed([*HANDSHAKE, pieces[1], pieces[2], pieces[1], pieces[0], pieces[0], pieces[1]])
    assert story(events)[1:-2] == [(C2S, b"abc"), (C2S, 7), (C2S, b"k"), (C2S, 1), (C2S, b"m")]


def test_a_hole_is_given_up_when_a_direction_holds_too_much() -> None:
    reassembler = Reassembler(direction_bytes=10_000)
    behind = [client(100 + n * 1000, bytes([n]) * 1000) for n in range(12)]
    events = feed([*HANDSHAKE, *behind], reassembler, finish=False)
    assert story(events)[1] == (C2S, 100)
    assert streams(events)[0, C2S] == b"".join(bytes([n]) * 1000 for n in range(12))


def test_in_total_the_direction_that_waited_longest_gives_up() -> None:
    reassembler = Reassembler(total_bytes=10_000)
    others = [("10.1.0.1", 40000 + n) for n in range(12)]
    starts = [segment(0, b"start", source=each) for each in others]
    behind = [segment(10, bytes(1000), source=each) for each in others]
    events = feed([*starts, *behind], reassembler, finish=False)
    gave_up = [event.connection.index for event in events if isinstance(event, StreamGap)]
    assert gave_up == [0, 1, 2, 3]


def test_tiny_pieces_and_syn_floods_are_bounded_in_memory() -> None:
    reassembler = Reassembler(
        direction_bytes=200_000, total_bytes=1_000_000, maximum_connections=500
    )
    tracemalloc.start()
    try:
        for number in range(15_000):
            reassembler.feed(client(10 + 2 * number, b"x"), number)
            flood = (f"10.9.{number % 250}.1", 1024 + number // 250)
            reassembler.feed(segment(number, flags=FLAG_SYN, source=flood), number)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12_000_000


def test_a_flood_of_syns_evicts_the_idle_and_not_the_busy() -> None:
    reassembler = Reassembler(maximum_connections=10)
    events = feed(HANDSHAKE, reassembler, finish=False)
    for number in range(100):
        events += reassembler.feed(client(number, b"x"), 0)
        flood = segment(number, flags=FLAG_SYN, source=("10.9.0.1", 1024 + number))
        events += reassembler.feed(flood, 0)
    assert streams(events)[0, C2S] == b"x" * 100
    evicted = [
        event.connection.index
        for event in events
        if isinstance(event, StreamClosed) and event.how is CloseReason.EVICTED
    ]
    assert len(evicted) == 2 * 91
    assert 0 not in evicted


def test_closed_connections_are_forgotten() -> None:
    reassembler = Reassembler(history_bytes=0)

    def run(numbers: range) -> None:
        for number in numbers:
            source = (f"10.3.{number // 250}.{number % 250}", 1024)
            for each in (
                segment(0, flags=FLAG_SYN, source=source),
                segment(1, bytes(bytearray(100)), FLAG_ACK, source=source),
                segment(101, flags=FLAG_RST, source=source),
            ):
                reassembler.feed(each, 0)

    run(range(9_000))  # fill what is kept of ended connections
    tracemalloc.start()
    try:
        run(range(9_000, 20_000))
        current_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current_bytes < 1_500_000
    assert reassembler.finish() == []


def test_a_socket_connected_to_itself_is_one_stream() -> None:
    end = ("10.0.0.1", 5000)
    events = feed([segment(0, b"abc", source=end, destination=end)])
    assert next(event for event in story(events) if isinstance(event, tuple))[1] == b"abc"


def test_ipv6_ends() -> None:
    opened = feed([segment(0, b"x", source=("2001:db8::1", 9), destination=("2001:db8::2", 8))])[0]
    assert isinstance(opened, StreamOpened)
    assert opened.connection.client == Endpoint("2001:db8::1", 9)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]], int]:
    """Cut a stream anywhere, repeat and overlap pieces, shuffle, and start at any sequence."""
    stream = draw(st.binary(min_size=1, max_size=300))
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=20)) | {0, len(stream)})
    pieces = list(pairwise(cuts))
    extra = draw(
        st.lists(st.tuples(st.integers(0, len(stream)), st.integers(0, len(stream))), max_size=10)
    )
    pieces += [(min(pair), max(pair)) for pair in extra]
    return stream, draw(st.permutations(pieces)), draw(st.integers(0, 0xFFFFFFFF))


@given(deliveries(), st.booleans())
@settings(deadline=None)
def test_any_delivery_of_a_stream_reassembles_to_it(
    delivery: tuple[bytes, list[tuple[int, int]], int],
    with_fin: bool,  # noqa: FBT001 - drawn
) -> None:
    stream, pieces, initial = delivery
    segments = [segment(initial, flags=FLAG_SYN)]
    for start, end in pieces:
        fin = FLAG_FIN if with_fin and end == len(stream) else 0
        segments.append(segment(initial + 1 + start, stream[start:end], FLAG_ACK | fin))
    events = feed(segments)
    assert streams(events)[0, C2S] == stream
    assert not any(isinstance(event, StreamGap | StreamConflict) for event in events)
    closed = [event.how for event in events if isinstance(event, StreamClosed)]
    expected = CloseReason.FIN if with_fin else CloseReason.CAPTURE_ENDED
    assert closed == [expected, CloseReason.CAPTURE_ENDED]


@given(deliveries(), st.sets(st.integers(0, 30)))
@settings(deadline=None)
def test_whatever_is_lost_is_said_to_be_missing(
    delivery: tuple[bytes, list[tuple[int, int]], int], lost: set[int]
) -> None:
    stream, pieces, initial = delivery
    kept = [piece for number, piece in enumerate(pieces) if number not in lost]
    segments = [segment(initial, flags=FLAG_SYN)]
    segments += [segment(initial + 1 + start, stream[start:end]) for start, end in kept]
    position, rebuilt = 0, b""
    for event in feed(segments):
        if isinstance(event, StreamData):
            assert event.data == stream[position : position + len(event.data)]
            rebuilt += event.data
            position += len(event.data)
        elif isinstance(event, StreamGap):
            position += event.missing_bytes
    captured = {offset for start, end in kept for offset in range(start, end)}
    assert rebuilt == bytes(stream[offset] for offset in sorted(captured))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CLIENT, SERVER]),
            st.integers(-40, 40),
            st.binary(max_size=20),
            st.integers(0, 63),
            st.integers(0, 3),
        ),
        max_size=60,
    )
)
@settings(deadline=None)
def test_whatever_comes_every_opened_direction_closes_once(
    sent: list[tuple[tuple[str, int], int, bytes, int, int]],
) -> None:
    reassembler = Reassembler(direction_bytes=1000, total_bytes=1500, maximum_connections=1)
    events = feed(
        (
            segment(
                offset,
                payload,
                flags,
                source,
                SERVER if source == CLIENT else CLIENT,
                truncated_bytes=cut,
            )
            for source, offset, payload, flags, cut in sent
        ),
        reassembler,
    )
    state: dict[tuple[Connection, Direction], bool] = {}
    for event in events:
        if isinstance(event, StreamOpened):
            state[event.connection, C2S] = state[event.connection, S2C] = True
        else:
            assert state[event.connection, event.direction]
            if isinstance(event, StreamClosed):
                state[event.connection, event.direction] = False
            if isinstance(event, StreamGap):
                assert event.missing_bytes > 0
    assert not any(state.values())
    assert reassembler._waiting_bytes == 0
    assert not reassembler._halves


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


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CLIENT, SERVER, ("10.0.0.3", 50001)]),
            st.sampled_from([0, 0, 0, 0, -3, 4, 1 << 31]),
            st.binary(max_size=6),
            st.sampled_from([0, 0, 0, 0, 0, FLAG_FIN, FLAG_SYN, FLAG_RST]),
            st.sampled_from([0, 0, 0, 0, 2]),
        ),
        max_size=60,
    ),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=400)
def test_segments_a_chunk_at_a_time_mean_what_they_mean_one_by_one(
    sent: list[tuple[tuple[str, int], int, bytes, int, int]], chunk: int
) -> None:
    """Most segments here are in order, so that runs come about; some break them in every way."""
    position = {CLIENT: 0xFFFFFFE0, SERVER: 7, ("10.0.0.3", 50001): 99}
    segments = []
    for source, distance, payload, flags, cut in sent:
        target = CLIENT if source == SERVER else SERVER
        sequence = position[source] + distance
        segments.append(
            segment(sequence, payload, FLAG_ACK | flags, source, target, truncated_bytes=cut)
        )
        if not distance:
            position[source] += len(payload) + cut + bool(flags & FLAG_SYN)
    one_by_one, in_chunks = (Reassembler(maximum_connections=2) for _ in range(2))
    expected = feed(segments, one_by_one)
    events: list[StreamEvent] = []
    for start in range(0, len(segments), chunk):
        events += feed_all(segments[start : start + chunk], in_chunks)
    assert in_runs([*events, *in_chunks.finish()]) == in_runs(expected)
    assert in_chunks.ignored_segments == one_by_one.ignored_segments

"""Reassembly: what the network does to segments, and what the streams must look like after it."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tcp_segments import (
    C2S,
    CLIENT,
    HANDSHAKE,
    S2C,
    SERVER,
    client,
    ended,
    feed,
    segment,
    server,
    story,
    streams,
)

from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN
from interop.capture.reassembly import Reassembler
from interop.capture.streams import (
    CloseReason,
    Connection,
    Direction,
    Endpoint,
    StreamClosed,
    StreamConflict,
    StreamData,
    StreamGap,
    StreamOpened,
)


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


def test_a_later_fin_where_the_stream_is_replaces_one_that_was_never_reached() -> None:
    forged = client(900_000_000, flags=FLAG_ACK | FLAG_FIN)
    fin = client(3, b"def", FLAG_ACK | FLAG_FIN)
    events = feed([*HANDSHAKE, forged, client(0, b"abc"), fin], finish=False)
    assert story(events)[1:] == [(C2S, b"abc"), (C2S, b"def"), (C2S, CloseReason.FIN)]


def test_a_rst_closes_both_directions_after_what_waited() -> None:
    events = feed([*HANDSHAKE, client(3, b"def"), client(6, flags=FLAG_RST)])
    assert story(events)[1:] == [(C2S, 3), (C2S, b"def"), *ended(CloseReason.RST)]


@pytest.mark.parametrize("distance", [-1, 1, 500_000_000, 1 << 31])
def test_a_rst_that_no_receiver_would_believe_is_ignored(distance: int) -> None:
    reassembler = Reassembler()
    sent = [client(0, b"abc"), client(3 + distance, flags=FLAG_RST), client(3, b"def")]
    events = feed([*HANDSHAKE, *sent], reassembler)
    assert story(events)[1:] == [(C2S, b"abc"), (C2S, b"def"), *ended(CloseReason.CAPTURE_ENDED)]
    assert reassembler.ignored_segments == (distance == 1 << 31)


def test_what_was_in_flight_when_a_rst_came_counts() -> None:
    rst = client(7, flags=FLAG_RST)
    flight = [server(0, b"re"), server(2, b"ply"), client(7, b"!")]
    events = feed([*HANDSHAKE, client(0, b"request"), rst, *flight, rst])
    assert streams(events) == {(0, C2S): b"request!", (0, S2C): b"reply"}
    assert story(events)[-2:] == ended(CloseReason.RST)


def test_a_connection_that_was_reset_ends_when_its_ports_are_used_again() -> None:
    again = [segment(5000, flags=FLAG_SYN), segment(5001, b"two")]
    events = feed([*HANDSHAKE, client(0, b"one"), client(3, flags=FLAG_RST), *again])
    assert story(events)[2:5] == [*ended(CloseReason.RST), "open"]
    assert streams(events) == {(0, C2S): b"one", (1, C2S): b"two"}


def test_of_connections_that_were_reset_only_the_last_are_kept_and_the_living() -> None:
    reassembler = Reassembler()
    events = feed([*HANDSHAKE, client(0, flags=FLAG_RST)], reassembler, finish=False)
    for number in range(3000):
        source = ("10.9.0.1", 1024 + number)
        events += reassembler.feed(server(number, b"x"), 0)
        events += reassembler.feed(segment(0, flags=FLAG_SYN, source=source), 0)
        events += reassembler.feed(segment(1, flags=FLAG_RST, source=source), 0)
    closed = {event.connection.index for event in events if isinstance(event, StreamClosed)}
    assert closed == set(range(1, 3000 - 256 + 2))
    assert len(streams(events)[0, S2C]) == 3000


def test_a_refused_connection() -> None:
    refusal = segment(0, b"", FLAG_RST | FLAG_ACK, SERVER, CLIENT)
    assert story(feed([HANDSHAKE[0], refusal])) == ["open", *ended(CloseReason.RST)]


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


def test_data_before_its_own_syn_is_of_the_same_connection() -> None:
    syn, syn_ack, _ = HANDSHAKE
    events = feed([client(0, b"abc"), server(0, b"xy"), syn, syn_ack, client(3, b"d"), syn])
    assert story(events)[:4] == ["open", (C2S, b"abc"), (S2C, b"xy"), (C2S, b"d")]
    assert story(events)[4:] == ended(CloseReason.CAPTURE_ENDED)


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
    left = [event.how for event in reassembler.finish() if isinstance(event, StreamClosed)]
    assert left == [CloseReason.RST] * 2 * 256


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

"""Segments a chunk at a time: a run of one direction is one event, and means the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tcp_segments import (
    BASE,
    C2S,
    CLIENT,
    HANDSHAKE,
    S2C,
    SERVER,
    client,
    datas,
    ended,
    feed,
    feed_all,
    in_runs,
    segment,
    server,
    story,
    take,
)

from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN
from interop.capture.reassembly import Reassembler
from interop.capture.streams import (
    CloseReason,
    StreamClosed,
    StreamConflict,
    StreamEvent,
    StreamOpened,
)


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
    run = [client(0, b"ab"), client(2, b"cd")]
    reassembler, events = take([*HANDSHAKE, *run, client(4, flags=FLAG_RST), client(4, b"ef")])
    events += reassembler.finish()
    assert story(events) == ["open", (C2S, b"abcd"), (C2S, b"ef"), *ended(CloseReason.RST)]
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

"""Capture files on disk: what opens, what does not, what is damaged, and what it costs."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from interop.capture.files import CaptureEvent, CaptureProblem, read_streams
from interop.capture.items import DecryptionSecrets
from interop.capture.reassembly import Reassembler
from interop.capture.streams import (
    Direction,
    Endpoint,
    StreamClosed,
    StreamData,
    StreamGap,
    StreamOpened,
)
from interop.capture.synthesis import Conversation
from interop.capture.writer import PcapngWriter
from interop.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

C2S, S2C = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT


def conversation(number: int = 0, **options: int) -> Conversation:
    return Conversation(
        Endpoint(f"10.0.{number // 250}.{number % 250}", 40000),
        Endpoint("10.1.0.1", 443),
        initial_sequences=(number, number + 1),
        **options,
    )


def packets(payload: bytes = b"hello", number: int = 0) -> list[bytes]:
    talk = conversation(number)
    return [
        *talk.request(),
        *talk.accept(),
        *talk.data(C2S, payload),
        *talk.data(S2C, payload[::-1]),
        *talk.finish(C2S),
        *talk.finish(S2C),
    ]


def capture(all_packets: Iterable[bytes]) -> bytes:
    writer = PcapngWriter()
    return writer.start() + b"".join(
        writer.packet(number, packet) for number, packet in enumerate(all_packets)
    )


def read(path: Path) -> list[CaptureEvent]:
    return list(read_streams(path))


def data(events: Iterable[CaptureEvent], direction: Direction = C2S) -> bytes:
    return b"".join(
        event.data
        for event in events
        if isinstance(event, StreamData) and event.direction is direction
    )


def problems(events: Iterable[CaptureEvent]) -> list[CaptureProblem]:
    return [event for event in events if isinstance(event, CaptureProblem)]


def test_a_capture_and_the_same_compressed(tmp_path: Path) -> None:
    plain, packed, twice = (tmp_path / name for name in ("plain", "packed", "twice.gz"))
    content = capture(packets())
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    twice.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    for path in (plain, packed, twice):
        events = read(path)
        assert [type(event) for event in events] == [
            StreamOpened,
            StreamData,
            StreamData,
            StreamClosed,
            StreamClosed,
        ]
        assert (data(events), data(events, S2C)) == (b"hello", b"olleh")


def test_runs_of_one_direction_are_one_event_and_turns_are_not_joined(tmp_path: Path) -> None:
    talk = conversation(segment_bytes=10)
    sent = [*talk.request(), *talk.accept()]
    for direction in (C2S, S2C, C2S):
        sent += talk.data(direction, bytes(range(100)))
    path = tmp_path / "c"
    path.write_bytes(capture(sent))
    runs = [event for event in read(path) if isinstance(event, StreamData)]
    assert [(event.direction, bytes(event.data)) for event in runs] == [
        (direction, bytes(range(100))) for direction in (C2S, S2C, C2S)
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_runs_over_many_chunks_are_whole_and_few(tmp_path: Path, *, compressed: bool) -> None:
    talk = conversation(segment_bytes=1460)
    payload = os.urandom(3_000_000)
    sent = [*talk.request(), *talk.accept(), *talk.data(C2S, payload)]
    path = tmp_path / "c"
    content = capture([*sent, *talk.data(S2C, b"answer"), *talk.finish(C2S), *talk.finish(S2C)])
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    events = read(path)
    assert data(events) == payload
    assert data(events, S2C) == b"answer"
    # 2,055 segments, in chunks that each end within one.
    assert 3 < sum(isinstance(event, StreamData) for event in events) < 30
    assert not problems(events)


def test_secrets_between_packets_come_between_their_data(tmp_path: Path) -> None:
    writer = PcapngWriter()
    before, after = packets(b"before", 0), packets(b"after", 1)
    path = tmp_path / "c"
    path.write_bytes(
        capture(before)
        + writer.secrets(b"key")
        + b"".join(writer.packet(0, packet) for packet in after)
    )
    events = [
        bytes(event.data)
        for event in read(path)
        if isinstance(event, StreamData | DecryptionSecrets)
    ]
    assert events == [b"before", b"erofeb", b"key", b"after", b"retfa"]


def test_what_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    for name, content in (("text", b"no capture at all"), ("empty", b""), ("short", b"\x0a\x0d")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"no capture at all"))
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"no capture at all")[:12])
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "missing": "No such file",
        ".": "Is a directory",
        "text": "not a capture",
        "empty": "it is empty",
        "short": "too short",
        "text.gz": "not a capture",
        "empty.gz": "it is empty",
        "cut.gz": "gzip data is damaged",
        "loop": "symbolic links",
        "nul\0": "not a possible file name",
    }
    for name, says in cases.items():
        with pytest.raises(InputError, match=says) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith((str(tmp_path), "'"))


UNPRIVILEGED_READER = """
import os, sys
from interop.capture.files import read_streams
from interop.errors import InputError
if os.geteuid() == 0: os.setuid(65534)
try: list(read_streams(sys.argv[1]))
except InputError as error: print(error)
"""


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(capture(packets()))
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if os.geteuid() == folder.stat().st_uid and folder.is_relative_to(
            tmp_path.parent.parent.parent
        ):
            folder.chmod(folder.stat().st_mode | 0o111)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED_READER, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{path}: Permission denied\n"


def test_damaged_packets_are_numbered_and_the_rest_is_used(tmp_path: Path) -> None:
    sent = packets()
    damaged = bytearray(sent[2])
    damaged[32] = 0x10  # a TCP header of one word
    path = tmp_path / "c"
    path.write_bytes(capture([*sent[:2], bytes(damaged), b"\x99", *sent[2:]]))
    events = read(path)
    assert [problem.packet_number for problem in problems(events)] == [3, 4]
    assert data(events) == b"hello"


def test_many_damaged_packets_become_a_count(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(capture([b"\x99"] * 1000 + packets()))
    events = read(path)
    found = problems(events)
    assert [problem.packet_number for problem in found[:-1]] == list(range(1, 21))
    assert found[-1] == CaptureProblem(None, "980 more packets could not be used")
    assert data(events) == b"hello"


def test_a_damaged_block_counts_as_the_packet_it_was(tmp_path: Path) -> None:
    content = bytearray(capture([b"\x99", *packets()]))
    writer = PcapngWriter()
    first = len(writer.start())
    content[first + 8] = 7  # an interface that was not described
    content += writer.packet(0, b"\x99")
    path = tmp_path / "c"
    path.write_bytes(content)
    numbers = [problem.packet_number for problem in problems(read(path))]
    assert numbers == [1, 2 + len(packets())]


def test_a_broken_frame_ends_the_reading_and_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(capture(packets()) + b"\x06\0\0\0\x07\0\0\0" + bytes(3_000_000))
    events = read(path)
    (problem,) = problems(events)
    assert problem.packet_number is None
    assert "the rest cannot be read" in problem.message
    assert data(events) == b"hello"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_file_keeps_what_came_before_and_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c{suffix}"
    payload = os.urandom(30_000)
    content = capture([*packets(payload), *packets(payload, 1)])
    if suffix:
        content = gzip.compress(content)
    path.write_bytes(content[: -len(content) // 4])
    events = read(path)
    (problem,) = problems(events)
    assert ("gzip" if suffix else "within a packet") in problem.message
    assert data(events).startswith(payload)


def test_damaged_compression_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(capture(packets(os.urandom(50_000)))))
    for position in range(20, len(content), 997):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path = tmp_path / "c.gz"
        path.write_bytes(damaged)
        try:
            assert problems(read(path)) != []
        except InputError as error:
            # Damage of either kind is fine: to the compression, or to the capture's beginning.
            assert "damaged" in str(error) or "not a capture" in str(error)  # noqa: PT017 - as said


def test_an_unsupported_link_type_is_a_problem(tmp_path: Path) -> None:
    writer = PcapngWriter(105)
    path = tmp_path / "c"
    path.write_bytes(writer.start() + writer.packet(0, bytes(80)))
    (problem,) = problems(read(path))
    assert "link type 105 is not supported" in problem.message


def test_packets_in_tunnels_that_are_not_read_are_one_problem(tmp_path: Path) -> None:
    outer = b"\x45\0\0\x30" + bytes(5) + b"%c" + bytes(10)
    path = tmp_path / "c"
    path.write_bytes(capture([*[outer % 97 + bytes(28)] * 30, *packets(), outer % 50 + bytes(28)]))
    events = read(path)
    (problem,) = problems(events)
    assert problem == CaptureProblem(
        None,
        "packets in encapsulations that are not read were passed over: ESP (1), EtherIP (30)",
    )
    assert data(events) == b"hello"


def test_stray_segments_are_counted(tmp_path: Path) -> None:
    sent = packets()
    stray = bytearray(sent[3])
    stray[24] ^= 0x70  # the sequence number's first byte
    path = tmp_path / "c"
    path.write_bytes(capture([*sent[:3], bytes(stray), *sent[3:]]))
    (problem,) = problems(read(path))
    assert problem.message.startswith("1 segments have sequence numbers of no stream")


def test_lost_packets_are_gaps(tmp_path: Path) -> None:
    sent = packets()
    path = tmp_path / "c"
    path.write_bytes(capture([*sent[:3], *sent[4:]]))
    events = read(path)
    gaps = [event for event in events if isinstance(event, StreamGap)]
    assert [(gap.direction, gap.missing_bytes) for gap in gaps] == [(C2S, 5)]


def bulk(total_bytes: int) -> Iterator[bytes]:
    talks = [conversation(number, segment_bytes=1460) for number in range(20)]
    for talk in talks:
        yield from (*talk.request(), *talk.accept())
    sent = 0
    while sent < total_bytes:
        for talk in talks:
            yield from talk.data(C2S, bytes(14_600))
            sent += 14_600


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, *, compressed: bool) -> None:
    total_bytes = 40_000_000
    path = tmp_path / "c"
    writer = PcapngWriter()
    with gzip.open(path, "wb", 1) if compressed else path.open("wb") as file:
        file.write(writer.start())
        for packet in bulk(total_bytes):
            file.write(writer.packet(0, packet))
    seen = 0
    tracemalloc.start()
    try:
        for event in read_streams(path):
            if isinstance(event, StreamData):
                seen += len(event.data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen >= total_bytes
    assert peak_bytes < 16_000_000


def test_other_bounds_can_be_asked_for(tmp_path: Path) -> None:
    talk = conversation(segment_bytes=1000)
    sent = [*talk.request(), *talk.accept()]
    lost, *rest = talk.data(C2S, bytes(50_000))
    assert lost
    path = tmp_path / "c"
    path.write_bytes(capture([*sent, *rest, *talk.data(S2C, b"late")]))
    order = [
        type(event).__name__
        for event in read_streams(path, Reassembler(direction_bytes=10_000))
        if isinstance(event, StreamGap | StreamData)
    ]
    assert order[0] == "StreamGap"
    assert [type(event).__name__ for event in read(path)][1:3] == ["StreamData", "StreamGap"]

"""Hostile captures: any bytes give values or typed errors, in bounded time and memory."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tcp_segments import parse_tcp

from interop.capture.files import CaptureProblem, read_streams
from interop.capture.fragments import FragmentBuffer
from interop.capture.items import DamagedBlock, DecryptionSecrets, Packet
from interop.capture.packets import SUPPORTED_LINK_TYPES, TCPSegment
from interop.capture.pcapng import CaptureReader
from interop.capture.reassembly import Reassembler
from interop.capture.streams import Direction, Endpoint, StreamClosed, StreamOpened
from interop.capture.synthesis import Conversation
from interop.capture.writer import PcapngWriter
from interop.errors import DissectError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuzz
SEEDS = range(40)


def genuine_packets() -> list[bytes]:
    found: list[bytes] = []
    for hosts in (("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")):
        talk = Conversation(
            Endpoint(hosts[0], 50000),
            Endpoint(hosts[1], 443),
            initial_sequences=(0xFFFFFFF0, 5),
            segment_bytes=40,
        )
        found += talk.request() + talk.accept()
        found += talk.data(Direction.CLIENT_TO_SERVER, bytes(range(200)))
        found += talk.data(Direction.SERVER_TO_CLIENT, bytes(range(200)))
        found += talk.finish(Direction.CLIENT_TO_SERVER) + talk.finish(Direction.SERVER_TO_CLIENT)
    return found


def genuine_captures() -> list[bytes]:
    writer = PcapngWriter()
    packets = genuine_packets()
    pcapng = writer.start(application="fuzz", comment="seed") + writer.secrets(b"secret")
    pcapng += b"".join(writer.packet(number, packet) for number, packet in enumerate(packets))
    pcap = b"\xd4\xc3\xb2\xa1\x02\0\x04\0" + bytes(8) + b"\xff\xff\0\0" + b"\x65\0\0\0"
    for packet in packets:
        length = len(packet).to_bytes(4, "little")
        pcap += bytes(8) + length + length + packet
    return [pcapng, pcap]


def mutations(data: bytes, seed: int) -> Iterator[bytes]:
    """Flip, overwrite with telling values, cut out, repeat and truncate."""
    chance = random.Random(seed)
    for _ in range(60):
        mutated = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            position = chance.randrange(len(mutated))
            match chance.randrange(5):
                case 0:
                    mutated[position] ^= 1 << chance.randrange(8)
                case 1:
                    value = chance.choice([0, 1, 3, 4, 0x7F, 0x80, 0xFF])
                    width = chance.choice([1, 2, 4])
                    mutated[position : position + width] = bytes([value]) * width
                case 2:
                    del mutated[position : position + chance.randrange(1, 50)]
                case 3:
                    piece = mutated[position : position + chance.randrange(1, 200)]
                    mutated[position:position] = piece
                case _:
                    del mutated[max(1, position) :]
            if not mutated:
                mutated = bytearray(b"\0")
        yield bytes(mutated)


def read_everything(data: bytes, chunk_bytes: int) -> None:
    """Run the whole path; only a typed error may come out."""
    reader, fragments, reassembler = CaptureReader(), FragmentBuffer(), Reassembler()
    state: dict[tuple[int, Direction], bool] = {}
    try:
        for start in range(0, len(data), chunk_bytes):
            for item in reader.feed(data[start : start + chunk_bytes]):
                assert isinstance(item, Packet | DecryptionSecrets | DamagedBlock)
                if not isinstance(item, Packet):
                    continue
                try:
                    segment = parse_tcp(item.link_type, item.data, fragments, item.original_length)
                except DissectError:
                    continue
                if segment is not None:
                    for event in reassembler.feed(segment, item.timestamp_ns):
                        note(event, state)
        assert reader.finish() >= 0
    except DissectError as error:
        assert error.offset >= 0  # noqa: PT017 - the other outcome is as good
    for event in reassembler.finish():
        note(event, state)
    assert not any(state.values())


def note(event: object, state: dict[tuple[int, Direction], bool]) -> None:
    if isinstance(event, StreamOpened):
        for direction in Direction:
            state[event.connection.index, direction] = True
    elif isinstance(event, StreamClosed):
        assert state[event.connection.index, event.direction]
        state[event.connection.index, event.direction] = False


@given(st.binary(max_size=400), st.integers(1, 400))
@settings(max_examples=500, deadline=None)
def test_any_bytes_at_all_in_any_chunks(data: bytes, chunk_bytes: int) -> None:
    read_everything(data, chunk_bytes)


@given(
    st.sampled_from([b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x4d\x3c\x2b\x1a", b"\xd4\xc3\xb2\xa1"]),
    st.binary(max_size=400),
    st.integers(1, 400),
)
@settings(max_examples=500, deadline=None)
def test_any_bytes_behind_a_genuine_beginning(start: bytes, data: bytes, chunk_bytes: int) -> None:
    read_everything(start + data, chunk_bytes)


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_captures(seed: int) -> None:
    for capture in genuine_captures():
        for mutated in mutations(capture, seed):
            read_everything(mutated, random.Random(seed).choice([1 << 20, 1000, 17]))


@given(st.sampled_from(sorted(SUPPORTED_LINK_TYPES)), st.binary(max_size=200), st.integers(0, 250))
@settings(max_examples=2000, deadline=None)
def test_any_packet_is_a_segment_nothing_or_damage(
    link_type: int, data: bytes, original_length: int
) -> None:
    try:
        segment = parse_tcp(link_type, memoryview(data), FragmentBuffer(), original_length)
    except DissectError as error:
        assert error.path  # noqa: PT017 - the other outcome is as good
    else:
        assert segment is None or isinstance(segment, TCPSegment)
        if segment is not None:
            assert len(segment.flow) in {12, 36}
            assert segment.truncated_bytes >= 0
            assert segment.source
            assert segment.destination


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_packets_through_one_fragment_buffer(seed: int) -> None:
    fragments = FragmentBuffer(maximum_bytes=20_000)
    chance = random.Random(seed)
    for packet in genuine_packets():
        for mutated in mutations(packet, chance.randrange(1 << 30)):
            try:
                segment = parse_tcp(101, memoryview(mutated), fragments, len(mutated))
            except DissectError:
                continue
            assert segment is None or segment.truncated_bytes == 0
    assert fragments._held_bytes <= 20_000
    assert fragments._held_bytes == sum(map(fragments._cost, fragments._datagrams.values()))


@pytest.mark.parametrize("seed", range(8))
def test_mutated_files_give_events_or_one_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "c"
    outcomes = set()
    for capture in genuine_captures():
        for mutated in mutations(capture, seed):
            path.write_bytes(mutated)
            try:
                events = list(read_streams(path))
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017 - the other outcome is as good
                outcomes.add("input error")
            else:
                found = any(isinstance(event, CaptureProblem) for event in events)
                outcomes.add("problem" if found else "clean")
    assert outcomes >= {"problem", "clean"}


def hostile_streams() -> dict[str, Iterator[bytes]]:
    writer = PcapngWriter()

    def interfaces() -> Iterator[bytes]:
        description = b"\1\0\0\0\x14\0\0\0\x65\0\0\0\0\0\0\0\x14\0\0\0"
        yield writer.start()
        for _ in range(200):
            yield description * 5000

    def promises() -> Iterator[bytes]:
        yield writer.start() + b"\6\0\0\0\0\0\0\1" + bytes(100)
        for _ in range(200):
            yield bytes(100_000)

    def packets(make: object) -> Iterator[bytes]:
        yield writer.start()
        assert callable(make)
        for number in range(60):
            yield b"".join(writer.packet(0, make(number * 500 + index)) for index in range(500))

    def fragment(number: int) -> bytes:
        head = b"\x45\0\0\x1c" + (number & 0xFFFF).to_bytes(2, "big") + b"\x20\0\x40\6\0\0"
        return head + bytes(8) + bytes(8)

    def scan(number: int) -> bytes:
        address = b"\x0a" + (number & 0xFFFFFF).to_bytes(3, "big")
        tcp = b"\xc0\0\1\xbb" + bytes(8) + b"\x50\2\xff\xff" + bytes(4)
        return b"\x45\0\0\x28" + bytes(5) + b"\6\0\0" + address + b"\x0a\0\0\1" + tcp

    def hole(number: int) -> bytes:
        sequence = (number * 2 + 1).to_bytes(4, "big")
        tcp = b"\xc0\0\1\xbb" + sequence + bytes(4) + b"\x50\x10\xff\xff" + bytes(4) + b"x"
        return b"\x45\0\0\x29" + bytes(5) + b"\6\0\0\x0a\0\0\2\x0a\0\0\1" + tcp

    return {
        "interfaces": interfaces(),
        "promises": promises(),
        "fragments": packets(fragment),
        "scan": packets(scan),
        "holes": packets(hole),
    }


@pytest.mark.parametrize("kind", ["interfaces", "promises", "fragments", "scan", "holes"])
def test_hostile_streams_are_bounded_in_memory(kind: str) -> None:
    reader, fragments = CaptureReader(), FragmentBuffer(maximum_bytes=1_000_000)
    reassembler = Reassembler(
        direction_bytes=1_000_000, total_bytes=1_000_000, maximum_connections=1000
    )
    segments = 0
    tracemalloc.start()
    try:
        for chunk in hostile_streams()[kind]:
            try:
                items = reader.feed(chunk)
            except DissectError:
                break
            for item in items:
                if isinstance(item, Packet):
                    segment = parse_tcp(item.link_type, item.data, fragments)
                    if segment is not None:
                        segments += 1
                        reassembler.feed(segment, 0)
            del items
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert segments == (30_000 if kind in {"scan", "holes"} else 0)
    assert peak_bytes < 45_000_000

"""pcapng and pcap: written, read back in any chunks, damaged in every way the format allows."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interop.capture.items import (
    LINK_TYPE_RAW,
    MAXIMUM_BLOCK_BYTES,
    SECRETS_TYPE_TLS_KEY_LOG,
    DamagedBlock,
    DecryptionSecrets,
    NotACapture,
    Packet,
    PacketBatch,
)
from interop.capture.pcapng import CaptureReader
from interop.capture.writer import PcapngWriter
from interop.errors import DissectError


def block(kind: int, body: bytes, order: str = "<", trailer: int | None = None) -> bytes:
    body += bytes(-len(body) & 3)
    length = len(body) + 12
    end = length if trailer is None else trailer
    return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", end)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    order: str = "<", link: int = 1, options: bytes = b"", snapshot_length: int = 0
) -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, snapshot_length) + options, order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) & 3)


def enhanced(
    data: bytes, order: str = "<", number: int = 0, units: int = 0, original: int | None = None
) -> bytes:
    original = len(data) if original is None else original
    head = struct.pack(order + "5I", number, units >> 32, units & 0xFFFFFFFF, len(data), original)
    return block(6, head + data, order)


def classic(order: str, magic: int, packets: list[tuple[int, int, bytes]], link: int = 1) -> bytes:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for seconds, fraction, payload in packets:
        data += struct.pack(order + "4I", seconds, fraction, len(payload), len(payload)) + payload
    return data


def read(data: bytes, chunk_bytes: int | None = None) -> list[object]:
    reader = CaptureReader()
    size = chunk_bytes or len(data)
    items: list[object] = []
    for start in range(0, len(data), size):
        items += reader.feed(data[start : start + size])
    assert reader.finish() == 0
    return items


def plain(items: list[object]) -> list[tuple[int, int, bytes, int]]:
    result = []
    for item in items:
        assert isinstance(item, Packet)
        result.append((item.timestamp_ns, item.link_type, bytes(item.data), item.original_length))
    return result


def test_what_the_writer_writes_the_reader_reads() -> None:
    writer = PcapngWriter()
    data = (
        writer.start(
            hardware="h", operating_system="os", application="app", interface="i", comment="c"
        )
        + writer.secrets(b"CLIENT_RANDOM 00 11\n")
        + writer.packet(1_700_000_000_123_456_789, b"abc", comment="why")
        + writer.packet(1_700_000_000_123_456_790, b"", original_length=70)
    )
    secrets, *packets = read(data)
    assert secrets == DecryptionSecrets(SECRETS_TYPE_TLS_KEY_LOG, b"CLIENT_RANDOM 00 11\n")
    assert plain(packets) == [
        (1_700_000_000_123_456_789, LINK_TYPE_RAW, b"abc", 3),
        (1_700_000_000_123_456_790, LINK_TYPE_RAW, b"", 70),
    ]


def test_secrets_do_not_show_in_their_repr() -> None:
    assert "feed" not in repr(DecryptionSecrets(SECRETS_TYPE_TLS_KEY_LOG, b"feed"))


def test_the_writer_refuses_what_the_format_cannot_hold() -> None:
    with pytest.raises(ValueError, match="option of 65536 bytes"):
        PcapngWriter().start(comment="x" * 65_536)
    with pytest.raises(ValueError, match="block of"):
        PcapngWriter().packet(0, bytes(MAXIMUM_BLOCK_BYTES))


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_several_sections_with_their_own_interfaces(order: str) -> None:
    other = "<" if order == ">" else ">"
    data = (
        section(order)
        + interface(order, 1)
        + interface(order, 113)
        + enhanced(b"one", order, 1)
        + section(other)
        + interface(other, 101)
        + enhanced(b"two", other)
    )
    assert [(link, data) for _, link, data, _ in plain(read(data))] == [
        (113, b"one"),
        (101, b"two"),
    ]


@pytest.mark.parametrize(
    ("resolution", "units", "expected_ns"),
    [
        (b"", 5, 5_000),
        (b"\x06", 5, 5_000),
        (b"\x09", 5, 5),
        (b"\x00", 5, 5_000_000_000),
        (b"\x0c", 5_999, 5),
        (b"\x8a", 1024, 1_000_000_000),
        (b"\x81", 3, 1_500_000_000),
    ],
)
def test_timestamp_resolutions(resolution: bytes, units: int, expected_ns: int) -> None:
    options = option(9, resolution) + option(14, struct.pack("<q", 7)) if resolution else b""
    data = section() + interface(options=options) + enhanced(b"x", units=units)
    offset_ns = 7_000_000_000 if resolution else 0
    assert plain(read(data))[0][0] == expected_ns + offset_ns


def test_simple_and_obsolete_packet_blocks() -> None:
    data = (
        section()
        + interface(snapshot_length=3)
        + block(3, struct.pack("<I", 9) + b"abc")
        + block(3, struct.pack("<I", 2) + b"ab")
        + block(2, struct.pack("<HHIIII", 0, 0, 0, 6, 2, 8) + b"hi")
    )
    assert plain(read(data)) == [(0, 1, b"abc", 9), (0, 1, b"ab", 2), (6_000, 1, b"hi", 8)]


def test_unknown_blocks_are_skipped() -> None:
    data = section() + interface() + block(0x0BAD, bytes(40)) + block(5, b"") + enhanced(b"x")
    assert [data for _, _, data, _ in plain(read(data))] == [b"x"]


def test_a_packet_cut_by_the_snapshot_length_says_so() -> None:
    data = section() + interface() + enhanced(b"abc", original=1500)
    assert plain(read(data)) == [(0, 1, b"abc", 1500)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_classic_pcap_in_both_byte_orders_and_resolutions(
    order: str, magic: int, unit_ns: int
) -> None:
    data = classic(order, magic, [(1, 2, b"one"), (3, 4, b"")], link=0xF000_0071)
    assert plain(read(data)) == [
        (1_000_000_000 + 2 * unit_ns, 113, b"one", 3),
        (3_000_000_000 + 4 * unit_ns, 113, b"", 0),
    ]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 29, 64, 4096])
@pytest.mark.parametrize("format_name", ["pcapng", "pcap"])
def test_chunks_of_any_size_give_the_same(chunk_bytes: int, format_name: str) -> None:
    payloads = [bytes([index]) * index for index in range(60)]
    if format_name == "pcapng":
        data = section() + interface() + b"".join(map(enhanced, payloads))
    else:
        data = classic("<", 0xA1B2C3D4, [(0, 0, payload) for payload in payloads])
    assert [item[2] for item in plain(read(data, chunk_bytes))] == payloads


def test_packets_side_by_side_share_a_batch_and_what_lies_between_parts_them() -> None:
    writer = PcapngWriter()
    one, two, three = (writer.packet(number, bytes([number])) for number in range(3))
    reader = CaptureReader()
    found = reader.feed_batches(writer.start() + one + two + writer.secrets(b"key") + three)
    assert [type(item) for item in found] == [PacketBatch, DecryptionSecrets, PacketBatch]
    batches = [item for item in found if isinstance(item, PacketBatch)]
    assert [len(batch.frames) for batch in batches] == [2, 1]
    assert [batches[0].timestamp_ns(index) for index in range(2)] == [0, 1]
    assert [plain(list(batch.packets())) for batch in batches] == [
        [(0, LINK_TYPE_RAW, b"\0", 1), (1, LINK_TYPE_RAW, b"\1", 1)],
        [(2, LINK_TYPE_RAW, b"\2", 1)],
    ]


@pytest.mark.parametrize("format_name", ["pcapng", "pcap"])
def test_only_the_packet_across_two_chunks_is_copied(format_name: str) -> None:
    payloads = [bytes([index]) * 100 for index in range(4)]
    if format_name == "pcapng":
        data = section() + interface() + b"".join(map(enhanced, payloads))
    else:
        data = classic("<", 0xA1B2C3D4, [(0, 0, payload) for payload in payloads])
    cut = data.index(payloads[1]) + 50
    reader = CaptureReader()
    chunks = data[:cut], data[cut:]
    found = [item for chunk in chunks for item in reader.feed_batches(chunk)]
    batches = [item for item in found if isinstance(item, PacketBatch)]
    assert [len(batch.frames) for batch in batches] == [1, 1, 2]
    assert batches[0].data.obj is chunks[0]
    assert batches[1].data.obj not in chunks
    assert batches[2].data.obj is chunks[1]
    assert [packet.data for batch in batches for packet in batch.packets()] == payloads


def test_a_simple_packet_has_no_time_whatever_its_interface_counts_from() -> None:
    options = option(9, b"\x09") + option(14, struct.pack("<q", 7))
    data = section() + interface(options=options) + block(3, struct.pack("<I", 1) + b"a")
    assert plain(read(data + enhanced(b"b"))) == [(0, 1, b"a", 1), (7_000_000_000, 1, b"b", 1)]


@pytest.mark.parametrize("captured", [4, 5, 8, 9, 0xFFFFFFF0])
def test_captured_bytes_end_with_their_block_whatever_follows(captured: int) -> None:
    """Both where another packet follows in the buffer and where the buffer ends."""
    damaged = block(6, struct.pack("<5I", 0, 0, 0, captured, 4) + b"abcd")
    for data in (damaged + enhanced(b"good"), enhanced(b"good") + damaged):
        found = read(section() + interface() + data)
        packets = [bytes(item.data) for item in found if isinstance(item, Packet)]
        assert packets.count(b"good") == 1
        assert len(packets) == (2 if captured == 4 else 1)
        assert len(found) == 2


@given(st.lists(st.binary(max_size=50), max_size=20), st.lists(st.integers(1, 90), min_size=1))
@settings(deadline=None)
def test_chunks_cut_anywhere_give_the_same(payloads: list[bytes], cuts: list[int]) -> None:
    data = section() + interface() + b"".join(map(enhanced, payloads))
    reader, found, position, turn = CaptureReader(), [], 0, 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[position : position + size])
        position, turn = position + size, turn + 1
    assert [bytes(item.data) for item in found if isinstance(item, Packet)] == payloads
    assert reader.finish() == 0


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"hello world, this is text", "neither pcapng nor pcap"),
        (b"\xa1\xb2\xcd\x34" + bytes(30), "Kuznetzov"),
        (b"\x34\xcd\xb2\xa1" + bytes(30), "Kuznetzov"),
        (b"snoop\0\0\0" + bytes(30), "snoop"),
        (b"\x28\xb5\x2f\xfd" + bytes(30), "zstd"),
        (b"\x0a\x0d\x0d\x0a" + bytes(30), "byte-order mark"),
    ],
)
def test_what_is_not_a_capture_is_named(start: bytes, says: str) -> None:
    reader = CaptureReader()
    with pytest.raises(NotACapture, match=says):
        reader.feed(start)
    with pytest.raises(NotACapture, match=says):
        reader.finish()


@pytest.mark.parametrize(("data", "says"), [(b"", "empty"), (b"\x0a\x0d", "too short")])
def test_too_little_to_be_a_capture(data: bytes, says: str) -> None:
    reader = CaptureReader()
    assert reader.feed(data) == []
    with pytest.raises(NotACapture, match=says):
        reader.finish()


@pytest.mark.parametrize("format_name", ["pcapng", "pcap"])
def test_a_file_that_stops_within_a_block_says_how_much_was_left(format_name: str) -> None:
    if format_name == "pcapng":
        data = section() + interface() + enhanced(b"abcd") + enhanced(b"efgh")
    else:
        data = classic("<", 0xA1B2C3D4, [(0, 0, b"abcd"), (0, 0, b"efgh")])
    reader = CaptureReader()
    items = reader.feed(data[:-3])
    assert [bytes(item.data) for item in items if isinstance(item, Packet)] == [b"abcd"]
    assert reader.finish() == len(enhanced(b"efgh") if format_name == "pcapng" else bytes(20)) - 3


@pytest.mark.parametrize(
    "damage",
    [
        struct.pack("<II", 6, 8) + bytes(40),
        struct.pack("<II", 6, 61) + bytes(60),
        struct.pack("<II", 6, MAXIMUM_BLOCK_BYTES + 4) + bytes(40),
        struct.pack("<II", 99, 0xFFFFFFFC) + bytes(40),
        block(6, struct.pack("<5I", 0, 0, 0, 4, 4) + b"abcd", trailer=99),
        block(99, b"abcd", trailer=99),
        block(0x0A0D0D0A, bytes(16)),
    ],
)
def test_a_broken_frame_stops_the_reading_after_what_came_before(damage: bytes) -> None:
    reader = CaptureReader()
    items = reader.feed(section() + interface() + enhanced(b"good") + damage)
    assert [bytes(item.data) for item in items if isinstance(item, Packet)] == [b"good"]
    for call in (lambda: reader.feed(enhanced(b"more")), reader.finish):
        with pytest.raises(DissectError) as caught:
            call()
        assert len(section() + interface() + enhanced(b"good")) <= caught.value.offset < 100


@pytest.mark.parametrize("length", [61, 62, 63, MAXIMUM_BLOCK_BYTES + 4, MAXIMUM_BLOCK_BYTES * 2])
def test_packet_blocks_of_impossible_length_are_not_believed_however_whole(length: int) -> None:
    head = struct.pack("<7I", 6, length, 0, 0, 0, 4, 4)
    whole = head + bytes(length - 32) + struct.pack("<I", length)
    reader = CaptureReader()
    start = section() + interface() + enhanced(b"good")
    items = reader.feed(start + whole + enhanced(b"more"))
    assert [bytes(item.data) for item in items if isinstance(item, Packet)] == [b"good"]
    with pytest.raises(DissectError, match=f"a block of {length} bytes is not possible") as caught:
        reader.finish()
    assert caught.value.offset == len(start)


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 1 << 26])
def test_the_longest_block_there_may_be_is_read(chunk_bytes: int) -> None:
    payload = bytes(MAXIMUM_BLOCK_BYTES - 32)
    data = section() + interface() + enhanced(payload) + enhanced(b"more")
    found = plain(read(data, chunk_bytes))
    assert [len(data) for _, _, data, _ in found] == [len(payload), 4]


def test_a_classic_packet_of_impossible_length_stops_the_reading() -> None:
    data = classic("<", 0xA1B2C3D4, [(0, 0, b"x")])
    reader = CaptureReader()
    assert len(reader.feed(data + struct.pack("<4I", 0, 0, MAXIMUM_BLOCK_BYTES + 1, 9))) == 1
    with pytest.raises(DissectError, match="not possible"):
        reader.finish()


@pytest.mark.parametrize(
    ("damage", "is_packet"),
    [
        (block(6, struct.pack("<5I", 0, 0, 0, 40, 40) + b"abcd"), True),
        (block(6, struct.pack("<5I", 7, 0, 0, 4, 4) + b"abcd"), True),
        (block(6, struct.pack("<5I", 1, 0, 0, 4, 4) + b"abcd"), True),
        (block(6, b"abcd"), True),
        (block(3, b""), True),
        (block(2, struct.pack("<HHIIII", 0, 0, 0, 6, 99, 99)), True),
        (block(2, struct.pack("<HHIIII", 9, 0, 0, 6, 0, 0)), True),
        (block(10, struct.pack("<II", SECRETS_TYPE_TLS_KEY_LOG, 99) + b"abcd"), False),
        (block(1, b"ab"), False),
    ],
)
def test_a_damaged_block_in_a_whole_frame_is_reported_and_passed_over(
    damage: bytes,
    is_packet: bool,  # noqa: FBT001 - a table's column
) -> None:
    found = read(section() + interface() + damage + enhanced(b"good"))
    assert isinstance(found[0], DamagedBlock)
    assert found[0].is_packet is is_packet
    assert plain(found[1:]) == [(0, 1, b"good", 4)]


def test_a_simple_packet_without_an_interface_is_damage() -> None:
    (damaged,) = read(section() + block(3, struct.pack("<I", 1) + b"a"))
    assert isinstance(damaged, DamagedBlock)


def test_a_huge_block_fed_in_small_chunks_is_not_copied_over_and_over() -> None:
    payload = bytes(4 * 1024 * 1024)
    data = section() + interface() + enhanced(payload)
    reader = CaptureReader()
    found = []
    tracemalloc.start()
    try:
        for start in range(0, len(data), 512):
            found += reader.feed(data[start : start + 512])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1
    assert peak_bytes < 4 * len(payload)


def test_what_was_read_is_not_kept() -> None:
    reader = CaptureReader()
    reader.feed(section() + interface())
    tracemalloc.start()
    try:
        for _ in range(200):
            assert len(reader.feed(enhanced(bytes(100_000)))) == 1
        current_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current_bytes < 1_000_000

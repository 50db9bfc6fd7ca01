"""Packets that dpkt builds, read by the parser: every link type, IP version and odd header."""

from __future__ import annotations

import struct
import tracemalloc
from ipaddress import ip_address
from itertools import permutations
from typing import TYPE_CHECKING

import dpkt
import pytest
from tcp_segments import parse_tcp

from interop.capture.encapsulation import NotRead
from interop.capture.fragments import FragmentBuffer
from interop.capture.items import Frame, Interface, PacketBatch
from interop.capture.packets import (
    FLAG_ACK,
    FLAG_PSH,
    SUPPORTED_LINK_TYPES,
    NumberedSegment,
    TCPSegment,
    parse_tcp_batch,
)
from interop.errors import DissectError

if TYPE_CHECKING:
    from collections.abc import Callable

ETHERNET, RAW, LINUX_COOKED, LINUX_COOKED_2, NULL, LOOP = 1, 101, 113, 276, 0, 108
V4 = ("192.0.2.1", "198.51.100.7")
V6 = ("2001:db8::1", "2001:db8::2")


def tcp(payload: bytes = b"payload", options: bytes = b"") -> bytes:
    header = dpkt.tcp.TCP(
        sport=50123, dport=443, seq=0xFFFFFFF0, ack=77, flags=FLAG_PSH | FLAG_ACK, data=payload
    )
    header.opts = options
    header.off = 5 + len(options) // 4
    header.sum = 1  # so that dpkt does not compute it, over an unknown pseudo-header
    return bytes(header)


def ipv4(data: bytes, protocol: int = 6, *, off: int = 0, **fields: object) -> bytes:
    packet = dpkt.ip.IP(
        src=ip_address(V4[0]).packed, dst=ip_address(V4[1]).packed, p=protocol, data=data, **fields
    )
    packet._flags_offset = off
    packet.hl = 5 + len(packet.opts) // 4
    packet.len = packet.hl * 4 + len(data)
    return bytes(packet)


def ipv6(data: bytes, next_header: int = 6) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(data), next_header, 64)
    return head + ip_address(V6[0]).packed + ip_address(V6[1]).packed + data


def ethernet(data: bytes, *tags: int) -> bytes:
    kind = 0x86DD if data[0] >> 4 == 6 else 0x0800
    stack = b"".join(struct.pack("!HH", tag, 5) for tag in tags)
    return bytes(12) + stack + struct.pack("!H", kind) + data


def cooked(data: bytes) -> bytes:
    kind = 0x86DD if data[0] >> 4 == 6 else 0x0800
    return struct.pack("!HHH8sH", 0, 772, 6, bytes(8), kind) + data


def cooked_2(data: bytes) -> bytes:
    kind = 0x86DD if data[0] >> 4 == 6 else 0x0800
    return struct.pack("!HHIHBB8s", kind, 0, 1, 772, 0, 6, bytes(8)) + data


def loopback(data: bytes) -> bytes:
    return struct.pack("<I", 30 if data[0] >> 4 == 6 else 2) + data


def openbsd_loopback(data: bytes) -> bytes:
    return struct.pack(">I", 24 if data[0] >> 4 == 6 else 2) + data


LINKS: list[tuple[int, Callable[[bytes], bytes]]] = [
    (ETHERNET, ethernet),
    (ETHERNET, lambda data: ethernet(data, 0x8100)),
    (ETHERNET, lambda data: ethernet(data, 0x88A8, 0x8100)),
    (LINUX_COOKED, cooked),
    (LINUX_COOKED_2, cooked_2),
    (NULL, loopback),
    (NULL, openbsd_loopback),
    (LOOP, openbsd_loopback),
    *((link, lambda data: data) for link in (RAW, 228, 229, 12, 14)),
]


def parsed(link: int, data: bytes, fragments: FragmentBuffer | None = None) -> TCPSegment:
    segment = parse_tcp(link, memoryview(data), fragments, len(data))
    assert segment is not None
    return segment


def check(segment: TCPSegment, ends: tuple[str, str], payload: bytes = b"payload") -> None:
    assert (segment.source, segment.destination) == ends
    assert (segment.source_port, segment.destination_port) == (50123, 443)
    assert segment.sequence == 0xFFFFFFF0
    assert segment.flags == FLAG_PSH | FLAG_ACK
    assert bytes(segment.payload) == payload
    assert segment.truncated_bytes == 0


@pytest.mark.parametrize(("link", "wrap"), LINKS)
@pytest.mark.parametrize("options", [b"", b"\x01\x01\x08\x0a" + bytes(8)])
def test_every_link_type_carries_both_ip_versions(
    link: int, wrap: Callable[[bytes], bytes], options: bytes
) -> None:
    check(parsed(link, wrap(ipv4(tcp(options=options)))), V4)
    check(parsed(link, wrap(ipv6(tcp(options=options)))), V6)


@pytest.mark.parametrize(("link", "wrap"), LINKS)
def test_every_link_type_passes_over_what_is_not_tcp(
    link: int, wrap: Callable[[bytes], bytes]
) -> None:
    assert parse_tcp(link, memoryview(wrap(ipv4(bytes(30), 17)))) is None
    assert parse_tcp(link, memoryview(wrap(ipv6(bytes(30), 17)))) is None


def test_what_is_not_ip_is_passed_over() -> None:
    assert parse_tcp(ETHERNET, memoryview(bytes(12) + b"\x08\x06" + bytes(46))) is None
    assert parse_tcp(NULL, memoryview(b"\x07\0\0\0" + bytes(46))) is None


def test_the_payload_is_a_view_of_the_packet() -> None:
    data = ethernet(ipv4(tcp()))
    assert parsed(ETHERNET, data).payload.obj is data


def test_both_directions_of_a_connection_have_mirrored_flows() -> None:
    segment = parsed(RAW, ipv4(tcp()))
    assert segment.flow == (
        ip_address(V4[0]).packed + ip_address(V4[1]).packed + struct.pack("!HH", 50123, 443)
    )


@pytest.mark.parametrize("padding", [1, 6, 40])
def test_ethernet_padding_is_not_payload(padding: int) -> None:
    check(parsed(ETHERNET, ethernet(ipv4(tcp())) + bytes(padding)), V4)
    check(parsed(ETHERNET, ethernet(ipv6(tcp())) + bytes(padding)), V6)
    empty = parsed(ETHERNET, ethernet(ipv4(tcp(b""))) + bytes(padding))
    assert bytes(empty.payload) == b""


def test_segmentation_offload_leaves_the_length_to_the_capture() -> None:
    data = bytearray(ipv4(tcp()))
    data[2:4] = bytes(2)
    check(parsed(RAW, bytes(data)), V4)
    data = bytearray(ipv6(tcp()))
    data[4:6] = bytes(2)
    check(parsed(RAW, bytes(data)), V6)


def test_a_cut_packet_says_how_much_payload_is_missing() -> None:
    for whole in (ipv4(tcp(b"x" * 100)), ipv6(tcp(b"x" * 100))):
        header_bytes = len(whole) - 100
        for kept in (0, 1, 99):
            cut = memoryview(whole)[: header_bytes + kept]
            segment = parse_tcp(RAW, cut, None, len(whole))
            assert segment is not None
            assert (len(segment.payload), segment.truncated_bytes) == (kept, 100 - kept)


def test_what_the_capture_cut_from_an_offloaded_packet_is_missing_too() -> None:
    data = bytearray(ipv4(tcp(b"x" * 100)))
    data[2:4] = bytes(2)
    segment = parse_tcp(RAW, memoryview(data)[:90], None, len(data))
    assert segment is not None
    assert (len(segment.payload), segment.truncated_bytes) == (50, 50)


def test_a_packet_cut_within_tcp_options_still_says_how_much_is_missing() -> None:
    whole = ipv4(tcp(b"x" * 100, options=bytes(20)))
    segment = parse_tcp(RAW, memoryview(whole)[:50], None, len(whole))
    assert segment is not None
    assert (len(segment.payload), segment.truncated_bytes) == (0, 100)


def test_ipv4_options_are_stepped_over() -> None:
    check(parsed(ETHERNET, ethernet(ipv4(tcp(), opts=b"\x01" * 8))), V4)


@pytest.mark.parametrize(
    "headers",
    [
        [(0, b"\x00" + bytes(6))],
        [(0, b"\x00" + bytes(6)), (60, b"\x01" + bytes(14)), (43, b"\x00" + bytes(6))],
        [(51, b"\x04" + bytes(22))],
        [(44, b"\x00" + struct.pack("!HI", 0, 9))],
    ],
)
def test_ipv6_extension_headers_are_stepped_over(headers: list[tuple[int, bytes]]) -> None:
    kinds = [kind for kind, _ in headers] + [6]
    chain = b"".join(
        bytes([following]) + body for (_, body), following in zip(headers, kinds[1:], strict=True)
    )
    check(parsed(ETHERNET, ethernet(ipv6(chain + tcp(), kinds[0]))), V6)


def test_an_ipv6_chain_that_ends_elsewhere_is_not_tcp() -> None:
    for last in (59, 58, 17):
        data = ipv6(bytes([last, 0]) + bytes(6) + bytes(30), 0)
        assert parse_tcp(RAW, memoryview(data)) is None


def gre(data: bytes, flags: int = 0, kind: int = 0x0800) -> bytes:
    return ipv4(struct.pack("!HH", flags, kind) + data, 47)


def udp(data: bytes, port: int) -> bytes:
    return struct.pack("!HHHH", 40_000, port, 8 + len(data), 0) + data


def vxlan(data: bytes, port: int = 4789) -> bytes:
    return ipv4(udp(b"\x08" + bytes(7) + ethernet(data), port), 17)


@pytest.mark.parametrize(
    "data",
    [
        ethernet(ipv4(ipv4(tcp()), 4)),
        ethernet(ipv6(ipv4(tcp()), 4)),
        ethernet(gre(bytes(12) + ipv4(tcp()), 0xB000)),
        ethernet(vxlan(ipv4(tcp()), 8472)),
        ethernet(ipv4(b"\0\0\1\x40" + ipv4(tcp()), 137)),
        bytes(12) + b"\x88\x64\x11\0\0\1\0\x31\0\x21" + ipv4(tcp()) + bytes(6),
        bytes(12) + b"\x88\x47" + bytes(3) + b"\x40\0\0\1\x40" + ipv4(tcp()) + bytes(6),
    ],
)
def test_tunnels_and_tags_are_stepped_over(data: bytes) -> None:
    check(parsed(ETHERNET, data), V4)


def test_an_authentication_header_is_stepped_over_in_ipv4_too() -> None:
    check(parsed(RAW, ipv4(b"\x06\x04" + bytes(22) + tcp(), 51)), V4)


def test_tunnels_are_followed_so_far_and_no_further() -> None:
    data = ipv4(tcp())
    for _ in range(8):
        data = ipv4(data, 4)
    check(parsed(RAW, data), V4)
    with pytest.raises(NotRead, match="more than 8 tunnels"):
        parsed(RAW, ipv4(data, 4))
    with pytest.raises(DissectError, match="too many labels"):
        parsed(ETHERNET, bytes(12) + b"\x88\x47" + bytes(200))


def test_a_tunnelled_packet_that_the_capture_cut_says_how_much_is_missing() -> None:
    whole = vxlan(ipv4(tcp(b"x" * 100)))
    segment = parse_tcp(RAW, memoryview(whole)[:-70], None, len(whole))
    assert segment is not None
    assert (len(segment.payload), segment.truncated_bytes) == (30, 70)


def test_a_tunnelled_packet_does_not_reach_beyond_its_carrier() -> None:
    inner = ipv4(tcp(b"x" * 100))
    carrier = ipv4(inner[:-10], 4)
    with pytest.raises(DissectError, match="promised"):
        parsed(ETHERNET, ethernet(carrier) + bytes(10))


@pytest.mark.parametrize("kept", range(20, 51))
def test_headers_of_tunnels_that_are_cut_are_damage_or_nothing(kept: int) -> None:
    for whole in (gre(ethernet(ipv4(tcp())), 0x3000, 0x6558), vxlan(ipv4(tcp()))):
        try:
            assert parse_tcp(RAW, memoryview(whole)[:kept], None, len(whole)) is None
        except DissectError as error:
            assert error.message == "too short"  # noqa: PT017 - the other outcome is as good


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ethernet(ipv4(bytes(40), 50)), "ESP"),
        (ethernet(ipv6(bytes(40), 50)), "ESP"),
        (ethernet(ipv4(udp(bytes(40), 6081), 17)), "Geneve in UDP"),
        (ethernet(ipv6(udp(bytes(40), 2152), 17)), "GTP in UDP"),
        (ethernet(gre(bytes(40), 0x4000)), "GRE that is not plain"),
        (ethernet(gre(bytes(40), 0, 0x88BE)), "ERSPAN"),
        (bytes(12) + b"\x88\xe5" + bytes(46), "MACsec"),
        (bytes(12) + b"\x88\x47\0\0\1\x40" + bytes(46), "MPLS that carries no IP"),
    ],
)
def test_encapsulations_that_are_known_and_not_read_are_named(data: bytes, name: str) -> None:
    with pytest.raises(NotRead) as raised:
        parsed(ETHERNET, data)
    assert raised.value.message == name


def test_what_only_shares_a_port_with_a_tunnel_is_not_tcp() -> None:
    for payload in (b"", bytes(60)):
        assert parse_tcp(RAW, memoryview(ipv4(udp(payload, 4789), 17))) is None
    assert parse_tcp(RAW, memoryview(ipv4(udp(bytes(60), 53), 17))) is None


def v4_fragments(payload: bytes, size: int, identification: int = 5) -> list[bytes]:
    return [
        ipv4(
            payload[start : start + size],
            id=identification,
            off=start // 8 | (0x2000 if start + size < len(payload) else 0),
        )
        for start in range(0, len(payload), size)
    ]


def v6_fragments(payload: bytes, size: int, identification: int = 5) -> list[bytes]:
    return [
        ipv6(
            struct.pack("!BxHI", 6, start | (start + size < len(payload)), identification)
            + payload[start : start + size],
            44,
        )
        for start in range(0, len(payload), size)
    ]


@pytest.mark.parametrize(("fragment", "ends"), [(v4_fragments, V4), (v6_fragments, V6)])
def test_fragments_in_any_order_and_repeated_make_the_segment(
    fragment: Callable[[bytes, int], list[bytes]], ends: tuple[str, str]
) -> None:
    payload = bytes(range(70))
    pieces = fragment(tcp(payload), 24)
    assert len(pieces) == 4
    for order in permutations(pieces):
        fragments = FragmentBuffer()
        found = [
            parse_tcp(RAW, memoryview(piece), fragments)
            for piece in (order[0], order[0], *order[1:])
        ]
        assert found[:-1] == [None] * 4
        assert found[-1] is not None
        check(found[-1], ends, payload)
    assert parse_tcp(RAW, memoryview(pieces[0]), None) is None


def test_fragments_of_interleaved_datagrams_are_kept_apart() -> None:
    fragments = FragmentBuffer()
    one, two = (v4_fragments(tcp(bytes([n]) * 30), 24, n) for n in (1, 2))
    found = [
        parse_tcp(RAW, memoryview(piece), fragments)
        for pair in zip(one, two, strict=True)
        for piece in pair
    ]
    assert [bytes(each.payload)[:1] for each in found if each] == [b"\1", b"\2"]


def test_overlapping_fragments_drop_their_datagram() -> None:
    fragments = FragmentBuffer()
    first, second, last = v4_fragments(tcp(bytes(30)), 24)
    parse_tcp(RAW, memoryview(first), fragments)
    overlapping = ipv4(b"y" * 16, id=5, off=1 | 0x2000)
    with pytest.raises(DissectError, match="overlapping"):
        parse_tcp(RAW, memoryview(overlapping), fragments)
    # What was dropped does not come back: the others alone make no datagram.
    for piece in (second, last):
        assert parse_tcp(RAW, memoryview(piece), fragments) is None


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_fragments_that_reach_into_ones_before_or_behind_overlap(offset: int) -> None:
    fragments = FragmentBuffer()
    parse_tcp(RAW, memoryview(ipv4(bytes(16), id=5, off=2 | 0x2000)), fragments)
    with pytest.raises(DissectError, match="overlapping"):
        parse_tcp(RAW, memoryview(ipv4(bytes(24), id=5, off=offset | 0x2000)), fragments)


@pytest.mark.parametrize(
    ("offset", "data"), [(0, b""), (0, b"seven b"), (8191, bytes(16)), (8190, bytes(24))]
)
def test_impossible_fragments_are_damage(offset: int, data: bytes) -> None:
    packet = ipv4(data, id=5, off=offset | 0x2000)
    with pytest.raises(DissectError, match="impossible length"):
        parse_tcp(RAW, memoryview(packet), FragmentBuffer())


def test_fragments_beyond_the_last_one_are_damage() -> None:
    fragments = FragmentBuffer()
    parse_tcp(RAW, memoryview(ipv4(bytes(8), id=5, off=1)), fragments)
    with pytest.raises(DissectError, match="overlapping"):
        parse_tcp(RAW, memoryview(ipv4(bytes(8), id=5, off=9)), fragments)


def test_incomplete_datagrams_are_bounded_in_bytes_and_the_oldest_go_first() -> None:
    fragments = FragmentBuffer(maximum_bytes=200_000)
    tracemalloc.start()
    try:
        for number in range(5_000):
            packet = ipv4(bytes(8), id=number + 10_000, off=0x2000 | (number % 7))
            parse_tcp(RAW, memoryview(packet), fragments)
            parse_tcp(RAW, memoryview(v4_fragments(bytes(8000), 4000, number)[0]), fragments)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_500_000
    newest = v4_fragments(bytes(8000), 4000, 4_999)[1]
    with pytest.raises(DissectError, match="tcp"):  # complete, and zeros are no TCP header
        parse_tcp(RAW, memoryview(newest), fragments)
    oldest = v4_fragments(bytes(8000), 4000, 1)[1]
    assert parse_tcp(RAW, memoryview(oldest), fragments) is None


def mutated(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (ipv4(tcp())[:19], "ipv4"),
        (mutated(ipv4(tcp()), 0, b"\x44"), "ipv4.total_length"),
        (mutated(ipv4(tcp()), 2, b"\x00\x13"), "ipv4.total_length"),
        (mutated(ipv4(tcp()), 2, b"\x20\x00"), "promised"),
        (mutated(ipv6(tcp()), 4, b"\x20\x00"), "promised"),
        (mutated(ipv4(tcp()), 2, b"\x00\x20"), "tcp"),
        (mutated(ipv4(tcp()), 32, b"\x40"), "tcp.offset"),
        (mutated(ipv4(tcp()), 32, b"\xf0"), "tcp.offset"),
        (mutated(ipv6(tcp()), 52, b"\x40"), "tcp.offset"),
        (ipv6(tcp())[:39], "ipv6"),
        (ipv6(b"\x06\x09" + bytes(6) + tcp(), 0), "ipv6.extension"),
        (ipv6(bytes(400), 0), "too many extension headers"),
        (ipv6(bytes(4), 0), "ipv6.extension"),
        (b"\x15" + bytes(60), "ip.version"),
        (b"", "ip"),
    ],
)
def test_damaged_headers_are_named(data: bytes, says: str) -> None:
    with pytest.raises(DissectError, match=says):
        parse_tcp(RAW, memoryview(data), None, len(data))


def test_short_link_headers_and_endless_tags_are_damage() -> None:
    for link in SUPPORTED_LINK_TYPES:
        with pytest.raises(DissectError):
            parse_tcp(link, memoryview(b""))
    with pytest.raises(DissectError, match="vlan"):
        parse_tcp(ETHERNET, memoryview(bytes(12) + b"\x81\x00\x00"[:2]))
    assert parse_tcp(ETHERNET, memoryview(bytes(12) + b"\x81\x00\x00\x05" * 9)) is None


def test_an_unsupported_link_type_is_named() -> None:
    with pytest.raises(DissectError, match="link type 105 is not supported"):
        parse_tcp(105, memoryview(bytes(100)))


def batch(packets: list[tuple[int, bytes]], between: bytes = b"") -> PacketBatch:
    """Lay packets, each of a link type, into one buffer."""
    data, frames = b"", list[Frame]()
    for link, packet in packets:
        data += between
        frames.append((Interface(link), 0, 0, len(data), len(data) + len(packet), len(packet)))
        data += packet
    return PacketBatch(memoryview(data), frames)


def parsed_batch(
    packets: PacketBatch, fragments: FragmentBuffer | None = None
) -> tuple[list[NumberedSegment], list[tuple[int, str]]]:
    damage: list[tuple[int, str]] = []

    def note(index: int, error: DissectError) -> None:
        damage.append((index, str(error)))

    return list(parse_tcp_batch(packets, fragments, note)), damage


@pytest.mark.parametrize("between", [b"", b"\xff" * 7])
def test_a_batch_of_every_kind_of_packet_is_what_its_packets_are_by_themselves(
    between: bytes,
) -> None:
    packets = [
        (link, wrap(build(tcp(payload, options))))
        for link, wrap in LINKS
        for build in (ipv4, ipv6)
        for payload in (b"", b"payload")
        for options in (b"", bytes(12))
    ]
    packets += [(ETHERNET, ethernet(ipv4(bytes(30), 17))), (ETHERNET, bytes(60))]
    packets += [(105, bytes(80)), (RAW, b"\x99" * 50), (RAW, ipv4(tcp())), (RAW, b"")]
    packets += [(RAW, piece) for piece in v4_fragments(tcp(bytes(range(70))), 24)]
    expected, expected_damage = list[NumberedSegment](), list[tuple[int, str]]()
    fragments = FragmentBuffer()
    for index, (link, packet) in enumerate(packets):
        try:
            segment = parse_tcp(link, memoryview(packet), fragments, len(packet))
        except DissectError as error:
            expected_damage.append((index, str(error)))
        else:
            if segment is not None:
                expected.append((index, *segment))
    found, damage = parsed_batch(batch(packets, between), FragmentBuffer())
    assert found == expected
    assert damage == expected_damage
    assert len(found) == len(LINKS) * 8 + 2
    assert len(damage) == 3


def test_each_packet_of_a_batch_is_read_by_its_own_link_type() -> None:
    raw, framed = ipv4(tcp()), ethernet(ipv4(tcp()))
    for packets in ([(RAW, raw), (ETHERNET, raw)], [(ETHERNET, framed), (105, framed)]):
        found, damage = parsed_batch(batch(packets))
        assert [segment[0] for segment in found] == [0]
        assert [index for index, _ in damage] == [1] * (packets[1][0] == 105)


@pytest.mark.parametrize("build", [ipv4, ipv6])
def test_no_packet_reaches_into_the_next_one(build: Callable[[bytes], bytes]) -> None:
    whole, following = build(tcp(b"payload")), build(tcp(b"another"))
    header_bytes = len(whole) - 7
    for kept in range(len(whole)):
        data = whole[:kept] + following
        frames: list[Frame] = [
            (Interface(RAW), 0, 0, 0, kept, len(whole)),
            (Interface(RAW), 0, 0, kept, len(data), len(following)),
        ]
        found, damage = parsed_batch(PacketBatch(memoryview(data), frames))
        assert [bytes(segment[4]) for segment in found if segment[0] == 1] == [b"another"]
        cut = [segment for segment in found if segment[0] == 0]
        if kept < header_bytes:
            assert not cut
            assert [index for index, _ in damage] == [0]
        else:
            ((_, _, _, _, payload, truncated_bytes),) = cut
            assert bytes(payload) == b"payload"[: kept - header_bytes]
            assert truncated_bytes == len(whole) - kept

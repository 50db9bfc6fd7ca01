"""Synthesised packets, checked against dpkt: lengths, numbers, and checksums it computes itself."""

from __future__ import annotations

import dpkt
import pytest

from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_PSH, FLAG_RST, FLAG_SYN
from interop.capture.streams import Direction, Endpoint
from interop.capture.synthesis import Conversation

C2S, S2C = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
ENDS = [
    (Endpoint("127.0.0.1", 50000), Endpoint("127.0.0.1", 443)),
    (Endpoint("::1", 50000), Endpoint("2001:db8::2", 443)),
]


def conversation(ends: tuple[Endpoint, Endpoint], **options: int) -> Conversation:
    return Conversation(*ends, initial_sequences=(0xFFFFFFFA, 77), **options)


def summary(packet: bytes) -> tuple[int, int, int, int, bytes]:
    parsed = (dpkt.ip.IP if packet[0] >> 4 == 4 else dpkt.ip6.IP6)(packet)
    tcp = parsed.data
    assert isinstance(tcp, dpkt.tcp.TCP)
    # dpkt computes what is zero: the same packet must come out.
    tcp.sum = 0
    if packet[0] >> 4 == 4:
        parsed.sum = 0
    assert bytes(parsed) == packet
    return tcp.sport, tcp.seq, tcp.ack, tcp.flags, tcp.data


@pytest.mark.parametrize("ends", ENDS)
def test_a_conversation(ends: tuple[Endpoint, Endpoint]) -> None:
    talk = conversation(ends, segment_bytes=3)
    told = [
        summary(packet)
        for packet in (
            *talk.request(),
            *talk.accept(),
            *talk.data(C2S, b"abcde"),
            *talk.data(S2C, b"x"),
            *talk.finish(C2S),
            *talk.reset(S2C),
        )
    ]
    data = FLAG_PSH | FLAG_ACK
    assert told == [
        (50000, 0xFFFFFFFA, 0, FLAG_SYN, b""),
        (443, 77, 0xFFFFFFFB, FLAG_SYN | FLAG_ACK, b""),
        (50000, 0xFFFFFFFB, 78, FLAG_ACK, b""),
        (50000, 0xFFFFFFFB, 78, data, b"abc"),
        (50000, 0xFFFFFFFE, 78, data, b"de"),
        (443, 78, 0, FLAG_ACK, b""),
        (443, 78, 0, data, b"x"),
        (50000, 0, 79, FLAG_ACK, b""),
        (50000, 0, 79, FLAG_FIN | FLAG_ACK, b""),
        (443, 79, 1, FLAG_ACK, b""),
        (443, 79, 1, FLAG_RST | FLAG_ACK, b""),
    ]


def test_a_refusal() -> None:
    talk = conversation(ENDS[0])
    told = [summary(packet) for packet in (*talk.request(), *talk.reset(S2C))]
    assert told[1] == (443, 0, 0xFFFFFFFB, FLAG_RST | FLAG_ACK, b"")


@pytest.mark.parametrize("ends", ENDS)
def test_the_longest_segment_fits_an_ip_packet(ends: tuple[Endpoint, Endpoint]) -> None:
    talk = conversation(ends)
    packets = [*talk.request(), *talk.accept(), *talk.data(C2S, b"\xff" * 65_496)]
    assert [len(summary(packet)[4]) for packet in packets[3:]] == [65_495, 1, 0]


@pytest.mark.parametrize("payload", [bytes(10), b"\xff" * 9, b"\xff\xff" * 8, bytes(range(256))])
def test_checksums_of_awkward_sums(payload: bytes) -> None:
    for port in range(1, 65_535, 257):
        talk = conversation((Endpoint("127.0.0.1", port), Endpoint("127.0.0.1", 443)))
        summary(talk.data(C2S, payload)[0])


def test_a_checksum_of_zero() -> None:
    (packet, _) = conversation(ENDS[0]).data(C2S, bytes(2))
    complement = packet[36:38]  # adding a checksum to what it sums up makes the sum full
    (packet, _) = conversation(ENDS[0]).data(C2S, complement)
    assert packet[36:38] == bytes(2)
    assert summary(packet)[4] == complement


def test_what_makes_no_conversation() -> None:
    with pytest.raises(ValueError, match="different IP versions"):
        conversation((ENDS[0][0], ENDS[1][1]))
    for size in (0, 65_496):
        with pytest.raises(ValueError, match="do not fit"):
            conversation(ENDS[0], segment_bytes=size)

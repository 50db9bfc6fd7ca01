"""One TLS session in every shape in which a capture can hold it, decrypted by us and by tshark.

Python's own `ssl` makes the session, in memory. Its bytes are put into packets of every link type,
both IP versions and every tunnel, whole, in fragments, behind extension headers, out of order,
repeated, in overlapping segments, and among beginnings and ends that are forged or out of place.
From each capture the attacker recovers exactly what was sent, and so does tshark, which shares no
code with either.
"""

from __future__ import annotations

import os
import random
import ssl
import struct
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme

from interop.capture.files import CaptureProblem, read_streams
from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN
from interop.capture.streams import Direction, Endpoint, StreamConflict, StreamGap
from interop.capture.synthesis import Conversation
from interop.capture.writer import PcapngWriter
from interop.proof.attacker import Attacker, SessionResult
from interop.wire.key_log import KeyLog
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interop.peers.programs import Program

pytestmark = pytest.mark.peers
C2S, S2C = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
REQUEST, ANSWER = random.Random(1).randbytes(3000), random.Random(2).randbytes(40_000)
ENDS = {
    4: (Endpoint("192.0.2.1", 50123), Endpoint("198.51.100.7", 443)),
    6: (Endpoint("2001:db8::1", 50123), Endpoint("2001:db8::2", 443)),
}
TCP, FRAGMENT, HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING = 6, 44, 0, 60, 43


class Session(NamedTuple):
    """What the two sides sent in turn, and the file of their secrets."""

    turns: list[tuple[Direction, bytes]]
    key_log: Path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    key_log = tmp_path_factory.mktemp("session") / "keys.log"
    authority = trustme.CA()
    contexts = {S2C: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), C2S: ssl.create_default_context()}
    authority.issue_cert("localhost").configure_cert(contexts[S2C])
    authority.configure_trust(contexts[C2S])
    contexts[C2S].keylog_filename = str(key_log)
    sent = {C2S: ssl.MemoryBIO(), S2C: ssl.MemoryBIO()}
    arrived = {C2S: ssl.MemoryBIO(), S2C: ssl.MemoryBIO()}
    client = contexts[C2S].wrap_bio(arrived[S2C], sent[C2S], server_hostname="localhost")
    server = contexts[S2C].wrap_bio(arrived[C2S], sent[S2C], server_side=True)
    steps: list[tuple[Direction, Callable[[], object]]] = [
        (C2S, client.do_handshake),
        (S2C, server.do_handshake),
        (C2S, client.do_handshake),
        (S2C, server.do_handshake),
        (C2S, lambda: client.write(REQUEST)),
        (S2C, lambda: server.write(ANSWER)),
        (C2S, lambda: [client.read(1 << 14) for _ in range(3)] and client.unwrap()),
        (S2C, lambda: server.read(len(REQUEST)) and server.unwrap()),
    ]
    turns = []
    for direction, do in steps:
        with suppress(ssl.SSLWantReadError):
            do()
        data = sent[direction].read()
        turns.append((direction, data))
        arrived[direction].write(data)
    return Session(turns, key_log)


# Shapes: from the session to IP packets


def in_order(session: Session, version: int, segment_bytes: int = 1200) -> list[bytes]:
    talk = Conversation(
        *ENDS[version], initial_sequences=(7, 2**32 - 9), segment_bytes=segment_bytes
    )
    packets = [*talk.request(), *talk.accept()]
    for direction, data in session.turns:
        packets += talk.data(direction, data)
    return [*packets, *talk.finish(C2S), *talk.finish(S2C)]


def shuffled(session: Session, version: int) -> list[bytes]:
    """Within each turn, segments change places with near ones, and some come again.

    Not across turns: tshark takes what is acknowledged before it was seen for lost.
    """
    chance = random.Random(3)
    turns: list[list[bytes]] = [[]]
    for packet in in_order(session, version):
        turns[-1].append(packet)
        if is_bare(packet):
            turns.append([])
    packets = []
    for turn in turns:
        *segments, last = turn or [b""]
        moved = [(number + chance.random() * 4, each) for number, each in enumerate(segments)]
        moved += [(when + chance.random() * 3, each) for when, each in moved if when % 1 < 0.2]
        packets += [each for _, each in sorted(moved, key=lambda pair: pair[0])]
        packets += [last] if last else []
    return packets


def overlapping(session: Session, version: int) -> list[bytes]:
    """The same bytes twice, in segments with other boundaries, one packet of each in turn."""
    ones, others = in_order(session, version, 1200), in_order(session, version, 700)
    mixed = [packet for pair in zip(ones, others, strict=False) for packet in pair]
    return mixed + others[len(ones) :]


def fragmented(session: Session, version: int) -> list[bytes]:
    """Packets in three fragments each, the last one first."""
    packets = []
    for number, packet in enumerate(in_order(session, version)):
        split = fragments_4 if version == 4 else fragments_6
        packets += split(packet, number)
    return packets


def extended(session: Session, _version: int) -> list[bytes]:
    """IPv6 with hop-by-hop options, a routing header and destination options before TCP."""
    padding = b"\x01\x04" + bytes(4)  # PadN
    headers = [
        (HOP_BY_HOP, bytes([ROUTING, 0]) + padding),
        (ROUTING, bytes([DESTINATION_OPTIONS, 0, 253, 0]) + bytes(4)),
        (DESTINATION_OPTIONS, bytes([TCP, 1]) + b"\x01\x0c" + bytes(12)),
    ]
    block = b"".join(header for _, header in headers)
    return [
        packet[:4]
        + struct.pack("!HB", len(packet) - 40 + len(block), HOP_BY_HOP)
        + packet[7:40]
        + block
        + packet[40:]
        for packet in in_order(session, 6)
    ]


def forged(packet: bytes, ahead: int, flags: int) -> bytes:
    """A packet without payload, of the numbers of another one that has none."""
    start = 20 if packet[0] >> 4 == 4 else 40
    (sequence,) = struct.unpack_from("!I", packet, start + 4)
    changed = bytearray(packet)
    struct.pack_into("!I", changed, start + 4, (sequence + ahead) & 0xFFFFFFFF)
    changed[start + 13] = flags
    return bytes(changed)


def reset_ahead(session: Session, version: int) -> list[bytes]:
    """Each acknowledgement is followed by a RST that its receiver does not believe."""
    packets = []
    for packet in in_order(session, version):
        packets.append(packet)
        if is_bare(packet):
            packets.append(forged(packet, 500_000_000, FLAG_RST))
    return packets


def finished_ahead(session: Session, version: int) -> list[bytes]:
    """Each acknowledgement is followed by a FIN that its sender never comes to."""
    packets = []
    for packet in in_order(session, version):
        packets.append(packet)
        if is_bare(packet):
            packets.append(forged(packet, 900_000_000, FLAG_FIN | FLAG_ACK))
    return packets


def reset_in_flight(session: Session, version: int) -> list[bytes]:
    """The client's RST was captured before the answer that the server had sent by then."""
    talk = Conversation(*ENDS[version], initial_sequences=(7, 2**32 - 9), segment_bytes=1200)
    packets = [*talk.request(), *talk.accept()]
    *before, answer = session.turns[:6]
    for direction, data in before:
        packets += talk.data(direction, data)
    return [*packets, *talk.reset(C2S), *talk.data(*answer)]


def before_its_syn(session: Session, version: int) -> list[bytes]:
    """The client's first data was captured before the handshake."""
    syn, syn_ack, acknowledgement, first, *others = in_order(session, version)
    return [first, syn, syn_ack, acknowledgement, *others]


def is_bare(packet: bytes) -> bool:
    """Say whether a packet is an acknowledgement alone."""
    header_bytes = 20 if packet[0] >> 4 == 4 else 40
    return len(packet) == header_bytes + 20 and packet[header_bytes + 13] == 0x10


def fragments_4(packet: bytes, number: int) -> list[bytes]:
    head, data = packet[:20], packet[20:]
    size = max(8, len(data) // 3 // 8 * 8)
    pieces = [(start, data[start : start + size]) for start in range(0, len(data), size)]
    return [
        head[:2]
        + struct.pack(
            "!HHH", 20 + len(piece), number, start // 8 | 0x2000 * (start + size < len(data))
        )
        + head[8:]
        + piece
        for start, piece in reversed(pieces)
    ]


def fragments_6(packet: bytes, number: int) -> list[bytes]:
    head, data = packet[:40], packet[40:]
    size = max(8, len(data) // 3 // 8 * 8)
    pieces = [(start, data[start : start + size]) for start in range(0, len(data), size)]
    return [
        head[:4]
        + struct.pack("!HB", 8 + len(piece), FRAGMENT)
        + head[7:]
        + struct.pack("!BBHI", TCP, 0, start | (start + size < len(data)), number)
        + piece
        for start, piece in reversed(pieces)
    ]


# Links: from IP packets to captures


def kind(packet: bytes) -> bytes:
    return b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"


def family(packet: bytes, other: int, order: str) -> bytes:
    return struct.pack(f"{order}I", 2 if packet[0] >> 4 == 4 else other)


LINKS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "Ethernet": (1, lambda p: bytes(12) + kind(p) + p),
    "Ethernet padded": (1, lambda p: (bytes(12) + kind(p) + p).ljust(60, b"\0")),
    "VLAN": (1, lambda p: bytes(12) + b"\x81\x00\x00\x05" + kind(p) + p),
    "QinQ": (1, lambda p: bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x06" + kind(p) + p),
    "Linux cooked": (113, lambda p: b"\0\0\x03\x04\0\6" + bytes(8) + kind(p) + p),
    "Linux cooked 2": (276, lambda p: kind(p) + bytes(6) + b"\x03\x04\0\6" + bytes(8) + p),
    "raw": (101, lambda p: p),
    "NULL of Darwin": (0, lambda p: family(p, 30, "<") + p),
    "NULL of FreeBSD": (0, lambda p: family(p, 28, "<") + p),
    "LOOP": (108, lambda p: family(p, 24, ">") + p),
}


# Tunnels: from IP packets to frames of Ethernet


def ip4(packet: bytes, protocol: int) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(packet), 0, 0, 64, protocol, 0)
    return head + bytes([192, 0, 2, 8, 192, 0, 2, 9]) + packet


def ip6(packet: bytes, protocol: int) -> bytes:
    ends = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x08", b"\x20\x01\x0d\xb8" + bytes(11) + b"\x09"
    return struct.pack("!IHBB", 6 << 28, len(packet), protocol, 64) + b"".join(ends) + packet


def frame(packet: bytes) -> bytes:
    return bytes(12) + kind(packet) + packet


def in_ip(packet: bytes) -> int:
    """The number of the protocol that an IP packet within one is."""
    return 4 if packet[0] >> 4 == 4 else 41


def vxlan(packet: bytes, port: int = 4789) -> bytes:
    inner = frame(packet)
    head = struct.pack("!HHHH", 40_000, port, 16 + len(inner), 0)
    return head + b"\x08\0\0\0\0\0\x07\0" + inner


def pppoe(packet: bytes) -> bytes:
    protocol = 0x21 if packet[0] >> 4 == 4 else 0x57
    head = b"\x88\x64\x11\0" + struct.pack("!HHH", 1, 2 + len(packet), protocol)
    return bytes(12) + head + packet


TUNNELS: dict[str, Callable[[bytes], bytes]] = {
    "IP in IPv4": lambda p: frame(ip4(p, in_ip(p))),
    "IP in IPv6": lambda p: frame(ip6(p, in_ip(p))),
    "GRE": lambda p: frame(ip4(b"\0\0" + kind(p) + p, 47)),
    "GRE with a key and a number": lambda p: frame(ip6(b"\x30\0" + kind(p) + bytes(8) + p, 47)),
    "a frame in GRE": lambda p: frame(ip4(b"\x20\0\x65\x58" + bytes(4) + frame(p), 47)),
    "VXLAN": lambda p: frame(ip4(vxlan(p), 17)),
    "VXLAN over IPv6": lambda p: frame(ip6(vxlan(p), 17)),
    "MPLS": lambda p: bytes(12) + b"\x88\x47" + b"\0\x06\x41\x40" + p,
    "MPLS of two labels": (lambda p: bytes(12) + b"\x88\x47\0\0\0\x40\0\x06\x41\x40" + p),
    "MPLS in GRE": lambda p: frame(ip4(b"\0\0\x88\x47\0\x06\x41\x40" + p, 47)),
    "PPPoE": pppoe,
    "PPPoE in a VLAN": lambda p: bytes(12) + b"\x81\0\0\5" + pppoe(p)[12:],
    "IP in VXLAN": lambda p: frame(ip4(vxlan(ip4(p, in_ip(p))), 17)),
}
SHAPES = [in_order, shuffled, overlapping, fragmented]
ENDS_OUT_OF_PLACE = [reset_ahead, finished_ahead, reset_in_flight, before_its_syn]


def pcapng(path: Path, link_type: int, frames: list[bytes]) -> Path:
    writer = PcapngWriter(link_type)
    blocks = [writer.packet(number * 1000, frame) for number, frame in enumerate(frames)]
    path.write_bytes(writer.start() + b"".join(blocks))
    return path


def pcap(path: Path, link_type: int, frames: list[bytes]) -> Path:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, link_type)
    records = [
        struct.pack("<IIII", 1, number, len(frame), len(frame)) + frame
        for number, frame in enumerate(frames)
    ]
    path.write_bytes(head + b"".join(records))
    return path


# Two readers


def ours(
    path: Path, key_log: Path, conflicts: int = 0
) -> tuple[list[SessionResult], dict[Direction, bytes]]:
    found = {C2S: b"", S2C: b""}

    def take(_stream: int, direction: Direction, data: bytes | bytearray) -> None:
        found[direction] += data

    attacker = Attacker(KeyMaterial(key_log=KeyLog.parse(key_log.read_bytes())), take)
    for event in read_streams(path):
        assert not isinstance(event, CaptureProblem), event
        conflicts -= isinstance(event, StreamConflict)
        attacker.feed(event)
    assert not conflicts
    return attacker.finish(), found


@pytest.fixture
def tshark(
    require_program: Callable[[str], Program],
) -> Callable[[Path, Path], set[bytes]]:
    program = require_program("tshark")

    def follow(path: Path, key_log: Path) -> set[bytes]:
        done = subprocess.run(
            [
                *(program.path, "-n", "-r", path, "-q", "-o", f"tls.keylog_file:{key_log}"),
                *("-o", "tcp.reassemble_out_of_order:TRUE", "-z", "follow,tls,raw,0"),
            ],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HOME": str(path.parent)},
        )
        found = {True: b"", False: b""}  # which side is indented depends on the version
        for line in done.stdout.split("Node 1:")[-1].splitlines()[1:]:
            with suppress(ValueError):
                found[line.startswith("\t")] += bytes.fromhex(line.strip())
        return set(found.values())

    return follow


@pytest.mark.parametrize("write", [pcapng, pcap])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("link", LINKS)
def test_every_link_type(
    tmp_path: Path,
    session: Session,
    tshark: Callable[[Path, Path], set[bytes]],
    link: str,
    version: int,
    write: Callable[[Path, int, list[bytes]], Path],
) -> None:
    link_type, wrap = LINKS[link]
    frames = [wrap(packet) for packet in in_order(session, version)]
    path = write(tmp_path / "capture", link_type, frames)
    (result,), found = ours(path, session.key_log)
    assert found == {C2S: REQUEST, S2C: ANSWER}
    assert tshark(path, session.key_log) == {REQUEST, ANSWER}
    assert (result.opened, result.reason) == (True, "")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tunnel", TUNNELS)
def test_every_tunnel(
    tmp_path: Path,
    session: Session,
    tshark: Callable[[Path, Path], set[bytes]],
    tunnel: str,
    version: int,
) -> None:
    frames = [TUNNELS[tunnel](packet) for packet in in_order(session, version)]
    path = pcapng(tmp_path / "capture", 1, frames)
    (result,), found = ours(path, session.key_log)
    assert found == {C2S: REQUEST, S2C: ANSWER}
    assert tshark(path, session.key_log) == {REQUEST, ANSWER}
    assert (result.opened, result.reason) == (True, "")


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_whose_packets_are_in_fragments(
    tmp_path: Path,
    session: Session,
    tshark: Callable[[Path, Path], set[bytes]],
    version: int,
) -> None:
    frames = []
    for number, packet in enumerate(in_order(session, version)):
        carriers = [ip4(packet, in_ip(packet)), ip4(vxlan(packet), 17)]
        frames += [frame(each) for each in fragments_4(carriers[number % 2], number)]
    path = pcapng(tmp_path / "capture", 1, frames)
    _, found = ours(path, session.key_log)
    assert found == {C2S: REQUEST, S2C: ANSWER}
    assert tshark(path, session.key_log) == {REQUEST, ANSWER}


@pytest.mark.parametrize(
    ("shape", "version"),
    [(shape, version) for shape in SHAPES for version in (4, 6)] + [(extended, 6)],
)
@pytest.mark.parametrize("link", ["Ethernet", "VLAN", "Linux cooked 2", "LOOP"])
def test_every_shape(
    tmp_path: Path,
    session: Session,
    tshark: Callable[[Path, Path], set[bytes]],
    link: str,
    shape: Callable[[Session, int], list[bytes]],
    version: int,
) -> None:
    link_type, wrap = LINKS[link]
    frames = [wrap(packet) for packet in shape(session, version)]
    path = pcapng(tmp_path / "capture", link_type, frames)
    (result,), found = ours(path, session.key_log)
    assert found == {C2S: REQUEST, S2C: ANSWER}
    assert tshark(path, session.key_log) == {REQUEST, ANSWER}
    assert (result.opened, result.reason) == (True, "")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("shape", ENDS_OUT_OF_PLACE)
def test_beginnings_and_ends_out_of_place_hide_nothing(
    tmp_path: Path,
    session: Session,
    tshark: Callable[[Path, Path], set[bytes]],
    shape: Callable[[Session, int], list[bytes]],
    version: int,
) -> None:
    path = pcapng(tmp_path / "capture", 101, shape(session, version))
    (result,), found = ours(path, session.key_log)
    assert found == {C2S: REQUEST, S2C: ANSWER}
    assert tshark(path, session.key_log) == {REQUEST, ANSWER}
    assert (result.opened, result.reason) == (True, "")


@pytest.mark.parametrize(("direction", "name"), [(C2S, "client"), (S2C, "server")])
def test_two_versions_of_a_byte_are_named_where_they_keep_a_session_closed(
    tmp_path: Path, session: Session, direction: Direction, name: str
) -> None:
    packets = in_order(session, 4)
    sent = b"".join(data for each, data in session.turns if each is direction)
    true = next(packet for packet in packets if len(packet) == 1240 and packet[40:] in sent)
    forged_copy = true[:-100] + bytes([true[-100] ^ 1]) + true[-99:]
    place = packets.index(true)

    ahead = [*packets[:place], forged_copy, *packets[place:]]
    (result,), found = ours(pcapng(tmp_path / "ahead", 101, ahead), session.key_log, conflicts=1)
    assert found[direction] != {C2S: REQUEST, S2C: ANSWER}[direction]
    offset = sent.index(true[40:]) + 1100
    versions = f"; the capture holds two versions of byte {offset} of the {name}'s stream"
    assert result.reason.endswith(versions)

    # Behind the true bytes it keeps nothing closed, and there is nothing to explain.
    behind = [*packets[: place + 1], forged_copy, *packets[place + 1 :]]
    (result,), found = ours(pcapng(tmp_path / "behind", 101, behind), session.key_log, conflicts=1)
    assert found == {C2S: REQUEST, S2C: ANSWER}
    assert (result.opened, result.reason) == (True, "")


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_missing_is_said_and_not_guessed(
    tmp_path: Path,
    session: Session,
    tshark: Callable[[Path, Path], set[bytes]],
    version: int,
) -> None:
    packets = in_order(session, version)
    full = [number for number, packet in enumerate(packets) if len(packet) > 1200]
    lost = packets.pop(full[len(full) // 2])
    path = pcapng(tmp_path / "capture", 101, packets)
    (gap,) = [event for event in read_streams(path) if isinstance(event, StreamGap)]
    assert (gap.direction, gap.missing_bytes) == (S2C, 1200)
    assert not lost[20 if version == 4 else 40 :][13] & FLAG_SYN
    (result,), found = ours(path, session.key_log)
    assert found[C2S] == REQUEST
    assert 0 < len(found[S2C]) < len(ANSWER)
    assert ANSWER.startswith(found[S2C])
    assert result.reason == "a gap: bytes of the stream were not captured"
    assert ANSWER not in tshark(path, session.key_log)

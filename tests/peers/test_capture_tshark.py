"""Captures and Wireshark's tools: what we write they accept, what they write we read alike."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from interop.capture.files import CaptureProblem, embed_secrets, read_streams
from interop.capture.items import DecryptionSecrets
from interop.capture.recorder import RecordingRelay
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
from interop.peers.tcpdump import record_with_tcpdump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.peers.programs import Program

pytestmark = pytest.mark.peers
C2S, S2C = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
RESET_ON_CLOSE = bytes([1, 0, 0, 0, 0, 0, 0, 0])
SUSPICIOUS = (
    "_ws.malformed || _ws.expert.severity >= warning || tcp.analysis.flags || "
    "ip.checksum.status == 0 || tcp.checksum.status != 1"
)


@pytest.fixture
def tshark(require_program: Callable[[str], Program]) -> Callable[..., list[str]]:
    require_program("tshark")

    def run(path: Path, *arguments: str) -> list[str]:
        done = subprocess.run(
            ["tshark", "-n", "-r", str(path), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HOME": str(path.parent)},
        )
        return done.stdout.splitlines()

    return run


CHECKED = ("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE")


@pytest.fixture
def echo_server() -> Iterator[tuple[str, int]]:
    """Echo what comes; asked for it, reset the connection instead."""
    threads = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(ConnectionResetError):
            while piece := connection.recv(1 << 16):
                if piece == b"Reset me":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    return
                connection.sendall(piece)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if stopping.is_set():
                connection.close()
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    stopping = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield listener.getsockname()
        stopping.set()
        socket.create_connection(listener.getsockname()).close()
        acceptor.join()
        for thread in threads:
            thread.join()


def exchange(address: tuple[str, int], data: bytes, *, size: int = 1 << 16) -> None:
    """Send data in turns of `size` and read each back; then close in order."""
    with socket.create_connection(address) as client:
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            client.sendall(piece)
            received = 0
            while received < len(piece):
                received += len(client.recv(1 << 16))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def streams(path: Path) -> dict[tuple[Endpoint, Direction], bytes]:
    found: dict[tuple[Endpoint, Direction], bytes] = {}
    for event in read_streams(path):
        assert not isinstance(event, StreamGap | CaptureProblem), event
        if isinstance(event, StreamOpened):
            found[event.connection.client, C2S] = found[event.connection.client, S2C] = b""
        elif isinstance(event, StreamData):
            found[event.connection.client, event.direction] += event.data
    return found


def embedded(path: Path) -> list[bytes]:
    return [event.data for event in read_streams(path) if isinstance(event, DecryptionSecrets)]


def test_a_recording_of_everything_is_flawless_to_tshark(
    tmp_path: Path,
    tshark: Callable[..., list[str]],
    echo_server: tuple[str, int],
) -> None:
    path = tmp_path / "c.pcapng"
    data = os.urandom(700_000)
    with RecordingRelay(echo_server, path) as relay:
        exchange(relay.address, data)
        exchange(relay.address, b"a" * 1000, size=1)
        exchange(relay.address, b"")
        with socket.create_connection(relay.address) as client:
            client.sendall(b"Reset me")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with socket.create_connection(relay.address) as client:
            client.sendall(b"I reset")
            assert client.recv(100) == b"I reset"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        both = socket.create_connection(relay.address)
        sender = threading.Thread(target=both.sendall, args=(data,))
        sender.start()
        received = 0
        while received < len(data):
            received += len(both.recv(1 << 16))
        sender.join()
        both.close()
    found = tshark(path, *CHECKED, "-Y", SUSPICIOUS, "-T", "fields", "-e", "_ws.expert.message")
    # The one thing an analyser is right to notice is a reset that happened.
    assert {line for line in found if line} <= {"Connection reset (RST)"}
    assert len([line for line in found if line]) == 2
    followed = tshark(path, "-q", "-z", "follow,tcp,raw,0")
    sent = "".join(line for line in followed if line and set(line) <= set("0123456789abcdef"))
    assert sent == data.hex()


def test_tshark_does_notice_what_we_claim_is_not_there(
    tmp_path: Path, tshark: Callable[..., list[str]]
) -> None:
    """The control of the test above: a wrong checksum, a lost segment, a retransmission."""
    writer, path = PcapngWriter(), tmp_path / "c.pcapng"
    talk = Conversation(
        Endpoint("127.0.0.1", 50000), Endpoint("127.0.0.1", 443), initial_sequences=(1, 2)
    )
    packets = [*talk.request(), *talk.accept()]
    first, second, third = (talk.data(C2S, b"some data")[0] for _ in range(3))
    wrong = first[:-1] + b"?"
    packets += [wrong, third, third, second]
    path.write_bytes(writer.start() + b"".join(writer.packet(0, packet) for packet in packets))
    flagged = tshark(path, *CHECKED, "-Y", SUSPICIOUS, "-T", "fields", "-e", "frame.number")
    assert set(flagged) >= {"4", "5", "6"}


def test_a_refusal_and_a_connection_cut_off_by_the_relay(
    tmp_path: Path, tshark: Callable[..., list[str]], echo_server: tuple[str, int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    refused, cut = tmp_path / "refused.pcapng", tmp_path / "cut.pcapng"
    with (
        RecordingRelay(nobody, refused) as relay,
        socket.create_connection(relay.address) as each,
        pytest.raises(ConnectionResetError),
    ):
        each.recv(1)
    with RecordingRelay(echo_server, cut, drain_seconds=0) as relay:
        each = socket.create_connection(relay.address)
        each.sendall(b"x")
        assert each.recv(1) == b"x"
    each.close()
    for path in (refused, cut):
        flags = tshark(path, *CHECKED, "-Y", "tcp.analysis.flags || _ws.malformed")
        assert flags == []
    comments = tshark(cut, "-T", "fields", "-e", "frame.comment")
    assert "closed before the connection ended" in "".join(comments)


def test_secrets_that_were_embedded_are_found_by_tshark(
    tmp_path: Path, tshark: Callable[..., list[str]], echo_server: tuple[str, int]
) -> None:
    path, target = tmp_path / "c.pcapng", tmp_path / "d.pcapng"
    with RecordingRelay(echo_server, path) as relay:
        exchange(relay.address, b"data")
    log = b"CLIENT_RANDOM " + b"11" * 32 + b" " + b"22" * 48 + b"\n"
    embed_secrets(path, target, log)
    # editcap copies the block because it knows it for what it is, and so can leave it out.
    for options, expected in (((), [log]), (("--discard-all-secrets",), [])):
        copy = tmp_path / f"copy{len(expected)}"
        subprocess.run(["editcap", *options, str(target), str(copy)], check=True)
        assert embedded(copy) == expected
    assert tshark(target) == tshark(path)


def test_an_information_tool_reads_what_the_recorder_says_of_itself(
    tmp_path: Path, require_program: Callable[[str], Program], echo_server: tuple[str, int]
) -> None:
    require_program("tshark")
    path = tmp_path / "c.pcapng"
    with RecordingRelay(echo_server, path) as relay:
        exchange(relay.address, b"data")
    told = subprocess.run(["capinfos", str(path)], capture_output=True, text=True, check=True)
    assert "pfs recording relay" in told.stdout
    assert "Wireshark/... - pcapng" in told.stdout
    assert "nanoseconds (9)" in told.stdout


@pytest.mark.parametrize("kind", ["pcapng", "pcap", "nsecpcap"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_editcap_writes_reads_like_the_original(
    tmp_path: Path,
    require_program: Callable[[str], Program],
    echo_server: tuple[str, int],
    kind: str,
    *,
    compressed: bool,
) -> None:
    require_program("tshark")
    path, other = tmp_path / "c.pcapng", tmp_path / f"other{'.gz' if compressed else ''}"
    with RecordingRelay(echo_server, path) as relay:
        exchange(relay.address, os.urandom(300_000))
    subprocess.run(["editcap", "-F", kind, str(path), str(other)], check=True)
    assert streams(other) == streams(path)
    assert len(streams(path)) == 2


def test_merged_captures_with_several_interfaces(
    tmp_path: Path, require_program: Callable[[str], Program], echo_server: tuple[str, int]
) -> None:
    require_program("tshark")
    paths = [tmp_path / "one.pcapng", tmp_path / "two.pcapng"]
    for path in paths:
        with RecordingRelay(echo_server, path) as relay:
            exchange(relay.address, os.urandom(100_000))
    merged = tmp_path / "merged.pcapng"
    subprocess.run(["mergecap", "-I", "none", "-w", str(merged), *map(str, paths)], check=True)
    assert streams(merged) == streams(paths[0]) | streams(paths[1])
    concatenated = tmp_path / "concatenated.pcapng"
    concatenated.write_bytes(paths[0].read_bytes() + paths[1].read_bytes())
    assert streams(concatenated) == streams(merged)


def test_a_snapshot_length_makes_gaps_and_no_garbage(
    tmp_path: Path, require_program: Callable[[str], Program], echo_server: tuple[str, int]
) -> None:
    require_program("tshark")
    path, cut = tmp_path / "c.pcapng", tmp_path / "cut.pcapng"
    data = os.urandom(10_000)
    with RecordingRelay(echo_server, path) as relay:
        exchange(relay.address, data, size=1000)
    subprocess.run(["editcap", "-s", "140", str(path), str(cut)], check=True)
    position = {C2S: 0, S2C: 0}
    for event in read_streams(cut):
        if isinstance(event, StreamData):
            start = position[event.direction]
            assert event.data == data[start : start + len(event.data)]
            position[event.direction] += len(event.data)
        elif isinstance(event, StreamGap):
            position[event.direction] += event.missing_bytes
    assert position == {C2S: len(data), S2C: len(data)}


def test_captures_of_tcpdump_hold_every_byte(
    tmp_path: Path,
    require_program: Callable[[str], Program],
    echo_server: tuple[str, int],
) -> None:
    require_program("tcpdump")
    data = os.urandom(3_000_000)
    for round_number in range(3):
        path = tmp_path / f"{round_number}.pcap"
        with record_with_tcpdump(path, ports=[echo_server[1]]):
            exchange(echo_server, data)
        events = list(read_streams(path))
        ((_, sent),) = ((key, data) for key, data in streams(path).items() if key[1] is C2S)
        assert sent == data
        assert len([event for event in events if isinstance(event, StreamClosed)]) == 2


def test_thousands_of_interleaved_connections_agree_with_tshark(
    tmp_path: Path, tshark: Callable[..., list[str]]
) -> None:
    """Shuffled within a window, duplicated, both IP versions: the same bytes as tshark follows."""
    chance = random.Random(5)
    writer, path = PcapngWriter(), tmp_path / "c.pcapng"
    turns: list[tuple[float, bytes]] = []
    expected: dict[tuple[Endpoint, Direction], bytes] = {}
    for number in range(2000):
        host = f"10.0.{number // 250}.{number % 250}" if number % 3 else f"2001:db8::{number + 1:x}"
        server = Endpoint("10.1.0.1" if number % 3 else "2001:db8:1::1", 443)
        client = Endpoint(host, 40000)
        talk = Conversation(
            client,
            server,
            initial_sequences=(chance.getrandbits(32), chance.getrandbits(32)),
            segment_bytes=chance.randrange(100, 1460),
        )
        now = chance.random() * 100
        turns += [(now, packet) for packet in (*talk.request(), *talk.accept())]
        for direction in (C2S, S2C):
            payload = chance.randbytes(chance.randrange(1, 5000))
            expected[client, direction] = payload
            *segments, acknowledgement = talk.data(direction, payload)
            for packet in segments:
                now += 0.01
                turns.append((now + chance.random() * 0.05, packet))
                if chance.random() < 0.1:
                    turns.append((now + chance.random() * 0.05, packet))
            # tshark takes what is acknowledged before it was seen for lost.
            now += 0.1
            turns.append((now, acknowledgement))
        now += 1
        turns += [(now, packet) for packet in (*talk.finish(C2S), *talk.finish(S2C))]
    turns.sort(key=lambda turn: turn[0])
    path.write_bytes(
        writer.start() + b"".join(writer.packet(int(when * 1e9), packet) for when, packet in turns)
    )
    assert streams(path) == expected
    followed = tshark(path, "-q", *(f"-zfollow,tcp,raw,{number}" for number in range(0, 2000, 400)))
    raw = "\n".join(followed)
    blocks = raw.split("=" * 67)
    checked = 0
    for block in blocks:
        lines = block.split("\n")
        node = next((line for line in lines if line.startswith("Node 0: ")), None)
        if node is None:
            continue
        address, _, port = node.removeprefix("Node 0: ").rpartition(":")
        client = Endpoint(address.strip("[]"), int(port))
        hexed = set("0123456789abcdef")
        sent = "".join(line for line in lines if line and set(line) <= hexed)
        answered = "".join(
            line[1:] for line in lines if line.startswith("\t") and set(line[1:]) <= hexed
        )
        assert sent == expected[client, C2S].hex()
        assert answered == expected[client, S2C].hex()
        checked += 1
    assert checked == 5


def test_secrets_injected_by_editcap_come_out_of_the_reader(
    tmp_path: Path, require_program: Callable[[str], Program], echo_server: tuple[str, int]
) -> None:
    require_program("tshark")
    path, with_secrets, log = (tmp_path / name for name in ("c.pcapng", "d.pcapng", "keys"))
    with RecordingRelay(echo_server, path) as relay:
        exchange(relay.address, b"data")
    log.write_bytes(b"CLIENT_RANDOM " + b"11" * 32 + b" " + b"22" * 48 + b"\n")
    subprocess.run(
        ["editcap", "--inject-secrets", f"tls,{log}", str(path), str(with_secrets)], check=True
    )
    assert embedded(with_secrets) == [log.read_bytes()]

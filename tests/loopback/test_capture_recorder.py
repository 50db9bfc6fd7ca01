"""The recording relay over real sockets: what it recorded is what was sent, whatever happened."""

from __future__ import annotations

import array
import fcntl
import hashlib
import random
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from tcp_segments import parse_tcp

from interop.capture.files import CaptureProblem, embed_secrets, read_streams
from interop.capture.items import LINK_TYPE_RAW, DecryptionSecrets
from interop.capture.reassembly import Reassembler
from interop.capture.recorder import RecordingRelay
from interop.capture.relay import RelayLoop
from interop.capture.streams import (
    CloseReason,
    Direction,
    StreamClosed,
    StreamConflict,
    StreamData,
    StreamGap,
    StreamOpened,
)
from interop.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

C2S, S2C = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Recording:
    """What a capture says: streams, ends and openings; anything amiss fails the test."""

    def __init__(self, path: Path, *, complete: bool = True) -> None:
        self.opened: list[StreamOpened] = []
        self.secrets: list[DecryptionSecrets] = []
        self.problems: list[CaptureProblem] = []
        self.closed: dict[tuple[int, Direction], CloseReason] = {}
        parts: dict[tuple[int, Direction], list[bytes]] = defaultdict(list)
        for event in read_streams(path):
            assert not isinstance(event, StreamGap | StreamConflict), event
            if isinstance(event, StreamOpened):
                self.opened.append(event)
            elif isinstance(event, StreamData):
                parts[event.connection.index, event.direction].append(bytes(event.data))
            elif isinstance(event, StreamClosed):
                self.closed[event.connection.index, event.direction] = event.how
            elif isinstance(event, DecryptionSecrets):
                self.secrets.append(event)
            else:
                self.problems.append(event)
        assert not complete or self.problems == []
        self.data = {key: b"".join(pieces) for key, pieces in parts.items()}


@contextmanager
def serving(
    handle: Callable[[socket.socket], None], family: socket.AddressFamily = socket.AF_INET
) -> Iterator[tuple[str, int]]:
    """Serve each connection of a listener with `handle` in a thread of its own."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []

    def run(connection: socket.socket) -> None:
        try:
            with connection:
                handle(connection)
        except BaseException as error:  # noqa: BLE001 - carried into the test's own thread
            failures.append(error)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if stopping.is_set():
                connection.close()
                return
            threads.append(threading.Thread(target=run, args=(connection,)))
            threads[-1].start()

    stopping = threading.Event()
    with socket.create_server((host, 0), family=family, backlog=256) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[:2]
        finally:
            stopping.set()
            socket.create_connection(listener.getsockname()[:2]).close()
            acceptor.join()
            for thread in threads:
                thread.join()
    assert failures == []


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def echo_after_the_end(connection: socket.socket) -> None:
    connection.sendall(read_all(connection))


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_half_closed_exchange_over_either_ip_version(
    tmp_path: Path, family: socket.AddressFamily
) -> None:
    path = tmp_path / "c.pcapng"
    with serving(echo_after_the_end, family) as server, RecordingRelay(server, path) as relay:
        assert relay.address != server
        with socket.create_connection(relay.address) as client:
            own = client.getsockname()[:2]
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"request"
    recording = Recording(path)
    assert recording.data == {(0, C2S): b"request", (0, S2C): b"request"}
    assert recording.closed == {(0, C2S): CloseReason.FIN, (0, S2C): CloseReason.FIN}
    connection = recording.opened[0].connection
    assert (connection.client, connection.server) == (own, server)
    assert connection.client_known
    assert path.stat().st_mode & 0o777 == 0o600


def test_fifty_megabytes_in_both_directions_at_once(tmp_path: Path) -> None:
    size = 25_000_000
    from_client, from_server = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        reader = threading.Thread(target=lambda: received.append(read_all(connection)))
        reader.start()
        connection.sendall(from_server)
        connection.shutdown(socket.SHUT_WR)
        reader.join()

    path = tmp_path / "c.pcapng"
    with (
        serving(serve) as server,
        RecordingRelay(server, path) as relay,
        socket.create_connection(relay.address) as client,
    ):
        sender = threading.Thread(target=lambda: client.sendall(from_client))
        sender.start()
        got = read_all(client)
        sender.join()
        client.shutdown(socket.SHUT_WR)
    assert hashlib.sha256(got).digest() == hashlib.sha256(from_server).digest()
    assert received == [from_client]
    recording = Recording(path)
    assert recording.data[0, C2S] == from_client
    assert recording.data[0, S2C] == from_server


def test_many_connections_at_once_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "c.pcapng"
    number = 100
    everyone = threading.Barrier(number)
    answers: dict[int, bytes] = {}

    def talk(index: int, address: tuple[str, int]) -> None:
        everyone.wait()
        answers[index] = exchange(address, b"%d;" % index * 1000)

    with serving(echo_after_the_end) as server, RecordingRelay(server, path) as relay:
        threads = [
            threading.Thread(target=talk, args=(index, relay.address)) for index in range(number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert relay.connections == number
    expected = {b"%d;" % index * 1000 for index in range(number)}
    assert set(answers.values()) == expected
    recording = Recording(path)
    assert len(recording.opened) == number
    assert {recording.data[index, C2S] for index in range(number)} == expected
    assert {recording.data[index, S2C] for index in range(number)} == expected


class HeldLoop:
    """A relay loop that stops in its first recording of client bytes until it is released."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.packets: list[bytes] = []
        self.held, self.released = threading.Event(), threading.Event()
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = listener.getsockname()
        self.loop = RelayLoop(listener, server, self.record, 1000)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def record(self, packets: Sequence[bytes], _comment: str) -> None:
        self.packets += packets
        if any(len(packet) > 48 for packet in packets):  # none of a handshake is as long
            self.held.set()
            assert self.released.wait(60)

    def recorded(self) -> dict[Direction, bytes]:
        reassembler = Reassembler()
        found = {C2S: b"", S2C: b""}
        for packet in self.packets:
            segment = parse_tcp(LINK_TYPE_RAW, memoryview(packet))
            assert segment is not None
            for event in reassembler.feed(segment, 0):
                if isinstance(event, StreamData):
                    found[event.direction] += event.data
        return found

    def finish(self) -> None:
        self.loop.stop(60)
        self.released.set()
        self.thread.join()
        assert self.loop.failure is None


def test_clients_in_the_backlog_when_the_relay_is_left_are_served() -> None:
    received: list[bytes] = []
    with serving(lambda connection: received.append(read_all(connection))) as server:
        relay = HeldLoop(server)
        for number in range(20):
            with socket.create_connection(relay.address) as client:
                client.sendall(b"last words %d" % number)
            assert relay.held.wait(60)  # from the first one on, the loop accepts nobody
        assert relay.loop.accepted == 1
        relay.finish()
    assert sorted(received) == sorted(b"last words %d" % number for number in range(20))


def test_a_reply_from_before_a_reset_is_recorded_and_delivered() -> None:
    """The reset is met by sending to the server, while its reply is still to be read."""
    replied = threading.Event()

    def serve(connection: socket.socket) -> None:
        relay.held.wait()
        connection.sendall(b"413 too large")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        connection.close()
        replied.set()

    with serving(serve) as server:
        relay = HeldLoop(server)
        with socket.create_connection(relay.address) as client:
            client.sendall(b"a large request")
            assert replied.wait(60)
            relay.finish()
            assert client.recv(100) == b"413 too large"
            with pytest.raises(ConnectionResetError):
                client.recv(100)
    assert relay.recorded() == {C2S: b"a large request", S2C: b"413 too large"}


def test_a_reset_by_the_client_reaches_the_server_after_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "c.pcapng"
    seen: list[bytes | type[BaseException]] = []

    def serve(connection: socket.socket) -> None:
        try:
            while piece := connection.recv(1 << 16):
                seen.append(piece)
                connection.sendall(b"got it")
        except ConnectionResetError as error:
            seen.append(type(error))

    with (
        serving(serve) as server,
        RecordingRelay(server, path) as relay,
        socket.create_connection(relay.address) as client,
    ):
        client.sendall(b"bytes")
        assert client.recv(100) == b"got it"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    assert seen == [b"bytes", ConnectionResetError]
    recording = Recording(path)
    assert recording.data == {(0, C2S): b"bytes", (0, S2C): b"got it"}
    assert set(recording.closed.values()) == {CloseReason.RST}


def test_a_reset_by_the_server_reaches_the_client(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    path = tmp_path / "c.pcapng"
    with (
        serving(serve) as server,
        RecordingRelay(server, path) as relay,
        socket.create_connection(relay.address) as client,
    ):
        client.sendall(b"bytes")
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    assert Recording(path).closed == {(0, C2S): CloseReason.RST, (0, S2C): CloseReason.RST}


def unread_bytes(relay: RecordingRelay) -> int:
    """Count what the relay's kernel holds of the client's bytes and the relay has not read."""
    count = array.array("i", [0])
    for end in list(relay._loop._ends.values()):
        if end.direction is C2S:
            fcntl.ioctl(end.socket, termios.FIONREAD, count)
    return count[0]


def send_until_nobody_reads(client: socket.socket, relay: RecordingRelay) -> None:
    while True:
        client.sendall(bytes(1 << 16))
        patience = time.monotonic() + 0.3
        while unread_bytes(relay):
            if time.monotonic() > patience:
                return


def test_a_client_killed_while_nobody_reads_is_noticed(tmp_path: Path) -> None:
    """The relay sees the reset although it is waiting to send to the server."""
    path = tmp_path / "c.pcapng"
    may_read = threading.Event()
    outcome: list[str] = []

    def serve(connection: socket.socket) -> None:
        may_read.wait()
        try:
            read_all(connection)
            outcome.append("end of file")
        except ConnectionResetError:
            outcome.append("reset")

    with serving(serve) as server:
        try:
            with (
                RecordingRelay(server, path) as relay,
                socket.create_connection(relay.address) as client,
            ):
                send_until_nobody_reads(client, relay)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        finally:
            may_read.set()
    assert outcome == ["reset"]
    assert set(Recording(path).closed.values()) == {CloseReason.RST}
    assert b"reset by the relay" not in path.read_bytes()


def test_a_server_that_does_not_read_holds_the_client_back(tmp_path: Path) -> None:
    """What the relay holds is one read; the rest stays in the kernel's buffers, or unsent."""
    may_read = threading.Event()
    received: list[int] = []

    def serve(connection: socket.socket) -> None:
        may_read.wait()
        received.append(len(read_all(connection)))

    sent = 0
    with serving(serve) as server, RecordingRelay(server, tmp_path / "c.pcapng") as relay:
        with socket.create_connection(relay.address) as client:
            client.settimeout(0.5)
            with suppress(TimeoutError):
                while sent < 100_000_000:
                    sent += client.send(bytes(1 << 16))
        may_read.set()
    assert sent < 60_000_000
    assert received == [sent]


def test_a_server_that_refuses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    path = tmp_path / "c.pcapng"
    with RecordingRelay(nobody, path) as relay:
        with socket.create_connection(relay.address) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        assert relay.connections == 1
    recording = Recording(path)
    assert recording.closed == {(0, C2S): CloseReason.RST, (0, S2C): CloseReason.RST}
    assert recording.data == {}


def test_connections_that_do_not_end_are_reset_and_the_capture_says_so(tmp_path: Path) -> None:
    path = tmp_path / "c.pcapng"

    def serve(connection: socket.socket) -> None:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)

    with serving(serve) as server:
        with RecordingRelay(server, path, drain_seconds=0.1) as relay:
            client = socket.create_connection(relay.address)
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
    assert set(Recording(path).closed.values()) == {CloseReason.RST}
    assert b"reset by the relay" in path.read_bytes()


def test_an_exception_in_the_body_does_not_wait_for_connections(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)

    clients = []

    def fail(relay: RecordingRelay) -> None:
        with relay:
            clients.append(socket.create_connection(relay.address))
            raise ZeroDivisionError

    with serving(serve) as server:
        with pytest.raises(ZeroDivisionError):
            fail(RecordingRelay(server, tmp_path / "c.pcapng", drain_seconds=3600))
        clients[0].close()


def test_secrets_are_added_while_recording_or_before_all_packets_afterwards(
    tmp_path: Path,
) -> None:
    path, target = tmp_path / "c.pcapng", tmp_path / "with.pcapng"
    with serving(echo_after_the_end) as server, RecordingRelay(server, path) as relay:
        relay.add_secrets(b"first")
        exchange(relay.address, b"data")
    embed_secrets(path, target, b"second")
    recording = Recording(target)
    assert [each.data for each in recording.secrets] == [b"second", b"first"]
    assert recording.data == {(0, C2S): b"data", (0, S2C): b"data"}
    assert target.stat().st_mode & 0o777 == 0o600
    embed_secrets(target, target, b"third")
    assert [each.data for each in Recording(target).secrets] == [b"third", b"second", b"first"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.pcapng", "with.pcapng"]


def test_secrets_are_embedded_only_in_what_the_recorder_could_have_written(tmp_path: Path) -> None:
    classic = tmp_path / "c.pcap"
    classic.write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(20))
    with pytest.raises(InputError, match="not a little-endian pcapng"):
        embed_secrets(classic, tmp_path / "t.pcapng", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["c.pcap"]


def test_segments_are_no_longer_than_asked_for(tmp_path: Path) -> None:
    small, usual = tmp_path / "small.pcapng", tmp_path / "usual.pcapng"
    data = bytes(100_000)
    with serving(echo_after_the_end) as server:
        for path, options in ((small, {"segment_bytes": 100}), (usual, {})):
            with RecordingRelay(server, path, **options) as relay:
                exchange(relay.address, data)
            assert Recording(path).data[0, C2S] == data
    # At least 2,000 packets of 72 bytes around each 100 of payload, against a handful.
    assert small.stat().st_size > 2 * len(data) + 2000 * 72
    assert usual.stat().st_size < 2 * len(data) + 20_000
    with pytest.raises(ValueError, match="do not fit"):
        RecordingRelay(("127.0.0.1", 1), small, segment_bytes=65_496)


def test_what_stands_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"precious")
    for path, says in ((taken, "File exists"), (tmp_path / "no" / "c", "No such file")):
        with (
            pytest.raises(InputError, match=says),
            RecordingRelay(("127.0.0.1", 1), path),
        ):
            pass
    assert taken.read_bytes() == b"precious"
    with (
        pytest.raises(InputError, match=r"^x{64}: "),  # no label of a name is that long
        RecordingRelay(("x" * 64, 1), tmp_path / "c"),
    ):
        pass
    assert not (tmp_path / "c").exists()


def test_a_full_disk_ends_the_relay_and_is_raised(tmp_path: Path) -> None:
    """What cannot be recorded is not passed on either."""
    limit_and_relay = """
import resource, signal, socket, sys
from interop.capture.recorder import RecordingRelay
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with RecordingRelay(("127.0.0.1", int(sys.argv[1])), sys.argv[2]) as relay:
        client = socket.create_connection(relay.address)
        try:
            for _ in range(100): client.sendall(bytes(10_000))
            client.recv(1)
        except OSError: pass
        client.close()
except OSError as error:
    print(type(error).__name__, error.strerror)
"""
    received: list[int] = []

    def serve(connection: socket.socket) -> None:
        total = 0
        try:
            while piece := connection.recv(1 << 16):
                total += len(piece)
        except ConnectionResetError:
            received.append(total)

    path = tmp_path / "c.pcapng"
    with serving(serve) as server:
        done = subprocess.run(
            [sys.executable, "-c", limit_and_relay, str(server[1]), str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout == "OSError File too large\n"
    recording = Recording(path, complete=False)
    assert 0 < received[0] <= len(recording.data[0, C2S]) <= 100_000


RELAY_TO_BE_KILLED = """
import sys
from interop.capture.recorder import RecordingRelay
with RecordingRelay(("127.0.0.1", int(sys.argv[1])), sys.argv[2]) as relay:
    print(relay.address[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_relay_killed_at_any_time_leaves_a_readable_prefix(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(30_000_000)
    kill_after_bytes = chance.randrange(1, 20_000_000)
    path = tmp_path / "c.pcapng"
    received: list[bytes] = []
    enough, over = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        total = 0
        try:
            while piece := connection.recv(1 << 16):
                received.append(piece)
                total += len(piece)
                if total >= kill_after_bytes:
                    enough.set()
        except ConnectionResetError:
            pass
        finally:
            over.set()

    with (
        serving(serve) as server,
        subprocess.Popen(
            [sys.executable, "-c", RELAY_TO_BE_KILLED, str(server[1]), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as relay,
    ):
        assert relay.stdout is not None
        port = int(relay.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as client:

            def send() -> None:
                with suppress(OSError):
                    client.sendall(data)

            sender = threading.Thread(target=send)
            sender.start()
            assert enough.wait(60)
            relay.send_signal(signal.SIGKILL)
            assert over.wait(60)
            sender.join()
    assert relay.returncode == -signal.SIGKILL
    recording = Recording(path, complete=False)
    recorded, got = recording.data[0, C2S], b"".join(received)
    assert kill_after_bytes <= len(got) <= len(recorded)
    assert recorded.startswith(got)
    assert data.startswith(recorded)

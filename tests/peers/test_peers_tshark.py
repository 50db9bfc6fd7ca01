"""tshark opens real captures of tcpdump with the right secret, and only with it."""

from __future__ import annotations

import random
import stat
from typing import TYPE_CHECKING, NamedTuple

import dpkt
import pytest

from interop.errors import InputError
from interop.peers.curl import fetch_with_curl, send_with_curl
from interop.peers.endpoints import Address, ClientResult, CredentialFiles, ServerOptions
from interop.peers.gnutls import run_gnutls_http
from interop.peers.names import STATIC_RSA_SUITE, TLSVersion
from interop.peers.openssl import (
    fetch_with_s_client,
    run_s_server_answering,
    run_s_server_files,
    send_with_s_client,
)
from interop.peers.processes import PeerFailed
from interop.peers.tcpdump import record_with_tcpdump
from interop.peers.tshark import decrypt_with_tshark, tshark_version, validate_capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interop.peers.programs import Program

PAYLOAD = random.Random(3).randbytes(2_000_003)
SECONDS = 60.0
TSHARK_PROTOCOL_PORT = 5701  # tshark has another protocol there


@pytest.fixture(autouse=True)
def programs(require_program: Callable[[str], Program]) -> None:
    for name in ("openssl", "curl", "tcpdump", "tshark"):
        require_program(name)


@pytest.fixture
def fetch(ca_file: Path) -> Callable[[Address], ClientResult]:
    def fetch(address: Address) -> ClientResult:
        return fetch_with_curl(
            address,
            "/payload",
            ca_file=ca_file,
            server_name="localhost",
            timeout_seconds=SECONDS,
        )

    return fetch


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "payload").write_bytes(PAYLOAD)
    return folder


class Recorded(NamedTuple):
    """One download from a server with an RSA key that tcpdump recorded."""

    server: Address
    capture: Path
    key_log: Path
    response: bytes


@pytest.fixture
def recorded(
    fetch: Callable[[Address], ClientResult],
    rsa_credential: CredentialFiles,
    served: Path,
    tmp_path: Path,
) -> Recorded:
    capture, log = tmp_path / "capture.pcap", tmp_path / "keys"
    options = ServerOptions(credential=rsa_credential, key_log=log)
    with (
        run_s_server_files(options, served) as server,
        record_with_tcpdump(capture, ports=[server.address[1]]),
    ):
        result = fetch(server.address)
    return Recorded(server.address, capture, log, result.response)


def read_packets(capture: Path) -> list[dpkt.ethernet.Ethernet]:
    with capture.open("rb") as file:
        return [dpkt.ethernet.Ethernet(frame) for _, frame in dpkt.pcap.Reader(file)]


def write_packets(capture: Path, packets: list[dpkt.ethernet.Ethernet]) -> None:
    with capture.open("wb") as file:
        writer = dpkt.pcap.Writer(file, snaplen=1 << 18)
        for number, packet in enumerate(packets):
            writer.writepkt(packet, number / 1000)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("send", [send_with_s_client, send_with_curl])
def test_key_log_opens_both_directions(
    send: Callable[..., ClientResult],
    version: TLSVersion,
    ec_credential: CredentialFiles,
    ca_file: Path,
    tmp_path: Path,
) -> None:
    capture, log = tmp_path / "capture.pcap", tmp_path / "keys"
    options = ServerOptions(credential=ec_credential, versions=(version,), key_log=log)
    with (
        run_s_server_answering(options, b"thank you") as server,
        record_with_tcpdump(capture, ports=[server.address[1]]),
    ):
        result = send(
            server.address,
            PAYLOAD,
            ca_file=ca_file,
            server_name="localhost",
            timeout_seconds=SECONDS,
        )
        server.wait_request(timeout_seconds=SECONDS)
    assert result.exit_code == 0, result.stderr_tail
    assert stat.S_IMODE(capture.stat().st_mode) == 0o600

    (stream,) = decrypt_with_tshark(capture, key_log=log)
    assert stream.server == server.address
    assert stream.client_to_server.startswith(b"PUT /upload HTTP/1.1\r\n")
    assert stream.client_to_server.endswith(b"\r\n\r\n" + PAYLOAD)
    assert stream.server_to_client == result.response
    assert PAYLOAD[:100].hex() not in repr(stream)

    # Without the secrets, and with those of another session, it stays closed.
    (closed,) = decrypt_with_tshark(capture)
    assert not closed.opened
    wrong = tmp_path / "wrong"
    wrong.write_text(
        "".join(_other_random(line) for line in log.read_text().splitlines(keepends=True))
    )
    (closed,) = decrypt_with_tshark(capture, key_log=wrong)
    assert not closed.opened
    assert [issue for issue in validate_capture(capture) if issue.severity == "error"] == []


def _other_random(line: str) -> str:
    label, _, rest = line.partition(" ")
    return line if line.startswith("#") else f"{label} {'00' * 32}{rest[64:]}"


def test_rsa_key_opens_static_rsa_and_nothing_else(
    fetch: Callable[[Address], ClientResult],
    rsa_credential: CredentialFiles,
    foreign_rsa_credential: CredentialFiles,
    served: Path,
    tmp_path: Path,
) -> None:
    capture = tmp_path / "capture.pcap"
    weak = ServerOptions(credential=rsa_credential, versions=("1.2",), suites=(STATIC_RSA_SUITE,))
    strong = ServerOptions(
        credential=rsa_credential,
        versions=("1.2",),
        suites=("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",),
    )
    with (
        run_s_server_files(weak, served) as one,
        run_s_server_files(strong, served) as two,
        record_with_tcpdump(capture, ports=[one.address[1], two.address[1]]),
    ):
        results = [fetch(one.address), fetch(two.address)]
    assert [result.exit_code for result in results] == [0, 0]

    opened, closed = decrypt_with_tshark(capture, rsa_key=rsa_credential.private_key)
    assert opened.server == one.address
    assert opened.client_to_server.startswith(b"GET /payload HTTP/1.1\r\n")
    assert opened.server_to_client == results[0].response
    assert opened.server_to_client.endswith(PAYLOAD)
    assert closed.server == two.address
    assert not closed.opened

    streams = decrypt_with_tshark(capture, rsa_key=foreign_rsa_credential.private_key)
    assert [stream.opened for stream in streams] == [False, False]


def test_port_of_another_protocol_does_not_hide_tls(recorded: Recorded, tmp_path: Path) -> None:
    packets = read_packets(recorded.capture)
    for packet in packets:
        segment = packet.data.data
        if segment.sport == recorded.server[1]:
            segment.sport = TSHARK_PROTOCOL_PORT
        else:
            segment.dport = TSHARK_PROTOCOL_PORT
    moved = tmp_path / "moved.pcap"
    write_packets(moved, packets)
    (stream,) = decrypt_with_tshark(moved, key_log=recorded.key_log)
    assert stream.server == ("127.0.0.1", TSHARK_PROTOCOL_PORT)
    assert stream.server_to_client == recorded.response


def test_packets_that_overtook_one_another_are_put_in_order(
    recorded: Recorded, tmp_path: Path
) -> None:
    """A recorder sees what several processors send at once in another order than it was sent."""
    packets = read_packets(recorded.capture)
    answers = [
        number
        for number, packet in enumerate(packets)
        if packet.data.data.sport == recorded.server[1] and len(packet.data.data.data) > 1000
    ]
    for distance in (1, 3):
        earlier, later = (answers[len(answers) // 2 + step] for step in (0, distance))
        packets[earlier], packets[later] = packets[later], packets[earlier]
        overtaken = tmp_path / f"{distance}.pcap"
        write_packets(overtaken, packets)
        (stream,) = decrypt_with_tshark(overtaken, key_log=recorded.key_log)
        assert stream.server_to_client == recorded.response


def test_gnutls_key_log_opens_many_sessions(
    require_program: Callable[[str], Program],
    fetch: Callable[[Address], ClientResult],
    rsa_credential: CredentialFiles,
    tmp_path: Path,
) -> None:
    require_program("gnutls-serv")
    capture, log = tmp_path / "capture.pcap", tmp_path / "keys"
    options = ServerOptions(credential=rsa_credential, key_log=log)
    with (
        run_gnutls_http(options, PAYLOAD) as server,
        record_with_tcpdump(capture, ports=[server.address[1]]),
    ):
        results = [fetch(server.address) for _ in range(3)]
    streams = decrypt_with_tshark(capture, key_log=log)
    assert [stream.server_to_client for stream in streams] == [one.response for one in results]


def test_recording_holds_the_last_byte(
    rsa_credential: CredentialFiles,
    served: Path,
    ca_file: Path,
    tmp_path: Path,
) -> None:
    options = ServerOptions(credential=rsa_credential, key_log=tmp_path / "keys")
    with run_s_server_files(options, served) as server:
        for number in range(3):
            capture = tmp_path / f"{number}.pcap"
            with record_with_tcpdump(capture, ports=[server.address[1]]):
                result = fetch_with_s_client(
                    server.address,
                    "/payload",
                    ca_file=ca_file,
                    server_name="localhost",
                    timeout_seconds=SECONDS,
                )
            (stream,) = decrypt_with_tshark(capture, key_log=options.key_log)
            assert stream.server_to_client == result.response


def test_what_tshark_cannot_read_is_an_input_error(
    ec_credential: CredentialFiles, ca_file: Path, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(PAYLOAD[:1000])
    empty = tmp_path / "empty.pcap"
    empty.write_bytes(bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000"))
    assert decrypt_with_tshark(empty) == []
    assert validate_capture(empty) == []
    for call in (decrypt_with_tshark, validate_capture):
        with pytest.raises(InputError, match="isn't a capture file"):
            call(garbage)
        with pytest.raises(InputError, match="absent"):
            call(tmp_path / "absent")
    with pytest.raises(InputError, match="absent"):
        decrypt_with_tshark(empty, key_log=tmp_path / "absent")
    for not_rsa in (ca_file, ec_credential.private_key):
        with pytest.raises(InputError, match="rsa_privkeys"):
            decrypt_with_tshark(empty, rsa_key=not_rsa)


def test_damage_is_found(recorded: Recorded, tmp_path: Path) -> None:
    capture = recorded.capture
    whole = capture.read_bytes()
    assert [one.group for one in validate_capture(capture) if one.severity == "error"] == []

    cut = tmp_path / "cut.pcap"
    cut.write_bytes(whole[:-1])
    assert [one.group for one in validate_capture(cut) if one.severity == "error"] == ["file"]

    # The IPv4 header checksum of the first frame: pcap head 24, record 16, Ethernet 14, IP 10.
    position = 24 + 16 + 14 + 10
    damaged = tmp_path / "damaged.pcap"
    damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    issues = validate_capture(damaged, check_checksums=True)
    assert (1, "error", "checksum") in {(one.frame, one.severity, one.group) for one in issues}


def test_recording_never_overwrites(tmp_path: Path) -> None:
    capture = tmp_path / "capture.pcap"
    capture.write_bytes(b"precious")
    with pytest.raises(InputError, match="File exists"), record_with_tcpdump(capture, ports=[1]):
        pass
    assert capture.read_bytes() == b"precious"


def test_exception_in_a_recording_passes_through(tmp_path: Path) -> None:
    with (
        pytest.raises(PeerFailed, match="mine"),
        record_with_tcpdump(tmp_path / "capture.pcap", ports=[1]),
    ):
        raise PeerFailed("mine")


def test_version_is_known() -> None:
    assert tshark_version() >= (4, 0)

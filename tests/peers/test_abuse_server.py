"""The server as processes under hostile peers: it answers others, says why once, and grows not."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from served import DEADLINE_SECONDS, LOG_BYTES, PFS, Served, files_of

import transport
from certs.credential import Credential, TrustAnchors
from interop.peers.hostile import HostileClient
from interop.peers.processes import ChildProcess, PeerFailed, run_to_completion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conftest import Authority

    from interop.peers.programs import Program

ENGINES = pytest.mark.parametrize("engine", ["asyncio", "blocking"])


class Attacked(Served):
    """An echo server, what it holds, and its honest clients."""

    def __init__(self, child: ChildProcess, ca_file: Path) -> None:
        super().__init__(child)
        self.anchors = TrustAnchors.from_pem(ca_file.read_bytes())

    def descriptors(self) -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.workers())

    def resident_kibibytes(self) -> int:
        status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in self.workers())
        return sum(map(int, re.findall(r"VmRSS:\s+(\d+) kB", status)))

    def cpu_seconds(self) -> float:
        # The clock of another process, as clock_getcpuclockid(3) makes it.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.workers())

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # a poll of other processes

    def connect(self, credential: Credential | None = None) -> transport.TLSSocket:
        client = transport.connect(
            self.address,
            credential=credential,
            trust_anchors=self.anchors,
            server_hostname="localhost",
            timeout_seconds=DEADLINE_SECONDS,
        )
        client.settimeout(DEADLINE_SECONDS)
        return client

    def assert_echoes(self, times: int = 3) -> None:
        for _ in range(times):
            with self.connect() as client:
                client.sendall(b"still there?")
                assert client.recv(100) == b"still there?"


@contextmanager
def serve(
    authority: Authority,
    *arguments: str,
    program: Path = PFS,
    before: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Attacked]:
    command = [*before, "serve", *arguments, *files_of(authority.ec), "--listen", "127.0.0.1:0"]
    with ChildProcess(
        program, command, stderr_limit_bytes=LOG_BYTES, extra_environment=environment
    ) as child:
        yield Attacked(child, authority.ca_file)


@contextmanager
def others_are_served(server: Attacked) -> Iterator[list[float]]:
    """Let an honest client come again and again; give how long each visit took."""
    seconds: list[float] = []
    stop = threading.Event()
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            while not stop.is_set() or len(seconds) < 3:
                started = time.monotonic()
                server.assert_echoes(1)
                seconds.append(time.monotonic() - started)
        except (OSError, AssertionError) as error:
            failures.append(error)

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    assert not failures


ATTACKS: dict[str, tuple[Callable[[HostileClient], bytes], str]] = {
    "an oversized record": (
        lambda client: client.seal.record(bytes((1 << 14) + 1)),
        "the peer sent a record larger than TLS allows",
    ),
    "empty records": (
        lambda client: b"".join(client.seal.record(b"") for _ in range(40)),
        "the peer sent more empty records in a row than anyone needs",
    ),
    "KeyUpdates": (
        lambda client: b"".join(client.seal.key_update(request_update=True) for _ in range(40)),
        "the peer sent many messages of TLS itself (KeyUpdate, tickets) and no data",
    ),
    "garbage": (
        lambda _: b"\x17\x03\x03\x00\x40" + bytes(64),
        "a record from the peer does not decrypt",
    ),
}
ROUNDS = 12


@ENGINES
def test_hostile_records_cost_one_line_each_and_leave_nothing(
    authority: Authority, engine: str
) -> None:
    with serve(authority, "echo", "--engine", engine, "--workers", "2") as server:

        def attack_all() -> None:
            for records, _reason in ATTACKS.values():
                with HostileClient(server.address, server.anchors) as attacker:
                    with suppress(OSError):  # refused before all is sent
                        attacker.send(records(attacker))
                    with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset after it
                        attacker.receive()

        for _ in range(ROUNDS // 2):  # so that what is made once is no leak
            attack_all()
        server.assert_echoes(20)
        server.wait_for("connection_failed", len(ATTACKS) * ROUNDS // 2)
        descriptors, resident = server.descriptors(), server.resident_kibibytes()
        with others_are_served(server):
            for _ in range(ROUNDS // 2):
                attack_all()
        lines = server.wait_for("connection_failed", len(ATTACKS) * ROUNDS)
        assert len(lines) == len(ATTACKS) * ROUNDS
        reasons = [line["reason"] for line in lines]
        for _records, reason in ATTACKS.values():
            assert reasons.count(reason) == ROUNDS
        server.until(lambda: server.descriptors() <= descriptors)
        assert server.resident_kibibytes() - resident < 2048
        assert not server.log("died")


@ENGINES
def test_a_client_that_asks_for_key_updates_and_never_reads_is_bounded(
    authority: Authority, engine: str
) -> None:
    with serve(authority, "echo", "--engine", engine, "--idle-timeout", "1") as server:
        server.assert_echoes()
        resident = server.resident_kibibytes()
        with HostileClient(server.address, server.anchors) as attacker:
            attacker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            attacker.socket.settimeout(0.5)
            sent_bytes = 0
            with others_are_served(server), pytest.raises(OSError):  # noqa: PT012, PT011 - full or cut
                while sent_bytes < 1 << 26:
                    burst = [attacker.seal.key_update(request_update=True) for _ in range(8)]
                    attacker.send(*burst, attacker.seal.record(b"x"))
                    sent_bytes += sum(map(len, burst))
            assert server.resident_kibibytes() - resident < 4096
            # Nothing moves any more, so that the idle deadline ends it; unless the answers filled
            # the socket so late that there were too many of them first.
            server.child.wait_until(
                lambda: bool(server.log("cut") or server.log("connection_failed")),
                timeout_seconds=DEADLINE_SECONDS,
                purpose="ended the connection",
            )
            (end,) = server.log("cut") or server.log("connection_failed")
            assert re.match("idle for too long|the peer sent many messages", str(end["reason"]))
        server.assert_echoes()


@ENGINES
def test_plain_http_is_told_so(
    authority: Authority, require_program: Callable[[str], Program], engine: str
) -> None:
    curl = require_program("curl")
    with serve(authority, "http", "--engine", engine) as server:
        url = f"http://127.0.0.1:{server.address[1]}/"
        for count in range(1, 4):
            done = run_to_completion(
                curl.path, ["--silent", "--include", url], timeout_seconds=DEADLINE_SECONDS
            )
            assert done.stdout.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"This port speaks TLS" in done.stdout
            assert done.exit_code == 0
            failures = server.wait_for("handshake_failed", count)
            assert len(failures) == count
            assert failures[-1]["reason"] == "plain HTTP on a TLS port"


@ENGINES
def test_renegotiation_is_refused(
    authority: Authority, require_program: Callable[[str], Program], engine: str
) -> None:
    openssl = require_program("openssl")
    with (
        serve(authority, "echo", "--engine", engine) as server,
        ChildProcess(
            openssl.path,
            [
                *("s_client", "-connect", f"127.0.0.1:{server.address[1]}", "-tls1_2", "-msg"),
                *("-CAfile", str(authority.ca_file), "-servername", "localhost"),
            ],
            stdin="pipe",
        ) as client,
    ):
        client.feed(b"R\n")  # read when the handshake is done
        # s_client gives up when its wish is refused, and says what it was told.
        assert client.wait_exit(timeout_seconds=DEADLINE_SECONDS) != 0
        said = client.stdout() + client.stderr()
        assert b"RENEGOTIATING" in said
        assert re.search(rb"<<< TLS 1\.2, Alert \[length 0002\], warning no_renegotiation", said)
        assert said.count(b", ServerHello\n") == 1
        server.assert_echoes()


@ENGINES
def test_a_worker_without_descriptors_waits_without_spinning(
    authority: Authority, engine: str
) -> None:
    with serve(authority, "echo", "--engine", engine) as server:
        server.assert_echoes()
        (worker,) = server.workers()
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        before = server.descriptors()
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (before + 8, hard))
        crowd = [socket.create_connection(server.address) for _ in range(40)]
        paused = server.wait_for("accepting_paused", 1)
        assert paused[0]["reason"] == "Too many open files"
        used, started = server.cpu_seconds(), time.monotonic()
        server.wait_for("accepting_paused", len(paused) + 2)  # two more attempts, a second apart
        elapsed = time.monotonic() - started
        assert (server.cpu_seconds() - used) / elapsed < 0.05
        for client in crowd:
            client.close()
        server.assert_echoes()
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        server.until(lambda: server.descriptors() <= before)
        assert not server.log("died")


@ENGINES
def test_workers_killed_under_load_lose_what_they_held_and_nothing_else(
    authority: Authority, engine: str
) -> None:
    clients, kills = 3, 3
    answered, lost = [0] * clients, [0] * clients
    stop = threading.Event()
    refused: list[OSError] = []

    with serve(authority, "echo", "--engine", engine, "--workers", "2") as server:

        def ask_for_ever(number: int) -> None:
            while not stop.is_set():
                try:
                    server.assert_echoes(1)
                except ConnectionRefusedError as error:
                    refused.append(error)
                except (OSError, AssertionError):
                    lost[number] += 1
                else:
                    answered[number] += 1

        threads = [threading.Thread(target=ask_for_ever, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        try:
            for kill in range(1, kills + 1):
                so_far = sum(answered)
                server.until(lambda so_far=so_far: sum(answered) >= so_far + 20)
                os.kill(server.workers()[kill % 2], signal.SIGKILL)
                server.wait_for("died", kill)
                server.wait_for("started", 2 + kill)
            so_far = sum(answered)
            server.until(lambda: sum(answered) >= so_far + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_SECONDS)
        assert not refused
        # A killed worker takes with it what each client had under way, and no more than that.
        assert sum(lost) <= clients * kills
        assert sum(answered) >= 20 * (kills + 1)
        assert {line["reason"] for line in server.log("died")} == {"signal SIGKILL"}


class Clock:
    """The wall clock of a process that runs under libfaketime; its monotonic clock is real."""

    def __init__(self, faketime: Path, file: Path) -> None:
        preloaded = run_to_completion(
            faketime,
            ["-f", "+0", "/bin/sh", "-c", 'echo "$LD_PRELOAD"'],
            timeout_seconds=DEADLINE_SECONDS,
        )
        self._file = file
        self.jump("+0")
        self.environment = {
            "LD_PRELOAD": preloaded.stdout.decode().strip(),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, offset: str) -> None:
        whole = self._file.with_suffix(".new")
        whole.write_text(offset + "\n")
        whole.replace(self._file)


@ENGINES
def test_a_jump_of_the_clock_cuts_nobody_and_judges_certificates_by_the_new_time(
    authority: Authority,
    require_program: Callable[[str], Program],
    tmp_path: Path,
    engine: str,
) -> None:
    clock = Clock(require_program("faketime").path, tmp_path / "offset")
    mutual = Credential.from_pem(
        authority.client.certificate_chain.read_bytes(), authority.client.private_key.read_bytes()
    )
    arguments = ["--client-ca", str(authority.ca_file), "--idle-timeout", "600"]
    arguments += ["--handshake-timeout", "600", "--engine", engine]
    with serve(authority, "echo", *arguments, environment=clock.environment) as server:

        def round_trip(client: transport.TLSSocket) -> None:
            client.sendall(b"still there?")
            assert client.recv(100) == b"still there?"

        stalled = socket.create_connection(server.address)
        with stalled, server.connect(credential=mutual) as early:
            round_trip(early)
            for count, years in enumerate((1000, -40), start=1):  # certificates: 2000 to 3000
                clock.jump(f"{years:+}y")
                with pytest.raises(OSError), server.connect(credential=mutual) as late:  # noqa: PT011 - the alert, or a reset after it
                    late.recv(1)
                round_trip(early)  # no deadline is over because of it
                failures = server.wait_for("handshake_failed", count)  # before the next jump
            assert [str(line["reason"]).partition(": ")[2][:24] for line in failures] == [
                "certificate has expired",
                "certificate is not yet v",
            ]
            assert [str(line["time"])[:2] for line in failures] == ["22", "19"]  # it did jump
            clock.jump("+0")
            with server.connect(credential=mutual) as again:
                round_trip(again)
            round_trip(early)
        assert not server.log("cut")
        server.wait_for("handshake_failed", 3)  # the stalled one, which ended by itself


HOSTILE = """
    openssl_conf = everything
    [everything]
    ssl_conf = endpoints
    [endpoints]
    system_default = weak
    [weak]
    MinProtocol = TLSv1
    CipherString = ALL:@SECLEVEL=0
    Ciphersuites = TLS_AES_128_CCM_SHA256
    Groups = ffdhe2048:P-521
    SignatureAlgorithms = RSA+SHA1
    NumTickets = 8
    """
OPTION = HOSTILE + "    Options = AllowNoDHEKEX,UnsafeLegacyRenegotiation\n"
# Code that is not there; who can name code that is there owns the process anyway.
LOADS = (
    HOSTILE.replace("ssl_conf = endpoints", "ssl_conf = endpoints\n    providers = them")
    + """
    [them]
    mine = loaded
    [loaded]
    module = /nonexistent/module.so
    activate = 1
    """
)
WHAT_A_BARE_CONTEXT_OFFERS = """
from OpenSSL import SSL
print(SSL.Connection(SSL.Context(SSL.TLS_METHOD)).get_cipher_list()[0])
"""


def configured(text: str, folder: Path) -> dict[str, str]:
    path = folder / "openssl.cnf"
    path.write_text(textwrap.dedent(text))
    return {"OPENSSL_CONF": str(path)}


@pytest.mark.parametrize("text", [HOSTILE, LOADS], ids=["settings", "a provider too"])
@ENGINES
def test_a_hostile_configuration_file_weakens_no_server(
    authority: Authority,
    require_program: Callable[[str], Program],
    tmp_path: Path,
    engine: str,
    text: str,
) -> None:
    openssl = require_program("openssl")
    environment = configured(text, tmp_path)
    # The control: the file does reach the library, and moves a context that sets nothing itself.
    bare = run_to_completion(
        Path(sys.executable),
        ["-c", WHAT_A_BARE_CONTEXT_OFFERS],
        timeout_seconds=DEADLINE_SECONDS,
        extra_environment=environment,
    )
    assert bare.stdout == b"TLS_AES_128_CCM_SHA256\n"
    with serve(authority, "echo", "--engine", engine, environment=environment) as server:
        for attempt in (
            ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            ["-tls1_2", "-cipher", "AES128-SHA:AES128-GCM-SHA256"],
            ["-tls1_3", "-groups", "ffdhe2048"],
            ["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
        ):
            done = run_to_completion(
                openssl.path,
                ["s_client", "-connect", f"127.0.0.1:{server.address[1]}", *attempt],
                timeout_seconds=DEADLINE_SECONDS,
            )
            assert b"alert" in done.stderr, attempt
        assert len(server.wait_for("handshake_failed", 4)) == 4
        with server.connect() as client:
            assert client.negotiated.group == "X25519MLKEM768"
            assert client.negotiated.suite != "TLS_AES_128_CCM_SHA256"


def test_a_configuration_file_with_options_that_stay_ends_the_start(
    authority: Authority, tmp_path: Path
) -> None:
    environment = configured(OPTION, tmp_path)
    with pytest.raises(PeerFailed), serve(authority, "echo", environment=environment):
        pass
    done = run_to_completion(
        PFS,
        [
            *("serve", "echo", "--listen", "0", "--cert", str(authority.ec.certificate_chain)),
            *("--key", str(authority.ec.private_key)),
        ],
        timeout_seconds=DEADLINE_SECONDS,
        extra_environment=environment,
    )
    assert done.exit_code == 2
    (line,) = [one for one in done.stderr.decode().splitlines() if not one.startswith("{")]
    assert "OPENSSL_CONF" in line
    assert "ALLOW_NO_DHE_KEX" in line

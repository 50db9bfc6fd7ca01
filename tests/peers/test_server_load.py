"""The server as processes under load and abuse: nothing is dropped, leaked, or left unexplained."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import socket
import ssl
import struct
import sys
import textwrap
import threading
import time
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
import trustme

import transport
from certs.credential import Credential, TrustAnchors
from interop.peers.processes import ChildProcess, run_to_completion, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Authority

    from interop.peers.endpoints import CredentialFiles
    from interop.peers.programs import Program

PFS = Path(sys.executable).with_name("pfs")
DEADLINE_SECONDS = 30.0
LOG_BYTES = 32 << 20
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


class Served:
    """A server in processes of its own, and what it says."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self.address = ("", 0)

    def log(self, event: str) -> list[dict[str, object]]:
        whole = self.child.stderr().rpartition(b"\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, object]]:
        self.child.wait_until(
            lambda: len(self.log(event)) >= count,
            timeout_seconds=DEADLINE_SECONDS,
            purpose=f"logged {event}",
        )
        return self.log(event)

    def worker_pids(self) -> dict[str, int]:
        return {str(line["child"]): int(str(line["child_pid"])) for line in self.log("started")}


def files_of(credential: CredentialFiles) -> list[str]:
    return ["--cert", str(credential.certificate_chain), "--key", str(credential.private_key)]


@contextmanager
def running(program: Path, *arguments: str) -> Iterator[Served]:
    with ChildProcess(program, arguments, stderr_limit_bytes=LOG_BYTES) as child:
        served = Served(child)
        (listening,) = served.wait_for("listening")
        served.address = (str(listening["host"]), int(str(listening["port"])))
        yield served


def serve(*arguments: str) -> AbstractContextManager[Served]:
    return running(PFS, "serve", *arguments, "--listen", "127.0.0.1:0")


class Load:
    """Clients that connect, ask once, and close, over and over, and a count of how that went."""

    def __init__(self, address: tuple[str, int], ca_file: Path, clients: int = 3) -> None:
        self._address = address
        self._anchors = TrustAnchors.from_pem(ca_file.read_bytes())
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.failures: list[OSError] = []
        self.certificates: set[bytes | None] = set()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.until_answered(20)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()

    def until_answered(self, more: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        wanted = self.answered + more
        while self.answered < wanted:
            assert time.monotonic() < deadline, self.failures
            time.sleep(0.005)  # a poll of what other threads count

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                certificate = self._ask()
            except OSError as error:
                with self._lock:
                    self.failures.append(error)
            else:
                with self._lock:
                    self.answered += 1
                    self.certificates.add(certificate)

    def _ask(self) -> bytes | None:
        with transport.connect(
            self._address,
            trust_anchors=self._anchors,
            server_hostname="localhost",
            timeout_seconds=DEADLINE_SECONDS,
        ) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"MLKEM768\n"):
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("the answer is not whole")
                answer += data
            return connection.negotiated.peer_certificate


def test_reloads_under_load_drop_nothing(authority: Authority, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    credentials = [authority.ec, authority.rsa]

    def install(credential: CredentialFiles) -> None:
        for source, target in (
            (credential.certificate_chain, chain),
            (credential.private_key, key),
        ):
            shutil.copyfile(source, target.with_suffix(".new"))
            target.with_suffix(".new").rename(target)

    install(authority.ec)
    with (
        serve(
            "http", "--cert", str(chain), "--key", str(key), "--workers", "2", "--reload-check", "0"
        ) as server,
        Load(server.address, authority.ca_file) as load,
    ):
        for turn in range(1, 9):
            install(credentials[turn % 2])
            os.kill(server.child.pid, signal.SIGHUP)
            server.wait_for("credential_loaded", 2 + 2 * turn)
            load.until_answered(10)
        key.write_text("broken")  # and a bad one changes nothing
        os.kill(server.child.pid, signal.SIGHUP)
        server.wait_for("credential_kept", 2)
        load.until_answered(10)
    assert load.failures == []
    assert len(load.certificates) == 2
    assert load.answered >= 100


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_killed_under_load_is_replaced_and_the_port_never_refuses(
    authority: Authority, workers: int
) -> None:
    with (
        serve("http", *files_of(authority.ec), "--workers", str(workers)) as server,
        Load(server.address, authority.ca_file) as load,
    ):
        for kills in range(1, 3):
            victim = server.worker_pids()["worker 0"]
            os.kill(victim, signal.SIGKILL)
            (*_earlier, death) = server.wait_for("died", kills)
            assert death["reason"] == "signal SIGKILL"
            server.wait_for("started", workers + kills)
            assert server.worker_pids()["worker 0"] != victim
            load.until_answered(20)
        deaths = server.log("died")
    # What was open in the worker died with it; nobody was ever turned away.
    assert not [one for one in load.failures if isinstance(one, ConnectionRefusedError)]
    assert len(load.failures) <= 2 * 3
    assert len(deaths) == len(server.log("died")) == 2  # SIGTERM to all of them is no death


def test_a_supervisor_killed_leaves_no_worker_behind(authority: Authority) -> None:
    with serve("http", *files_of(authority.ec), "--workers", "2") as server:
        workers = list(server.worker_pids().values())
        pidfds = [os.pidfd_open(pid) for pid in workers]
        os.kill(server.child.pid, signal.SIGKILL)
        poll = select.poll()
        for pidfd in pidfds:
            poll.register(pidfd, select.POLLIN)
        ended: set[int] = set()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(ended) < len(pidfds):
            assert time.monotonic() < deadline
            for pidfd, _event in poll.poll(1000):
                ended.add(pidfd)
                poll.unregister(pidfd)
        for pidfd in pidfds:
            os.close(pidfd)


SLOW_SERVER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from transport.server import *
    from transport.server_limits import Limits

    async def handle(stream, client):
        await stream.readline()
        await stream.send_all(b"first\\n")
        await stream.readline()
        await stream.send_all(b"second\\n")

    files = CredentialFiles(Path(sys.argv[1]), Path(sys.argv[2]))
    Server(
        ServerSettings(
            handler=handle,
            credentials=(ServedCredential(files),),
            workers=2,
            limits=Limits(drain_seconds=30),
            log=JSONLinesLog(),
        ),
        [("127.0.0.1", 0)],
    ).run()
    print("run returned")
    """
)


def test_sigterm_lets_a_slow_response_finish(authority: Authority, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_SERVER)
    credential = authority.ec
    with running(
        Path(sys.executable),
        str(script),
        str(credential.certificate_chain),
        str(credential.private_key),
    ) as server:
        connection = transport.connect(
            server.address,
            trust_anchors=TrustAnchors.from_pem(authority.ca_file.read_bytes()),
            server_hostname="localhost",
        )
        with connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.sendall(b"go\n")
            assert connection.recv(100) == b"first\n"
            os.kill(server.child.pid, signal.SIGTERM)
            server.wait_for("drained", 1)  # the other worker has nothing to wait for
            until_refused(server.address)
            connection.sendall(b"go\n")
            assert connection.recv(100) == b"second\n"
            assert connection.recv(100) == b""
        assert server.child.wait_exit(timeout_seconds=DEADLINE_SECONDS) == 0
        assert server.child.stdout() == b"run returned\n"
        assert not server.log("cut")


def until_refused(address: tuple[str, int]) -> None:
    """Connect until nobody listens any more: each worker stops when it gets to it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # in the queue when it was closed
        assert time.monotonic() < deadline, "it still listens"


def test_a_second_sigterm_does_not_wait(authority: Authority) -> None:
    with (
        serve("echo", *files_of(authority.ec), "--drain-seconds", "600") as server,
        socket.create_connection(server.address),  # a handshake that does not come
    ):
        os.kill(server.child.pid, signal.SIGTERM)
        server.wait_for("draining")
        os.kill(server.child.pid, signal.SIGTERM)
        assert server.child.wait_exit(timeout_seconds=5) == 0


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_kibibytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


def until_settled(pid: int, descriptors: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while open_descriptors(pid) > descriptors:
        assert time.monotonic() < deadline, f"{open_descriptors(pid)}, not {descriptors}"
        time.sleep(0.02)  # a poll of another process


MOST_GROWTH_KIBIBYTES = 8192


def connect_and_reset(address: tuple[str, int], count: int) -> None:
    for number in range(count):
        client = socket.create_connection(address)
        if number % 2:
            client.sendall(b"\x16\x03\x01")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_ten_thousand_resets_leave_no_descriptor(authority: Authority, engine: str) -> None:
    with serve("http", *files_of(authority.ec), "--engine", engine) as server:
        worker = server.worker_pids()["worker 0"]
        with Load(server.address, authority.ca_file, clients=1) as load:
            load.until_answered(5)
        until_settled(worker, open_descriptors(worker))
        before = open_descriptors(worker)
        memory = [resident_kibibytes(worker)]
        with Load(server.address, authority.ca_file, clients=1) as load:
            for _ in range(4):
                connect_and_reset(server.address, 2500)
                load.until_answered(5)
                memory.append(resident_kibibytes(worker))
        assert load.failures == []
        until_settled(worker, before)
        # A thread comes by the memory that it works with once, in any quarter, and who is gone
        # before it is heard should leave no thread behind; what leaks does so in each quarter.
        assert min(after - earlier for earlier, after in pairwise(memory)) < 2500, memory
        assert memory[-1] - memory[0] < MOST_GROWTH_KIBIBYTES, memory
        # One reason, in a few lines and a count of the others, which comes a second after the
        # first of them: some were gone before they came.
        deadline, counted, failures = time.monotonic() + DEADLINE_SECONDS, 0, []
        while counted <= 1000:
            assert time.monotonic() < deadline, (len(failures), counted)
            failures = server.log("handshake_failed")
            counted = sum(int(str(line.get("more_like_it", 1))) for line in failures)
            time.sleep(0.05)  # a look at what another process has written
        assert {line["reason"] for line in failures if "reason" in line} == {
            "the peer closed the connection during the handshake without close_notify"
        }
        assert len(failures) < 1000
        assert counted <= 10_000


@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_a_worker_without_descriptors_survives_and_recovers(
    authority: Authority, engine: str
) -> None:
    with serve("http", *files_of(authority.ec), "--engine", engine) as server:
        worker = server.worker_pids()["worker 0"]
        _soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        limit = open_descriptors(worker) + 8
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, hard))
        crowd = [socket.create_connection(server.address) for _ in range(30)]
        (pause, *_more) = server.wait_for("accepting_paused")
        assert pause["reason"] == "Too many open files"
        for client in crowd:
            client.close()
        with Load(server.address, authority.ca_file, clients=1) as load:
            load.until_answered(10)
        assert load.failures == []
        assert not server.log("died")
        assert len(server.log("accepting_paused")) < 20  # it does not spin


def test_a_cap_below_the_limit_of_descriptors_is_said(authority: Authority) -> None:
    limited = 'ulimit -n 64; exec "$0" "$@"'
    with running(
        Path("/bin/sh"),
        *("-c", limited, str(PFS), "serve", "http", *files_of(authority.ec)),
        *("--listen", "127.0.0.1:0"),
    ) as server:
        (said,) = server.wait_for("few_descriptors")
        assert "64 descriptors" in str(said["reason"])
        crowd = [socket.create_connection(server.address) for _ in range(80)]
        server.wait_for("accepting_paused")
        for client in crowd:
            client.close()
        with Load(server.address, authority.ca_file, clients=1) as load:
            load.until_answered(5)
        assert load.failures == []


def write_leaf(folder: Path, name: str, authority: trustme.CA, *names: str) -> tuple[Path, Path]:
    leaf = authority.issue_cert(*names)
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    key.touch(mode=0o600)
    leaf.private_key_pem.write_to_path(key)
    return chain, key


@pytest.mark.parametrize("refuse", [False, True])
def test_s_client_gets_the_certificate_of_the_name_it_asks_for(
    tmp_path: Path,
    require_program: Callable[[str], Program],
    refuse: bool,  # noqa: FBT001 - a parameter
) -> None:
    openssl = require_program("openssl")
    root = trustme.CA()
    root.cert_pem.write_to_path(tmp_path / "ca.pem")
    first = write_leaf(tmp_path, "first", root, "first.example")
    second = write_leaf(tmp_path, "second", root, "second.example", "*.wild.example")
    third = write_leaf(tmp_path, "third", root, "unused.example")
    pairs = [
        text for pair in (first, second) for text in ("--cert", str(pair[0]), "--key", str(pair[1]))
    ]
    sni = ["--sni", f"third.example={third[0]},{third[1]}"]
    extra = ["--refuse-unknown-names"] if refuse else []
    with serve("echo", *pairs, *sni, *extra) as server:

        def shown(*name_options: str) -> bytes:
            done = run_to_completion(
                openssl.path,
                [
                    *("s_client", "-connect", f"127.0.0.1:{server.address[1]}"),
                    *("-CAfile", str(tmp_path / "ca.pem"), "-showcerts", *name_options),
                ],
                timeout_seconds=DEADLINE_SECONDS,
            )
            return done.stdout + done.stderr

        def body(pair: tuple[Path, Path]) -> bytes:
            return pair[0].read_bytes().split(b"-----")[2].strip()

        assert body(first) in shown("-servername", "first.example")
        assert body(first) in shown("-noservername")
        assert body(second) in shown("-servername", "SECOND.example")
        assert body(second) in shown("-servername", "a.wild.example", "-tls1_2")
        assert body(third) in shown("-servername", "third.example")
        unknown = shown("-servername", "a.b.wild.example")
        if refuse:
            assert b"unrecognized name" in unknown
            assert server.wait_for("handshake_failed")[0]["alert_sent"] == "unrecognized_name"
        else:
            assert body(first) in unknown


def test_only_allowed_clients_are_served(
    authority: Authority, foreign_authority: Authority
) -> None:
    anchors = TrustAnchors.from_pem(authority.ca_file.read_bytes())

    def ask(address: tuple[str, int], files: CredentialFiles) -> bytes:
        credential = Credential.from_pem(
            files.certificate_chain.read_bytes(), files.private_key.read_bytes()
        )
        with transport.connect(
            address, trust_anchors=anchors, server_hostname="localhost", credential=credential
        ) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.sendall(b"hello")
            return connection.recv(100)

    options = ["--client-ca", str(authority.ca_file), "--allow", "dns:client.example"]
    with serve("echo", *files_of(authority.ec), *options) as server:
        assert ask(server.address, authority.client) == b"hello"
        for files, kind in (
            (authority.ec, "PeerNotAuthorized"),
            (foreign_authority.client, "CertificateRejected"),
        ):
            with pytest.raises(OSError):  # noqa: PT011 - told by an alert, or already reset
                ask(server.address, files)
            (*_earlier, failure) = server.wait_for(
                "handshake_failed", 1 if kind == "PeerNotAuthorized" else 2
            )
            assert failure["kind"] == kind
            assert failure["reason"]
        assert ask(server.address, authority.client) == b"hello"


def test_connect_talks_to_s_server_both_ways(
    authority: Authority, require_program: Callable[[str], Program]
) -> None:
    openssl = require_program("openssl")
    payload = b"".join(b"%08d\n" % number for number in range(20_000))
    credential = authority.rsa
    # -rev echoes each line backwards, so the far end has really read it.
    with ChildProcess(
        openssl.path,
        [
            *("s_server", "-accept", "127.0.0.1:0", "-rev", "-naccept", "1"),
            *("-cert", str(credential.certificate_chain), "-key", str(credential.private_key)),
            *("-cert_chain", str(credential.certificate_chain)),
        ],
    ) as server:
        port = wait_for_port(server, timeout_seconds=DEADLINE_SECONDS)
        with ChildProcess(
            PFS,
            [
                *("connect", f"127.0.0.1:{port}", "--ca", str(authority.ca_file)),
                *("--server-name", "localhost"),
            ],
            stdin="pipe",
        ) as client:
            client.feed(payload)
            client.wait_until(
                lambda: client.stdout_bytes() >= len(payload),
                timeout_seconds=DEADLINE_SECONDS,
                purpose="got everything back",
            )
            client.close_stdin()
            assert client.wait_exit(timeout_seconds=DEADLINE_SECONDS) == 0
            expected = b"".join(line[::-1] + b"\n" for line in payload.splitlines())
            assert client.stdout() == expected
            assert b"version          TLS 1.3" in client.stderr()


ABUSE = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "noise": bytes(range(256)),
    "an oversized record": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "empty records": b"\x16\x03\x03\x00\x00" * 1000,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "application data first": b"\x17\x03\x03\x00\x20" + bytes(32),
}


def test_each_abuse_is_one_line_with_one_reason_and_others_are_served(
    authority: Authority,
) -> None:
    secret_words = [
        line
        for line in authority.ec.private_key.read_text().splitlines()
        if len(line) > 40 and "-----" not in line
    ]
    assert secret_words
    with (
        serve("http", *files_of(authority.ec), "--handshake-timeout", "3") as server,
        Load(server.address, authority.ca_file, clients=1) as load,
    ):
        for count, data in enumerate(ABUSE.values(), start=1):
            attacker = socket.create_connection(server.address, DEADLINE_SECONDS)
            with attacker, suppress(OSError):
                attacker.sendall(data)
                while attacker.recv(1000):
                    pass
            failures = server.wait_for("handshake_failed", count)
            assert len(failures) == count
            assert failures[-1]["reason"]
        # Garbage after a proper handshake.
        plain = socket.create_connection(server.address, DEADLINE_SECONDS)
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            os.write(connection.fileno(), b"\x17\x03\x03\x00\x40" + bytes(64))
            with suppress(OSError):  # an alert, or a reset
                while connection.recv(1000):
                    pass
        assert server.wait_for("connection_failed")[0]["kind"] == "PeerMisbehaved"
        load.until_answered(5)
    assert load.failures == []
    text = server.child.stderr().decode()
    assert not any(word in text for word in secret_words)


def test_a_start_that_cannot_work_is_one_line(
    authority: Authority, foreign_authority: Authority
) -> None:
    with serve("http", *files_of(authority.ec)) as server:
        taken = f"127.0.0.1:{server.address[1]}"
        mixed = ["--cert", str(authority.ec.certificate_chain)]
        mixed += ["--key", str(foreign_authority.rsa.private_key)]
        for arguments, said in (
            ([*files_of(authority.ec), "--listen", taken], "Address already in use"),
            ([*mixed, "--listen", "127.0.0.1:0"], "does not belong to the certificate"),
            ([*files_of(authority.ec), "--listen", "0", "--metrics", taken], "already in use"),
            ([*files_of(authority.ec), "--listen", "0", "--allow", "dns:a.example"], "client_an"),
            ([*files_of(authority.ec), "--listen", "0", "--idle-timeout", "0"], "idle_timeout"),
        ):
            done = run_to_completion(
                PFS, ["serve", "http", *arguments], timeout_seconds=DEADLINE_SECONDS
            )
            assert done.exit_code == 2
            (line,) = [one for one in done.stderr.splitlines() if not one.startswith(b"{")]
            assert said in line.decode()
            assert done.stdout == b""

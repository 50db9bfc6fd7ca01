"""The server as processes under load and abuse: nothing is dropped, leaked, or left unexplained."""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from load import Load
from served import DEADLINE_SECONDS, PFS, files_of, running, serve

import transport
from certs.credential import TrustAnchors

if TYPE_CHECKING:
    from conftest import Authority

    from interop.peers.endpoints import CredentialFiles

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


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
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            (*_earlier, death) = server.wait_for("died", kills)
            assert death["reason"] == "signal SIGKILL"
            server.wait_for("started", workers + kills)
            assert server.workers()[0] != victim
            load.until_answered(20)
        deaths = server.log("died")
    # What was open in the worker died with it; nobody was ever turned away.
    assert not [one for one in load.failures if isinstance(one, ConnectionRefusedError)]
    assert len(load.failures) <= 2 * 3
    assert len(deaths) == len(server.log("died")) == 2  # SIGTERM to all of them is no death


def test_a_supervisor_killed_leaves_no_worker_behind(authority: Authority) -> None:
    with serve("http", *files_of(authority.ec), "--workers", "2") as server:
        workers = server.workers()
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
        worker = server.workers()[0]
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
        worker = server.workers()[0]
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

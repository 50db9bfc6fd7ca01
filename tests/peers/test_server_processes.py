"""`pfs serve` and `pfs connect` as processes: workers, reload, drain, metrics, and real clients."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest
from served import DEADLINE_SECONDS, PFS, Served, files_of, serve

import transport
from certs.credential import TrustAnchors
from interop.peers.curl import fetch_with_curl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Authority


def connect(server: Served, authority: Authority) -> transport.TLSSocket:
    return transport.connect(
        server.address,
        trust_anchors=TrustAnchors.from_pem(authority.ca_file.read_bytes()),
        server_hostname="localhost",
    )


def get(connection: transport.TLSSocket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = connection.recv(65536)
        assert data, "the connection ended"
        answer += data
    return answer


@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_curl_is_answered_by_every_engine(
    engine: str,
    authority: Authority,
    require_program: Callable[[str], object],
) -> None:
    require_program("curl")
    with serve("http", *files_of(authority.ec), "--engine", engine) as server:
        for _ in range(3):
            result = fetch_with_curl(
                server.address,
                "/",
                ca_file=authority.ca_file,
                server_name="localhost",
                timeout_seconds=DEADLINE_SECONDS,
            )
            assert result.http().status == 200
    assert server.child.exit_code == 0


def test_a_killed_worker_is_replaced_while_others_serve(authority: Authority) -> None:
    with serve("http", *files_of(authority.ec), "--workers", "2") as server:
        before = set(server.workers())
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(set(server.workers()) - {min(before)}) < 2:
            assert time.monotonic() < deadline, "the worker was not replaced"
            try:
                with connect(server, authority) as connection:
                    assert get(connection).startswith(b"HTTP/1.1 200")
            except ConnectionResetError:
                pass  # it waited in the queue of the worker that was killed
        for _ in range(20):
            with connect(server, authority) as connection:
                assert get(connection).startswith(b"HTTP/1.1 200")
    assert server.child.exit_code == 0


def test_a_reload_changes_new_connections_and_keeps_old_ones(
    authority: Authority, tmp_path: Path
) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    shutil.copyfile(authority.ec.certificate_chain, chain)
    shutil.copyfile(authority.ec.private_key, key)
    with (
        serve(
            "http",
            "--cert",
            chain,
            "--key",
            key,
            "--workers",
            "2",
            "--reload-check",
            "0",
        ) as server,
        connect(server, authority) as old,
    ):
        assert get(old).startswith(b"HTTP/1.1 200")
        first = old.negotiated.peer_certificate
        shutil.copyfile(authority.rsa.certificate_chain, chain)
        shutil.copyfile(authority.rsa.private_key, key)
        os.kill(server.child.pid, signal.SIGHUP)
        deadline = time.monotonic() + DEADLINE_SECONDS
        fresh = 0
        while fresh < 10:  # in a row, so that both workers have it
            assert time.monotonic() < deadline, "the new credential is not served"
            with connect(server, authority) as new:
                assert get(new).startswith(b"HTTP/1.1 200")
                fresh = fresh + 1 if new.negotiated.peer_certificate != first else 0
        assert get(old).startswith(b"HTTP/1.1 200")
        # One that cannot be used changes nothing, and says why.
        key.write_text("no key at all")
        os.kill(server.child.pid, signal.SIGHUP)
        with connect(server, authority) as still:
            assert get(still).startswith(b"HTTP/1.1 200")
    assert server.child.exit_code == 0


def test_a_drain_waits_for_what_is_open(authority: Authority) -> None:
    with serve("echo", *files_of(authority.ec), "--drain-seconds", "10") as server:
        with connect(server, authority) as connection:
            connection.sendall(b"before")
            assert connection.recv(100) == b"before"
            os.kill(server.child.pid, signal.SIGTERM)
            server.wait_for("stopping")
            deadline = time.monotonic() + DEADLINE_SECONDS
            while True:  # until it accepts nothing any more
                try:
                    socket.create_connection(server.address, 1).close()
                except ConnectionError:
                    break
                except TimeoutError:
                    pass  # its queue was full before it was closed
                assert time.monotonic() < deadline, "it still accepts"
        assert server.child.wait_exit(timeout_seconds=DEADLINE_SECONDS) == 0


def test_metrics_tell_what_was_negotiated(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with serve(
        "http", *files_of(authority.ec), "--workers", "2", "--metrics", f"127.0.0.1:{port}"
    ) as server:
        for _ in range(4):
            with connect(server, authority) as connection:
                get(connection)
        with socket.create_connection(server.address) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while plain.recv(1000):
                pass
        (failure,) = server.wait_for("handshake_failed")
        assert failure["reason"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    counted = [
        line for line in text.splitlines() if "X25519MLKEM768" in line and not line.startswith("#")
    ]
    assert sum(float(line.split()[-1]) for line in counted) == 4
    assert "PRIVATE" not in server.child.stderr().decode()


def test_connect_pipes_both_ways_and_half_closes(authority: Authority) -> None:
    payload = os.urandom(1_000_000)
    with serve("echo", *files_of(authority.ec)) as server:
        host, port = server.address
        done = subprocess.run(
            [
                *(PFS, "connect", f"{host}:{port}", "--ca", authority.ca_file),
                *("--server-name", "localhost"),
            ],
            input=payload,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == payload
    assert b"X25519MLKEM768" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http",), "no certificate was given"),
        (("http", "--cert", "missing", "--key", "missing"), "missing"),
        (("http", "--policy", "2019-01", "--cert", "x", "--key", "x"), "2019-01"),
        (("gopher",), "gopher"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: tuple[str, ...], said: str, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = pfs("serve", *arguments, "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    # What the server logs is JSON; what is said to the user is one line.
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert said in line

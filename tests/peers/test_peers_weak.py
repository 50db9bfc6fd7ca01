"""The control is weak, stays weak, and refuses to be anything else."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from interop.errors import InputError
from interop.peers.endpoints import Address, CredentialFiles, ServerOptions
from interop.peers.names import STATIC_RSA_SUITE
from interop.peers.openssl import run_s_server_answering, send_with_s_client
from interop.peers.weak import (
    ControlNotWeak,
    WeakConnection,
    WeakServer,
    WeakSessionFailed,
    weak_connect,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interop.peers.programs import Program

PAYLOAD = bytes(range(256)) * 4096


def echo(connection: WeakConnection) -> None:
    while data := connection.recv():
        connection.sendall(data)


def receive_exactly(connection: WeakConnection, length_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < length_bytes and (data := connection.recv()):
        received += data
    return bytes(received)


def weak_server(
    credential: CredentialFiles,
    handler: Callable[[WeakConnection], None] = echo,
    *,
    key_log: Callable[[bytes], None] | None = None,
    timeout_seconds: float = 30.0,
) -> WeakServer:
    return WeakServer(
        credential.certificate_chain,
        credential.private_key,
        handler,
        key_log=key_log,
        timeout_seconds=timeout_seconds,
    )


def test_bytes_cross_both_ways(rsa_credential: CredentialFiles, ca_file: Path) -> None:
    with weak_server(rsa_credential) as server:
        for name in ("localhost", "127.0.0.1"):
            with weak_connect(server.address, ca_file, name) as connection:
                connection.sendall(b"first")
                assert receive_exactly(connection, 5) == b"first"
    assert server.refused == []


def test_large_payload_survives_a_close_right_after_it(
    rsa_credential: CredentialFiles, ca_file: Path
) -> None:
    received: list[bytes] = []

    def take(connection: WeakConnection) -> None:
        received.append(receive_exactly(connection, len(PAYLOAD)))
        connection.sendall(PAYLOAD[::-1])

    with (
        weak_server(rsa_credential, take) as server,
        weak_connect(server.address, ca_file, "localhost") as connection,
    ):
        connection.sendall(PAYLOAD + b"never read")
        assert receive_exactly(connection, 2 * len(PAYLOAD)) == PAYLOAD[::-1]
    assert received == [PAYLOAD]


def test_sessions_run_side_by_side(rsa_credential: CredentialFiles, ca_file: Path) -> None:
    with (
        weak_server(rsa_credential) as server,
        weak_connect(server.address, ca_file, "localhost") as one,
        weak_connect(server.address, ca_file, "localhost") as two,
    ):
        two.sendall(b"two")
        one.sendall(b"one")
        assert receive_exactly(one, 3) == b"one"
        assert receive_exactly(two, 3) == b"two"


def test_close_is_seen_as_the_end(rsa_credential: CredentialFiles, ca_file: Path) -> None:
    def greet(connection: WeakConnection) -> None:
        connection.sendall(b"hello")

    with (
        weak_server(rsa_credential, greet) as server,
        weak_connect(server.address, ca_file, "localhost") as connection,
    ):
        assert receive_exactly(connection, 100) == b"hello"


def test_key_log_has_the_session(rsa_credential: CredentialFiles, ca_file: Path) -> None:
    server_lines: list[bytes] = []
    client_lines: list[bytes] = []
    with (
        weak_server(rsa_credential, key_log=server_lines.append) as server,
        weak_connect(server.address, ca_file, "localhost", key_log=client_lines.append),
    ):
        pass
    (line,) = server_lines
    assert line.startswith(b"CLIENT_RANDOM ")
    # With static RSA OpenSSL's client logs the premaster secret too, under a label of its own.
    assert [label.split()[0] for label in client_lines] == [b"RSA", b"CLIENT_RANDOM"]
    assert client_lines[1] == line


def test_certificate_is_verified(
    rsa_credential: CredentialFiles, ca_file: Path, foreign_ca_file: Path
) -> None:
    with weak_server(rsa_credential) as server:
        for ca, name in ((foreign_ca_file, "localhost"), (ca_file, "other.example")):
            with (
                pytest.raises(WeakSessionFailed, match="cannot be verified"),
                weak_connect(server.address, ca, name),
            ):
                pass


def test_ecdhe_only_client_is_refused(
    rsa_credential: CredentialFiles, ca_file: Path, require_program: Callable[[str], Program]
) -> None:
    require_program("openssl")

    def answer(connection: WeakConnection) -> None:
        receive_exactly(connection, 1)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def send(suite: str) -> int:
        return send_with_s_client(
            server.address,
            b"x",
            ca_file=ca_file,
            server_name="localhost",
            timeout_seconds=30,
            version="1.2",
            suites=[suite],
        ).exit_code

    with weak_server(rsa_credential, answer) as server:
        assert send(STATIC_RSA_SUITE) == 0
        assert server.refused == []
        assert send("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256") != 0
    assert len(server.refused) == 1
    assert "no shared cipher" in server.refused[0]


def handshake_as_client(address: Address, least_version: int) -> None:
    """Do what a client of today does, with pyOpenSSL and nothing of ours."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(least_version)
    with socket.create_connection(address) as sock:
        connection = SSL.Connection(context, sock)
        connection.set_connect_state()
        connection.do_handshake()
        connection.shutdown()


def test_tls13_client_is_refused(rsa_credential: CredentialFiles) -> None:
    with weak_server(rsa_credential) as server:
        with pytest.raises(SSL.Error):
            handshake_as_client(server.address, SSL.TLS1_3_VERSION)
        handshake_as_client(server.address, SSL.TLS1_2_VERSION)
    assert len(server.refused) == 1


def test_client_refuses_a_strong_server(
    rsa_credential: CredentialFiles, ca_file: Path, require_program: Callable[[str], Program]
) -> None:
    require_program("openssl")
    options = ServerOptions(
        credential=rsa_credential,
        versions=("1.2",),
        suites=("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",),
    )
    with (
        run_s_server_answering(options) as server,
        pytest.raises(WeakSessionFailed, match="handshake"),
        weak_connect(server.address, ca_file, "localhost"),
    ):
        pass


def test_control_that_is_not_weak_is_a_defect(rsa_credential: CredentialFiles) -> None:
    server = weak_server(rsa_credential)
    # The white box: let it negotiate ECDHE after all.
    server._context.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
    server.__enter__()
    handshake_as_client(server.address, SSL.TLS1_2_VERSION)
    with pytest.raises(ControlNotWeak, match="not static RSA"):
        server.__exit__(None, None, None)


def test_failing_handler_is_heard(rsa_credential: CredentialFiles, ca_file: Path) -> None:
    def fail(_: WeakConnection) -> None:
        raise ConnectionAbortedError("handler gave up")

    server = weak_server(rsa_credential, fail)
    server.__enter__()
    with weak_connect(server.address, ca_file, "localhost") as connection:
        assert connection.recv() == b""
    with pytest.raises(ConnectionAbortedError, match="gave up"):
        server.__exit__(None, None, None)


def test_silent_client_does_not_hold_the_server(
    rsa_credential: CredentialFiles, ca_file: Path
) -> None:
    with (
        weak_server(rsa_credential, timeout_seconds=0.3) as server,
        socket.create_connection(server.address) as silent,
    ):
        with weak_connect(server.address, ca_file, "localhost") as connection:
            connection.sendall(b"x")
            assert receive_exactly(connection, 1) == b"x"
        assert silent.recv(1) == b""  # closed by the server's own deadline
    assert len(server.refused) == 1
    assert "time is up" in server.refused[0]


def test_cut_connection_is_not_an_end(rsa_credential: CredentialFiles, ca_file: Path) -> None:
    def cut(connection: WeakConnection) -> None:
        connection.sendall(b"x")
        connection._socket.shutdown(socket.SHUT_RDWR)

    with (
        weak_server(rsa_credential, cut) as server,
        weak_connect(server.address, ca_file, "localhost") as connection,
    ):
        assert connection.recv() == b"x"
        with pytest.raises(WeakSessionFailed, match="receive"):
            connection.recv()


def test_unusable_credentials_are_input_errors(
    rsa_credential: CredentialFiles,
    foreign_rsa_credential: CredentialFiles,
    ec_credential: CredentialFiles,
    tmp_path: Path,
) -> None:
    chain, key = rsa_credential.certificate_chain, rsa_credential.private_key
    for wrong_chain, wrong_key, words in (
        (chain, foreign_rsa_credential.private_key, "do not belong together"),
        (ec_credential.certificate_chain, ec_credential.private_key, "needs an RSA key"),
        (chain, chain, "cannot be read"),
        (key, key, "cannot be read"),
        (tmp_path / "absent", key, "absent"),
    ):
        with pytest.raises(InputError, match=words):
            WeakServer(wrong_chain, wrong_key, echo)


def test_transport_cannot_reach_it() -> None:
    code = (
        "import sys, transport, certs; print([m for m in sys.modules if m.startswith('interop')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""`pfs connect`: input that is left is sent for as long as the server takes it, or said to be left.

The servers are ours in this process, so that each end of a connection happens when the test says.
"""

from __future__ import annotations

import base64
import os
import pty
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

import transport
from certs.credential import Credential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Authority

PFS = Path(sys.executable).with_name("pfs")
DEADLINE_SECONDS = 20.0
GREETING, MORE = b"hello and goodbye\n", b"one more line\n"


@contextmanager
def accepting(authority: Authority, version: str) -> Iterator[transport.TLSListener]:
    credential = Credential.from_pem(
        authority.ec.certificate_chain.read_bytes(), authority.ec.private_key.read_bytes()
    )
    raw = socket.create_server(("127.0.0.1", 0))
    raw.settimeout(DEADLINE_SECONDS)
    policy = transport.DEFAULT_POLICY.narrowed(versions=[version])
    with transport.wrap_listener(raw, credential=credential, policy=policy) as listener:
        yield listener


@contextmanager
def connecting(
    listener: transport.TLSListener, authority: Authority, *, stdin: int = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[bytes], transport.TLSSocket]]:
    """Run the command, and give it with the server's side of its connection."""
    host, port = listener.getsockname()
    with subprocess.Popen(
        [
            *(PFS, "connect", f"{host}:{port}", "--quiet"),
            *("--ca", authority.ca_file, "--server-name", "localhost"),
        ],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            connection, _ = listener.accept()
            connection.settimeout(DEADLINE_SECONDS)
            with connection:
                connection.do_handshake()
                yield process, connection
        finally:
            process.kill()


def read_greeting(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == GREETING


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    _output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, errors


@pytest.mark.parametrize("tcp_too", [False, True])
def test_a_server_that_ends_its_side_still_gets_the_input(
    authority: Authority, *, tcp_too: bool
) -> None:
    with (
        accepting(authority, "TLS 1.3") as listener,
        connecting(listener, authority) as (process, connection),
    ):
        connection.sendall(GREETING)
        connection.shutdown(socket.SHUT_WR)
        if tcp_too:
            connection._transport.shutdown(socket.SHUT_WR)
        read_greeting(process)
        assert process.stdin is not None
        for _ in range(3):
            process.stdin.write(MORE)
            process.stdin.flush()
            assert connection.recv(100) == MORE
        process.stdin.close()
        process.stdin = None
        assert connection.recv(100) == b""
        connection.close()
        assert end(process) == (0, b"")


def test_input_that_the_server_does_not_take_is_said_to_be_left(authority: Authority) -> None:
    with (
        accepting(authority, "TLS 1.3") as listener,
        connecting(listener, authority) as (process, connection),
    ):
        connection.sendall(GREETING)
        connection.close()
        read_greeting(process)
        assert process.stdin is not None
        # The first line draws the reset that tells that nobody is there.
        with suppress(BrokenPipeError):
            while True:
                process.stdin.write(MORE)
                process.stdin.flush()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None
        status, errors = end(process)
    assert status == 1
    assert errors.startswith(b"pfs: the server ended the session before all of standard input")
    assert errors.count(b"\n") == 1


def test_nothing_is_left_when_the_input_ends_first(authority: Authority) -> None:
    with (
        accepting(authority, "TLS 1.3") as listener,
        connecting(listener, authority) as (process, connection),
    ):
        connection.sendall(GREETING)
        connection.close()
        read_greeting(process)
        assert end(process) == (0, b"")


@pytest.mark.parametrize(("file", "status"), [("/dev/zero", 1), ("/dev/null", 0)])
def test_on_tls_1_2_the_server_ends_both_directions(
    file: str, status: int, authority: Authority
) -> None:
    with (
        Path(file).open("rb") as stdin,
        accepting(authority, "TLS 1.2") as listener,
        connecting(listener, authority, stdin=stdin.fileno()) as (process, connection),
    ):
        connection.sendall(GREETING)
        read_greeting(process)
        connection.shutdown(socket.SHUT_WR)  # close_notify, and no end of TCP
        while connection.recv(1 << 16):
            pass
        assert end(process)[0] == status


def test_at_a_terminal_the_end_of_the_server_is_the_end(authority: Authority) -> None:
    ours, theirs = pty.openpty()
    try:
        with (
            accepting(authority, "TLS 1.3") as listener,
            connecting(listener, authority, stdin=theirs) as (process, connection),
        ):
            connection.sendall(GREETING)
            connection.close()
            read_greeting(process)
            assert end(process) == (0, b"")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_cut_is_an_error_even_with_input_left(authority: Authority) -> None:
    with (
        accepting(authority, "TLS 1.3") as listener,
        connecting(listener, authority) as (process, connection),
    ):
        connection.sendall(GREETING)
        read_greeting(process)
        connection.__exit__(ValueError, ValueError(), None)  # without close_notify
        status, errors = end(process)
    assert status == 2
    assert b"without close_notify" in errors


def test_a_root_of_the_system_that_is_not_as_it_should_be_disturbs_nobody(
    authority: Authority, tmp_path: Path
) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name(())
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    first = b"\xa0\x03\x02\x01\x02\x02\x01"  # the version, then the serial number
    assert first + b"\1" in made
    bundle = b"# a comment\n"
    for changed in (made.replace(first + b"\1", first + b"\0"), made[:-30]):
        bundle += b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed)
        bundle += b"-----END CERTIFICATE-----\n"
    (tmp_path / "system.pem").write_bytes(bundle + authority.ca_file.read_bytes())
    with accepting(authority, "TLS 1.3") as listener:
        host, port = listener.getsockname()
        with subprocess.Popen(
            [PFS, "connect", f"{host}:{port}", "--quiet", "--server-name", "localhost"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "system.pem")},
        ) as process:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE_SECONDS)
                connection.sendall(GREETING)
            assert end(process) == (0, b"")


@pytest.mark.parametrize("command", ["serve", "connect", "policy", "policy diff", ""])
def test_help_is_cut_nowhere(
    command: str, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shown = pfs(*command.split(), "--help").stdout
    assert "Usage: pfs" in shown
    for sign in ("…", "....", "(no", "<bool>", "[default: (", "[default: default]"):
        assert sign not in shown
    assert max(map(len, shown.splitlines())) <= 80

"""The server and its clients as processes: who sees which certificate, and who is let in."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trustme
from load import Load
from served import DEADLINE_SECONDS, PFS, files_of, serve

import transport
from certs.credential import Credential, TrustAnchors
from interop.peers.processes import ChildProcess, run_to_completion, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Authority

    from interop.peers.endpoints import CredentialFiles
    from interop.peers.programs import Program


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
            ([*files_of(authority.ec), "--listen", taken], f"{taken}: Address already in use"),
            ([*mixed, "--listen", "127.0.0.1:0"], "does not belong to the certificate"),
            ([*files_of(authority.ec), "--listen", "0", "--metrics", taken], "already in use"),
            ([*files_of(authority.ec), "--listen", "0", "--allow", "dns:a.example"], "--client-ca"),
            ([*files_of(authority.ec), "--listen", "0", "--idle-timeout", "0"], "--idle-timeout"),
        ):
            done = run_to_completion(
                PFS, ["serve", "http", *arguments], timeout_seconds=DEADLINE_SECONDS
            )
            assert done.exit_code == 2
            (line,) = [one for one in done.stderr.splitlines() if not one.startswith(b"{")]
            assert said in line.decode()
            assert done.stdout == b""

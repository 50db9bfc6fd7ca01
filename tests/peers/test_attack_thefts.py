"""`pfs attack` with ticket keys, pre-shared keys and resumed sessions, on other stacks' traffic.

nginx has ticket keys from files, OpenSSL's client stores sessions with their keys, GnuTLS resumes,
renegotiates and takes pre-shared keys without a key exchange. Each session is recorded, attacked
through the command, and its plaintext compared with what was sent; each opens beside a control that
stays closed. tshark is asked too where it can follow.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from interop.capture.recorder import RecordingRelay
from interop.peers.endpoints import ServerOptions
from interop.peers.gnutls import run_gnutls_http
from interop.peers.nginx import run_nginx
from interop.peers.openssl import fetch_with_s_client
from interop.peers.processes import ChildProcess, run_to_completion, wait_for_port
from interop.peers.tshark import decrypt_with_tshark

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from interop.peers.endpoints import Address, CredentialFiles
    from interop.peers.programs import Program

    Pfs = Callable[..., subprocess.CompletedProcess[str]]
    Require = Callable[[str], Program]

BODY = bytes(range(256)) * 100 + os.urandom(3000)
DEADLINE_SECONDS = 30.0
PSK_BYTES = 32


def attack(pfs: Pfs, folder: Path, capture: Path, *stolen: object) -> list[dict[str, Any]]:
    """Attack a capture through the command; each session with what was recovered of it."""
    plaintext = folder / f"plaintext-{len(list(folder.iterdir()))}"
    done = pfs("attack", "--json", capture, *stolen, "--plaintext", plaintext)
    assert done.returncode == 0, done.stderr
    sessions: list[dict[str, Any]] = json.loads(done.stdout)["sessions"]
    for session in sessions:
        for side in ("client", "server"):
            path = plaintext / f"{capture.name}-{session['stream']}-{side}.bin"
            session[side] = path.read_bytes() if path.exists() else b""
    return sessions


def fetch(address: Address, ca_file: Path, **more: Any) -> None:
    options = {"ca_file": ca_file, "server_name": "localhost", "timeout_seconds": DEADLINE_SECONDS}
    result = fetch_with_s_client(address, "/body", **(options | more))
    assert result.http().body == BODY


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("length", [48, 80])
def test_nginx_and_its_ticket_key(
    length: int,
    version: str,
    tmp_path: Path,
    require_program: Require,
    pfs: Pfs,
    ec_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("nginx", "openssl"):
        require_program(program)
    key, wrong, stored = tmp_path / "key", tmp_path / "wrong", tmp_path / "session"
    key.write_bytes(os.urandom(length))
    wrong.write_bytes(os.urandom(length))
    options = ServerOptions(credential=ec_credential, versions=(version,), tickets=True)
    capture = tmp_path / "capture.pcapng"
    with run_nginx(options, ticket_key=key) as server:
        (server.folder / "body").write_bytes(BODY)
        with RecordingRelay(server.address, capture) as relay:
            fetch(relay.address, ca_file, session_out=stored)
            fetch(relay.address, ca_file, session_in=stored)
    first, second = attack(pfs, tmp_path, capture, "--ticket-key", key)
    assert (first["resumed"], second["resumed"]) == (False, True)
    if version == "1.2":  # the ticket holds the main secret of both
        for session in (first, second):
            assert session["opened_by"] == "ticket key"
            assert session["server"].endswith(BODY)
            assert session["client"].startswith(b"GET /body ")
    else:
        assert not first["opened"]
        assert not second["opened"]
        assert "the pre-shared key is known" in second["reason"]
        assert "psk_dhe_ke session needs both" in second["reason"]
    name, half = key.read_bytes()[:16], (length - 16) // 2
    swapped = tmp_path / "swapped"  # the order of Apache, with 48 bytes, and HAProxy, with 80
    swapped.write_bytes(name + key.read_bytes()[16 + half :] + key.read_bytes()[16 : 16 + half])
    again = attack(pfs, tmp_path, capture, "--ticket-key", swapped)
    assert [session["opened"] for session in again] == [first["opened"], second["opened"]]
    for session in attack(pfs, tmp_path, capture, "--ticket-key", wrong):
        assert (session["client"], session["server"]) == (b"", b"")
        assert "the pre-shared key is known" not in session["reason"]


def test_early_data_opens_by_the_ticket_key_and_by_the_clients_stored_session(
    tmp_path: Path,
    require_program: Require,
    pfs: Pfs,
    ec_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("nginx", "openssl"):
        require_program(program)
    key, stored, early = tmp_path / "key", tmp_path / "session", tmp_path / "early"
    key.write_bytes(os.urandom(80))
    request = b"GET /body?early HTTP/1.1\r\nHost: localhost\r\n\r\n"
    early.write_bytes(request)
    options = ServerOptions(credential=ec_credential, versions=("1.3",), tickets=True)
    captures = [tmp_path / "first.pcapng", tmp_path / "second.pcapng"]
    with run_nginx(options, ticket_key=key, early_data=True) as server:
        (server.folder / "body").write_bytes(BODY)
        with RecordingRelay(server.address, captures[0]) as relay:
            fetch(relay.address, ca_file, session_out=stored)
        session_file = stored.read_bytes()  # the second run stores its own
        with RecordingRelay(server.address, captures[1]) as relay:
            result = fetch_with_s_client(
                relay.address,
                "/body",
                ca_file=ca_file,
                server_name="localhost",
                timeout_seconds=DEADLINE_SECONDS,
                session_in=stored,
                early_data=early,
            )
    assert result.response.count(BODY) == 2  # of the early request, and of the late one
    stored.write_bytes(session_file)
    for theft, source in ((("--ticket-key", key), "ticket key"), (("--psk", stored), "pre-shared")):
        (session,) = attack(pfs, tmp_path, captures[1], *theft)
        assert session["client"] == request
        assert session["server"] == b""
        assert session["opened_by"].startswith(source)
        assert "psk_dhe_ke session needs both" in session["reason"]
    wrong = tmp_path / "wrong"
    wrong.write_text(os.urandom(48).hex())
    (session,) = attack(pfs, tmp_path, captures[1], "--psk", wrong)
    assert (session["client"], session["server"], session["opened"]) == (b"", b"", False)
    (original,) = attack(pfs, tmp_path, captures[0], "--ticket-key", key)
    assert not original["opened"]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_gnutls_with_a_pre_shared_key_and_no_key_exchange(
    version: str,
    tmp_path: Path,
    require_program: Require,
    pfs: Pfs,
    rsa_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("gnutls-serv", "openssl"):
        require_program(program)
    secret = os.urandom(PSK_BYTES)
    keys, wrong = tmp_path / "psk.txt", tmp_path / "wrong.txt"
    keys.write_text(f"client:{secret.hex()}\n")
    wrong.write_text(f"client:{os.urandom(PSK_BYTES).hex()}\n")
    options = ServerOptions(credential=rsa_credential, versions=(version,))
    capture = tmp_path / "capture.pcapng"
    with (
        run_gnutls_http(options, BODY, pre_shared_keys=keys) as server,
        RecordingRelay(server.address, capture) as relay,
    ):
        more = {} if version == "1.3" else {"suites": ("TLS_PSK_WITH_AES_128_GCM_SHA256",)}
        fetch(relay.address, ca_file, version=version, pre_shared_key=secret, **more)
    (session,) = attack(pfs, tmp_path, capture, "--psk", keys)
    assert session["opened_by"] == "pre-shared key"
    assert session["forward_secret"] is False
    assert session["server"].endswith(BODY)
    (session,) = attack(pfs, tmp_path, capture, "--psk", wrong)
    assert (session["client"], session["server"], session["opened"]) == (b"", b"", False)
    theft = ("--server-key", rsa_credential.private_key)
    (session,) = attack(pfs, tmp_path, capture, *theft)
    assert not session["opened"]


GNUTLS_RSA = "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+RSA"


@pytest.mark.parametrize("how", ["--resume", "--rehandshake"])
@pytest.mark.parametrize(
    "mac", ["", ":-CIPHER-ALL:+AES-256-CBC:%NO_ETM", ":-CIPHER-ALL:+AES-256-CBC"]
)
def test_gnutls_resumes_and_renegotiates(
    how: str,
    mac: str,
    tmp_path: Path,
    require_program: Require,
    pfs: Pfs,
    rsa_credential: CredentialFiles,
    foreign_rsa_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("gnutls-serv", "tshark"):
        require_program(program)
    # Of the same package as gnutls-serv, which is the one that is registered.
    client = require_program("gnutls-serv").path.with_name("gnutls-cli")
    request = tmp_path / "request"
    request.write_bytes(b"GET /body HTTP/1.0\r\n\r\n")
    options = ServerOptions(credential=rsa_credential, versions=("1.2",), tickets=True)
    capture = tmp_path / "capture.pcapng"
    with (
        run_gnutls_http(options, BODY) as server,
        RecordingRelay(server.address, capture) as relay,
        request.open("rb") as stdin,
    ):
        host, port = relay.address
        done = run_to_completion(
            client,
            [
                *("--port", str(port), "--x509cafile", str(ca_file), "--sni-hostname", "localhost"),
                *("--verify-hostname", "localhost", "--priority", GNUTLS_RSA + mac),
                how,
                host,
            ],
            stdin=stdin,
            timeout_seconds=DEADLINE_SECONDS,
        )
    assert done.exit_code == 0, done.stderr
    assert (b"ReHandshake was completed" in done.stdout) is (how == "--rehandshake")
    sessions = attack(pfs, tmp_path, capture, "--server-key", rsa_credential.private_key)
    assert all(session["opened"] for session in sessions), sessions
    assert sessions[-1]["server"].endswith(BODY)
    if how == "--resume":
        assert [session["resumed"] for session in sessions] == [False, True]
        assert sessions[1]["opened_by"] == "earlier session"
    theirs = decrypt_with_tshark(capture, rsa_key=rsa_credential.private_key)
    for session, stream in zip(sessions, theirs, strict=True):
        assert session["stream"] == stream.index
        assert stream.server_to_client == session["server"]
        assert stream.client_to_server == session["client"]
    other = attack(pfs, tmp_path, capture, "--server-key", foreign_rsa_credential.private_key)
    assert not any(session["client"] or session["server"] for session in other)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_gnutls_with_a_raw_public_key_for_a_certificate(
    version: str, tmp_path: Path, require_program: Require, pfs: Pfs
) -> None:
    serving = require_program("gnutls-serv").path
    private = ec.generate_private_key(ec.SECP256R1())
    key, public, keys = tmp_path / "key.pem", tmp_path / "public.pem", tmp_path / "keys.log"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    priority = f"NORMAL:-VERS-ALL:+VERS-TLS{version}:-CTYPE-SRV-ALL:+CTYPE-SRV-RAWPK"
    arguments = ["--http", "--quiet", "--port", "0", "--disable-client-cert"]
    arguments += ["--rawpkkeyfile", str(key), "--rawpkfile", str(public), "--priority", priority]
    request, capture = tmp_path / "request", tmp_path / "capture.pcapng"
    request.write_bytes(b"GET / HTTP/1.0\r\n\r\n")
    with (
        ChildProcess(serving, arguments, extra_environment={"SSLKEYLOGFILE": str(keys)}) as child,
        RecordingRelay(
            ("127.0.0.1", wait_for_port(child, timeout_seconds=DEADLINE_SECONDS)), capture
        ) as relay,
        request.open("rb") as stdin,
    ):
        host, port = relay.address
        done = run_to_completion(
            serving.with_name("gnutls-cli"),
            ["--insecure", "--port", str(port), "--priority", priority, host],
            stdin=stdin,
            timeout_seconds=DEADLINE_SECONDS,
        )
    assert b"Raw Public Key" in done.stdout, done.stderr
    (session,) = attack(pfs, tmp_path, capture, "--key-log", keys)
    assert session["opened_by"] == "key log"
    assert session["reason"] == ""
    assert session["client"] == request.read_bytes()
    assert session["server"].startswith(b"HTTP/1.0 200 OK\r\n")

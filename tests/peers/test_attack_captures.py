"""The attacker on captures by tcpdump of other stacks' sessions, beside tshark's own decryption."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from interop.peers.curl import fetch_with_curl
from interop.peers.endpoints import ServerOptions
from interop.peers.gnutls import run_gnutls_http
from interop.peers.nginx import run_nginx
from interop.peers.openssl import fetch_with_s_client, run_s_server_answering, send_with_s_client
from interop.peers.tcpdump import record_with_tcpdump
from interop.peers.tshark import decrypt_with_tshark

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.peers.endpoints import Address, CredentialFiles

    Pfs = Callable[..., subprocess.CompletedProcess[str]]

BODY = bytes(range(256)) * 300 + b"Q\nR\n" + os.urandom(5000)
ANSWER_BYTES = 4000
STATIC_RSA = ("TLS_RSA_WITH_AES_128_GCM_SHA256",)
DEADLINE_SECONDS = 30.0


class Case(NamedTuple):
    """A server and a client, and what their session must turn out to be."""

    server: str
    version: str
    suites: tuple[str, ...] | None
    group: str | None
    forward_secret: bool


CASES = [
    Case("openssl", "1.3", None, "x25519", forward_secret=True),
    Case("openssl", "1.3", ("TLS_CHACHA20_POLY1305_SHA256",), "secp384r1", forward_secret=True),
    Case(
        "openssl", "1.2", ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",), "x25519", forward_secret=True
    ),
    Case("openssl", "1.3", ("TLS_AES_128_CCM_SHA256",), "x448", forward_secret=True),
    Case("openssl", "1.3", ("TLS_AES_256_GCM_SHA384",), "ffdhe3072", forward_secret=True),
    Case(
        "openssl", "1.2", ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",), "secp521r1", forward_secret=True
    ),
    Case("openssl", "1.2", ("TLS_RSA_WITH_AES_256_CBC_SHA256",), None, forward_secret=False),
    Case("openssl", "1.2", ("TLS_RSA_WITH_AES_256_CCM_8",), None, forward_secret=False),
    Case("openssl", "1.2", STATIC_RSA, None, forward_secret=False),
    Case("nginx", "1.3", None, "secp256r1", forward_secret=True),
    Case(
        "nginx",
        "1.2",
        ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",),
        "x25519",
        forward_secret=True,
    ),
    Case("nginx", "1.2", STATIC_RSA, None, forward_secret=False),
    Case("gnutls-serv", "1.3", ("TLS_AES_256_GCM_SHA384",), "x25519", forward_secret=True),
    Case(
        "gnutls-serv",
        "1.2",
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",),
        "secp256r1",
        forward_secret=True,
    ),
    Case("gnutls-serv", "1.3", ("TLS_AES_128_CCM_SHA256",), "ffdhe2048", forward_secret=True),
    Case(
        "gnutls-serv",
        "1.2",
        ("TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256",),
        "ffdhe2048",
        forward_secret=True,
    ),
    Case("gnutls-serv", "1.2", ("TLS_RSA_WITH_AES_128_CBC_SHA",), None, forward_secret=False),
    Case("gnutls-serv", "1.2", STATIC_RSA, None, forward_secret=False),
]


@contextmanager
def serving(case: Case, credential: CredentialFiles) -> Iterator[Address]:
    options = ServerOptions(
        credential=credential,
        versions=(case.version,),
        suites=case.suites,
        groups=None if case.group is None else tuple(dict.fromkeys((case.group, "secp256r1"))),
    )
    match case.server:
        case "openssl":
            with run_s_server_answering(options, BODY[:ANSWER_BYTES]) as server:
                yield server.address
        case "nginx":
            with run_nginx(options) as server:
                (server.folder / "body").write_bytes(BODY)
                yield server.address
        case _:
            with run_gnutls_http(options, BODY) as server:
                yield server.address


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.server}-{case.version}-{case.group}"
)
def test_captures_of_other_stacks_open_as_they_do_for_tshark(
    case: Case,
    tmp_path: Path,
    require_program: Callable[[str], object],
    pfs: Pfs,
    rsa_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("tcpdump", "tshark", case.server, "openssl"):
        require_program(program)
    capture, key_log = tmp_path / "capture.pcap", tmp_path / "keys.log"
    with (
        serving(case, rsa_credential) as address,
        record_with_tcpdump(capture, ports=[address[1]]),
    ):
        options = {
            "ca_file": ca_file,
            "server_name": "localhost",
            "timeout_seconds": DEADLINE_SECONDS,
            "version": case.version,
            "groups": None if case.group is None else (case.group,),
            "suites": case.suites,
            "key_log": key_log,
        }
        if case.server == "openssl":
            result, answer = send_with_s_client(address, BODY, **options), BODY[:ANSWER_BYTES]
        else:
            result, answer = fetch_with_s_client(address, "/body", **options), BODY
        assert result.http().body == answer

    stolen = key_log if case.forward_secret else rsa_credential.private_key
    option = "--key-log" if case.forward_secret else "--server-key"
    plaintext = tmp_path / "plaintext"
    done = pfs("attack", "--json", capture, option, stolen, "--plaintext", plaintext)
    assert done.returncode == 0, done.stderr
    (session,) = json.loads(done.stdout)["sessions"]
    assert (session["version"], session["group"]) == (f"TLS {case.version}", case.group)
    assert session["forward_secret"] is case.forward_secret
    assert case.suites is None or session["suite"] == case.suites[0]
    assert session["opened"], session["reason"]

    if case.forward_secret:
        (theirs,) = decrypt_with_tshark(capture, key_log=key_log)
    else:
        (theirs,) = decrypt_with_tshark(capture, rsa_key=rsa_credential.private_key)
    ours = {
        side: (plaintext / f"capture.pcap-{session['stream']}-{side}.bin").read_bytes()
        for side in ("client", "server")
    }
    assert ours == {"client": theirs.client_to_server, "server": theirs.server_to_client}
    assert ours["server"].endswith(answer)
    assert case.server != "openssl" or ours["client"].endswith(BODY)
    assert session["stream"] == theirs.index

    # The other kind of theft is the control: it opens the weak session only.
    other = pfs("attack", "--json", capture, "--server-key", rsa_credential.private_key)
    (session,) = json.loads(other.stdout)["sessions"]
    assert session["opened"] is not case.forward_secret


def test_many_sessions_interleaved_in_one_capture(
    tmp_path: Path,
    require_program: Callable[[str], object],
    pfs: Pfs,
    rsa_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("tcpdump", "tshark", "nginx", "curl", "openssl"):
        require_program(program)
    capture, key_log = tmp_path / "capture.pcap", tmp_path / "keys.log"
    weak = Case("nginx", "1.2", STATIC_RSA, None, forward_secret=False)
    strong = Case("nginx", "1.3", None, "x25519", forward_secret=True)
    with (
        serving(weak, rsa_credential) as weak_address,
        serving(strong, rsa_credential) as strong_address,
        record_with_tcpdump(capture, ports=[weak_address[1], strong_address[1]]),
    ):
        for address in (strong_address, weak_address) * 3:
            result = fetch_with_s_client(
                address,
                "/body",
                ca_file=ca_file,
                server_name="localhost",
                timeout_seconds=DEADLINE_SECONDS,
                key_log=key_log,
                suites=STATIC_RSA if address == weak_address else None,
                version="1.2" if address == weak_address else "1.3",
            )
            assert result.http().body == BODY
            curled = fetch_with_curl(
                address,
                "/body",
                ca_file=ca_file,
                server_name="localhost",
                timeout_seconds=DEADLINE_SECONDS,
                suites=STATIC_RSA if address == weak_address else None,
            )
            assert curled.http().body == BODY
    sessions = json.loads(
        pfs(
            "attack",
            "--json",
            capture,
            "--server-key",
            rsa_credential.private_key,
            "--key-log",
            key_log,
        ).stdout
    )["sessions"]
    assert len(sessions) == 12
    assert sum(session["opened_by"] == "server RSA key" for session in sessions) >= 3
    closed = [session for session in sessions if not session["opened"]]
    assert all(session["forward_secret"] for session in closed)
    assert {session["server_bytes"] for session in closed} <= {0}
    assert all(session["opened"] for session in sessions if not session["forward_secret"])
    theirs = decrypt_with_tshark(capture, key_log=key_log, rsa_key=rsa_credential.private_key)
    assert {session["stream"]: session["server_bytes"] for session in sessions} == {
        stream.index: len(stream.server_to_client) for stream in theirs
    }


def test_tls_1_1_is_named_and_left_alone(
    tmp_path: Path,
    require_program: Callable[[str], object],
    pfs: Pfs,
    rsa_credential: CredentialFiles,
    ca_file: Path,
) -> None:
    for program in ("tcpdump", "gnutls-serv", "openssl"):
        require_program(program)
    capture = tmp_path / "capture.pcap"
    case = Case("gnutls-serv", "1.1", None, None, forward_secret=False)
    with (
        serving(case, rsa_credential) as address,
        record_with_tcpdump(capture, ports=[address[1]]),
    ):
        result = fetch_with_s_client(
            address,
            "/",
            ca_file=ca_file,
            server_name="localhost",
            timeout_seconds=DEADLINE_SECONDS,
            version="1.1",
        )
        assert result.http().body == BODY
    done = pfs("attack", "--json", capture, "--server-key", rsa_credential.private_key)
    (session,) = json.loads(done.stdout)["sessions"]
    assert session["version"] == "TLS 1.1"
    assert not session["opened"]
    assert "TLS 1.1" in session["reason"]

"""The examples, run as they are: with each other, and with peers inside and outside a policy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from interop.peers.endpoints import ServerOptions
from interop.peers.openssl import run_s_server_files
from interop.peers.weak import WeakConnection, WeakServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE_SECONDS = 30
READY = re.compile(r"https://(?:127\.0\.0\.1|localhost):(\d+)")
CLIENTS = ["httpx_client.py", "requests_client.py"]
ASGI_SERVERS = ["uvicorn_server.py", "hypercorn_server.py"]


@contextmanager
def server(name: str, *options: str | Path, folder: Path | None = None) -> Iterator[int]:
    """Run an example that serves, on a port that the kernel chose, and return the port."""
    child = subprocess.Popen(
        [sys.executable, EXAMPLES / name, "--port", "0", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        assert child.stdout is not None
        seen = []
        for line in child.stdout:
            seen.append(line)
            if ready := READY.search(line):
                break
        else:
            pytest.fail("".join(seen))
        yield int(ready[1])
    finally:
        child.terminate()
        rest, _ = child.communicate(timeout=DEADLINE_SECONDS)
        assert "Traceback" not in rest, rest


def fetch(name: str, port: int, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, f"https://localhost:{port}/file", *options],
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def identity(credential: Any) -> tuple[str | Path, ...]:
    return "--cert", credential.certificate_chain, "--key", credential.private_key


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", ASGI_SERVERS)
def test_asgi_servers_tell_the_application_who_is_there(
    name: str,
    client: str,
    ec_credential: Any,
    client_credential: Any,
    foreign_client_credential: Any,
    ca_file: Path,
    foreign_ca_file: Path,
) -> None:
    with server(name, *identity(ec_credential), "--client-ca", ca_file) as port:
        served = fetch(client, port, "--ca", ca_file, *identity(client_credential))
        assert served.returncode == 0, served.stderr
        facts = json.loads(served.stdout)
        assert facts["version"] == "TLS 1.3"
        assert facts["group"] == "X25519MLKEM768"
        assert "O=trustme" in facts["client"]
        for refused, reason in (
            (fetch(client, port, "--ca", ca_file), "certificate_required"),
            (
                fetch(client, port, "--ca", ca_file, *identity(foreign_client_credential)),
                "unknown_ca",
            ),
            (
                fetch(client, port, "--ca", foreign_ca_file, *identity(client_credential)),
                "certificate",
            ),
        ):
            assert refused.returncode == 1
            assert refused.stdout == ""
            assert "Traceback" not in refused.stderr
            assert reason in refused.stderr
        again = fetch(client, port, "--ca", ca_file, *identity(client_credential))
        assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("client", CLIENTS)
def test_the_standard_librarys_server_with_each_client(
    client: str, rsa_credential: Any, ca_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("from a file", "utf-8")
    with server("http_server.py", *identity(rsa_credential), folder=tmp_path) as port:
        served = fetch(client, port, "--ca", ca_file)
        assert served.returncode == 0, served.stderr
        assert served.stdout == "from a file\n"


@pytest.mark.parametrize("name", ASGI_SERVERS)
def test_curl_with_http_2_where_there_is_one(
    name: str,
    ec_credential: Any,
    ca_file: Path,
    require_program: Callable[[str], Any],
) -> None:
    curl = require_program("curl")
    with server(name, *identity(ec_credential)) as port:
        done = subprocess.run(
            [
                *(curl.path, "--silent", "--show-error", "--http2", "--cacert", ca_file),
                *("--write-out", "\n%{http_version}", f"https://localhost:{port}/"),
            ],
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    body, version = done.stdout.splitlines()
    assert json.loads(body)["version"] == "TLS 1.3"
    assert version == ("2" if name.startswith("hypercorn") else "1.1")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("settings", "ok"),
    [
        ({"versions": ("1.3",)}, True),
        ({"versions": ("1.2",), "suites": ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",)}, True),
        ({"versions": ("1.2",), "suites": ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",)}, False),
        ({"versions": ("1.2",), "suites": ("TLS_RSA_WITH_AES_128_GCM_SHA256",)}, False),
        ({"versions": ("1.3",), "groups": ("ffdhe2048",)}, False),
    ],
    ids=["1.3", "1.2", "CBC", "static RSA", "finite field"],
)
def test_servers_of_openssl_inside_and_outside_the_policy(
    client: str,
    settings: dict[str, Any],
    ok: bool,  # noqa: FBT001 - a column of the table
    rsa_credential: Any,
    ca_file: Path,
    tmp_path: Path,
    require_program: Callable[[str], Any],
) -> None:
    program = require_program("openssl")
    (tmp_path / "file").write_text("from openssl", "utf-8")
    options = ServerOptions(credential=rsa_credential, **settings)
    with run_s_server_files(options, tmp_path, program=program) as running:
        done = fetch(client, running.address[1], "--ca", ca_file)
    assert done.returncode == (0 if ok else 1), done.stderr
    assert ("from openssl" in done.stdout) is ok
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("client", CLIENTS)
def test_the_weak_control_is_refused_before_it_hears_a_byte(
    client: str, rsa_credential: Any, ca_file: Path
) -> None:
    heard: list[bytes] = []

    def listen(connection: WeakConnection) -> None:
        heard.append(connection.recv())

    with WeakServer(rsa_credential.certificate_chain, rsa_credential.private_key, listen) as weak:
        done = fetch(client, weak.address[1], "--ca", ca_file)
    assert done.returncode == 1
    assert heard == []
    assert weak.refused

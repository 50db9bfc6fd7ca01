"""Every piece of code in docs/how-to.md runs, in a process of its own, as it is printed."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import transport
from interop.peers.processes import ChildProcess, wait_for_port
from transport.adapters import httpx as over_httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_SECONDS = 30
DOCUMENT = Path(__file__).parents[2] / "docs/how-to.md"
CODE = "\n".join(
    re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
)
DRIVER = """
if __name__ == "__main__":
    import sys

    name, argument = sys.argv[1:]
    globals()[name](int(argument) if argument.isdigit() else argument)
"""
HYBRID = "X25519MLKEM768"


@pytest.fixture
def desk(identities: Any, tmp_path: Path) -> Path:
    """Give a folder with the files that the document names, and its code as a program."""
    for name, credential in (
        ("server", identities.ec),
        ("client", identities.rsa),
        ("renewed", identities.rsa),
    ):
        (tmp_path / f"{name}.pem").write_bytes(credential.certificates_pem())
        (tmp_path / f"{name}.key").write_bytes(credential.private_key_pem())
    (tmp_path / "ca.pem").write_bytes(identities.anchors.pem())
    (tmp_path / "ca.crl").write_bytes(identities.crl)
    (tmp_path / "staple.der").write_bytes(identities.staple)
    (tmp_path / "how_to.py").write_text(CODE + DRIVER, "utf-8")
    return tmp_path


@contextmanager
def serving(name: str, desk: Path) -> Iterator[tuple[ChildProcess, int]]:
    with ChildProcess(
        Path(sys.executable), ["how_to.py", name, "0"], working_directory=desk
    ) as child:
        yield child, wait_for_port(child, timeout_seconds=DEADLINE_SECONDS)


def run(name: str, argument: object, desk: Path) -> str:
    done = subprocess.run(
        [sys.executable, "how_to.py", name, str(argument)],
        cwd=desk,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(port: int, data: bytes, identities: Any, **options: Any) -> bytes:
    """Send a line to a server and return what it says until it closes or has said as much."""
    with transport.connect(
        ("localhost", port), trust_anchors=identities.anchors, **options
    ) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.sendall(data)
        with connection.makefile("rb") as file:
            return file.readline()


def get(port: int, identities: Any) -> str:
    with over_httpx.client(identities.anchors) as client:
        return client.get(f"https://localhost:{port}/").text


def renewal(child: ChildProcess, port: int, identities: Any) -> None:
    def shown() -> bytes | None:
        with transport.connect(("localhost", port), trust_anchors=identities.anchors) as connection:
            return connection.negotiated.peer_certificate

    assert shown() == identities.ec.leaf.public_bytes(Encoding.DER)
    os.kill(child.pid, signal.SIGHUP)
    renewed = identities.rsa.leaf.public_bytes(Encoding.DER)
    child.wait_until(
        lambda: shown() == renewed, timeout_seconds=DEADLINE_SECONDS, purpose="renewed"
    )
    assert get(port, identities) == HYBRID


def refuses_strangers(port: int, identities: Any) -> bool:
    with pytest.raises(transport.AlertReceived, match="certificate_required"):
        ask(port, b"GET / HTTP/1.0\r\n\r\n", identities)
    return True


# What each server says, and the clients of the document that are run against it.
SERVERS: dict[str, tuple[Callable[[int, Any], Any], dict[str, str]]] = {
    "serve_files": (
        lambda port, identities: "server.pem" in get(port, identities),
        {
            "show_session": f"TLS 1.3 TLS_AES_128_GCM_SHA256 {HYBRID}\n",
            "fetch_with_httpx": f"{HYBRID} 200\n",
            "fetch_with_async_httpx": "200\n",
            "fetch_with_requests": f"{HYBRID} 200\n",
            "fetch_with_urllib3": "200\n",
            "fetch_with_urllib": "200\n",
        },
    ),
    "serve_echo": (
        lambda port, identities: ask(port, b"x\n", identities) == b"x\n",
        {"talk_to_echo": "b'hello\\n'\n"},
    ),
    "serve_known_clients": (
        refuses_strangers,
        {"be_a_known_client": "O=trustme"},
    ),
    "serve_unless_revoked": (
        refuses_strangers,
        {"insist_on_good_standing": "HTTP/1.0 200 OK", "publish_list": "1 revoked"},
    ),
    "serve_resuming": (
        lambda port, identities: ask(port, b"x\n", identities) == b"x\n",
        {"come_back": f"False {HYBRID}\nTrue {HYBRID}\n"},
    ),
    "serve_with_uvicorn": (lambda port, identities: get(port, identities) == HYBRID, {}),
    "serve_with_hypercorn": (lambda port, identities: get(port, identities) == HYBRID, {}),
    "serve_streams": (lambda port, identities: ask(port, b"x\n", identities) == b"x\n", {}),
    "serve_with_pythons_tls": (
        lambda port, identities: ask(port, b"", identities) == b"TLS 1.3 secp256r1\n",
        {},
    ),
    "serve_in_processes": (lambda port, identities: ask(port, b"x\n", identities) == b"x\n", {}),
}


def test_every_function_of_the_document_is_run_here() -> None:
    functions = {node.name for node in ast.parse(CODE).body if isinstance(node, ast.FunctionDef)}
    clients = {name for _, clients in SERVERS.values() for name in clients}
    assert functions == set(SERVERS) | clients | {
        "serve_and_renew",
        "keep_keys_under",
        "sign_in_a_token",  # by test_kek_pkcs11, which has a token
    }


@pytest.mark.parametrize("name", list(SERVERS))
def test_server_and_clients_of_the_document(name: str, desk: Path, identities: Any) -> None:
    check, clients = SERVERS[name]
    with serving(name, desk) as (_, port):
        assert check(port, identities)
        for client, said in clients.items():
            argument = f"https://localhost:{port}/" if client.startswith("fetch") else port
            output = run(client, argument, desk)
            assert said in output


def test_renewal_as_in_the_document(desk: Path, identities: Any) -> None:
    with serving("serve_and_renew", desk) as (child, port):
        renewal(child, port, identities)


def test_a_store_under_a_passphrase_as_in_the_document(desk: Path) -> None:
    (desk / "passphrase").touch(0o600)
    (desk / "passphrase").write_text("twelve characters and more\n")
    assert run("keep_keys_under", desk / "passphrase", desk) == "ed25519\n"
    (desk / "sealed-store").unlink()
    (desk / "passphrase").chmod(0o644)
    with pytest.raises(AssertionError, match="chmod 600"):
        run("keep_keys_under", desk / "passphrase", desk)


def test_clients_of_the_document_refuse_another_authority(desk: Path, identities: Any) -> None:
    with serving("serve_files", desk) as (_, port):
        (desk / "ca.pem").write_bytes(identities.foreign_anchors.pem())
        for name in SERVERS["serve_files"][1]:
            argument = f"https://localhost:{port}/" if name.startswith("fetch") else port
            with pytest.raises(AssertionError, match="certificate was rejected"):
                run(name, argument, desk)
        with (
            over_httpx.client(identities.foreign_anchors) as client,
            pytest.raises(httpx.ConnectError),
        ):
            client.get(f"https://localhost:{port}/")

"""What the documents say is true: commands and code run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import transport
from certs.authority import CertificateAuthority
from certs.credential import Credential
from certs.keystore import KeyStore
from certs.keystore.kek import create_kek

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conftest import Proof

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = sorted(
    {
        line.removeprefix("$ ")
        for document in DOCUMENTS
        for language, block in BLOCK.findall(document.read_text("utf-8"))
        if language == "console"
        for line in block.splitlines()
        if line.startswith("$ ")
    }
)
# Run by test_fresh_machine; or, in the case of scripts/test, what is running this.
ELSEWHERE = {"scripts/prove", "scripts/test", "scripts/test-pythons"}
ELSEWHERE |= {"scripts/soak"}  # in a small form by tests/peers/test_abuse_soak.py


def test_the_documents_have_commands() -> None:
    assert {"scripts/prove", "scripts/test", "pfs verify evidence"} <= set(COMMANDS)
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "pfs" or (ROOT / words[0]).is_file(), command


@pytest.fixture
def desk(proof: Proof, tmp_path: Path) -> Path:
    """Give a folder with the files that the documents' examples name."""
    shutil.copytree(proof.directory, tmp_path / "evidence")
    shutil.copyfile(proof.directory / "captures/tls13-x25519.pcapng", tmp_path / "capture.pcapng")
    shutil.copyfile(proof.directory / "stolen/server.key.pem", tmp_path / "server.key")
    shutil.copyfile(proof.directory / "stolen/tls13-x25519.keylog", tmp_path / "keys.log")
    key = X25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ephemeral.pem").write_bytes(pem)
    (tmp_path / "ticket.key").write_bytes(bytes(80))
    (tmp_path / "psk.txt").write_text(bytes(32).hex())
    return tmp_path


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("pfs ")])
def test_each_command_of_the_documents_runs(
    command: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    pfs: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    monkeypatch.chdir(desk)
    done = pfs(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr


def test_benchmarks_and_scripts_of_the_documents_exist() -> None:
    for command in COMMANDS:
        script = shlex.split(command)[0]
        if script.startswith("scripts/") and script not in ELSEWHERE:
            assert script.startswith("scripts/bench/"), f"{command} is run by no test"


def test_the_example_of_wrapping_a_socket_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = [block for language, block in BLOCK.findall(README) if language == "python"]
    assert len(example.splitlines()) == 5
    create_kek(f"file:{tmp_path}/kek").close()
    with KeyStore.create(tmp_path / "store", f"file:{tmp_path}/kek") as store:
        now = datetime.now(UTC)
        root = CertificateAuthority.create_root(store, "root", "documents", now)
        credential = root.issue_subordinate("issuing", "issuing", now).issue_server(
            key_name="server", dns_names=["localhost"], now=now
        )
    (tmp_path / "server.pem").write_bytes(credential.certificates_pem())
    (tmp_path / "server.key").write_bytes(credential.private_key_pem())
    monkeypatch.chdir(tmp_path)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listening = threading.Event()
    create_server = socket.create_server

    class Sockets:
        """The socket module as the example sees it, on a port that is free here."""

        @staticmethod
        def create_server(address: tuple[str, int]) -> socket.socket:
            assert address == ("127.0.0.1", 8443)
            listener = create_server(("127.0.0.1", port))
            listening.set()
            return listener

    names = {"socket": Sockets, "transport": transport, "Path": Path, "Credential": Credential}
    thread = threading.Thread(target=exec, args=(example, names))
    thread.start()
    assert listening.wait(10)
    with transport.connect(
        ("127.0.0.1", port),
        server_hostname="localhost",
        trust_anchors=root.trust_anchors,
        timeout_seconds=10,
    ) as client:
        assert client.recv(100) == b"hello, with forward secrecy\n"
    thread.join(10)
    assert not thread.is_alive()


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text("utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_continuous_integration_calls_the_test_command() -> None:
    assert "exec scripts/test" in (ROOT / ".ci/run").read_text("utf-8")

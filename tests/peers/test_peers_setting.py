"""The setting of these tests: who may run them, and what a missing program comes to."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from interop.errors import PeerUnavailable
from interop.peers.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.peers.endpoints import CredentialFiles
    from interop.peers.programs import Program

PROBE = "test_peers_programs.py::test_found_program_has_a_version[curl]"

# Everything is imported, and the files are handed over, before root is given up: the interpreter
# itself may live where an ordinary user cannot read.
AS_NOBODY = """
import os, pathlib, pwd, shutil, sys, tempfile
sys.path[:] = {path!r}
from interop.peers.curl import send_with_curl
from interop.peers.endpoints import CredentialFiles, ServerOptions
from interop.peers.nginx import run_nginx

nobody = pwd.getpwnam("nobody")
with tempfile.TemporaryDirectory() as folder:
    files = [pathlib.Path(shutil.copy(name, folder)) for name in sys.argv[1:]]
    for file in [folder, *files]:
        os.chown(file, nobody.pw_uid, nobody.pw_gid)
    os.setgroups([])
    os.setresgid(nobody.pw_gid, nobody.pw_gid, 0)
    os.setresuid(nobody.pw_uid, nobody.pw_uid, 0)
    os.chdir("/")
    chain, key, ca_file = files
    credential = CredentialFiles(certificate_chain=chain, private_key=key)
    with run_nginx(ServerOptions(credential=credential)) as server:
        result = send_with_curl(
            server.address, b"x", ca_file=ca_file, server_name="localhost", timeout_seconds=30
        )
        stored = server.folder / "upload"
        print(result.http().status, stored.owner(), stored.read_bytes())
    os.setresuid(0, 0, 0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="unsupported: only root can become someone else")
def test_nginx_runs_as_an_ordinary_user(
    require_program: Callable[[str], Program], rsa_credential: CredentialFiles, ca_file: Path
) -> None:
    require_program("nginx")
    require_program("curl")
    files = (rsa_credential.certificate_chain, rsa_credential.private_key, ca_file)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AS_NOBODY.format(path=sys.path)), *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "201 nobody b'x'", done.stderr


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 failed")])
def test_missing_program_skips_unless_required(required: str, outcome: str, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "PFS_REQUIRE_PEERS": required}
    try:
        found = find_program("curl", search_path="/usr/local/sbin:/usr/sbin:/sbin")
    except PeerUnavailable:
        found = None
    if found is not None:
        pytest.skip("unsupported: curl is among the servers here, and cannot be hidden")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"{Path(__file__).parent}/{PROBE}",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout
    assert "curl is not installed: apt-get install curl" in done.stdout


def test_every_test_here_is_marked(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("peers") is not None

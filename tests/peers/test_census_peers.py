"""A census of a foreign server: nginx, on both versions, with tickets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from interop.peers.endpoints import ServerOptions
from interop.peers.nginx import run_nginx

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.peers.endpoints import CredentialFiles
    from interop.peers.programs import Program

pytestmark = pytest.mark.peers
PFS = Path(sys.executable).with_name("pfs")


def test_a_census_of_nginx(
    ec_credential: CredentialFiles, ca_file: Path, require_program: Callable[[str], Program]
) -> None:
    require_program("nginx")
    options = ServerOptions(credential=ec_credential, tickets=True)
    with run_nginx(options, store_uploads=False) as server:
        done = subprocess.run(
            [
                *(PFS, "uniqueness", "--target", f"localhost:{server.address[1]}", "--json"),
                *("--ca", ca_file, "--handshakes", "60", "--workers", "3"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["handshakes"] == 60
    negotiated = report["negotiated"]
    assert {"TLS 1.2 x25519", "TLS 1.3 x25519", "TLS 1.3 secp256r1"} <= negotiated.keys()
    counts = {value["kind"]: value["count"] for value in report["values"]}
    assert counts["main_secret"] == negotiated["TLS 1.2 x25519"] > 10
    assert counts["server_key_share.x25519"] + counts["server_key_share.secp256r1"] == 60
    assert counts["ticket_identity"] == report["conditions"]["resumption"] > 0
    assert counts["psk"] > counts["ticket_identity"]

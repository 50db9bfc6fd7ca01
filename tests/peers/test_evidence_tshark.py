"""tshark as the second opinion on the evidence: valid captures, and the same plaintext."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from interop.peers.tshark import decrypt_with_tshark, validate_capture
from interop.proof.application import payload_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Proof


@pytest.fixture(autouse=True)
def _tshark(require_program: Callable[[str], object]) -> None:
    require_program("tshark")


def test_every_capture_of_the_evidence_is_valid(proof: Proof) -> None:
    captures = sorted((proof.directory / "captures").iterdir())
    assert len(captures) > 10
    for capture in captures:
        issues = validate_capture(capture, check_checksums=True)
        serious = [issue for issue in issues if issue.severity in {"warning", "error"}]
        # A socket that was closed answers what still arrives with a reset: that is what happened.
        assert [issue for issue in serious if "Connection reset" not in issue.message] == []


def test_tshark_opens_what_we_open_and_nothing_else(proof: Proof) -> None:
    report = json.loads((proof.directory / "report.json").read_bytes())
    stolen = proof.directory / "stolen"
    for cell in report["cells"]:
        capture = proof.directory / f"captures/{cell['session']}.pcapng"
        if cell["stolen"] == "server-key":
            (theirs,) = decrypt_with_tshark(capture, rsa_key=stolen / "control.key.pem")
        elif cell["stolen"].startswith("session-secrets:"):
            name = cell["stolen"].removeprefix("session-secrets:")
            (theirs,) = decrypt_with_tshark(capture, key_log=stolen / f"{name}.keylog")
        else:
            continue  # tshark cannot open a key store
        recovered = payload_in(theirs.client_to_server)
        assert recovered == (proof.payload if cell["observed"] == "opened" else b""), cell

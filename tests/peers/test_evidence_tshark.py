"""tshark as the second opinion on the evidence: valid captures, and the same plaintext."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interop.peers.programs import Program, format_version
from interop.peers.tshark import decrypt_with_tshark, validate_capture
from interop.proof import second_opinion
from interop.proof.application import payload_in
from interop.proof.manifest import sign_manifest
from interop.proof.model import read_report
from interop.proof.opinions import SecondOpinion, contradictions, standing
from interop.proof.report.html import render_html
from interop.proof.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import Proof

    from interop.proof.model import Cell


@pytest.fixture(autouse=True)
def _tshark(require_program: Callable[[str], object]) -> None:
    require_program("tshark")


def tshark_reads(stolen: str) -> bool:
    """Say whether tshark has a way to be given such a theft: RSA keys and key logs, no more."""
    kinds = ("session-secrets:", "exporter-secret:", "traffic-secret:", "later-traffic-secret:")
    return stolen == "server-key" or stolen.startswith(kinds)


def of_another_recording(cell: Cell) -> bool:
    """Say whether what opens it follows from another recording: TLS 1.2's resumption.

    Or from a traffic secret alone: without the handshake's, tshark reads nothing.
    """
    kind, _, whose = cell.stolen.partition(":")
    if kind == "traffic-secret":
        return True
    return kind == "session-secrets" and whose != cell.session and cell.expected == "opened"


@pytest.mark.long
def test_every_capture_of_the_evidence_is_valid(proof: Proof) -> None:
    captures = sorted((proof.directory / "captures").iterdir())
    assert len(captures) > 10
    for capture in captures:
        issues = validate_capture(capture, check_checksums=True)
        serious = [issue for issue in issues if issue.severity in {"warning", "error"}]
        # A socket that was closed answers what still arrives with a reset: that is what happened.
        assert [issue for issue in serious if "Connection reset" not in issue.message] == []


def test_tshark_opens_what_we_open_and_nothing_else(proof: Proof) -> None:
    report = read_report((proof.directory / "report.json").read_bytes())
    stolen = proof.directory / "stolen"
    # The report has asked tshark about all of them; here some are read without its machinery.
    names = {"tls12-ecdhe", "control-static-rsa", *(each.name for each in report.sessions[::4])}
    own = {name: f"session-secrets:{name}" for name in names}
    opened = 0
    for cell in report.cells:
        if cell.session not in names:
            continue
        capture = proof.directory / f"captures/{cell.session}.pcapng"
        if cell.stolen == "server-key":
            (theirs,) = decrypt_with_tshark(capture, rsa_key=stolen / "control.key.pem")
        elif cell.stolen in {own[cell.session], "session-secrets:tls12-ecdhe"}:
            name = cell.stolen.removeprefix("session-secrets:")
            (theirs,) = decrypt_with_tshark(capture, key_log=stolen / f"{name}.keylog")
        else:  # the report asks tshark about those; here each capture would be read for each theft
            continue
        recovered = payload_in(theirs.client_to_server)
        assert recovered == (proof.payload if cell.observed == "opened" else b""), cell
        opened += cell.observed == "opened"
    assert opened > len(names)  # each by its own secrets, the control by the server's key too


def test_the_report_records_what_tshark_said_and_where_it_could_not_be_asked(
    proof: Proof, require_program: Callable[[str], Program]
) -> None:
    report = read_report((proof.directory / "report.json").read_bytes())
    second = report.second_opinion
    assert second.version == format_version(require_program("tshark").version)
    assert len(second.opinions) == len(report.cells)
    for cell, opinion in zip(report.cells, second.opinions, strict=True):
        assert (cell.session, cell.stolen) == (opinion.session, opinion.stolen)
        if not tshark_reads(cell.stolen):
            assert opinion.observed is None
            assert opinion.reason
        elif standing(cell, opinion) != "could not open it" or not of_another_recording(cell):
            assert standing(cell, opinion) == "agrees", opinion
            assert opinion.recovered_bytes == cell.recovered_bytes
    limits = [limit.what for limit in report.not_tested if "tshark's opinion" in limit.what]
    assert any("key-store" in what for what in limits), limits


def ask(proof: Proof, cells: Sequence[Cell], *, limit_seconds: float = 60) -> SecondOpinion:
    report = read_report((proof.directory / "report.json").read_bytes())
    return second_opinion.ask(
        proof.directory,
        report.sessions,
        report.thefts,
        cells,
        payload_bytes=report.payload_bytes,
        payload_sha256=report.payload_sha256,
        limit_seconds=limit_seconds,
    )


def test_a_decryptor_of_ours_that_opens_nothing_is_contradicted(proof: Proof) -> None:
    """The broken attacker says *closed* everywhere; tshark, asked again alone, does not."""
    report = read_report((proof.directory / "report.json").read_bytes())
    asked = {"tls12-ecdhe", "control-static-rsa", "told-x25519", "tls13-x25519"}
    broken = [
        msgspec.structs.replace(cell, observed="closed", recovered_bytes=0, whole=False)
        for cell in report.cells
        if cell.session in asked
    ]
    refuted = list(contradictions(broken, ask(proof, broken)))
    opened = [
        cell
        for cell in report.cells
        if cell.session in asked
        and cell.observed == "opened"
        and tshark_reads(cell.stolen)
        and not of_another_recording(cell)
    ]
    assert len(refuted) == len(opened) > 3


def test_tshark_is_given_so_much_time_and_no_more(proof: Proof) -> None:
    report = read_report((proof.directory / "report.json").read_bytes())
    opinion = ask(proof, report.cells, limit_seconds=0)
    assert {each.observed for each in opinion.opinions} == {None}
    assert any("in time" in each.reason for each in opinion.opinions)


def test_verify_repeats_the_second_opinion_and_finds_one_that_was_forged(
    proof: Proof, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(proof.directory, tmp_path / "copy"))
    report = read_report((copy / "report.json").read_bytes())
    first = report.second_opinion.opinions[0]
    assert first.observed == "closed"
    forged = msgspec.structs.replace(
        report,
        second_opinion=msgspec.structs.replace(
            report.second_opinion,
            opinions=(
                msgspec.structs.replace(first, recovered_bytes=1),
                *report.second_opinion.opinions[1:],
            ),
        ),
    )
    (copy / "report.json").write_bytes(forged.to_json())
    (copy / "report.html").write_text(render_html(forged), "utf-8")
    sign_manifest(copy, Ed25519PrivateKey.generate(), forged)
    assert any("second opinion on" in text for text in verify(copy).disagreements)
    assert verify(copy, ask_again=False).disagreements == ()

"""The judgement of a run: what is missing from it, or is not as theory says, refutes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from interop.proof.model import Report, contradiction, failures, read_report
from interop.proof.scenarios import SCENARIOS
from interop.proof.thefts import thefts

if TYPE_CHECKING:
    from conftest import Proof

# Recorded where their programs are installed, and needed by no claim.
OPTIONAL = {"s_client-tls12", "s_client-tls13", "curl-tls13"}
ONE_OF_ITS_KIND = ("exporter-secret", "traffic-secret", "later-traffic-secret")
REQUIRED = [scenario.name for scenario in SCENARIOS if scenario.name not in OPTIONAL]


@pytest.fixture
def report(proof: Proof) -> Report:
    return read_report((proof.directory / "report.json").read_bytes())


def judge(report: Report, **changed: Any) -> tuple[str, ...]:
    parts = ("sessions", "thefts", "cells", "handshakes", "tallies", "replays", "replay_control")
    return failures(**{name: changed.get(name, getattr(report, name)) for name in parts})


def test_all_holds(report: Report) -> None:
    assert judge(report) == ()


@pytest.mark.parametrize("name", REQUIRED)
def test_a_run_without_a_required_session_is_refuted(report: Report, name: str) -> None:
    """Leaving out its rows and cells as well, so that nothing but the claim can notice."""
    sessions = tuple(session for session in report.sessions if session.name != name)
    told = {session.ephemeral_key for session in sessions}
    gone = {f"session-secrets:{name}"}
    gone |= {f"ephemeral-key:{name}"} - {f"ephemeral-key:{key}" for key in told}
    gone |= {f"{kind}:{name}" for kind in ("pre-shared-key", *ONE_OF_ITS_KIND)}
    assert judge(
        report,
        sessions=sessions,
        thefts=tuple(theft for theft in report.thefts if theft.name not in gone),
        cells=tuple(
            cell for cell in report.cells if cell.session != name and cell.stolen not in gone
        ),
    )


def test_a_run_without_any_one_theft_is_refuted(proof: Proof, report: Report) -> None:
    names = [theft.name for theft, _ in thefts(proof.directory, report.sessions)]
    assert len(names) == len(report.thefts) > 30
    optional = {f"session-secrets:{name}" for name in OPTIONAL}
    for name in names:
        found = judge(
            report,
            thefts=tuple(theft for theft in report.thefts if theft.name != name),
            cells=tuple(cell for cell in report.cells if cell.stolen != name),
        )
        assert found, name
        kind = name.partition(":")[0]
        named = kind if kind in ONE_OF_ITS_KIND else name
        assert name in optional or any(named in failure for failure in found), name


def test_a_run_without_any_one_cell_is_refuted(report: Report) -> None:
    for index, cell in enumerate(report.cells):
        cells = (*report.cells[:index], *report.cells[index + 1 :])
        assert any(cell.stolen in failure for failure in judge(report, cells=cells)), cell


def test_a_theft_that_shows_nothing_is_refuted(report: Report) -> None:
    silent = [msgspec.structs.replace(theft, shown="") for theft in report.thefts]
    found = judge(report, thefts=tuple(silent))
    assert sorted(text.split()[3] for text in found) == [
        "ca-keys",
        "client-key",
        "exporter-secret:told-x25519",
        "later-traffic-secret:told-key-update",
        "pre-shared-key:mutual-tls-upload",
        "server-key",
    ]
    empty = [
        msgspec.structs.replace(theft, files=()) if theft.name == "harvest-ml-kem" else theft
        for theft in report.thefts
    ]
    assert any("harvest-ml-kem" in text for text in judge(report, thefts=tuple(empty)))


def test_every_control_that_stays_closed_is_refuted(report: Report) -> None:
    controls = [index for index, cell in enumerate(report.cells) if cell.control]
    assert len(controls) > 40
    for index in controls:
        cells = list(report.cells)
        cells[index] = msgspec.structs.replace(
            cells[index], observed="closed", recovered_bytes=0, whole=False, reply_bytes=0
        )
        assert judge(report, cells=tuple(cells)), report.cells[index]


def test_zero_rtt_alone_is_zero_rtt_alone(report: Report) -> None:
    early = [cell for cell in report.cells if cell.part == "0-RTT data"]
    assert {cell.session for cell in early} == {"ticket-tls13-0rtt"}
    assert len(early) == 4
    for cell in early:
        assert contradiction(cell) == ""
        more = msgspec.structs.replace(cell, reply_bytes=1)
        assert contradiction(more) == "opened, and more than 0-RTT data"
        whole = msgspec.structs.replace(cell, part="")
        assert contradiction(whole) == "opened, and the request alone"

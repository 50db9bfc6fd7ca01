"""One run of the proof, recorded in this process, that all tests of the harness's teeth share."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from certs.errors import CertsError
from interop.errors import InteropError
from interop.progress import SilentProgress
from interop.proof import experiment

if TYPE_CHECKING:
    from interop.proof.model import Report

HANDSHAKES = 24


@dataclass(frozen=True)
class Evidence:
    """A finished run. Do not change `directory`: others read it too."""

    directory: Path
    payload: bytes
    report: Report
    fingerprint: str

    def judge(self, *, ask_tshark: bool = False) -> tuple[str, tuple[str, ...]]:
        """Judge the recordings anew; return the verdict and why.

        A run that cannot be judged is *invalid*: the command says one line and exits with 2.
        """
        report = self.report
        try:
            judged = experiment._judge(
                self.directory,
                SilentProgress(),
                started=datetime.now(UTC),
                ask_tshark=ask_tshark,
                payload=self.payload,
                sessions=report.sessions,
                skipped=report.skipped,
                census=report.census,
                replays=report.replays,
                replay_control=report.replay_control,
            )
        except (InteropError, CertsError) as error:
            return "invalid", (str(error),)
        return judged.verdict, judged.failures


@pytest.fixture(scope="session")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    out = tmp_path_factory.mktemp("teeth") / "evidence"
    payload = hashlib.sha512(b"payload").digest() * 640  # three records
    report, fingerprint = experiment.prove(
        out, payload=payload, handshakes=HANDSHAKES, progress=SilentProgress(), ask_tshark=False
    )
    return Evidence(out, payload, report, fingerprint)


@pytest.fixture
def copy(evidence: Evidence, tmp_path: Path) -> Path:
    """Give a copy of the evidence that a test may spoil."""
    return Path(shutil.copytree(evidence.directory, tmp_path / "copy"))

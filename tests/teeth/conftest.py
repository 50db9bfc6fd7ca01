"""One run of the proof, recorded in this process, that all tests of the harness's teeth share."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from certs.errors import CertsError
from interop.errors import InteropError
from interop.progress import SilentProgress
from interop.proof import experiment, verification
from interop.proof.compromise import evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interop.proof.model import Report, Session

HANDSHAKES = 60


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


def _content(directory: Path) -> bytes:
    """Return a digest of all that the matrix follows from, but for the sessions."""
    digest = hashlib.sha256()
    for folder in ("captures", "stolen"):
        for path in sorted((directory / folder).iterdir()):
            digest.update(f"{path.name} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


_MATRICES: dict[object, object] = {}


@pytest.fixture
def matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the matrix of the same files and sessions once, for mutants that do not touch that."""

    def once(directory: Path, sessions: Sequence[Session], **payload: Any) -> Any:
        key = (_content(directory), tuple(sessions), tuple(payload.items()))
        if key not in _MATRICES:
            _MATRICES[key] = evaluate(directory, sessions, **payload)
        return _MATRICES[key]

    for module in (experiment, verification):
        monkeypatch.setattr(module, "evaluate", once)


@pytest.fixture
def copy(evidence: Evidence, tmp_path: Path) -> Path:
    """Give a copy of the evidence that a test may spoil."""
    return Path(shutil.copytree(evidence.directory, tmp_path / "copy"))

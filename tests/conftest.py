"""What all tests share: one run of the proof, through the command as users call it."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# A shell starts what runs in the background with Ctrl-C ignored, and programs inherit that: those
# under test must not, since tests send them one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PFS = Path(sys.executable).with_name("pfs")
PAYLOAD = b"Q\nR\nk\n" + bytes(range(256)) * 64 + b"the last line, without an end"


def run_pfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PFS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def pfs() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command; its output is text, its exit status is for the test to judge."""
    return run_pfs


@dataclass(frozen=True)
class Proof:
    """One finished run of `pfs prove`. Do not change `directory`: others read it too."""

    directory: Path
    payload: bytes
    completed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("proof")
    payload = folder / "payload"
    payload.write_bytes(PAYLOAD)
    out = folder / "evidence"
    completed = run_pfs("prove", "--out", out, "--payload", payload, "--handshakes", "120")
    return Proof(out, PAYLOAD, completed)

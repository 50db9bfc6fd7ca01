"""What all tests share: one run of the proof through the command, programs, places for a store.

A missing program is *unsupported*, which is a skip that says what to install, unless
PFS_REQUIRE_PEERS=1 says that this machine is meant to have them all: then it is a failure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from certs.keystore.kek import FileKEK
from interop.errors import PeerUnavailable
from interop.peers.postgresql import PostgreSQLServer, run_postgresql
from interop.peers.programs import Program, find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A shell starts what runs in the background with Ctrl-C ignored, and programs inherit that: those
# under test must not, since tests send them one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PFS = Path(sys.executable).with_name("pfs")
PAYLOAD = b"Q\nR\nk\n" + bytes(range(256)) * 64 + b"the last line, without an end"


SHOWN_WHOLE_BYTES = 4096


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say where long byte strings differ: whole, they bury the name of the test that failed."""
    if op != "==" or not isinstance(left, bytes) or not isinstance(right, bytes):
        return None
    if max(len(left), len(right)) <= SHOWN_WHOLE_BYTES:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))
    return [
        f"{len(left):,} bytes == {len(right):,} bytes",
        f"the first {same:,} are the same, then come",
        f"{left[same : same + 32]!r} and {right[same : same + 32]!r}",
    ]


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


@pytest.fixture
def kek(tmp_path: Path) -> FileKEK:
    """Make the key-encryption key of a test's stores, in the file ``kek``."""
    return FileKEK.create(tmp_path / "kek")


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], Program]:
    """Find a program, or skip the test saying what to install."""

    def require(name: str) -> Program:
        try:
            return find_program(name)
        except PeerUnavailable as error:
            if os.environ.get("PFS_REQUIRE_PEERS") == "1":
                pytest.fail(f"required: {error}")
            pytest.skip(f"unsupported: {error}")

    return require


@pytest.fixture(scope="session")
def postgresql(require_program: Callable[[str], Program]) -> Iterator[PostgreSQLServer]:
    """Run a PostgreSQL server, one for each process of the tests."""
    require_program("postgresql")
    with run_postgresql(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peers)])
def store_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a place where no store is yet, on each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    server: PostgreSQLServer = request.getfixturevalue("postgresql")
    return server.new_database()

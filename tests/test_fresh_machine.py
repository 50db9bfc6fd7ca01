"""What a new user does: a fresh checkout, the README's command; or a wheel in an empty environment.

Both install from the package index, so they are slow, and they need what installing needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PFS_"))
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what git tracks (and will track), as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    target = tmp_path / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def test_scripts_prove_in_a_fresh_checkout_then_again_without_a_network(checkout: Path) -> None:
    first = run("scripts/prove", "--handshakes", "60", cwd=checkout)
    assert first.returncode == 0, first.stderr
    assert "verdict  proved" in first.stdout
    assert "evidence/report.html" in first.stdout
    assert (checkout / "evidence/report.html").is_file()
    # Whoever would ask an index now gets no answer.
    again = run(
        "scripts/prove",
        "--handshakes",
        "60",
        "--no-tshark",
        cwd=checkout,
        PIP_NO_INDEX="1",
        PIP_INDEX_URL="http://127.0.0.1:9/",
        http_proxy="http://127.0.0.1:9/",
        https_proxy="http://127.0.0.1:9/",
    )
    assert again.returncode == 0, again.stderr
    assert "environment" not in again.stderr


@pytest.mark.parametrize(("interpreter", "kept"), [(sys.executable, True), ("/bin/echo", False)])
def test_an_environment_of_another_interpreter_is_not_built_upon(
    tmp_path: Path, interpreter: str, *, kept: bool
) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(interpreter)
    (venv / ".lock").touch()
    script = '. scripts/environment.sh; discard_foreign_venv "$1" "$2"'
    done = run("bash", "-euc", script, "bash", sys.executable, venv, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in venv.iterdir()) == ([".lock", "bin"] if kept else [".lock"])


@pytest.mark.long
def test_a_wheel_in_an_empty_environment_proves(checkout: Path, tmp_path: Path) -> None:
    dist, venv, desk = tmp_path / "dist", tmp_path / "venv", tmp_path / "desk"
    desk.mkdir()
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", dist, cwd=checkout
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = dist.glob("*.whl")
    assert run(sys.executable, "-m", "venv", venv, cwd=desk).returncode == 0
    installed = run(venv / "bin/pip", "install", "--quiet", wheel, cwd=desk)
    assert installed.returncode == 0, installed.stderr
    done = run(venv / "bin/pfs", "prove", "--json", "--no-tshark", "--handshakes", "60", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "proved"
    verified = run(venv / "bin/pfs", "verify", "evidence", cwd=desk)
    assert verified.returncode == 0, verified.stdout
    where = run(venv / "bin/python", "-c", "import interop; print(interop.__file__)", cwd=desk)
    assert where.stdout.startswith(str(venv))

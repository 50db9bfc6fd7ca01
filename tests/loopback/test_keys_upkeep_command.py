"""``pfs keys backup|restore`` as people call them, and the how-to's section on them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PFS = Path(sys.executable).with_name("pfs")


@pytest.fixture
def keys(
    pfs: Callable[..., subprocess.CompletedProcess[str]],
    store_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PFS_STORE", store_address)
    monkeypatch.setenv("PFS_KEK", f"file:{tmp_path}/kek")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return pfs("keys", *words)

    assert run("init", "--new-kek").returncode == 0
    assert run("create", "a", "--type", "ed25519").returncode == 0
    return run


def test_the_how_to_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs/how-to.md").read_text("utf-8")
    section = text[text.index("## Back a store up") :]
    block = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{PFS.parent}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done
    assert b"done again: delete leaked\n" in done.stdout
    assert b"all of it opens\n" in done.stdout


def test_a_backup_is_made_checked_and_restored(
    keys: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    made = keys("backup", "b", "--json")
    rows = json.loads(made.stdout)["rows"]
    checked = json.loads(keys("restore", "b", "--check", "--json").stdout)
    assert (checked["keys"], checked["rows"]) == (1, rows)
    keys("rotate", "a")
    keys("create", "late", "--type", "ed25519")
    keys("audit", "export", "--out", "log")
    told = keys("restore", "b", "--store", "back", "--later-log", "log")
    assert told.returncode == 0, told.stderr
    assert told.stdout.endswith("lost: key a version 2\nlost: key late version 1\n")
    assert json.loads(keys("show", "a", "--store", "back", "--json").stdout)["version"] == 1
    as_json = keys("restore", "b", "--store", "again", "--as-of-backup", "--json")
    assert json.loads(as_json.stdout)["lost"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("restore", "b"), "never overwritten"),
        (("restore", "b", "--store", "new"), "would be there again: give the later audit log"),
        (("restore", "none", "--store", "new", "--as-of-backup"), "No such file"),
        (("restore", "kek", "--store", "new", "--as-of-backup"), "no backup of a key store"),
        (("restore", "b", "--store", "new", "--later-log", "b"), "no export of an audit log"),
        (("backup", "b"), "never overwritten"),
        (("backup", "none/b"), "No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    keys: Callable[..., subprocess.CompletedProcess[str]], words: tuple[str, ...], said: str
) -> None:
    assert keys("backup", "b").returncode == 0
    done = keys(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("new").exists()
    assert not list(Path().glob(".*"))


def test_a_password_in_a_url_is_refused_unseen(
    pfs: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = pfs(
        *("keys", "list", "--store", "postgresql://a:hunter2@h/x", "--kek", f"file:{tmp_path}/k")
    )
    assert done.returncode == 2
    assert "passfile" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr

"""``pfs keys grant|revoke|grants|audit`` as its users call them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PFS = Path(sys.executable).with_name("pfs")


class Desk:
    """A folder with a store, and the command run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PFS_STORE": str(folder / "store"),
            "PFS_KEK": f"file:{folder}/kek",
            "PATH": f"{PFS.parent}:{os.environ['PATH']}",
        }

    def run(
        self, *words: str, principal: str = "owner", stdin: bytes = b"m"
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [PFS, "keys", *words],
            input=stdin,
            cwd=self.folder,
            env={**self.environment, "PFS_PRINCIPAL": principal},
            capture_output=True,
            timeout=60,
            check=False,
        )

    def good(self, *words: str, principal: str = "owner") -> str:
        done = self.run(*words, principal=principal)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode(errors="replace")

    def bad(self, *words: str, principal: str = "owner") -> str:
        done = self.run(*words, principal=principal)
        assert (done.returncode, done.stdout) == (2, b""), done
        line = done.stderr.decode()
        assert re.fullmatch(r"pfs: [^\n]+\n", line)
        return line

    def altered(self, *words: str) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (1, b""), done
        return done.stdout.decode()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.good("init", "--new-kek")
    made.good("create", "a", "--type", "ed25519")
    return made


def test_the_how_to_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs/how-to.md").read_text("utf-8")
    section = text[text.index("## Say who may use which key, and check what was done") :]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{PFS.parent}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done


def test_a_grant_admits_and_its_revocation_refuses(desk: Desk) -> None:
    alice = "user:alice"
    assert "user:alice may not sign on 'a'" in desk.bad("sign", "a", principal=alice)
    desk.good("grant", alice, "crypto-user", "a")
    desk.good("sign", "a", principal=alice)
    assert "user:alice  crypto-user  a\n" in desk.good("grants")
    assert "may not grants on the store" in desk.bad("grants", principal=alice)
    desk.good("revoke", alice, "crypto-user", "a")
    assert "may not sign" in desk.bad("sign", "a", principal=alice)
    assert alice not in desk.good("grants")
    listed = json.loads(desk.good("audit", "list", "--json"))
    mine = [(row["operation"], row["outcome"]) for row in listed if row["principal"] == alice]
    assert mine == [
        ("sign", "refused"),
        ("sign", "done"),
        ("grants", "refused"),
        ("sign", "refused"),
    ]
    assert [row["row"] for row in listed] == list(range(len(listed)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grant", "alice", "reader", "*"), "a principal is owner"),
        (("grant", "user:alice", "admin", "*"), "a role is one of"),
        (("grant", "user:alice", "reader", "a//b"), "a scope is"),
        (("revoke", "user:alice", "reader", "a"), "has no role"),
        (("audit", "verify", "--in", "none"), "none"),
        (("audit", "verify", "--in", "kek"), "give --key"),
        (("audit", "verify", "--key", "x"), "--key is for an export"),
        (("audit", "verify", "--checkpoint", "kek"), "signed note"),
        (("audit", "export", "--entry", "99"), "rows 0 to"),
        (("audit", "list", "--from", "99999999999999999999"), "--from"),
        (("audit", "list", "--limit", "99999999999999999999"), "--limit"),
        (("audit", "export", "--out", "kek"), "not overwritten"),
        (("audit", "export", "--entry", "1", "--since", "kek"), "give one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    desk: Desk, words: tuple[str, ...], said: str
) -> None:
    assert said in desk.bad(*words)


def test_an_export_and_proofs_are_checked_without_store_or_kek(desk: Desk) -> None:
    known = desk.good("audit", "verify", "--checkpoint-out", "first").split()[-1]
    desk.good("sign", "a", "--out", "signature")
    desk.good("audit", "export", "--out", "log", "--checkpoint-out", "second")
    desk.good("audit", "export", "--out", "entry", "--entry", "1")
    desk.good("audit", "export", "--out", "extension", "--since", "first")
    desk.environment |= {"PFS_STORE": "none", "PFS_KEK": "none:"}
    for kept in ("first", "second"):
        said = json.loads(
            desk.good("audit", "verify", "--in", "log", "--checkpoint", kept, "--json")
        )
        assert said["verified"] is True
    key = said["key"]
    assert key == known  # as the store told it
    assert "anybody can make a log" in desk.good("audit", "verify", "--in", "log")
    assert "anybody" not in desk.good("audit", "verify", "--in", "log", "--key", key)
    assert "has its own checkpoint" in desk.bad(
        "audit", "verify", "--in", "entry", "--key", key, "--checkpoint", "first"
    )
    told = desk.good("audit", "verify", "--in", "entry", "--key", key)
    assert told.startswith("in the log: owner  create  a  version 1  done")
    desk.good("audit", "verify", "--in", "extension", "--key", key, "--checkpoint", "first")
    assert "is no proof" in desk.bad(
        "audit", "verify", "--in", "extension", "--key", key, "--checkpoint", "second"
    )
    log = (desk.folder / "log").read_bytes().splitlines(keepends=True)
    (desk.folder / "short").write_bytes(b"".join(log[:-1]))
    desk.good("audit", "verify", "--in", "short")
    assert "rows were cut off" in desk.altered(
        "audit", "verify", "--in", "short", "--checkpoint", "second"
    )
    (desk.folder / "edited").write_bytes(b"".join(log).replace(b'"name":"a"', b'"name":"b"', 1))
    said = json.loads(desk.altered("audit", "verify", "--in", "edited", "--json"))
    assert (said["verified"], said["row"]) == (False, 1)


def test_an_edited_store_is_refuted_at_its_row(desk: Desk) -> None:
    desk.good("audit", "verify")
    with closing(sqlite3.connect(desk.folder / "store")) as connection:
        connection.execute(
            "UPDATE audit_log SET entry = CAST(replace(entry, 'done', 'gone') AS BLOB)"
            " WHERE number = 1"
        )
        connection.commit()
    assert "row 1 of the audit log is not what was logged" in desk.altered("audit", "verify")
    done = desk.run("audit", "export", "--out", "log")
    assert done.returncode == 1
    assert b"row 1" in done.stderr
    assert not (desk.folder / "log").exists()


def test_what_was_asked_for_moves_no_cursor(desk: Desk) -> None:
    desk.bad("show", "\x1b[2J")
    assert "show  \\x1b[2J  failed (KeyNotFound)" in desk.good("audit", "list")

"""``pfs keys`` as its users call it: the installed command, its output, its exit status."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PFS = Path(sys.executable).with_name("pfs")
SECRET = b"correct horse battery staple"


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

    def run(self, *words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [PFS, "keys", *words],
            input=stdin,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def good(self, *words: str | Path, stdin: bytes = b"") -> bytes:
        done = self.run(*words, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout

    def json(self, *words: str | Path, stdin: bytes = b"") -> object:
        return json.loads(self.good(*words, "--json", stdin=stdin))

    def bad(self, *words: str | Path, stdin: bytes = b"") -> str:
        """Return the one line on stderr of a command that was refused."""
        done = self.run(*words, stdin=stdin)
        line = done.stderr.decode()
        assert (done.returncode, done.stdout) == (2, b""), done
        assert re.fullmatch(r"pfs: [^\n]+\n", line)
        return line


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.good("init", "--new-kek")
    return made


def test_the_how_to_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs/how-to.md").read_text("utf-8")
    section = text[text.index("## Keep keys and secrets in a store") :].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "CHANGELOG.md").write_bytes(b"what is signed\n")
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{PFS.parent}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done
    assert (tmp_path / "password").read_bytes() == b"correct horse"


def test_a_signature_of_the_command_verifies_elsewhere(desk: Desk) -> None:
    desk.good("create", "a", "--type", "ec-p256")
    answer = desk.json("sign", "a", stdin=b"message")
    assert isinstance(answer, dict)
    assert (answer["version"], answer["algorithm"]) == (1, "ECDSA-SHA256")
    signature = base64.b64decode(answer["signature"])
    key = load_pem_public_key(desk.good("public-key", "a"))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    (desk.folder / "sig").write_bytes(signature)
    desk.good("verify", "a", "--signature", "sig", stdin=b"message")
    refuted = desk.run("verify", "a", "--signature", "sig", "--json", stdin=b"massage")
    assert refuted.returncode == 1
    assert json.loads(refuted.stdout)["verified"] is False


@pytest.mark.parametrize("password", [None, b"a password"])
def test_a_key_is_imported_and_comes_out_the_same(desk: Desk, password: bytes | None) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    options: list[str | Path] = []
    if password:
        (desk.folder / "password").write_bytes(password + b"\n")
        desk.bad("import", "a", "--in", "-", stdin=pem)
        options = ["--password-file", "password"]
    desk.good("import", "a", "--in", "-", "--exportable", *options, stdin=pem)
    desk.good("export", "a", "--out", "out.pem")
    assert (desk.folder / "out.pem").stat().st_mode & 0o777 == 0o600
    again = load_pem_private_key((desk.folder / "out.pem").read_bytes(), None)
    assert isinstance(again, ec.EllipticCurvePrivateKey)
    assert again.private_numbers() == key.private_numbers()
    assert "exists and is not overwritten" in desk.bad("export", "a", "--out", "out.pem")
    desk.good("import", "s", "--type", "aes-256", "--in", "-", stdin=bytes(32))
    assert "not created exportable" in desk.bad("export", "s", "--out", "-")
    assert "32 bytes" in desk.bad("import", "t", "--type", "aes-256", "--in", "-", stdin=b"short")


def test_a_secret_is_kept_byte_for_byte_and_in_no_argument(desk: Desk) -> None:
    value = bytes(range(256)) + b"\r\n"
    desk.good("secret", "set", "db/password", "--from", "-", stdin=value)
    assert desk.good("secret", "get", "db/password") == value
    (desk.folder / "file").write_bytes(SECRET)
    desk.good("secret", "set", "db/password", "--from", "file")
    assert desk.good("secret", "get", "db/password") == SECRET
    assert desk.good("secret", "get", "db/password", "--version", "1") == value
    desk.good("secret", "get", "db/password", "--out", "out")
    assert (desk.folder / "out").stat().st_mode & 0o777 == 0o600
    assert SECRET not in (desk.folder / "store").read_bytes()
    assert "no terminal" in desk.bad("secret", "set", "other")
    desk.bad("secret", "set", "other", SECRET.decode())


@contextmanager
def at_terminal(desk: Desk, *words: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the command at a terminal; yield the descriptor of who sits there, and the process."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [PFS, "keys", *words],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=desk.folder,
        env=desk.environment,
        start_new_session=True,
    )
    try:
        yield controller, process
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(controller)


def read_until(controller: int, question: bytes) -> bytes:
    shown = b""
    while not shown.endswith(question):
        assert select.select([controller], [], [], 30)[0], shown
        shown += os.read(controller, 1024)
    return shown


def test_a_prompt_asks_for_a_secret_without_showing_it(desk: Desk) -> None:
    with at_terminal(desk, "secret", "set", "typed") as (controller, process):
        shown = read_until(controller, b"secret typed: ")
        os.write(controller, SECRET + b"\n")
        shown += read_until(controller, b"again: ")
        os.write(controller, SECRET + b"\n")
        assert process.wait(30) == 0
    assert SECRET not in shown
    assert desk.good("secret", "get", "typed") == SECRET


def test_a_prompt_that_gets_no_answer_says_so(desk: Desk) -> None:
    with at_terminal(desk, "secret", "set", "typed") as (controller, process):
        read_until(controller, b"secret typed: ")
        os.write(controller, b"\x04")  # Ctrl-D
        assert process.wait(30) == 2
        assert b"was closed before an answer" in os.read(controller, 1024)


def test_the_life_of_a_key(desk: Desk) -> None:
    desk.good("create", "a", "--type", "ed25519", "--purge-protected")
    desk.good("rotate", "a")
    desk.good("disable", "a", "--version", "1")
    versions = desk.json("versions", "a")
    assert isinstance(versions, list)
    assert [(one["version"], one["enabled"]) for one in versions] == [(1, False), (2, True)]
    assert "disabled" in desk.bad("sign", "a", "--version", "1")
    desk.good("enable", "a", "--version", "1")
    desk.good("delete", "a", "--retention-days", "7")
    assert desk.json("list") == []
    assert b"deleted, recoverable until" in desk.good("list", "--deleted")
    assert "was deleted" in desk.bad("sign", "a")
    assert "purge-protected" in desk.bad("purge", "a")
    desk.good("recover", "a")
    shown = desk.json("show", "a")
    assert isinstance(shown, dict)
    assert (shown["version"], shown["deleted_at"], shown["purge_protected"]) == (2, None, True)
    desk.good("secret", "set", "s", "--from", "-", stdin=b"x")
    desk.good("delete", "s")
    desk.good("purge", "s")
    assert "never" not in desk.bad("recover", "s")


def test_the_keys_above_the_keys_are_renewed(desk: Desk) -> None:
    desk.good("create", "a", "--type", "aes-256", "--purpose", "wrap")
    wrapped = desk.good("wrap", "a", "--context", "c", stdin=b"key")
    assert desk.json("rotate-store") == {"term": 2}
    assert desk.json("rewrap") == {"term": 2, "moved": 2, "left": 0}
    new = f"file:{desk.folder}/new"
    desk.good("rekey", "--to-kek", new, "--new-kek")
    assert "not the KEK" in desk.bad("list")
    assert desk.good("unwrap", "a", "--context", "c", "--kek", new, stdin=wrapped) == b"key"
    assert "does not open" in desk.bad("unwrap", "a", "--kek", new, stdin=wrapped)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "a", "--type", "dsa"), "a key's type is one of"),
        (("create", "a", "--type", "ed25519", "--purpose", "wrap"), "purpose of a ed25519 key"),
        (("create", "a b", "--type", "ed25519"), "is not a name"),
        (("create", "a"), "--type"),
        (("show", "none"), "no key named 'none'"),
        (("sign", "none", "--version", "0"), "--version"),
        (("delete", "none", "--retention-days", "-1"), "--retention-days"),
        (("unwrap", "none", "--in", "missing"), "missing"),
        (("init",), "exists and is never overwritten"),
        (("list", "--store", "missing"), "no key store at"),
        (("list", "--store", "http://x/y"), "a store is a path"),
        (("list", "--kek", "none:x"), "known scheme"),
        (("no-such",), "no-such"),
        (("wrap", "none", "--context", "\udcff"), "--context is not UTF-8"),
        (("init", "--store", "\udcff"), "text in UTF-8"),
        (("init", "--store", "sqlite:////tmp/a%00b"), "without a NUL"),
        (("list", "--store", "sqlite:///store?mode=ro"), "a store is a path"),
        (("init", "--store", "none/store", "--kek", "file:kek9", "--new-kek"), "no folder"),
        (("data-key", "none", "--wrapped-out", "-"), "two things"),
        (("data-key", "none", "--out", "kek", "--wrapped-out", "w"), "kek exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    desk: Desk, words: tuple[str, ...], said: str
) -> None:
    assert said in desk.bad(*words)


def test_what_was_not_done_leaves_no_file(desk: Desk) -> None:
    desk.good("create", "d", "--type", "aes-256")
    desk.bad("init", "--store", "none/store", "--kek", f"file:{desk.folder}/kek9", "--new-kek")
    desk.bad("data-key", "d", "--out", "kek", "--wrapped-out", "wrapped")
    desk.environment["PFS_PRINCIPAL"] = "user:nobody"
    desk.bad("rekey", "--to-kek", f"file:{desk.folder}/kek9", "--new-kek")
    assert sorted(each.name for each in desk.folder.iterdir()) == ["kek", "store"]


def test_one_version_is_disabled_and_shown_so(desk: Desk) -> None:
    desk.good("create", "a", "--type", "ed25519")
    desk.good("rotate", "a")
    assert b"disabled versions: 1" in desk.good("disable", "a", "--version", "1")
    assert b"disabled versions: 1" in desk.good("list")
    assert b"disabled" not in desk.good("enable", "a", "--version", "1")


def test_a_key_of_another_type_than_was_said_is_not_imported(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (desk.folder / "key").write_bytes(encoded)
    assert "of type ec-p256, not ed25519" in desk.bad(
        "import", "a", "--in", "key", "--type", "ed25519"
    )
    (desk.folder / "password").write_text("idle")  # the key has none
    desk.good("import", "a", "--in", "key", "--type", "ec-p256", "--password-file", "password")


def test_what_was_purged_is_not_purged_or_recovered_again(desk: Desk) -> None:
    desk.good("create", "a", "--type", "ed25519")
    desk.good("delete", "a")
    desk.good("purge", "a")
    for command in ("purge", "recover"):
        assert "was purged" in desk.bad(command, "a")


def test_a_store_has_an_address(desk: Desk) -> None:
    desk.good("create", "a", "--type", "ed25519")
    absolute, relative = f"sqlite:///{desk.folder}/store", "sqlite:///store"
    for url in (absolute, relative, "store"):
        assert b"a  ed25519" in desk.good("list", "--store", url)
    del desk.environment["PFS_STORE"]
    assert "set PFS_STORE" in desk.bad("list")
    del desk.environment["PFS_KEK"]
    assert "set PFS_KEK" in desk.bad("list", "--store", "store")


def test_rekey_reads_each_passphrase_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    written = tmp_path / "passphrase"
    written.touch(0o600)
    written.write_text("nobody guesses this one\n")
    desk.environment["PFS_KEK"] = f"passphrase:?file={written}"
    desk.good("init")
    desk.good("secret", "set", "token", "--from", "-", stdin=SECRET)

    def rekey(old: str, new: str) -> subprocess.CompletedProcess[bytes]:
        ends = []
        for passphrase in (old, new):
            reading, writing = os.pipe()  # what was read from it is gone
            os.write(writing, passphrase.encode())
            os.close(writing)
            ends.append(reading)
        try:
            return subprocess.run(
                [
                    *(PFS, "keys", "rekey", "--kek", f"passphrase:?descriptor={ends[0]}"),
                    *("--to-kek", f"passphrase:?descriptor={ends[1]}"),
                ],
                env=desk.environment,
                pass_fds=ends,
                capture_output=True,
                timeout=60,
                check=False,
            )
        finally:
            for end in ends:
                os.close(end)

    wrong = rekey("somebody guessed that one", "a new one for the store")
    assert (wrong.returncode, b"Traceback" in wrong.stderr) == (2, False)
    done = rekey("nobody guesses this one", "a new one for the store")
    assert (done.returncode, done.stderr) == (0, b"")
    assert desk.run("secret", "get", "token").returncode == 2
    written.write_text("a new one for the store\n")
    assert desk.good("secret", "get", "token") == SECRET

"""``pfs ca`` as its users call it, and the how-to's section on it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certs.authority import CertificateAuthority
from certs.credential import Credential, TrustAnchors
from certs.errors import NotKnownGood
from certs.keystore import KeyStore
from certs.keystore.access import principal_of
from certs.revocation import RevocationLists

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PFS = Path(sys.executable).with_name("pfs")
SPIFFE = "spiffe://example.com/deploy"


class Desk:
    """A folder with a store, and the command run in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PFS, *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    def good(self, *words: str) -> str:
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.good(*words, "--json"))

    def bad(self, *words: str) -> str:
        """Return the one line on stderr of a command that was refused."""
        done = self.run(*words)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert re.fullmatch(r"pfs: [^\n]+\n", done.stderr)
        return done.stderr

    def issue(self, kind: str, *words: str, file: str = "it") -> dict[str, Any]:
        files = ("--out-cert", f"{file}.pem", "--out-key", f"{file}.key")
        facts = self.json("ca", "issue", kind, *words, *files)
        assert isinstance(facts, dict)
        return facts

    def credential(self, file: str = "it") -> Credential:
        chain = (self.folder / f"{file}.pem").read_bytes()
        return Credential.from_pem(chain, (self.folder / f"{file}.key").read_bytes())

    def require_good(self, credential: Credential, lists: str) -> None:
        anchors = TrustAnchors.from_pem(self.good("ca", "anchors").encode())
        path = [*credential.chain, *anchors.certificates]
        RevocationLists((self.folder / lists).read_bytes()).require_good(path, datetime.now(UTC))


def made(folder: Path, address: str, *, with_ca: bool = True) -> Desk:
    environment = {**os.environ, "PFS_STORE": address, "PFS_KEK": f"file:{folder}/kek"}
    desk = Desk(folder, environment)
    desk.good("keys", "init", "--new-kek")
    if with_ca:
        desk.good("ca", "init")
    return desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return made(tmp_path, str(tmp_path / "store"))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Give a CA that no test changes."""
    folder = tmp_path_factory.mktemp("untouched")
    return made(folder, str(folder / "store"))


def test_certificates_are_issued_listed_shown_and_revoked(
    tmp_path: Path, store_address: str
) -> None:
    desk = made(tmp_path, store_address, with_ca=False)
    told = desk.good("ca", "init", "--common-name", "Test")
    assert told == (
        "made ca/root and ca/issuing; what others are to trust is written by: "
        "pfs ca anchors --out ca.pem\n"
    )
    server = desk.issue("server", "a.test", "10.0.0.1", "::1", file="server")
    assert server["names"] == ["a.test", "10.0.0.1", "::1"]
    assert (server["key_name"], server["key_version"]) == ("ca/server/a.test", 1)
    client = desk.issue("client", SPIFFE, "--days", "7", "--key-type", "ed25519", file="client")
    mine, theirs = desk.credential("server"), desk.credential("client")
    assert principal_of(theirs.leaf) == f"uri:{SPIFFE}"
    assert theirs.leaf.not_valid_after_utc < datetime.now(UTC) + timedelta(days=7)
    assert (desk.folder / "client.key").stat().st_mode & 0o777 == 0o600
    assert (desk.folder / "client.pem").stat().st_mode & 0o400
    assert load_pem_private_key((desk.folder / "client.key").read_bytes(), None)

    listed = desk.json("ca", "list")
    assert [one["issuer"] for one in listed] == ["ca/root"] * 2 + ["ca/issuing"] * 2
    profiles = ["issuing-ca", "root-ca", "tls-client", "tls-server"]
    assert sorted(one["profile"] for one in listed) == profiles
    assert {one["state"] for one in listed} == {"issued"}
    shown = desk.json("ca", "show", client["serial"].upper())
    assert x509.load_pem_x509_certificate(shown["pem"].encode()) == theirs.leaf
    assert f"names: {SPIFFE}\n" in desk.good("ca", "show", client["serial"])

    desk.good("ca", "crl", "--out", "ca.crl")
    for one in (mine, theirs):
        desk.require_good(one, "ca.crl")
    told = desk.good("ca", "revoke", client["serial"], "--reason", "key-compromise")
    assert told.startswith(f"revoked {client['serial']} of ca/issuing (key-compromise); a new list")
    assert "revoked already" in desk.bad("ca", "revoke", client["serial"])
    lists = desk.json("ca", "crl", "--out", "ca.crl", "--days", "1")["lists"]
    assert [(one["issuer"], one["revoked"]) for one in lists] == [
        ("CN=Test Issuing CA", 1),
        ("CN=Test Root CA", 0),
    ]
    desk.require_good(mine, "ca.crl")
    with pytest.raises(NotKnownGood, match="is revoked"):
        desk.require_good(theirs, "ca.crl")
    (line,) = [one for one in desk.good("ca", "list").splitlines() if SPIFFE in one]
    assert line.startswith(f"{client['serial']}  tls-client  ")
    assert line.endswith("UTC (key-compromise)")
    desk.good("keys", "audit", "verify")


def test_a_renewed_authority_issues_and_what_was_issued_stays_good(desk: Desk) -> None:
    desk.issue("server", "a.test", file="old")
    chain = desk.good("ca", "chain")
    renewed = desk.json("ca", "renew")
    assert (renewed["key_name"], renewed["key_version"]) == ("ca/issuing", 2)
    assert desk.good("ca", "chain") != chain
    desk.issue("server", "a.test", file="new")
    assert len(desk.json("ca", "crl", "--out", "ca.crl")["lists"]) == 3
    for file in ("old", "new"):
        desk.require_good(desk.credential(file), "ca.crl")


def test_an_interrupted_init_is_completed_and_a_complete_one_refused(desk: Desk) -> None:
    assert "an authority named 'ca/root' already" in desk.bad("ca", "init")
    assert "pfs ca anchors --ca other --out" in desk.good("ca", "init", "--ca", "other")
    assert [one["issuer"] for one in desk.json("ca", "list", "--ca", "other")] == ["other/root"] * 2
    with KeyStore.open(desk.environment["PFS_STORE"], desk.environment["PFS_KEK"]) as store:
        root = CertificateAuthority.create_root(store, "half/root", "Half", datetime.now(UTC))
    desk.good("ca", "init", "--ca", "half")
    anchors = desk.good("ca", "anchors", "--ca", "half")
    assert x509.load_pem_x509_certificate(anchors.encode()) == root.certificate


def test_who_may_issue_and_revoke_is_a_grant_for_the_ca(desk: Desk) -> None:
    desk.good("keys", "grant", "user:ra", "certificate-officer", "ca")
    desk.good("keys", "grant", "user:reader", "reader", "ca")
    desk.environment["PFS_PRINCIPAL"] = "user:ra"
    serial = desk.issue("client", "c.test")["serial"]
    desk.environment["PFS_PRINCIPAL"] = "user:reader"
    assert len(desk.json("ca", "list")) == 3
    assert "may not revoke-certificate on 'ca/issuing'" in desk.bad("ca", "revoke", serial)
    assert "may not number-crl on 'ca/issuing'" in desk.bad("ca", "crl")
    desk.environment["PFS_PRINCIPAL"] = "user:ra"
    desk.good("ca", "revoke", serial)
    desk.good("ca", "crl", "--out", "ca.crl")
    desk.environment["PFS_PRINCIPAL"] = "user:nobody"
    assert "user:nobody may not" in desk.bad("ca", "list")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("issue", "server", "spiffe://a/b"), "is a URI; a server has DNS names and IP addresses"),
        (("issue", "server", "1.2.3"), "like an IP address"),
        (("issue", "server", "a b"), "is not a DNS name"),
        (("issue", "client", "spiffe:"), "not an absolute URI"),
        (("issue", "server"), "Missing argument"),
        (("issue", "server", "a.test", "--days", "91"), "less than or equal to 90"),
        (("issue", "server", "a.test", "--key-type", "ml-dsa-65"), "no endpoint serves with"),
        (("issue", "server", "a.test", "--key-type", "aes-256"), "no endpoint serves with"),
        (("issue", "server", "a.test", "--key-name", "ca/root"), "not an exportable ec-p256 key"),
        (("issue", "server", "a.test", "--ca", "x"), "no authority named 'x/issuing'"),
    ],
)
def test_what_cannot_be_issued_is_told_and_nothing_is_written(
    untouched: Desk, words: tuple[str, ...], said: str
) -> None:
    assert said in untouched.bad("ca", *words, "--out-cert", "it.pem", "--out-key", "it.key")
    assert not list(untouched.folder.glob("it.*"))
    assert len(untouched.json("ca", "list")) == 2


def test_files_are_not_overwritten_but_for_older_lists(desk: Desk) -> None:
    (desk.folder / "it.key").write_bytes(b"precious")
    files = ("--out-cert", "it.pem", "--out-key", "it.key")
    assert "it.key exists" in desk.bad("ca", "issue", "server", "a.test", *files)
    assert "two new files" in desk.bad(
        "ca", "issue", "server", "a.test", "--out-cert", "one", "--out-key", "one"
    )
    assert "no folder" in desk.bad(
        "ca", "issue", "server", "a.test", "--out-cert", "no/one", "--out-key", "one"
    )
    assert len(desk.json("ca", "list")) == 2
    assert "is no list" in desk.bad("ca", "crl", "--out", "it.key")
    assert "not overwritten" in desk.bad("ca", "anchors", "--out", "it.key")
    assert (desk.folder / "it.key").read_bytes() == b"precious"
    numbers = [desk.json("ca", "crl", "--out", "l.crl")["lists"][0]["number"] for _ in range(2)]
    assert numbers == [1, 2]
    x509.load_pem_x509_crl((desk.folder / "l.crl").read_bytes())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("revoke", "xyz"), "no serial number"),
        (("show", "0" * 41), "no serial number"),
        (("revoke", "5"), "no authority of this store issued a certificate 5"),
        (("revoke", "5", "--reason", "why"), "key-compromise"),
        (("crl", "--days", "0"), "greater than or equal to 1"),
        (("init", "--ca", "a b"), "is not a name"),
        (("init", "--ca", "new", "--common-name", "x" * 60), "a common name has 1 to 64"),
    ],
)
def test_bad_input_is_told_in_one_line(untouched: Desk, words: tuple[str, ...], said: str) -> None:
    assert said in untouched.bad("ca", *words)


def test_a_root_is_not_revoked(desk: Desk) -> None:
    root, issuing = sorted(desk.json("ca", "list"), key=lambda one: one["profile"] == "issuing-ca")
    assert "a root, which no list revokes" in desk.bad("ca", "revoke", root["serial"])
    desk.good("ca", "revoke", issuing["serial"], "--reason", "ca-compromise")
    assert "was revoked" in desk.bad(
        "ca", "issue", "server", "a.test", "--out-cert", "it.pem", "--out-key", "it.key"
    )
    desk.good("ca", "renew")
    desk.issue("server", "a.test")
    desk.good("ca", "crl", "--out", "ca.crl")
    desk.require_good(desk.credential(), "ca.crl")


@pytest.mark.parametrize("command", ["init", "list", "show", "revoke", "crl", "renew"])
def test_the_help_of_each_command_has_an_example(
    pfs: Callable[..., subprocess.CompletedProcess[str]], command: str
) -> None:
    assert f"As in: pfs ca {command}" in " ".join(pfs("ca", command, "--help").stdout.split())


@pytest.mark.peers
def test_the_how_to_runs_as_printed(
    tmp_path: Path, require_program: Callable[[str], object]
) -> None:
    for program in ("curl", "openssl"):
        require_program(program)
    text = (ROOT / "docs/how-to.md").read_text("utf-8")
    section = text[text.index("## Run a local CA") :].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    script = "".join(blocks)
    for port in ("8443", "8444"):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            script = script.replace(port, str(probe.getsockname()[1]))
    script = f"trap 'kill $(jobs -p)' EXIT\n{script}"
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{PFS.parent}:{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stdout.count("group x25519") >= 2
    assert "Verification: OK" in done.stdout + done.stderr
    assert "CN=spiffe://example.com/deploy with serial number" in done.stderr  # refused by 8444
    Credential.from_pem(
        (tmp_path / "server.pem").read_bytes(), (tmp_path / "server.key").read_bytes()
    )

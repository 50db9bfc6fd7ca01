"""Evidence as others read it, and what is noticed of every file that is touched."""

from __future__ import annotations

import base64
import json
import platform
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope as ForeignEnvelope
from securesystemslib.signer import SSlibKey

from interop.errors import InputError
from interop.proof.manifest import MANIFEST_NAME, check_manifest, is_evidence, sign_manifest
from interop.proof.model import read_report
from interop.proof.verification import verify

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conftest import Proof


@pytest.fixture
def copy(proof: Proof, tmp_path: Path) -> Path:
    """Give a copy of the evidence that a test may spoil."""
    return Path(shutil.copytree(proof.directory, tmp_path / "copy"))


def envelope_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST_NAME).read_bytes())


def statement_of(directory: Path) -> dict[str, Any]:
    return json.loads(base64.b64decode(envelope_of(directory)["payload"]))


def test_another_implementation_verifies_the_manifest_and_names_every_file(proof: Proof) -> None:
    statement = statement_of(proof.directory)
    raw = base64.b64decode(statement["predicate"]["publicKey"])
    fingerprint = check_manifest(proof.directory).fingerprint
    key = SSlibKey(fingerprint, "ed25519", "ed25519", keyval={"public": raw.hex()})
    foreign = ForeignEnvelope.from_dict(envelope_of(proof.directory))
    assert foreign.verify([key], 1)
    assert foreign.payload_type == "application/vnd.in-toto+json"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    present = {
        path.relative_to(proof.directory).as_posix()
        for path in proof.directory.rglob("*")
        if path.is_file()
    }
    assert {subject["name"] for subject in statement["subject"]} == present - {MANIFEST_NAME}


def test_the_predicate_says_how_the_evidence_came_to_be(proof: Proof) -> None:
    predicate = statement_of(proof.directory)["predicate"]
    report = json.loads((proof.directory / "report.json").read_bytes())
    assert predicate["tool"] == {"name": "pfs-transport", "version": "0.1.0"}
    assert predicate["machine"]["kernel"] == f"Linux {platform.release()}"
    assert predicate["machine"]["processors"] >= 1
    assert {"Python", "cryptography", "pyOpenSSL", "OpenSSL"} <= predicate["versions"].keys()
    assert re.match(r"4\.\d+\.\d+", predicate["versions"]["OpenSSL"])
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(stamp, predicate["startedOn"])
    assert re.fullmatch(stamp, predicate["finishedOn"])
    assert predicate["startedOn"] <= predicate["finishedOn"]
    assert predicate["samples"]["cells"] == len(report["cells"])
    assert predicate["samples"]["handshakes"] == 120
    assert predicate["notTested"] == report["not_tested"]
    assert all(limit["what"] and limit["reason"] for limit in predicate["notTested"])


def test_the_manifest_does_not_say_whose_machine_it_was(proof: Proof) -> None:
    payload = base64.b64decode(envelope_of(proof.directory)["payload"]).decode()
    assert socket.gethostname() not in json.loads(payload)["predicate"]["machine"].values()
    assert f'"{platform.node()}"' not in payload
    assert str(proof.directory) not in payload
    assert str(Path.home()) not in payload


def every_file(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1] = bytes([content[len(content) // 2] ^ 1])
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def renamed(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.old"))


def replaced_by_a_link(path: Path) -> None:
    kept = path.rename(path.with_name(f".{path.name}"))
    path.symlink_to(kept.name)


def given_a_neighbour(path: Path) -> None:
    path.with_name(f"{path.name}.added").write_bytes(b"")


@pytest.mark.parametrize(
    "touch", [changed, emptied, removed, renamed, replaced_by_a_link, given_a_neighbour]
)
def test_every_file_that_is_touched_is_noticed(
    proof: Proof, tmp_path: Path, touch: Callable[[Path], None]
) -> None:
    pristine = every_file(proof.directory)
    assert len(pristine) > 60
    for number, original in enumerate(pristine):
        if not original.stat().st_size and touch in {changed, emptied}:
            continue  # the key log of a replay that was refused: nothing there to change
        copy = tmp_path / str(number)
        # Links instead of copies are enough where a file is not written in place.
        shutil.copytree(
            proof.directory,
            copy,
            copy_function=shutil.copyfile if touch in {changed, emptied} else linked,
        )
        path = copy / original.relative_to(proof.directory)
        touch(path)
        assert check_manifest(copy).changes, path.name
        shutil.rmtree(copy)


def linked(source: str, destination: str) -> None:
    Path(destination).hardlink_to(source)


def test_a_folder_that_is_added_empty_is_no_change_and_one_with_a_file_is(copy: Path) -> None:
    (copy / "more").mkdir()
    assert check_manifest(copy).changes == []
    (copy / "more/file").touch()
    assert [change.path for change in check_manifest(copy).changes] == ["more/file"]


def forge(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Sign another report, as a forger would who cannot be asked for a fingerprint."""
    path = directory / "report.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(json.dumps(document).encode())
    sign_manifest(directory, Ed25519PrivateKey.generate(), read_report(path.read_bytes()))


def test_a_page_that_shows_something_else_than_the_report_is_found(copy: Path) -> None:
    page = copy / "report.html"
    page.write_text(page.read_text("utf-8").replace(">Proved<", ">Proved twice<"), "utf-8")
    forge(copy, lambda _report: None)
    verification = verify(copy)
    assert verification.changes == ()
    assert any("report.html does not show" in text for text in verification.disagreements)


def test_a_predicate_that_states_something_else_than_the_report_is_found(copy: Path) -> None:
    report = (copy / "report.json").read_bytes()
    forge(copy, lambda report: report["census"].update(handshakes=10**6))
    (copy / "report.json").write_bytes(report)
    changes = check_manifest(copy).changes
    assert [change.path for change in changes] == ["report.json"]
    assert any("predicate" in text for text in verify(copy).disagreements)


def test_a_limit_that_was_struck_out_is_found(copy: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        report["not_tested"] = report["not_tested"][1:]

    forge(copy, change)
    assert any("not tested" in text for text in verify(copy).disagreements)


def test_evidence_of_the_earlier_format_says_which_version_made_it(
    copy: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (copy / MANIFEST_NAME).unlink()
    (copy / "manifest.json").write_text("{}")
    (copy / "manifest.sig").write_bytes(bytes(64))
    done = pfs("verify", copy)
    assert done.returncode == 2
    assert "pfs-manifest/1, made by pfs-transport 0.1.0" in done.stderr
    assert done.stderr.count("\n") == 1
    assert is_evidence(copy)


def test_a_folder_with_a_manifest_of_something_else_is_not_taken_for_evidence(
    tmp_path: Path,
) -> None:
    """Web applications have a manifest.json too, and must not be replaced by evidence."""
    (tmp_path / "manifest.json").write_text("{}")
    assert not is_evidence(tmp_path)
    with pytest.raises(InputError):
        check_manifest(tmp_path)


def test_without_the_programs_the_proof_says_what_it_did_not_test(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pfs: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "evidence"
    done = pfs("prove", "--handshakes", "60", "--out", out)
    assert done.returncode == 0, done.stderr
    predicate = statement_of(out)["predicate"]
    said = {limit["what"]: limit["reason"] for limit in predicate["notTested"]}
    assert "not installed" in said["A second opinion by tshark"]
    assert "not installed" in said["The session curl-tls13"]
    assert predicate["samples"]["secondOpinions"] == 0
    verified = pfs("verify", out)
    assert verified.returncode == 0
    assert "the second opinion was not repeated: tshark is not installed" in " ".join(
        verified.stdout.split()
    )


def test_the_command_writes_reports_for_other_programs_and_over_none(
    proof: Proof, tmp_path: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    options = ["--no-tshark"]
    for kind in ("junit", "sarif", "markdown"):
        options += [f"--{kind}", str(tmp_path / kind)]
    assert pfs("verify", proof.directory, *options).returncode == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written.keys() == {"junit", "sarif", "markdown"}
    assert b'failures="0"' in written["junit"]
    assert json.loads(written["sarif"])["version"] == "2.1.0"
    assert written["markdown"].decode().startswith("## ✅ Evidence intact")
    again = pfs("verify", proof.directory, *options)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "in the way" in again.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written

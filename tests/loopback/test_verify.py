"""`pfs verify`: any change of the evidence is found, and a new signature does not help."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from interop.errors import InputError
from interop.proof.compromise import attack_recording
from interop.proof.manifest import check_manifest, key_fingerprint, sign_manifest
from interop.proof.model import read_report
from interop.proof.verification import verify
from interop.wire.groups import EphemeralKeys
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from conftest import Proof


@pytest.fixture
def copy(proof: Proof, tmp_path: Path) -> Path:
    """Give a copy of the evidence that a test may spoil."""
    return Path(shutil.copytree(proof.directory, tmp_path / "copy"))


@pytest.mark.parametrize(
    "name",
    [
        "told-x25519.ephemeral",
        "told-secp256r1.ephemeral",
        "told-x25519mlkem768.ephemeral-ml-kem",
        "reused-key.ephemeral",
        "ticket-tls13.ephemeral",
        "client.client-key",
    ],
)
def test_a_stranger_in_place_of_a_stolen_private_key_refutes(copy: Path, name: str) -> None:
    key: mlkem.MLKEM768PrivateKey | x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey
    if name.endswith("client-key"):
        key = ec.generate_private_key(ec.SECP256R1())
    elif name.endswith("kem"):
        key = mlkem.MLKEM768PrivateKey.generate()
    else:
        key = x25519.X25519PrivateKey.generate()
    encoded = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (copy / f"stolen/{name}.pem").write_bytes(encoded)
    resign(copy)
    assert any("the verdict" in text for text in verify(copy, ask_again=False).disagreements)


@pytest.mark.parametrize(
    "path",
    [
        "tickets.ticket-key",
        "mutual-tls-upload.psk.pem",
        "told-x25519.exporter.keylog",
        "told-key-update.traffic-2.keylog",
    ],
)
def test_another_secret_in_place_of_a_stolen_one_refutes(copy: Path, path: str) -> None:
    stolen = copy / "stolen" / path
    original = stolen.read_bytes()
    if path.endswith("psk.pem"):
        stolen.write_bytes((copy / "stolen/ticket-tls13.psk.pem").read_bytes())
    else:
        stolen.write_bytes(original[:-3] + original[-3:].swapcase()[::-1])
    if path.endswith("keylog"):
        one, random, secret = original.split()
        stolen.write_bytes(b" ".join((one, random, secret[::-1])) + b"\n")
    assert stolen.read_bytes() != original
    resign(copy)
    assert any("the verdict" in text for text in verify(copy, ask_again=False).disagreements)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("tls13-resumed", "resumes"),
        ("ticket-tls13-psk_ke", "resumes"),
        ("ticket-tls12", "ticket_key"),
        ("mutual-tls-upload", "client_key"),
        ("reused-key-again", "ephemeral_key"),
    ],
)
def test_a_session_that_denies_what_was_stolen_of_it_refutes(
    copy: Path, name: str, field: str
) -> None:
    def forge(report: dict[str, Any]) -> None:
        for session in report["sessions"]:
            if session["name"] == name:
                session[field] = ""

    edit_report(copy, forge)
    assert any("the verdict" in text for text in verify(copy, ask_again=False).disagreements)


def test_a_session_that_denies_its_told_key_refutes(copy: Path) -> None:
    def forge(report: dict[str, Any]) -> None:
        for session in report["sessions"]:
            if session["name"] == "told-x25519-again":
                session["ephemeral_key"] = ""

    edit_report(copy, forge)
    assert any("the verdict" in text for text in verify(copy, ask_again=False).disagreements)


def test_a_decryptor_without_ephemeral_keys_refutes(
    proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EphemeralKeys, "of", lambda _self, _public: None)
    assert any(
        "the verdict" in text for text in verify(proof.directory, ask_again=False).disagreements
    )


def test_verify_agrees_offline(
    proof: Proof, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    signed = re.search(r"signed   (SHA256:[0-9a-f]{64})", proof.completed.stdout)
    assert signed is not None
    done = pfs("verify", proof.directory, "--fingerprint", signed[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert "intact" in done.stdout
    as_json = pfs("verify", "--json", "--no-tshark", proof.directory)
    assert json.loads(as_json.stdout)["report"]["verdict"] == "proved"


def test_verify_refuses_another_signer(
    proof: Proof, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    other = key_fingerprint(Ed25519PrivateKey.generate().public_key())
    done = pfs("verify", proof.directory, "--fingerprint", other)
    assert done.returncode == 1
    assert "signed by another key" in done.stdout


def test_evidence_survives_the_loss_of_its_file_modes(copy: Path) -> None:
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert verify(copy, ask_again=False).holds


def test_one_changed_byte_in_any_file_is_found(copy: Path) -> None:
    assert check_manifest(copy)[1] == []
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        original = path.read_bytes()
        for position in {0, len(original) // 2, len(original) - 1} if original else ():
            spoiled = bytearray(original)
            spoiled[position] ^= 0x20  # the bit that tells upper from lower case
            path.write_bytes(spoiled)
            assert check_manifest(copy)[1], f"{path.name} at {position}"
        path.write_bytes(original + b"\n")
        assert check_manifest(copy)[1], f"{path.name}, appended to"
        path.write_bytes(original)
    assert check_manifest(copy)[1] == []


def test_every_byte_of_the_manifest_counts(copy: Path) -> None:
    path = copy / "manifest.intoto.json"
    original = path.read_bytes()
    payload_end = original.index(b'"payloadType"')
    for position in (*range(0, payload_end, 16), *range(payload_end, len(original))):
        spoiled = bytearray(original)
        spoiled[position] ^= 1
        path.write_bytes(spoiled)
        assert check_manifest(copy)[1], f"byte {position}"
    path.write_bytes(original + b"\n")
    assert check_manifest(copy)[1]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda copy: (copy / "captures/extra.pcapng").touch(), id="added"),
        pytest.param(lambda copy: (copy / "captures/link").symlink_to("/"), id="link added"),
        pytest.param(lambda copy: (copy / "report.html").unlink(), id="removed"),
        pytest.param(lambda copy: (copy / "report.json").unlink(), id="report removed"),
        pytest.param(lambda copy: (copy / "manifest.intoto.json").unlink(), id="manifest removed"),
        pytest.param(lambda copy: (copy / "manifest.intoto.json").write_bytes(b""), id="emptied"),
        pytest.param(
            lambda copy: (copy / "manifest.intoto.json").write_text("{"), id="manifest broken"
        ),
        pytest.param(
            lambda copy: (copy / "manifest.intoto.json").write_text("[" * 100_000),
            id="manifest nested",
        ),
        pytest.param(
            lambda copy: os.truncate(copy / "captures/tls13-x25519.pcapng", 5000), id="cut off"
        ),
        pytest.param(
            lambda copy: (copy / "stolen/key-store.kek").write_bytes(bytes(32)), id="KEK replaced"
        ),
    ],
)
def test_verify_fails_on_any_change(
    copy: Path,
    pfs: Callable[..., subprocess.CompletedProcess[str]],
    spoil: Callable[[Path], object],
) -> None:
    spoil(copy)
    done = pfs("verify", copy)
    assert done.returncode == 1, done.stderr
    assert "changed" in done.stdout
    assert "Traceback" not in done.stderr


def resign(directory: Path) -> None:
    """Sign spoiled evidence anew, as a forger would who cannot be asked for a fingerprint."""
    report = read_report((directory / "report.json").read_bytes())
    sign_manifest(directory, Ed25519PrivateKey.generate(), report)


def edit_report(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "report.json"
    report = json.loads(path.read_bytes())
    change(report)
    path.write_bytes(json.dumps(report).encode())
    resign(directory)


def test_a_forged_cell_is_found_under_a_new_signature(copy: Path) -> None:
    def forge(report: dict[str, Any]) -> None:
        report["cells"][0]["observed"] = "opened"

    edit_report(copy, forge)
    verification = verify(copy, ask_again=False)
    assert verification.changes == ()
    assert any("the matrix" in text for text in verification.disagreements)
    assert not verification.holds


def test_a_dropped_control_cannot_be_proved(copy: Path) -> None:
    def forge(report: dict[str, Any]) -> None:
        for part in ("sessions", "cells"):
            key = {"sessions": "name", "cells": "session"}[part]
            report[part] = [entry for entry in report[part] if entry[key] != "control-static-rsa"]

    edit_report(copy, forge)
    assert not verify(copy, ask_again=False).holds


def test_a_control_that_stays_closed_refutes(copy: Path) -> None:
    """Without the right server key the attacker opens nothing, and nothing is proved."""
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (copy / "stolen/control.key.pem").write_bytes(
        foreign.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    resign(copy)
    verification = verify(copy, ask_again=False)
    assert any("the verdict" in text for text in verification.disagreements)


def test_swapped_key_logs_are_found(copy: Path) -> None:
    one, other = copy / "stolen/tls13-x25519.keylog", copy / "stolen/tls12-ecdhe.keylog"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    resign(copy)
    assert not verify(copy, ask_again=False).holds


def test_a_repeated_value_in_the_census_refutes(copy: Path) -> None:
    path = copy / "census/server_random.fingerprints"
    fingerprints = bytearray(path.read_bytes())
    fingerprints[16:32] = fingerprints[:16]
    path.write_bytes(fingerprints)
    resign(copy)
    assert any("the census" in text for text in verify(copy, ask_again=False).disagreements)


def test_a_replay_that_executed_would_be_counted(copy: Path) -> None:
    """A genuine session's recording in a replay's place is seen to have executed."""
    for kind, suffix in (("captures", "pcapng"), ("stolen", "keylog")):
        source = copy / kind / f"genuine-tls13-x25519.{suffix}"
        shutil.copyfile(source, copy / kind / f"replay-tls13-x25519-1.{suffix}")
    resign(copy)
    assert any("the replays" in text for text in verify(copy, ask_again=False).disagreements)


def test_a_recording_with_other_traffic_in_it_is_refused(copy: Path) -> None:
    (copy / "captures/tls13-x25519.pcapng").write_bytes(
        (copy / "captures/tls13-x25519.pcapng").read_bytes()
        + (copy / "captures/tls12-ecdhe.pcapng").read_bytes()
    )
    with pytest.raises(InputError, match="2 TLS sessions where one was recorded"):
        attack_recording(copy, "tls13-x25519", KeyMaterial())

"""`pfs prove` and `pfs verify` through the command, and evidence that somebody touched."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs.keystore.hazmat import unseal_every_private_key
from interop.errors import InputError
from interop.proof.application import payload_in
from interop.proof.compromise import attack_recording, read_key_log
from interop.proof.manifest import check_manifest, key_fingerprint, sign_manifest
from interop.proof.model import read_report
from interop.proof.replay import MANNERS
from interop.proof.verification import verify
from interop.wire.groups import EphemeralKeys
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Proof

PFS = Path(sys.executable).with_name("pfs")
OURS = {"tls12-ecdhe", "tls13-x25519", "tls13-x25519mlkem768"}
RESUMING = {"mutual-tls-upload", "tls13-resumed"}
CONTROL = "control-static-rsa"
RESUMED_WITHOUT_DHE = {"ticket-tls13-psk_ke", "ticket-tls13-0rtt"}
TLS12_TICKETS = {"ticket-tls12", "ticket-tls12-resumed"}
# What each theft opens, its own session's secrets aside.
OPENS = {
    "server-key": {CONTROL},
    "key-store": {CONTROL},
    "ca-keys": set(),
    "client-key": set(),
    "harvest": {
        "told-x25519",
        "told-x25519-again",
        "told-secp256r1",
        "told-key-update",
        "reused-key",
        "reused-key-again",
        "ticket-tls13",
        *RESUMED_WITHOUT_DHE,
    },
    "harvest-ml-kem": set(),
    "ephemeral-key:told-x25519": {"told-x25519", "told-x25519-again"},
    "ephemeral-key:told-secp256r1": {"told-secp256r1"},
    "ephemeral-key:told-x25519mlkem768": {"told-x25519mlkem768"},
    "ephemeral-key:reused-key": {"reused-key", "reused-key-again"},
    "ephemeral-key:ticket-tls13": {"ticket-tls13", *RESUMED_WITHOUT_DHE},
    "ticket-key:tickets": {*TLS12_TICKETS, *RESUMED_WITHOUT_DHE},
    "pre-shared-key:ticket-tls13": RESUMED_WITHOUT_DHE,
    "pre-shared-key:mutual-tls-upload": set(),
    "ephemeral-key:told-key-update": {"told-key-update"},
    "exporter-secret:told-x25519": set(),
    "traffic-secret:told-key-update": {"told-key-update"},
    "later-traffic-secret:told-key-update": set(),
    "session-secrets:ticket-tls12": TLS12_TICKETS,
    "session-secrets:ticket-tls12-resumed": TLS12_TICKETS,
}


@pytest.fixture
def report(proof: Proof) -> dict[str, Any]:
    return json.loads((proof.directory / "report.json").read_bytes())


@pytest.fixture
def copy(proof: Proof, tmp_path: Path) -> Path:
    """Give a copy of the evidence that a test may spoil."""
    return Path(shutil.copytree(proof.directory, tmp_path / "copy"))


def test_a_run_proves_and_says_so(proof: Proof, report: dict[str, Any]) -> None:
    assert proof.completed.returncode == 0, proof.completed.stderr
    assert "verdict  proved" in proof.completed.stdout
    assert str(proof.directory / "report.html") in proof.completed.stdout
    assert report["verdict"] == "proved"
    assert report["failures"] == []


def test_each_required_session_is_in_the_report(report: dict[str, Any]) -> None:
    sessions = {session["name"]: session for session in report["sessions"]}
    assert {*OURS, CONTROL} <= sessions.keys()
    negotiated = {name: (sessions[name]["version"], sessions[name]["group"]) for name in OURS}
    assert negotiated == {
        "tls12-ecdhe": ("TLS 1.2", "x25519"),
        "tls13-x25519": ("TLS 1.3", "x25519"),
        "tls13-x25519mlkem768": ("TLS 1.3", "X25519MLKEM768"),
    }
    assert sessions[CONTROL]["suite"] == "TLS_RSA_WITH_AES_128_GCM_SHA256"
    assert not sessions[CONTROL]["forward_secret"]
    assert all(sessions[name]["forward_secret"] for name in OURS)


def test_every_session_is_tried_with_every_theft(report: dict[str, Any]) -> None:
    names = [session["name"] for session in report["sessions"]]
    thefts = {*OPENS, *(f"session-secrets:{name}" for name in names)}
    tried = Counter((cell["session"], cell["stolen"]) for cell in report["cells"])
    assert tried == Counter((name, theft) for name in names for theft in thefts)


def test_what_opens_is_what_theory_says(proof: Proof, report: dict[str, Any]) -> None:
    for cell in report["cells"]:
        own = {cell["stolen"].removeprefix("session-secrets:")}
        opens = cell["session"] in OPENS.get(cell["stolen"], own)
        assert cell["observed"] == cell["expected"] == ("opened" if opens else "closed"), cell
        assert cell["recovered_bytes"] == (len(proof.payload) if opens else 0), cell
        assert cell["control"] is opens
        by_its_own_secrets = cell["stolen"] == f"session-secrets:{cell['session']}"
        part = ""
        if cell["session"] == "ticket-tls13-0rtt" and opens and not by_its_own_secrets:
            part = "0-RTT data"
        if cell["stolen"] == "traffic-secret:told-key-update" and opens:
            part = "the client's data"
        assert cell["part"] == part
        assert (cell["reply_bytes"] > 0) is (opens and not part), cell


def test_sessions_resume_as_they_say(report: dict[str, Any]) -> None:
    sessions = {session["name"]: session for session in report["sessions"]}
    resumed = {name: each["resumes"] for name, each in sessions.items() if each["resumed"]}
    assert resumed == {
        "tls13-resumed": "mutual-tls-upload",
        "ticket-tls12-resumed": "ticket-tls12",
        "ticket-tls13-psk_dhe_ke": "ticket-tls13",
        "ticket-tls13-psk_ke": "ticket-tls13",
        "ticket-tls13-0rtt": "ticket-tls13",
    }
    assert [name for name, each in sessions.items() if each["early_data"]] == ["ticket-tls13-0rtt"]
    assert {name for name, each in sessions.items() if not each["forward_secret"]} == {
        CONTROL,
        *TLS12_TICKETS,
        *RESUMED_WITHOUT_DHE,
    }


def test_a_theft_that_opens_nothing_shows_what_it_is(report: dict[str, Any]) -> None:
    shown = {theft["name"]: theft["shown"] for theft in report["thefts"] if theft["shown"]}
    assert "each certificate that a server showed" in shown.pop("server-key")
    assert "they signed the certificates" in shown.pop("ca-keys")
    assert "the client of mutual-tls-upload" in shown.pop("client-key")
    assert "ClientHello of tls13-resumed" in shown.pop("pre-shared-key:mutual-tls-upload")
    assert "ClientHello of ticket-tls13-psk" in shown.pop("pre-shared-key:ticket-tls13")
    assert "ephemeral key of told-x25519" in shown.pop("exporter-secret:told-x25519")
    assert "two updates" in shown.pop("later-traffic-secret:told-key-update")
    assert shown == {}


def test_recovered_bytes_are_the_payload(proof: Proof) -> None:
    keys = KeyMaterial(
        server_private_keys=tuple(
            key.private_key for key in unseal_every_private_key(*store_of(proof.directory))
        )
    )
    assert attack_recording(proof.directory, CONTROL, keys).payload == proof.payload
    assert attack_recording(proof.directory, "tls13-x25519", keys).payload == b""
    own = KeyMaterial(key_log=read_key_log(proof.directory / "stolen/tls13-x25519.keylog"))
    assert attack_recording(proof.directory, "tls13-x25519", own).payload == proof.payload
    assert attack_recording(proof.directory, "tls12-ecdhe", own).payload == b""


def store_of(directory: Path) -> tuple[Path, str]:
    return directory / "stolen/key-store.sqlite3", f"file:{directory / 'stolen/key-store.kek'}"


def test_the_stolen_store_holds_every_key_but_the_one_that_signed(proof: Proof) -> None:
    names = {key.name for key in unseal_every_private_key(*store_of(proof.directory))}
    assert names == {"root", "issuing", "server", "control", "client", "rotated", "deleted"}


def test_half_a_hybrid_is_told_as_half_a_hybrid(report: dict[str, Any]) -> None:
    reasons = {
        cell["stolen"]: cell["reason"]
        for cell in report["cells"]
        if cell["session"] == "told-x25519mlkem768"
    }
    assert "the classical half is known" in reasons["harvest"]
    assert "the ML-KEM-768 half is known" in reasons["harvest-ml-kem"]


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


def test_the_census_counts_each_kind_of_value(report: dict[str, Any]) -> None:
    census = report["census"]
    assert census["handshakes"] == 120
    for kind in ("client_random", "server_random", "exporter"):
        assert census[kind] == {"count": 120, "distinct": 120}
    hybrids = census["client_key_share.mlkem768"]["count"]
    assert hybrids == census["server_key_share.mlkem768"]["count"] > 20
    tls13, tls12 = (census[kind]["count"] for kind in ("client_traffic_secret_0", "main_secret"))
    assert tls13 + tls12 == 120
    assert census["psk"]["count"] > census["ticket_identity"]["count"] > 10
    assert all(
        tally["count"] == tally["distinct"] > 0
        for kind, tally in census.items()
        if kind != "handshakes"
    )


def test_no_replay_executes_and_genuine_sessions_do(report: dict[str, Any]) -> None:
    replayed = {replay["session"] for replay in report["replays"]}
    assert replayed >= OURS | RESUMING
    for replay in report["replays"]:
        assert (replay["attempts"], replay["executed"]) == (len(MANNERS), 0)
    assert report["replay_control"]["attempts"] == report["replay_control"]["executed"] == 3


def test_secrets_in_the_evidence_are_private(proof: Proof) -> None:
    assert stat.S_IMODE(proof.directory.stat().st_mode) == 0o700
    for path in (proof.directory / "stolen").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_nothing_secret_is_printed(proof: Proof) -> None:
    printed = proof.completed.stdout + proof.completed.stderr
    for path in (proof.directory / "stolen").glob("*.keylog"):
        for line in path.read_text("ascii").split("\n"):
            if line:
                assert line.split()[2] not in printed


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
            report[part] = [entry for entry in report[part] if entry[key] != CONTROL]

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


def test_json_is_the_report_and_nothing_else(
    tmp_path: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = pfs(
        "prove", "--json", "--no-tshark", "--handshakes", "6", "--out", tmp_path / "evidence"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.encode() == (tmp_path / "evidence/report.json").read_bytes()
    report = msgspec.json.decode(done.stdout)
    assert report["payload_bytes"] == 65536


def test_earlier_evidence_is_replaced_and_other_folders_are_not(
    proof: Proof, tmp_path: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "evidence"
    shutil.copytree(proof.directory, out)
    assert pfs("prove", "--no-tshark", "--handshakes", "6", "--out", out).returncode == 0
    assert check_manifest(out)[0] != check_manifest(proof.directory)[0]
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.txt").write_text("years of work")
    done = pfs("prove", "--handshakes", "6", "--out", keep)
    assert done.returncode == 2
    assert "in the way" in done.stderr
    assert [path.name for path in keep.iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidence", "keep"]


def assert_group_ends(group: int) -> None:
    # Nobody here is told when other processes' children are gone: only asking again remains.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("a process of the group lives on")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_leaves_earlier_evidence_alone(
    proof: Proof, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "evidence"
    shutil.copytree(proof.directory, out)
    process = subprocess.Popen(
        [PFS, "prove", "--out", out, "--handshakes", "1000000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "census" in line:
            break
    try:
        # As a terminal does it, to the whole group; a kill hits the process alone.
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        rest = process.stderr.read()
        assert process.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(sent, -sent)
        assert "Traceback" not in rest
        assert_group_ends(process.pid)  # the census's workers too
    finally:
        process.stderr.close()
    assert verify(out, ask_again=False).holds
    if sent is not signal.SIGKILL:
        assert [path.name for path in tmp_path.iterdir()] == ["evidence"]


def test_a_payload_of_many_records_comes_through_whole(
    tmp_path: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(3_000_001))
    done = pfs(
        "prove",
        "--payload",
        payload,
        "--no-tshark",
        "--handshakes",
        "6",
        "--json",
        "--out",
        tmp_path / "evidence",
    )
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert done.returncode == 0
    assert report["payload_sha256"] == hashlib.sha256(payload.read_bytes()).hexdigest()
    assert {cell["recovered_bytes"] for cell in report["cells"]} == {0, 3_000_001}


def test_recovered_streams_that_are_no_http_hold_no_payload() -> None:
    assert payload_in(b"") == b""
    assert payload_in(b"\x00\xff nonsense\r\n\r\n") == b""
    assert payload_in(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc") == b"abc"


def test_a_recording_with_other_traffic_in_it_is_refused(copy: Path) -> None:
    (copy / "captures/tls13-x25519.pcapng").write_bytes(
        (copy / "captures/tls13-x25519.pcapng").read_bytes()
        + (copy / "captures/tls12-ecdhe.pcapng").read_bytes()
    )
    with pytest.raises(InputError, match="2 TLS sessions where one was recorded"):
        attack_recording(copy, "tls13-x25519", KeyMaterial())

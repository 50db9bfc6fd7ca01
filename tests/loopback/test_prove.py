"""`pfs prove` through the command: what a run says, finds, writes, and leaves alone."""

from __future__ import annotations

import hashlib
import json
import os
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

from certs.keystore.hazmat import unseal_every_private_key
from interop.proof.application import payload_in
from interop.proof.compromise import attack_recording, read_key_log
from interop.proof.manifest import check_manifest
from interop.proof.replay import MANNERS
from interop.proof.verification import verify
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


def test_json_is_the_report_and_nothing_else(
    tmp_path: Path, pfs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = pfs(
        "prove", "--json", "--no-tshark", "--handshakes", "60", "--out", tmp_path / "evidence"
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
    assert pfs("prove", "--no-tshark", "--handshakes", "60", "--out", out).returncode == 0
    assert check_manifest(out)[0] != check_manifest(proof.directory)[0]
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.txt").write_text("years of work")
    done = pfs("prove", "--handshakes", "60", "--out", keep)
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
        assert rest.endswith("pfs: interrupted\n") is (sent is signal.SIGINT)
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
        "60",
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

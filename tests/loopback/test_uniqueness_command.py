"""`pfs uniqueness` through the command: in memory, at a live server, stored and pooled."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import transport
from interop.census.ends import TransportRecipe
from interop.census.sampling import take_tickets
from interop.census.stored import DISTINCT_COUNT
from interop.wire import handshake as hs
from interop.wire.learned import LearnedSecrets
from interop.wire.material import KeyMaterial
from interop.wire.tls13_secrets import find_psk

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Identities

    Pfs = Callable[..., subprocess.CompletedProcess[str]]

PFS = Path(sys.executable).with_name("pfs")
CONDITIONS = {
    "one context",
    "many contexts",
    "threads",
    "forked workers",
    "restarts",
    "resumption",
}


def report_of(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def counts_of(report: dict[str, Any]) -> dict[str, int]:
    return {value["kind"]: value["count"] for value in report["values"]}


def test_a_census_in_memory_covers_all_conditions_and_kinds(pfs: Pfs) -> None:
    report = report_of(pfs("uniqueness", "--handshakes", "600", "--json"))
    assert (report["format"], report["verdict"]) == ("pfs-census/1", "unique")
    assert report["handshakes"] == sum(report["conditions"].values()) == 600
    assert set(report["conditions"]) == CONDITIONS
    counts = counts_of(report)
    for kind in ("client_random", "server_random", "exporter"):
        assert counts[kind] == 600
    tls12 = sum(n for name, n in report["negotiated"].items() if name.startswith("TLS 1.2"))
    assert counts["main_secret"] == tls12 > 0
    for kind in ("client_traffic_secret_0", "server_handshake_traffic_secret", "exporter_secret"):
        assert counts[kind] == 600 - tls12
    for part in ("x25519", "secp256r1", "secp384r1", "mlkem768", "mlkem1024"):
        assert counts[f"server_key_share.{part}"] > 0
        assert counts[f"client_key_share.{part}"] >= counts[f"server_key_share.{part}"]
    resumed = sum(n for name, n in report["negotiated"].items() if name.endswith("resumed"))
    assert counts["ticket_identity"] == resumed == report["conditions"]["resumption"] * 9 / 10
    assert counts["psk"] > resumed
    assert report["excluded"]
    assert report["not_tested"]
    assert {"OpenSSL", "cryptography"} <= report["versions"].keys()


def test_the_text_says_what_the_data_says(pfs: Pfs) -> None:
    done = pfs("uniqueness", "--handshakes", "60", "--workers", "1")
    assert done.returncode == 0
    assert "verdict     unique: 60 handshakes" in done.stdout
    assert "not tested  whether values can be predicted" in done.stdout
    assert "client_key_share.mlkem768" in done.stdout


def test_what_is_counted_as_psk_is_the_psk(identities: Identities) -> None:
    """The binder of a resumed ClientHello verifies under it, by the judge's own key schedule."""
    ends = TransportRecipe.of(identities.ec, "localhost").open().resuming()
    pair = ends.pair(None)
    client, server = pair.client, pair.server
    done = [False, False]
    while not all(done):
        done[0] = done[0] or client.handshake()
        server.receive_data(client.data_to_send())
        done[1] = done[1] or server.handshake()
        flight = server.data_to_send()
        if not all(done):
            client.receive_data(flight)
    psks = list(take_tickets(client, flight))
    assert len(set(psks)) == len(psks) == 2
    session = client.connection.get_session()
    pair.end()
    resuming = ends.pair(session).client
    resuming.handshake()
    message = resuming.data_to_send()[5:]
    hello = hs.parse_client_hello(message)
    for psk in (psks[1], os.urandom(32)):
        keys = KeyMaterial(pre_shared_keys=(psk,))
        found = find_psk(keys, LearnedSecrets(), hello, message, identity=0)
        assert (found is not None) == (psk == psks[1])


def test_fingerprints_are_kept_and_pooled(pfs: Pfs, tmp_path: Path) -> None:
    folder = tmp_path / "prints"
    for number in (1, 2):
        done = pfs("uniqueness", "--handshakes", "80", "--fingerprints", folder, "--json")
        report = report_of(done)
        assert report["handshakes"] == 80  # of this run alone
        assert len(list(folder.iterdir())) == number
    pooled = report_of(pfs("uniqueness", "--pool", folder, "--json"))
    assert (pooled["verdict"], pooled["handshakes"]) == ("unique", 160)
    assert counts_of(pooled) == {kind: 2 * count for kind, count in counts_of(report).items()}
    assert [path for path in tmp_path.iterdir() if path != folder] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--handshakes", "59"], "a census takes 60 to"),
        (["--handshakes", "7", "--target", "localhost:1"], "a census takes 8 to"),
        (["--handshakes", "2000000"], "add --fingerprints DIR"),
        (["--pool", ".", "--handshakes", "80"], "goes with no option"),
        (["--pool", "absent"], "not a folder"),
        (["--ca", "ca.pem"], "name one"),
        (["--pool", ".", "--workers", "3"], "goes with no option"),
        (["--pool", ".", "--seconds", "9"], "goes with no option"),
        (["--seconds", "9"], "name one"),
        (["--seconds", "nan", "--target", "localhost:1"], "--seconds"),
        (["--target", "nonsense:"], "is not an address"),
        (["--target", "localhost:1", "--server-name", "a..b"], "a..b"),
        (["--target", "127.0.0.1:1"], "cannot be reached"),
        (["--target", "127.0.0.1:1", "--ca", "absent.pem"], "absent.pem"),
        (["--fingerprints", "/proc/nowhere", "--handshakes", "80"], "cannot be written"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_bad_input_is_one_line_and_status_2(pfs: Pfs, arguments: list[str], words: str) -> None:
    done = pfs("uniqueness", *arguments, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def assert_group_ends(group: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("a process of the group lives on")


@pytest.mark.parametrize("delay_seconds", [0.3, 3])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_census_leaves_nothing_half_written(
    tmp_path: Path, sent: signal.Signals, delay_seconds: float
) -> None:
    folder = tmp_path / "prints"
    process = subprocess.Popen(
        [PFS, "uniqueness", "--handshakes", "20000", "--fingerprints", folder],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    assert "census" in process.stderr.readline()
    try:
        deadline = time.monotonic() + 20
        while not list(tmp_path.rglob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay_seconds)  # among the restarts, and in the middle of the work
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        rest = process.stderr.read()
        assert process.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(sent, -sent)
        if sent is not signal.SIGKILL:  # after which a worker may start and find nobody
            assert "Traceback" not in rest
        assert_group_ends(process.pid)
    finally:
        process.stderr.close()
    if sent is signal.SIGKILL:
        # A hidden folder is left, which nobody counts.
        done = subprocess.run(
            [PFS, "uniqueness", "--pool", folder], capture_output=True, text=True, check=False
        )
        assert "no fingerprints in it" in done.stderr
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_live_server_with_resumption(
    pfs: Pfs, echo: Callable[..., Any], identities: Identities, tmp_path: Path
) -> None:
    policy = transport.get_policy("2026-11-tls13-resumption")
    with echo(identities.ec, policy=policy) as server:
        address = "{}:{}".format(*server.address)
        done = pfs(
            *("uniqueness", "--target", address, "--handshakes", "60", "--workers", "3"),
            *("--fingerprints", tmp_path / "prints", "--json"),
        )
    report = report_of(done)
    assert (report["verdict"], report["handshakes"]) == ("unique", 60)
    assert report["origin"]["target"] == address
    assert report["origin"]["certificate_checked"] is False
    resumed = report["conditions"]["resumption"]
    counts = counts_of(report)
    assert counts["ticket_identity"] == resumed > 0
    assert counts["psk"] > resumed
    assert counts["server_random"] == counts["exporter"] == 60
    assert any("TLS 1.2, which the server refused" in text for text in report["not_tested"])
    assert any("certificate was not checked" in text for text in report["not_tested"])
    pooled = report_of(pfs("uniqueness", "--pool", tmp_path / "prints", "--json"))
    assert any(address in note for note in pooled["notes"])


@pytest.mark.parametrize("echo", ["asyncio"], indirect=True)
def test_a_certificate_is_checked_where_that_is_asked(
    pfs: Pfs, echo: Callable[..., Any], identities: Identities, tmp_path: Path
) -> None:
    for name, anchors in (("ours", identities.anchors), ("foreign", identities.foreign_anchors)):
        (tmp_path / name).write_bytes(anchors.pem())
    with echo(identities.ec) as server:
        asked = ["uniqueness", "--target", "{}:{}".format(*server.address), "--json"]
        asked += ["--handshakes", "12"]
        report = report_of(pfs(*asked, "--ca", tmp_path / "ours"))
        assert report["origin"]["certificate_checked"] is True
        assert sum(n for name, n in report["negotiated"].items() if "TLS 1.2" in name) > 0
        for wrong in (["--ca", tmp_path / "foreign"], ["--server-name", "else.example"]):
            done = pfs(
                *asked, *wrong[:2], *(() if "--ca" in wrong else ("--ca", tmp_path / "ours"))
            )
            assert done.returncode == 2
            assert "certificate verify failed" in done.stderr


def test_a_server_that_goes_away_is_said_and_what_was_seen_is_kept(
    pfs: Pfs, identities: Identities
) -> None:
    listener = transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identities.ec
    )
    address = "{}:{}".format(*listener.getsockname()[:2])

    def serve() -> None:
        for _ in range(10):
            with listener.accept()[0] as connection:
                connection.settimeout(20)
                connection.do_handshake()
        listener.close()

    thread = threading.Thread(target=serve)
    thread.start()
    done = pfs("uniqueness", "--target", address, "--handshakes", "50", "--json")
    thread.join(20)
    report = report_of(done)
    assert report["handshakes"] == 10
    assert any("ended early" in note for note in report["notes"])


@pytest.mark.parametrize("echo", ["asyncio"], indirect=True)
def test_a_time_limit_ends_a_survey(
    pfs: Pfs, echo: Callable[..., Any], identities: Identities, tmp_path: Path
) -> None:
    with echo(identities.ec) as server:
        address = "{}:{}".format(*server.address)
        done = pfs(
            *("uniqueness", "--target", address, "--handshakes", "1000000", "--json"),
            *("--seconds", "1", "--fingerprints", tmp_path / "prints"),
        )
    assert "time was up" in " ".join(report_of(done)["notes"])


@pytest.mark.parametrize("echo", ["asyncio"], indirect=True)
def test_the_how_to_runs_as_printed(
    echo: Callable[..., Any], identities: Identities, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs/how-to.md").read_text("utf-8")
    section = text.partition("## Count session keys")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    (statement,) = re.findall(r"^```sql\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert statement == DISTINCT_COUNT
    (tmp_path / "ca.pem").write_bytes(identities.anchors.pem())
    with echo(identities.ec) as server:
        script = "\n".join(blocks).replace("localhost:8443", f"localhost:{server.address[1]}")
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{PFS.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("verdict     unique") == 5
    assert json.loads((tmp_path / "census.json").read_bytes())["handshakes"] == 200

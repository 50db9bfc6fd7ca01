"""`pfs replay` as users call it: at our own servers, at one that is the user's, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import transport
from certs.errors import CertsError
from interop.commands import replay
from interop.errors import InteropError
from interop.identity import Identity, issue_identity
from interop.replay.cases import CONTROLS
from interop.replay.catalogue import CASES
from interop.replay.controls import early_data_server
from interop.replay.servers import CountingServer, blocking_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Proof

    Pfs = Callable[..., subprocess.CompletedProcess[str]]

PFS = Path(sys.executable).with_name("pfs")
DEFAULTS: dict[str, Any] = {
    "cases": (),
    "target": None,
    "ca": None,
    "server_name": None,
    "method": None,
    "path": None,
    "count_url": None,
    "captures": (),
    "as_json": True,
}
OWN: dict[str, Any] = {"target": "127.0.0.1:1", "ca": Path("ca.pem")}


@pytest.fixture(scope="module")
def whole(pfs: Pfs) -> dict[str, Any]:
    """Give the report of one run of everything."""
    done = pfs("replay", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_everything_is_tried_at_every_endpoint(whole: dict[str, Any]) -> None:
    assert whole["verdict"] == "held"
    assert whole["failures"] == []
    tried = {(o["target"], o["case"]) for o in whole["outcomes"] if not o["control"]}
    targets = {target for target, _ in tried}
    assert len(targets) == 6
    names = {case.name for case in CASES} | {"honest-session"}
    assert tried == {(target, name) for target in targets for name in names}
    controls = [o for o in whole["outcomes"] if o["control"]]
    assert {o["target"] for o in controls} == set(CONTROLS)
    assert {o["verdict"] for o in controls} == {"replayed"}


def test_each_outcome_has_its_counts_and_its_section(whole: dict[str, Any]) -> None:
    for outcome in whole["outcomes"]:
        if outcome["verdict"] == "not applicable":
            assert outcome["reason"]
        elif outcome["case"] != "honest-session":
            assert outcome["executed_after"] >= outcome["executed_before"]
            assert outcome["reaction"]
            assert outcome["control"] or "section" in outcome["basis"]


def test_one_case_is_run_beside_all_controls(pfs: Pfs) -> None:
    done = pfs("replay", "--case", "request-duplicated")
    assert done.returncode == 0, done.stderr
    assert "verdict  held" in done.stdout
    assert "10 of 10 replays executed, as they must" in done.stdout
    assert "blocking-tls12            held 1, honest-session held" in done.stdout
    assert "?: not counted" in done.stdout
    assert "replaying: control: HTTP on bare TCP" in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_cases_are_listed_with_what_they_do(pfs: Pfs) -> None:
    done = pfs("replay", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    for case in CASES:
        assert case.name in done.stdout
        assert case.sentence in done.stdout
        assert f"{case.name}  " in done.stdout
    assert "RFC 9846 section 4.5.3, RFC 5246 section 7.4.9" in done.stdout
    listed = json.loads(pfs("replay", "--list", "--json").stdout)
    assert [case["case"] for case in listed["cases"]] == [case.name for case in CASES]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ca": Path("ca.pem")}, "go with --target"),
        ({"method": "POST"}, "go with --target"),
        ({"path": "/count"}, "go with --target"),
        ({"target": "127.0.0.1:1"}, "--ca FILE"),
        ({"target": "nonsense:", "ca": Path("ca.pem")}, "is not an address"),
        (OWN | {"ca": Path("missing.pem")}, "No such file"),
        (OWN | {"ca": Path("garbage.pem")}, "not readable PEM"),
        (OWN | {"path": "/a b"}, "no request"),
        (OWN | {"path": "foo"}, "it begins with /"),
        (OWN | {"path": "/\u00fc"}, "no request"),
        (OWN | {"method": "A B"}, "no request"),
        (OWN | {"server_name": "<b>x</b>"}, "is not a host name"),
        (OWN | {"count_url": "ftp://x/"}, "not an http or https URL"),
        (OWN | {"count_url": "http://x:y/"}, "is not a URL"),
        (OWN | {"count_url": "http://127.0.0.1:1/"}, "cannot be read"),
        (OWN | {"captures": [Path("ca.pem")]}, "capture"),
    ],
)
def test_bad_input_is_refused(
    identity: Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    words: str,
) -> None:
    (tmp_path / "ca.pem").write_bytes(identity.trust_anchors.pem())
    (tmp_path / "garbage.pem").write_bytes(b"garbage")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InteropError, CertsError, transport.APIMisuse), match=words):
        replay.run(**(DEFAULTS | options))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--case", "no-such-case"], "--list shows them"),
        (["--target", "127.0.0.1:1", "--ca", "ca.pem"], "no honest session"),
        (
            ["--target", "127.0.0.1:1", "--ca", "ca.pem", "--server-name", "m\u00fcnchen.example"],
            "no honest session",
        ),
        (["--path", "/count"], "go with --target"),
        (["--target", "nonsense:", "--ca", "ca.pem"], "is not an address"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    identity: Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pfs: Pfs,
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "ca.pem").write_bytes(identity.trust_anchors.pem())
    monkeypatch.chdir(tmp_path)
    done = pfs("replay", "--json", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_ctrl_c_ends_it_at_once_and_leaves_nothing() -> None:
    process = subprocess.Popen(
        [PFS, "replay"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        encoding="utf-8",
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "blocking engine, TLS 1.3" in line:
            break
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert output == ""
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# A server that is the user's


@pytest.fixture(scope="module")
def identity() -> Identity:
    return issue_identity()


class Owned(NamedTuple):
    """A server somebody owns: the options that name it, and where it says what it executed."""

    options: list[str]
    count_url: str
    server: CountingServer


@contextmanager
def owned(
    server: Any, identity: Identity, folder: Path, answer: Callable[[int], bytes] | None = None
) -> Iterator[Owned]:
    """Serve, and serve the count of executions over HTTP; `answer` says how it is told."""

    class Counter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count = server.application.results
            body = answer(len(count)) if answer else b"%d\n" % len(count)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    trust = folder / "ca.pem"
    trust.write_bytes(identity.trust_anchors.pem())
    with ExitStack() as stack:
        stack.enter_context(server)
        counter = stack.enter_context(HTTPServer(("127.0.0.1", 0), Counter))
        thread = threading.Thread(target=counter.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stack.callback(thread.join)
        stack.callback(counter.shutdown)
        host, port = server.address
        yield Owned(
            [
                *("--target", f"{host}:{port}"),
                *("--ca", str(trust)),
                *("--server-name", "localhost"),
            ],
            f"http://127.0.0.1:{counter.server_port}/count",
            server,
        )


CHOSEN = [
    word
    for name in (
        "flight-duplicated-paced",
        "request-duplicated",
        "request-spliced",
        "ticket-duplicated",
        "early-data-duplicated",
    )
    for word in ("--case", name)
]


def outcomes_of(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    report = json.loads(done.stdout)
    return {(o["target"], o["case"]): o for o in report["outcomes"] if not o["control"]}


def test_a_server_of_ones_own_is_counted(identity: Identity, tmp_path: Path, pfs: Pfs) -> None:
    server = blocking_server(identity.credential, transport.DEFAULT_POLICY)
    with owned(server, identity, tmp_path) as own:
        done = pfs("replay", "--json", *own.options, "--count-url", own.count_url, *CHOSEN)
    assert done.returncode == 0, done.stdout
    outcomes = outcomes_of(done)
    assert {target for target, _ in outcomes} == {"target-tls13", "target-tls12"}
    for version in ("12", "13"):
        target = f"target-tls{version}"
        spliced = outcomes[target, "request-spliced"]
        assert spliced["verdict"] == "held"
        assert spliced["executed_after"] - spliced["executed_before"] == 1
        assert outcomes[target, "honest-session"]["verdict"] == "held"
    assert outcomes["target-tls13", "early-data-duplicated"]["verdict"] == "held"
    assert outcomes["target-tls13", "ticket-duplicated"]["reason"] == "the server does not resume"


def test_a_server_that_takes_early_data_is_found_out(
    identity: Identity, tmp_path: Path, pfs: Pfs
) -> None:
    server = early_data_server(identity.credential)
    with owned(server, identity, tmp_path) as own:
        done = pfs("replay", *own.options, "--count-url", own.count_url, *CHOSEN)
    assert done.returncode == 1, done.stdout
    assert "verdict  replayed" in done.stdout
    assert (
        "replayed early-data-duplicated at target-tls13: 4 executions for 0 honest requests"
        in done.stdout
    )
    assert "request-duplicated at" not in done.stdout


def test_without_a_count_nothing_is_claimed(identity: Identity, tmp_path: Path, pfs: Pfs) -> None:
    server = early_data_server(identity.credential)
    with owned(server, identity, tmp_path) as own:
        done = pfs("replay", *own.options, *CHOSEN)
    assert done.returncode == 0, done.stdout
    assert "verdict  not counted" in done.stdout
    assert "give --count-url" in done.stdout


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (lambda _count: b"7", 1, "3 honest requests were counted as 0"),
        (lambda count: b"%d" % (2 * count), 1, "3 honest requests were counted as 6"),
        (lambda _count: b"many", 2, "not a decimal number"),
    ],
)
def test_a_count_that_does_not_count_is_not_believed(
    identity: Identity,
    tmp_path: Path,
    pfs: Pfs,
    answer: Callable[[int], bytes],
    status: int,
    words: str,
) -> None:
    server = blocking_server(identity.credential, transport.DEFAULT_POLICY)
    with owned(server, identity, tmp_path, answer) as own:
        case = ("--case", "request-duplicated")
        done = pfs("replay", *own.options, "--count-url", own.count_url, *case)
    assert done.returncode == status, done.stdout
    assert words in done.stdout + done.stderr
    assert "verdict  held" not in done.stdout


def test_recorded_captures_are_replayed_too(
    proof: Proof, identity: Identity, tmp_path: Path, pfs: Pfs
) -> None:
    server = blocking_server(identity.credential, transport.DEFAULT_POLICY)
    captures = sorted((proof.directory / "captures").glob("*-x25519*.pcapng"))
    options = [word for path in captures for word in ("--capture", str(path))]
    with owned(server, identity, tmp_path) as own:
        case = ("--case", "flight-duplicated")
        done = pfs("replay", "--json", *own.options, "--count-url", own.count_url, *case, *options)
    assert done.returncode == 0, done.stdout
    outcome = outcomes_of(done)["target-tls13", "captured-flights"]
    assert outcome["verdict"] == "held"
    assert "closed" in outcome["reaction"]


def test_a_port_that_closes_at_once_is_bad_input(
    identity: Identity, tmp_path: Path, pfs: Pfs
) -> None:
    trust = tmp_path / "ca.pem"
    trust.write_bytes(identity.trust_anchors.pem())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        port = listener.getsockname()[1]
        done = pfs("replay", "--target", f"localhost:{port}", "--ca", trust)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)
    assert done.returncode == 2
    assert "no honest session" in done.stderr

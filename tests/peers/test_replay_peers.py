"""`pfs replay` at servers that others wrote: what holds there, and a replay that gets through."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from interop.peers.early_data import EarlyDataClient, EarlyDataFailed
from interop.peers.endpoints import ServerOptions, absolute_file
from interop.peers.nginx import run_nginx
from interop.peers.processes import ChildProcess, wait_for_port
from interop.replay import deliveries
from interop.replay.application import make_request
from interop.replay.middle import Middle, deliver

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Authority

    Pfs = Callable[..., subprocess.CompletedProcess[str]]

CASES = (
    "flight-duplicated",
    "flight-duplicated-paced",
    "flight-spliced",
    "hello-duplicated",
    "finished-duplicated",
    "alert-spliced",
    "request-duplicated",
    "request-reordered",
    "request-spliced",
    "ticket-duplicated",
    "ticket-duplicated-paced",
    "early-data-duplicated",
    "early-data-delayed",
)


@contextmanager
def counting_lines(log: Path) -> Iterator[str]:
    """Answer with how many lines a log has, as the owner of a server would count its requests."""

    class Counter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"%d" % log.read_bytes().count(b"\n"))

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Counter) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def replay_at_nginx(
    authority: Authority, folder: Path, pfs: Pfs, **options: bool
) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    log = folder / "access.log"
    chosen = [word for name in CASES for word in ("--case", name)]
    serving = ServerOptions(credential=authority.ec, tickets=True)
    with (
        run_nginx(serving, store_uploads=False, access_log=log, **options) as server,
        counting_lines(log) as count_url,
    ):
        done = pfs(
            "replay",
            "--json",
            *("--target", f"127.0.0.1:{server.address[1]}"),
            *("--server-name", "localhost"),
            *("--trust", authority.ca_file),
            *("--count-url", count_url),
            *chosen,
        )
    assert done.returncode in {0, 1}, done.stderr
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["verdict"] == "held" else 1), report["failures"]
    outcomes = {(o["target"], o["case"]): o for o in report["outcomes"] if not o["control"]}
    return done.returncode, outcomes


def test_nginx_holds(
    require_program: Callable[[str], object], authority: Authority, tmp_path: Path, pfs: Pfs
) -> None:
    require_program("nginx")
    status, outcomes = replay_at_nginx(authority, tmp_path, pfs)
    assert status == 0
    for (target, name), outcome in outcomes.items():
        excluded = target == "target-tls12" and name.startswith(("ticket-", "early-data-"))
        assert outcome["verdict"] == ("not applicable" if excluded else "held"), outcome
    assert outcomes["target-tls13", "request-duplicated"]["executed_after"] > 0


def test_nginx_that_takes_early_data_is_replayed_at(
    require_program: Callable[[str], object], authority: Authority, tmp_path: Path, pfs: Pfs
) -> None:
    require_program("nginx")
    status, outcomes = replay_at_nginx(authority, tmp_path, pfs, early_data=True)
    assert status == 1
    replayed = {key for key, outcome in outcomes.items() if outcome["verdict"] == "replayed"}
    assert replayed == {
        ("target-tls13", "early-data-duplicated"),
        ("target-tls13", "early-data-delayed"),
    }
    assert all(
        outcome["verdict"] in {"held", "not applicable"}
        for key, outcome in outcomes.items()
        if key not in replayed
    )

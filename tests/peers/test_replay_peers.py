"""`pfs replay` at servers that others wrote: what holds there, and a replay that gets through."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import create_connection
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
            *("--ca", authority.ca_file),
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


@contextmanager
def openssl_taking_early_data(program: Any, authority: Authority, *more: str) -> Iterator[Any]:
    arguments = [
        "s_server",
        *("-accept", "127.0.0.1:0"),
        *("-cert", str(absolute_file(authority.ec.certificate_chain, "chain"))),
        *("-cert_chain", str(absolute_file(authority.ec.certificate_chain, "chain"))),
        *("-key", str(absolute_file(authority.ec.private_key, "key"))),
        *("-tls1_3", "-early_data", "-quiet", *more),
    ]
    with ChildProcess(program.path, arguments, stdin="pipe") as child:
        yield child, wait_for_port(child, timeout_seconds=15)


@pytest.mark.parametrize(("option", "executions"), [("-no_anti_replay", 3), ("-anti_replay", 1)])
def test_openssl_executes_replayed_early_data_unless_it_protects_itself(
    require_program: Callable[[str], Any], authority: Authority, option: str, executions: int
) -> None:
    """The harness against OpenSSL's own server: what it prints is what it was made to do."""
    program = require_program("openssl")
    client = EarlyDataClient(authority.ca_file.read_bytes(), "localhost")
    request = make_request(host="localhost")
    name = request.execution.identifier.encode()
    with openssl_taking_early_data(program, authority, option) as (child, port):

        def dial() -> socket.socket:
            return create_connection(("127.0.0.1", port), 20)

        with client.connect(("127.0.0.1", port)) as session:
            child.feed(b"a line\n")  # its tickets come with what is read
            assert session.recv() == b"a line\n"
            ticket = session.ticket
        assert ticket is not None
        assert ticket.max_early_data_bytes > 0
        with Middle(dial, "TLS 1.3") as middle:
            pieces = (request.encoded,)
            with client.connect(middle.address, ticket=ticket, early_data=pieces) as session:
                assert session.resumed
        for delivery in deliveries.early_data_alone(middle.flight, middle.flight):
            deliver(dial, delivery)
        # It serves one connection after another: this one comes after all of those.
        with client.connect(("127.0.0.1", port)) as session:
            session.sendall(b"the end\n")
            child.wait_until(
                lambda: b"the end" in child.stdout(), timeout_seconds=20, purpose="came to the end"
            )
        assert child.stdout().count(name) == executions


def test_a_server_that_allows_no_early_data_is_not_sent_any(
    require_program: Callable[[str], Any], authority: Authority
) -> None:
    """Not by the library's leave: only the edited ticket makes it try, and nothing executes."""
    require_program("openssl")
    client = EarlyDataClient(authority.ca_file.read_bytes(), "localhost")
    with (
        run_nginx(
            ServerOptions(credential=authority.ec, tickets=True), store_uploads=False
        ) as server,
        client.connect(server.address) as session,
    ):
        session.sendall(make_request(host="localhost", method="GET", target="/").encoded)
        assert session.recv().startswith(b"HTTP/1.1 200")
        ticket = session.ticket
        assert ticket is not None
        assert ticket.max_early_data_bytes == 0
        with pytest.raises(EarlyDataFailed, match="does not send 0-RTT data"):
            client.connect(server.address, ticket=ticket, early_data=(b"x",))
        edited = ticket.allowing_early_data()
        assert edited.max_early_data_bytes > 0
        with client.connect(server.address, ticket=edited, early_data=(b"x",)) as again:
            assert again.resumed

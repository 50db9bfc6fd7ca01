"""Resumption as other stacks try it: only where the policy says so, and never early data.

`openssl s_client` offers back whatever session it is given, one that was tampered with included;
`gnutls-cli` is a second opinion. What they say is compared with our server's own word.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

import transport
from certs.credential import Credential
from interop.peers.names import supports_group
from interop.peers.processes import ChildProcess, run_to_completion, wait_for_port
from transport.policy import ProtocolVersion, Resumption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Authority

    from interop.peers.endpoints import CredentialFiles
    from interop.peers.programs import Program

RESUMING = transport.get_policy("2026-11-tls13-resumption")
DEADLINE_SECONDS = 30.0
LINE = b"a line\n"
EARLY = b"said too early\n"


class Server(NamedTuple):
    """A live server, its proofs or errors in order, and what it received."""

    address: tuple[str, int]
    outcomes: list[transport.NegotiatedSession | OSError]
    received: bytearray


class Client(NamedTuple):
    """What `s_client` said: "New" or "Reused" for each connection, and the fate of early data."""

    sessions: list[str]
    early_data: str


@contextmanager
def serving(files: CredentialFiles, policy: transport.SecurityPolicy) -> Iterator[Server]:
    """Answer a line with the same line and close, one connection after the other."""
    credential = Credential.from_pem(
        files.certificate_chain.read_bytes(), files.private_key.read_bytes()
    )
    listener = transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=credential, policy=policy
    )
    outcomes: list[transport.NegotiatedSession | OSError] = []
    received = bytearray()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with connection:
                    connection.settimeout(DEADLINE_SECONDS)
                    connection.do_handshake()
                    outcomes.append(connection.negotiated)
                    line = connection.makefile("rb").readline()
                    received.extend(line)
                    connection.sendall(line)
            except OSError as error:
                outcomes.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Server(listener.getsockname(), outcomes, received)
    finally:
        listener.close()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Give the file that s_client keeps a session in."""
    return tmp_path / "session"


@pytest.fixture
def s_client(
    require_program: Callable[[str], Program], authority: Authority
) -> Callable[..., Client]:
    """Run `openssl s_client` with a line to say, and wait for the answer."""
    program = require_program("openssl")

    def run(
        address: tuple[str, int], *arguments: str | Path, until: bytes = b"\n" + LINE
    ) -> Client:
        with ChildProcess(
            program.path,
            [
                "s_client",
                *("-connect", f"{address[0]}:{address[1]}", "-servername", "localhost"),
                *("-CAfile", str(authority.ca_file), "-verify_return_error", "-nocommands"),
                *map(str, arguments),
            ],
            stdin="pipe",
        ) as child:
            child.feed(LINE)
            child.wait_until(
                lambda: until in child.stdout() or child.exit_code is not None,
                timeout_seconds=DEADLINE_SECONDS,
                purpose="answered",
            )
            child.close_stdin()
            child.wait_exit(timeout_seconds=DEADLINE_SECONDS)
            output = (child.stdout() + child.stderr()).decode("utf-8", "replace")
        early = re.search(r"^Early data was (.*)$", output, re.MULTILINE)
        return Client(
            re.findall(r"^(New|Reused), TLS", output, re.MULTILINE), early[1] if early else ""
        )

    return run


def may_send_early(path: Path, limit_bytes: int) -> None:
    """Rewrite a session of s_client as if its server had allowed so much early data."""
    body = re.sub(rb"-----[^-]+-----", b"", path.read_bytes())
    _tag, content, _end = read_element(base64.b64decode(body), 0)
    fields: list[tuple[int, bytes]] = []
    position = 0
    while position < len(content):
        tag, value, position = read_element(content, position)
        fields.append((tag, value))
    tag_of_max_early_data = 0xA0 | 15  # ssl_asn1.c
    allowed = element(tag_of_max_early_data, element(2, limit_bytes.to_bytes(2, "big")))
    encoded = b""
    for tag, value in fields:
        if allowed and tag > tag_of_max_early_data:
            encoded, allowed = encoded + allowed, b""
        if tag != tag_of_max_early_data:
            encoded += element(tag, value)
    armoured = base64.encodebytes(element(0x30, encoded + allowed))
    name = b"SSL SESSION PARAMETERS-----\n"
    path.write_bytes(b"-----BEGIN " + name + armoured + b"-----END " + name)


def read_element(data: bytes, position: int) -> tuple[int, bytes, int]:
    length, start = data[position + 1], position + 2
    if length & 0x80:
        octets = data[start : start + (length & 0x7F)]
        start, length = start + len(octets), int.from_bytes(octets, "big")
    return data[position], data[start : start + length], start + length


def element(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def proofs(server: Server) -> list[transport.NegotiatedSession]:
    assert not [outcome for outcome in server.outcomes if isinstance(outcome, OSError)]
    return [one for one in server.outcomes if isinstance(one, transport.NegotiatedSession)]


def test_a_session_resumes_where_the_policy_says_so(
    s_client: Callable[..., Client], authority: Authority, session: Path
) -> None:
    with serving(authority.ec, RESUMING) as server:
        assert s_client(server.address, "-sess_out", session).sessions == ["New"]
        assert s_client(server.address, "-sess_in", session).sessions == ["Reused"]
        assert [proof.resumed for proof in proofs(server)] == [False, True]
        assert {proof.group for proof in proofs(server)} == {"x25519"}


OFF_CASES = [
    pytest.param(policy.narrowed(versions=[version]), id=f"{policy.name} {version}")
    for policy in map(transport.get_policy, transport.policy_names())
    if policy.resumption is Resumption.OFF
    for version in policy.versions
]


@pytest.mark.parametrize("policy", OFF_CASES)
def test_nothing_resumes_under_any_other_policy(
    policy: transport.SecurityPolicy,
    s_client: Callable[..., Client],
    authority: Authority,
    session: Path,
    require_program: Callable[[str], Program],
) -> None:
    program = require_program("openssl")
    if not any(supports_group(program, group) for group in policy.groups):
        pytest.skip(f"unsupported: openssl has none of {policy.groups}")
    with serving(authority.ec, policy) as server:
        first = s_client(server.address, "-sess_out", session)
        assert first.sessions == ["New"]
        # On TLS 1.2 there is not even an identifier to offer it by.
        assert session.exists() == (policy.versions == (ProtocolVersion.TLS_1_3,))
        for _ in range(2 if session.exists() else 0):
            assert s_client(server.address, "-sess_in", session).sessions == ["New"]
        assert not any(proof.resumed for proof in proofs(server))


@pytest.mark.parametrize("version", ["TLS 1.2", "TLS 1.3"])
def test_reconnecting_with_the_session_just_had_resumes_nothing_by_default(
    version: str, s_client: Callable[..., Client], authority: Authority
) -> None:
    policy = transport.DEFAULT_POLICY.narrowed(versions=[version])
    with serving(authority.ec, policy) as server:
        done = s_client(server.address, "-reconnect")
        assert set(done.sessions) == {"New"}
        assert len(done.sessions) == 6


def test_early_data_is_never_taken(
    s_client: Callable[..., Client], authority: Authority, session: Path, tmp_path: Path
) -> None:
    early = tmp_path / "early"
    early.write_bytes(EARLY)
    with serving(authority.ec, RESUMING) as server:
        s_client(server.address, "-sess_out", session)
        # Our tickets allow none, so a client that keeps to that sends none.
        assert s_client(server.address, "-sess_in", session, "-early_data", early) == Client(
            ["Reused"], "not sent"
        )
        may_send_early(session, 16384)
        done = s_client(server.address, "-sess_in", session, "-early_data", early)
        assert done == Client(["Reused"], "rejected")
        assert [proof.resumed for proof in proofs(server)] == [False, True, True]
        assert bytes(server.received) == LINE * 3  # and the connection goes on


def test_the_same_client_does_send_early_data_to_a_server_that_takes_it(
    s_client: Callable[..., Client],
    authority: Authority,
    session: Path,
    tmp_path: Path,
    require_program: Callable[[str], Program],
) -> None:
    early = tmp_path / "early"
    early.write_bytes(EARLY)
    files = authority.ec
    with ChildProcess(
        require_program("openssl").path,
        [
            *("s_server", "-accept", "127.0.0.1:0", "-cert", str(files.certificate_chain)),
            *("-cert_chain", str(files.certificate_chain), "-key", str(files.private_key)),
            *("-tls1_3", "-early_data"),
        ],
        stdin="pipe",  # whose end would be the server's
    ) as child:
        address = ("127.0.0.1", wait_for_port(child, timeout_seconds=DEADLINE_SECONDS))
        # s_server keeps its tickets back until it has something to say, such as its goodbye.
        s_client(address, "-sess_out", session, until=b"Early data was not sent")
        done = s_client(
            address, "-sess_in", session, "-early_data", early, until=b"Early data was accepted"
        )
        assert done == Client(["Reused"], "accepted")


def test_the_server_resumes_nothing_older_than_the_policy_says(
    s_client: Callable[..., Client], authority: Authority, session: Path
) -> None:
    brief = dataclasses.replace(RESUMING, session_lifetime_seconds=1)
    with serving(authority.ec, brief) as server:
        begun = time.monotonic()
        s_client(server.address, "-sess_out", session)
        at_once = s_client(server.address, "-sess_in", session)
        in_time = time.monotonic() - begun < 1.0
        # The client reckons in whole seconds and a second in our favour, so it offers it still.
        time.sleep(1.2)
        assert s_client(server.address, "-sess_in", session).sessions == ["New"]
        assert at_once.sessions == ["Reused"] or not in_time


def test_gnutls_resumes_and_does_not(
    require_program: Callable[[str], Program], authority: Authority
) -> None:
    # Of the same package as gnutls-serv, which is the one that is registered.
    program = require_program("gnutls-serv").path.with_name("gnutls-cli")

    def resumes(policy: transport.SecurityPolicy) -> bool:
        with serving(authority.ec, policy) as server:
            host, port = server.address
            done = run_to_completion(
                program,
                [
                    *("--resume", "--x509cafile", str(authority.ca_file)),
                    *("--sni-hostname", "localhost", "--verify-hostname", "localhost"),
                    *("--port", str(port), host),
                ],
                timeout_seconds=DEADLINE_SECONDS,
            )
            said = b"This is a resumed session" in done.stdout
            sessions = [one for one in server.outcomes if not isinstance(one, OSError)]
            assert len(sessions) == 2
            assert [one.resumed for one in sessions] == [False, said]
        return said

    assert resumes(RESUMING)
    assert not resumes(transport.get_policy("2026-11-tls13"))
    assert not resumes(transport.DEFAULT_POLICY.narrowed(versions=[ProtocolVersion.TLS_1_2]))

"""Endpoints with a weakness, a stage that does not do what it should, servers with a seeded fault.

Each `Mutant` names the place it changes, the change, and the sentence that must come of it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from broken_attackers import NOBODY_EXPECTED, OWN_SECRETS, always
from mutation import Mutant

from interop.capture.recorder import RecordingRelay
from interop.census.conditions import Batch, Condition
from interop.identity import SERVER_NAME
from interop.peers.faulty import Fault, FaultyRecipe
from interop.proof.application import request_bytes
from interop.proof.scenarios import Scenario
from interop.replay.controls import RecordStream, unprotected_server
from transport import TLSSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def ours_is(kind: Any) -> Callable[[Any], Any]:
    """Let a weak server pass for one of ours, in the session that is named after ECDHE."""

    def change(original: Any) -> Any:
        def record(self: Any, *rest: Any) -> Any:
            self._servers["broken"] = replace(self._servers[kind], title="pfs (blocking)")
            weak = Scenario("tls12-ecdhe", kind, "broken", "1.2")  # type: ignore[arg-type]
            self._scenarios = [weak if s.name == weak.name else s for s in self._scenarios]
            return original(self, *rest)

        return record

    return change


def of_the_session_before(original: Any) -> Any:
    """Log the secrets of the session before instead of this one's."""
    kept: list[bytes] = [b""]

    def keep(self: Any, name: str, *rest: Any) -> None:
        original(self, name, *rest)
        path = self._directory / f"stolen/{name}.keylog"
        kept.append(path.read_bytes())
        path.write_bytes(kept[-2])

    return keep


def of_all_sessions(original: Any) -> Any:
    """Log the secrets of all of a server's sessions with each."""
    return lambda self, name, server, _known: original(self, name, server, 0)


def in_plain_records(original: Any) -> Any:
    """Let both ends of a session leave out TLS, all but its framing."""

    def record(self: Any, scenario: Any, **named: Any) -> Any:
        if scenario.name != "tls13-x25519":
            return original(self, scenario, **named)
        with (
            unprotected_server() as server,
            RecordingRelay(server.address, named["capture"]) as relay,
            socket.create_connection(relay.address, 20) as connection,
        ):
            stream = RecordStream(connection)
            stream.sendall(request_bytes(self._payload, host=SERVER_NAME))
            connection.shutdown(socket.SHUT_WR)
            stream.recv(1000)
        return {}

    return record


def plain_after_the_handshake(original: Any) -> Any:
    """Send the request in the clear, in records that look as if they were protected."""

    def send(connection: Any, payload: bytes, *, host: str) -> None:
        # The session that gets a ticket is spared, for without one the run would end.
        if not isinstance(connection, TLSSocket) or connection.negotiated.group != "x25519":
            original(connection, payload, host=host)
            return
        with (
            suppress(OSError),  # the server does not like it
            socket.socket(fileno=os.dup(connection.fileno())) as bare,
        ):
            RecordStream(bare).sendall(request_bytes(payload, host=host))
            bare.shutdown(socket.SHUT_WR)
            while bare.recv(1000):
                pass

    return send


def checks_nothing(_original: Any) -> Any:
    """Hand a connection to the application before its handshake."""
    return lambda self, connection: self.application.serve(connection)


def sends_nothing(original: Any) -> Any:
    """Record a connection on which nothing is replayed, in one manner of all."""

    def replay(flight: bytes, *, manner: str, server_address: Any, capture: Path) -> None:
        if manner != "paced":
            original(flight, manner=manner, server_address=server_address, capture=capture)
            return
        with RecordingRelay(server_address, capture) as relay:
            socket.create_connection(relay.address, 20).close()

    return replay


def with_fault(fault: Fault) -> Callable[[Any], Any]:
    """Take the census of a server with a seeded fault (`interop.peers.faulty`)."""

    def change(original: Any) -> Any:
        def take(handshakes: int, recipe: Any, sink: Any, *, progress: Any) -> Any:
            faulty = FaultyRecipe(
                recipe.certificates, recipe.private_key, recipe.server_name, fault
            )
            condition = Condition.ONE_CONTEXT
            if fault is Fault.CLONED_GENERATOR:
                condition = Condition.FORKED
            batches = [Batch(condition, 0, handshakes)]
            return original(handshakes, faulty, sink, workers=1, batches=batches, progress=progress)

        return take

    return change


STAGE = "interop.proof.stage:Stage"
CENSUS = "interop.proof.experiment:take_census"
ENDPOINTS = (
    Mutant("static RSA under another name", f"{STAGE}.record", ours_is("static-rsa"),
        "tls12-ecdhe: a server of ours without forward secrecy (TLS_RSA_WITH_AES_128_GCM_SHA256)"),
    Mutant("a ticket on TLS 1.2", f"{STAGE}.record", ours_is("tickets"),
        "tls12-ecdhe: a server of ours without forward secrecy (TLS_ECDHE"),
    Mutant("a key log of another session", f"{STAGE}._keep_secrets", of_the_session_before,
        OWN_SECRETS),
    Mutant("a key log of all sessions", f"{STAGE}._keep_secrets", of_all_sessions,
        f"tls12-ecdhe with session-secrets:tls13-x25519 stolen: {NOBODY_EXPECTED}"),
    Mutant("no encryption after the handshake", "interop.proof.recording:send_payload",
        plain_after_the_handshake, OWN_SECRETS),
    Mutant("no TLS at all", "interop.proof.recording:Recorder.record", in_plain_records,
        "TLS sessions where one was recorded"),
    Mutant("a client that sends nothing", "interop.proof.recording:send_payload",
        always(None), "tls12-ecdhe: the capture holds no encrypted application data"),
    Mutant("an application that runs before the check",
        "interop.proof.endpoints:BlockingEndpoint._serve_checked", checks_nothing,
        "replays executed"),
    Mutant("an application that does not count",
        "interop.http_exchange:HTTPApplication.connections", always(0),
        "the replay control, a genuine session on the same server, did not execute"),
    Mutant("replays that send nothing", "interop.proof.stage:replay_flight", sends_nothing,
        "tls13-x25519: 1 of 4 replays were not sent"),
)  # fmt: skip
FAULTS = (
    Mutant("a reused ephemeral key", CENSUS, with_fault(Fault.REUSED_KEY),
        "census: 59 of 60 server_key_share.x25519 repeated"),
    Mutant("a cloned generator", CENSUS, with_fault(Fault.CLONED_GENERATOR),
        "server_key_share.x25519 repeated"),
    Mutant("a random of few bits", CENSUS, with_fault(Fault.REPEATED_RANDOM),
        "server_random repeated"),
    Mutant("a fixed exporter", CENSUS, with_fault(Fault.FIXED_EXPORTER),
        "census: 59 of 60 exporter repeated"),
)  # fmt: skip

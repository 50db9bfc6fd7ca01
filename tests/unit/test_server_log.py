"""The log: one JSON object a line whatever a peer sends, no secrets, and one line for a flood."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

from transport.credentials import ServedCredential
from transport.errors import AlertDescription, APIMisuse, PeerMisbehaved
from transport.server import ServerSettings
from transport.server_events import NoMeter, ServerEvents, failure_facts, peer_text
from transport.server_floods import FloodGuard
from transport.server_limits import Refusal
from transport.server_log import JSONLinesLog

if TYPE_CHECKING:
    from pathlib import Path


class Recorded:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def write(self, event: str, /, **fields: object) -> None:
        self.lines.append((event, fields))


def test_lines_are_json_whatever_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    log = JSONLinesLog(descriptor).with_common(worker=3)
    log.write("odd", server_name='a\nb"\x1b[31m\u2028é', missing=None, long="x" * 10_000)
    log.write("huge", many=["y" * 400] * 100)
    os.close(descriptor)
    log.write("lost")
    content = path.read_bytes()
    assert content.isascii()
    first, second = (json.loads(line) for line in content.splitlines())
    assert first["server_name"] == 'a\nb"\x1b[31m\u2028é'
    assert first["worker"] == 3
    assert "missing" not in first
    assert len(first["long"]) < 600
    assert second["truncated"]
    assert all(len(line) < 4096 for line in content.splitlines())


def test_lost_lines_are_counted(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    log = JSONLinesLog(writer)
    filled = 0
    while log._lost < 3:
        log.write("fill", text="z" * 400)
        filled += 1
    while len(os.read(reader, 1 << 20)) == 1 << 20:
        pass
    log.write("again")
    assert json.loads(os.read(reader, 4096))["lost_lines"] == 3
    os.close(reader)
    os.close(writer)
    del tmp_path, filled


def test_a_flood_of_refusals_is_one_line_with_a_count() -> None:
    log = Recorded()
    events = ServerEvents(log, NoMeter())
    for port in range(1000):
        events.refused(("192.0.2.1", port), Refusal.TOO_MANY_CONNECTIONS)
    events.refused(("192.0.2.1", 1), Refusal.TOO_MANY_HANDSHAKES)
    assert [fields["reason"] for _event, fields in log.lines] == [
        "too many connections",
        "too many handshakes a second",
    ]
    events.flush()
    assert log.lines[2:] == [
        ("refused", {"reason": "too many connections", "more_like_it": 999}),
    ]


class Failures(NoMeter):
    """Counts handshakes that failed."""

    count = 0

    def handshake_failed(self, reason: str) -> None:
        assert reason
        self.count += 1


def test_a_flood_of_failures_is_ten_lines_and_a_count() -> None:
    log, meter = Recorded(), Failures()
    events = ServerEvents(log, meter)
    kinds = (PeerMisbehaved("it broke", advice="fix it"), ConnectionResetError(104, "reset"))
    for port in range(1000):
        for error in kinds:
            events.handshake_failed(("192.0.2.1", port), error, 0.1)
    assert meter.count == 2000
    assert len(log.lines) == 20
    assert all("peer" in fields for _event, fields in log.lines)
    events.flush()
    assert log.lines[20:] == [
        ("handshake_failed", {"kind": kind, "more_like_it": 990})
        for kind in ("PeerMisbehaved", "ConnectionResetError")
    ]
    events.handshake_failed(("192.0.2.1", 1), kinds[0], 0.1)
    assert len(log.lines) == 23
    assert "peer" in log.lines[-1][1]


def test_a_flood_of_failed_and_cut_connections_is_a_hundred_lines_and_a_count() -> None:
    log = Recorded()
    events = ServerEvents(log, NoMeter())
    for port in range(150):
        address = ("192.0.2.1", port)
        events.connection_failed(address, PeerMisbehaved("it broke", advice="fix it"))
        events.connection_failed(address, ValueError("a handler's own"))
        events.connection_cut(address, "idle for too long")
    assert len(log.lines) == 300
    events.flush()
    assert log.lines[300:] == [
        ("connection_failed", {"kind": "PeerMisbehaved", "more_like_it": 50}),
        ("handler_failed", {"kind": "ValueError", "more_like_it": 50}),
        ("cut", {"reason": "idle for too long", "more_like_it": 50}),
    ]


def test_what_was_left_out_is_said_without_another_event() -> None:
    written = threading.Event()

    class Noted(Recorded):
        def write(self, event: str, /, **fields: object) -> None:
            super().write(event, **fields)
            if "more_like_it" in fields:
                written.set()

    log = Noted()
    guard = FloodGuard(log, window_seconds=0.05)
    assert [guard.admits("cut", "reason", "idle", most=1) for _ in range(5)] == [True] + [False] * 4
    assert written.wait(20)
    assert log.lines == [("cut", {"reason": "idle", "more_like_it": 4})]
    assert guard.admits("cut", "reason", "idle", most=1)


def test_errors_of_our_own_are_told_whole_and_those_of_others_without_their_text() -> None:
    ours = PeerMisbehaved("it broke", advice="fix it", alert_sent=AlertDescription.decode_error)
    assert failure_facts(ours) == {
        "kind": "PeerMisbehaved",
        "reason": "it broke",
        "advice": "fix it",
        "alert_sent": "decode_error",
        "alert_received": None,
    }
    assert failure_facts(FileNotFoundError(2, "No such file", "a.pem"))["reason"] == (
        "a.pem: No such file"
    )
    with pytest.raises(ValueError, match="secret") as caught:
        leak()
    facts = failure_facts(caught.value)
    assert "secret" not in str(facts)
    assert "leak at line" in str(facts["reason"])


def leak() -> None:
    raise ValueError("the secret")


def test_peers_are_written_as_addresses() -> None:
    assert peer_text(("192.0.2.1", 443)) == "192.0.2.1:443"
    assert peer_text(("::1", 443, 0, 0)) == "[::1]:443"
    assert peer_text("") == ""


async def nothing(_stream: object, _client: object) -> None: ...


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"credentials": ()}, "needs a credential"),
        ({"workers": 0}, "serve nobody"),
        ({"metrics_address": ("0.0.0.0", 9000)}, "open to the network"),  # noqa: S104 - refused
        ({"metrics_address": ("example.org", 9000)}, "open to the network"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], words: str) -> None:
    options: dict[str, object] = {
        "handler": nothing,
        "credentials": (ServedCredential(lambda: None),),  # type: ignore[arg-type,return-value]
    }
    ServerSettings(**options)  # type: ignore[arg-type]
    with pytest.raises(APIMisuse, match=words):
        ServerSettings(**(options | changes))  # type: ignore[arg-type]

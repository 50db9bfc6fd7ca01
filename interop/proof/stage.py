"""The live part of the experiment: servers up, traffic recorded and replayed, secrets kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interop.errors import PeerUnavailable
from interop.proof import layout
from interop.proof.compromise import observe_session
from interop.proof.directory import write_secret
from interop.proof.model import Replay, Session, Skipped
from interop.proof.recording import Recorder, SessionRefused, ephemeral_key_files
from interop.proof.replay import MANNERS, client_flight, replay_flight, was_sent
from interop.proof.scenarios import OUR_SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from interop.progress import Progress
    from interop.proof.scenarios import Scenario, ServerKind
    from interop.proof.servers import Server

__all__ = ["Stage"]

_EXPORTED = "told-x25519"  # its own ephemeral key shows that the exporter secret is its


class Stage:
    """Records `scenarios` with `servers`, and leaves captures and stolen files in `directory`.

    `recorder` makes a new recorder each time it is called, whose clients remember nothing.
    """

    def __init__(
        self,
        directory: Path,
        scenarios: Sequence[Scenario],
        servers: Mapping[ServerKind, Server],
        recorder: Callable[[], Recorder],
    ) -> None:
        self._directory = directory
        self._scenarios = scenarios
        self._servers = servers
        self._recorder = recorder

    def record(self, progress: Progress) -> tuple[tuple[Session, ...], tuple[Skipped, ...]]:
        """Record each scenario; what needs a program that is not here is skipped by name."""
        sessions: list[Session] = []
        skipped: list[Skipped] = []
        progress.stage("recording sessions", total=len(self._scenarios))
        recorder = self._recorder()
        for number, scenario in enumerate(self._scenarios, start=1):
            try:
                files = self._record(recorder, scenario, scenario.name)
            except PeerUnavailable as error:
                (self._directory / layout.capture_of(scenario.name)).unlink(missing_ok=True)
                refused = isinstance(error, SessionRefused)
                skipped.append(Skipped(name=scenario.name, reason=str(error), refused=refused))
            else:
                self._keep(files | self._told_by_server(scenario))
                sessions.append(
                    observe_session(
                        self._directory,
                        scenario.name,
                        client=scenario.client,
                        server=self._servers[scenario.server].title,
                        ephemeral_key=scenario.ephemeral_key,
                        resumes=scenario.resumes,
                        ticket_key=scenario.ticket_key,
                        client_key=scenario.client_key,
                        target=scenario.server == "target",
                    )
                )
            progress.advance(number)
        return tuple(sessions), tuple(skipped)

    def replay(
        self, sessions: Sequence[Session], progress: Progress
    ) -> tuple[tuple[Replay, ...], Replay]:
        """Replay the client flight of each session with a server of ours; see that all live."""
        kinds = {scenario.name: scenario.server for scenario in self._scenarios}
        flights = [
            session
            for session in sessions
            if kinds[session.name] in OUR_SERVERS and not session.ephemeral_key
        ]
        progress.stage("replaying client flights", total=len(flights))
        replays: list[Replay] = []
        for number, session in enumerate(flights, start=1):
            replays.append(self._replay_session(session, self._servers[kinds[session.name]]))
            progress.advance(number)
        return tuple(replays), self._replay_control()

    def _record(self, recorder: Recorder, scenario: Scenario, name: str) -> dict[str, bytes]:
        """Record one session under `name`, with its secrets; return what its client told."""
        server = self._servers[scenario.server]
        known = len(server.key_log.getvalue())
        capture = self._directory / layout.capture_of(name)
        files = recorder.record(scenario, server_address=server.address, capture=capture)
        self._keep_secrets(name, server, known)
        return files

    def _told_by_server(self, scenario: Scenario) -> dict[str, bytes]:
        telltale = self._servers[scenario.server].telltale
        files: dict[str, bytes] = {}
        if telltale is not None and scenario.ephemeral_key:
            files |= ephemeral_key_files(scenario.ephemeral_key, (telltale.ephemeral_key,))
        if telltale is not None and scenario.ticket_key:
            files[layout.ticket_key_of(scenario.ticket_key)] = telltale.ticket_key
        if scenario.name == _EXPORTED:
            lines = (self._directory / layout.key_log_of(scenario.name)).read_bytes().splitlines()
            exporter = [line + b"\n" for line in lines if line.startswith(b"EXPORTER_SECRET ")]
            files[layout.exporter_secret_of(scenario.name)] = b"".join(exporter)
        return files

    def _replay_session(self, session: Session, server: Server) -> Replay:
        flight = client_flight(self._directory / session.capture)
        executions = server.application.connections
        captures: list[str] = []
        attempts = 0
        for attempt, manner in enumerate(MANNERS, start=1):
            name = f"replay-{session.name}-{attempt}"
            capture = self._directory / layout.capture_of(name)
            known = len(server.key_log.getvalue())
            replay_flight(flight, manner=manner, server_address=server.address, capture=capture)
            self._keep_secrets(name, server, known)
            attempts += was_sent(flight, manner=manner, capture=capture)
            captures.append(name)
        return Replay(
            session=session.name,
            attempts=attempts,
            executed=server.application.connections - executions,
            captures=tuple(captures),
        )

    def _replay_control(self) -> Replay:
        """Send a genuine session to each server that was replayed at: it must execute."""
        recorder = self._recorder()
        captures: list[str] = []
        executed = 0
        for kind in OUR_SERVERS:
            scenario = next(
                each
                for each in self._scenarios
                if each.server == kind and each.client == "pfs" and each.version == "1.3"
            )
            application = self._servers[kind].application
            executions = application.connections
            name = f"genuine-{scenario.name}"
            self._record(recorder, scenario, name)
            executed += application.connections - executions
            captures.append(name)
        return Replay(
            session="genuine",
            attempts=len(captures),
            executed=executed,
            captures=tuple(captures),
        )

    def _keep(self, files: Mapping[str, bytes]) -> None:
        """Write what is stolen, once: two sessions may have used the same."""
        for path, content in files.items():
            if not (self._directory / path).exists():
                write_secret(self._directory / path, content)

    def _keep_secrets(self, name: str, server: Server, known_bytes: int) -> None:
        """Write what the server's key log gained since `known_bytes`: one session's secrets.

        A server logs a session's secrets before it can answer, so all of them are there once the
        client has its answer.
        """
        lines = server.key_log.getvalue()[known_bytes:]
        write_secret(self._directory / layout.key_log_of(name), lines)

"""`pfs prove`: the whole experiment, from fresh keys to signed evidence.

The order matters. Servers run while sessions are recorded and flights replayed. Then the thief
comes: the key store is copied as it stands, with its KEK, beside the servers' keys; each session's
secrets were taken as it ended. Only then is the key made that signs the manifest, in the same
store, so that nothing in the evidence can sign evidence. The store itself lives in a private
temporary folder and is gone when the run ends.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certs import profiles
from certs.authority import CertificateAuthority
from certs.key_types import KeyType
from certs.keystore.kek import create_kek
from certs.keystore.store import KeyStore
from interop.census.ends import TransportRecipe
from interop.census.tallies import MOST_HANDSHAKES_IN_MEMORY, MemoryTallies
from interop.census.workers import take_census
from interop.errors import InputError, InteropError, PeerUnavailable
from interop.identity import SERVER_NAME
from interop.peers.weak import WeakServer
from interop.proof import layout, second_opinion
from interop.proof.application import Application
from interop.proof.circumstances import not_tested
from interop.proof.compromise import evaluate, observe_session
from interop.proof.directory import whole_directory, write_secret
from interop.proof.endpoints import AsyncioEndpoint, BlockingEndpoint
from interop.proof.machine import describe_machine, library_versions
from interop.proof.manifest import is_evidence, sign_manifest
from interop.proof.model import Replay, Report, Session, Skipped, Tally, failures, verdict_of
from interop.proof.opinions import contradictions
from interop.proof.recording import SCENARIOS, Scenario, ServerKind, record_session
from interop.proof.replay import MANNERS, client_flight, replay_flight, was_sent
from interop.proof.report.html import render_html
from interop.wire.groups import FiniteFieldPrivateKey
from transport import KeyLogBuffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.credential import Credential, TrustAnchors
    from interop.wire.groups import EphemeralPrivateKey

__all__ = ["DEFAULT_PAYLOAD_BYTES", "Progress", "prove"]

DEFAULT_PAYLOAD_BYTES = 64 * 1024


class Progress(Protocol):
    """Told what is being done. `stage` begins something, `advance` says how much of it is done."""

    def stage(self, description: str, *, total: int | None = None) -> None:
        """Begin a stage, of `total` steps where that is known."""

    def advance(self, done: int) -> None:
        """Say that `done` steps of the stage are done."""


def prove(
    out: Path, *, payload: bytes, handshakes: int, progress: Progress, ask_tshark: bool = True
) -> tuple[Report, str]:
    """Run the experiment and leave its evidence in `out`, with a second opinion if asked for.

    Returns the report and the fingerprint of the key that signed the manifest. Raises `InputError`
    where `out` cannot be written; then, and on any other exception, `out` is as it was before.
    """
    started = datetime.now(UTC)
    with (
        whole_directory(out, may_replace=is_evidence) as directory,
        tempfile.TemporaryDirectory(prefix="pfs-prove-") as private,
    ):
        for folder in (layout.CAPTURES, layout.STOLEN, layout.CENSUS):
            (directory / folder).mkdir()
        kek = Path(private, "kek")
        create_kek(f"file:{kek}").close()
        with KeyStore.create(Path(private, "store.sqlite3"), f"file:{kek}") as store:
            progress.stage("issuing certificates")
            identity = _issue(store)
            with ExitStack() as stack:
                stage = _Stage(directory, payload, identity, _start_servers(stack, identity))
                sessions, skipped = stage.record(SCENARIOS, progress, Path(private))
                replays, replay_control = stage.replay(sessions, progress)
            _steal(directory, store, kek, identity)
            census = _take_census(directory, handshakes, identity, progress)
            progress.stage("attacking the recordings")
            report = _judge(
                directory,
                progress,
                started=started,
                ask_tshark=ask_tshark,
                payload=payload,
                sessions=sessions,
                skipped=skipped,
                census=census,
                replays=replays,
                replay_control=replay_control,
            )
            (directory / layout.REPORT_JSON).write_bytes(report.to_json())
            (directory / layout.REPORT_HTML).write_text(render_html(report), encoding="utf-8")
            fingerprint = _sign(directory, store, report)
    return report, fingerprint


@dataclass(frozen=True)
class _Identity:
    """What was issued for a run: the servers' credentials, and the anchors that clients trust."""

    server: Credential
    control: Credential
    trust_anchors: TrustAnchors


@dataclass(frozen=True)
class _Server:
    """A live server, with all that the experiment reads off it."""

    title: str
    address: tuple[str, int]
    application: Application
    key_log: KeyLogBuffer


def _issue(store: KeyStore) -> _Identity:
    now = datetime.now(UTC)
    root = CertificateAuthority.create_root(store, "root", "pfs experiment root", now)
    issuing = root.issue_subordinate("issuing", "pfs experiment issuing CA", now)
    names = (SERVER_NAME,)
    return _Identity(
        server=issuing.issue_server(
            key_name="server", key_type=KeyType.EC_P256, dns_names=names, now=now
        ),
        control=issuing.issue_server(
            key_name="control",
            key_type=KeyType.RSA_2048,
            dns_names=names,
            now=now,
            profile=profiles.TLS_SERVER_KEY_TRANSPORT,
        ),
        trust_anchors=root.trust_anchors,
    )


def _start_servers(stack: ExitStack, identity: _Identity) -> dict[ServerKind, _Server]:
    blocking = stack.enter_context(BlockingEndpoint(identity.server, Application()))
    asynchronous = stack.enter_context(AsyncioEndpoint(identity.server, Application()))
    application, key_log = Application(), KeyLogBuffer()
    weak = stack.enter_context(
        WeakServer(
            identity.control.certificates_pem(),
            identity.control.private_key_pem(),
            application.serve,
            key_log=key_log.write_line,
        )
    )
    return {
        "blocking": _Server(
            "pfs (blocking)", blocking.address, blocking.application, blocking.key_log
        ),
        "asyncio": _Server(
            "pfs (asyncio)", asynchronous.address, asynchronous.application, asynchronous.key_log
        ),
        "weak": _Server("weak control", weak.address, application, key_log),
    }


class _Stage:
    """The live part of the experiment: servers up, traffic recorded."""

    def __init__(
        self,
        directory: Path,
        payload: bytes,
        identity: _Identity,
        servers: dict[ServerKind, _Server],
    ) -> None:
        self._directory = directory
        self._payload = payload
        self._identity = identity
        self._servers = servers
        self._told: dict[str, tuple[EphemeralPrivateKey, ...]] = {}

    def record(
        self, scenarios: Sequence[Scenario], progress: Progress, private: Path
    ) -> tuple[tuple[Session, ...], tuple[Skipped, ...]]:
        """Record each scenario; what needs a program that is not here is skipped by name."""
        anchors_file = private / "anchors.pem"
        anchors_file.write_bytes(self._identity.trust_anchors.pem())
        sessions: list[Session] = []
        skipped: list[Skipped] = []
        progress.stage("recording sessions", total=len(scenarios))
        for number, scenario in enumerate(scenarios, start=1):
            server = self._servers[scenario.server]
            capture = self._directory / layout.capture_of(scenario.name)
            known = len(server.key_log.getvalue())
            try:
                told = record_session(
                    scenario,
                    server_address=server.address,
                    capture=capture,
                    payload=self._payload,
                    trust_anchors=self._identity.trust_anchors,
                    trust_anchors_file=anchors_file,
                    ephemeral_keys=self._told.get(scenario.ephemeral_key, ()),
                )
            except PeerUnavailable as error:
                capture.unlink(missing_ok=True)
                skipped.append(Skipped(name=scenario.name, reason=str(error)))
            else:
                self._keep_secrets(scenario.name, server, known)
                self._keep_ephemeral_keys(scenario.ephemeral_key, told)
                sessions.append(
                    observe_session(
                        self._directory,
                        scenario.name,
                        client=scenario.client,
                        server=server.title,
                        ephemeral_key=scenario.ephemeral_key,
                    )
                )
            progress.advance(number)
        return tuple(sessions), tuple(skipped)

    def replay(
        self, sessions: Sequence[Session], progress: Progress
    ) -> tuple[tuple[Replay, ...], Replay]:
        """Replay each forward-secret session's client flight; then see that all servers live."""
        kinds = {scenario.name: scenario.server for scenario in SCENARIOS}
        flights = [s for s in sessions if s.forward_secret and not s.ephemeral_key]
        progress.stage("replaying client flights", total=len(flights))
        replays: list[Replay] = []
        for number, session in enumerate(flights, start=1):
            replays.append(self._replay_session(session, self._servers[kinds[session.name]]))
            progress.advance(number)
        return tuple(replays), self._replay_control()

    def _replay_session(self, session: Session, server: _Server) -> Replay:
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
        live = [
            scenario
            for scenario in SCENARIOS
            if scenario.client == "pfs" and scenario.name != "tls12-ecdhe"
        ]
        captures: list[str] = []
        executed = 0
        for scenario in live:
            server = self._servers[scenario.server]
            executions, known = server.application.connections, len(server.key_log.getvalue())
            name = f"genuine-{scenario.name}"
            record_session(
                scenario,
                server_address=server.address,
                capture=self._directory / layout.capture_of(name),
                payload=self._payload,
                trust_anchors=self._identity.trust_anchors,
                trust_anchors_file=Path(),
            )
            self._keep_secrets(name, server, known)
            executed += server.application.connections - executions
            captures.append(name)
        return Replay(
            session="genuine",
            attempts=len(captures),
            executed=executed,
            captures=tuple(captures),
        )

    def _keep_ephemeral_keys(self, name: str, keys: tuple[EphemeralPrivateKey, ...]) -> None:
        """Write the private keys that a client told, each half of a hybrid to a file of its own."""
        if not keys or name in self._told:
            return
        self._told[name] = keys
        for key in keys:
            if isinstance(key, FiniteFieldPrivateKey):
                raise InteropError("a client told a key of a kind that is not written down")
            is_kem = isinstance(key, mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey)
            path = layout.ml_kem_key_of(name) if is_kem else layout.classical_key_of(name)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_secret(self._directory / path, pem)

    def _keep_secrets(self, name: str, server: _Server, known_bytes: int) -> None:
        """Write what the server's key log gained since `known_bytes`: one session's secrets.

        A server logs a session's secrets before it can answer, so all of them are there once the
        client has its answer.
        """
        lines = server.key_log.getvalue()[known_bytes:]
        write_secret(self._directory / layout.key_log_of(name), lines)


def _steal(directory: Path, store: KeyStore, kek: Path, identity: _Identity) -> None:
    # The thief gets what a store in use has: a key with an earlier term, a deleted one, its log.
    store.create_key("rotated", KeyType.EC_P256)
    store.rotate("rotated")
    store.create_key("deleted", KeyType.EC_P256)
    store.delete("deleted")
    # And the key that opens the control is an earlier version of a deleted one: a thief who could
    # not read those would open nothing with the store.
    store.rotate("control")
    store.delete("control")
    store.snapshot(directory / layout.KEY_STORE)
    write_secret(directory / layout.KEK, kek.read_bytes())
    for name, credential in (("server", identity.server), ("control", identity.control)):
        write_secret(directory / layout.server_key_of(name), credential.private_key_pem())


def _take_census(
    directory: Path, handshakes: int, identity: _Identity, progress: Progress
) -> dict[str, int | Tally]:
    if not 1 <= handshakes <= MOST_HANDSHAKES_IN_MEMORY:
        raise InputError(
            f"a census takes 1 to {MOST_HANDSHAKES_IN_MEMORY:,} handshakes, not {handshakes:,}"
        )
    progress.stage("census of session keys", total=handshakes)
    tallies = MemoryTallies()
    recipe = TransportRecipe.of(identity.server, SERVER_NAME)
    take_census(handshakes, recipe, tallies, progress=progress.advance)
    for kind in tallies.kinds:
        (directory / layout.fingerprints_of(kind)).write_bytes(tallies.fingerprints(kind))
    return {"handshakes": handshakes, **tallies.tallies()}


def _judge(
    directory: Path,
    progress: Progress,
    *,
    started: datetime,
    ask_tshark: bool,
    payload: bytes,
    sessions: tuple[Session, ...],
    skipped: tuple[Skipped, ...],
    census: dict[str, int | Tally],
    replays: tuple[Replay, ...],
    replay_control: Replay,
) -> Report:
    sha256 = hashlib.sha256(payload).hexdigest()
    thefts, cells = evaluate(directory, sessions, payload_bytes=len(payload), payload_sha256=sha256)
    if ask_tshark:
        progress.stage("asking for a second opinion")
        opinion = second_opinion.ask(
            directory, sessions, thefts, cells, payload_bytes=len(payload), payload_sha256=sha256
        )
    else:
        opinion = second_opinion.not_run("not wanted in this run")
    handshakes = census.get("handshakes")
    found = (
        *failures(
            sessions=sessions,
            thefts=thefts,
            cells=cells,
            handshakes=handshakes if isinstance(handshakes, int) else 0,
            tallies={kind: tally for kind, tally in census.items() if isinstance(tally, Tally)},
            replays=replays,
            replay_control=replay_control,
        ),
        *contradictions(cells, opinion),
    )
    return Report(
        verdict=verdict_of(found),
        failures=found,
        started=started.isoformat(timespec="seconds"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(),
        versions=library_versions(),
        payload_bytes=len(payload),
        payload_sha256=sha256,
        sessions=sessions,
        skipped=skipped,
        thefts=thefts,
        cells=cells,
        census=census,
        replays=replays,
        replay_control=replay_control,
        second_opinion=opinion,
        not_tested=not_tested(((entry.name, entry.reason) for entry in skipped), opinion),
    )


def _sign(directory: Path, store: KeyStore, report: Report) -> str:
    store.create_key("manifest", KeyType.ED25519)
    key = store.signing_key("manifest")
    if not isinstance(key, Ed25519PrivateKey):
        raise InteropError("the key store returned a manifest key of another type")
    return sign_manifest(directory, key, report)

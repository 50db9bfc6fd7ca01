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
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs import profiles
from certs.authority import CertificateAuthority
from certs.key_types import KeyType
from certs.keystore.kek import create_kek
from certs.keystore.store import KeyStore
from interop.census.conditions import require_handshakes
from interop.census.ends import TransportRecipe
from interop.census.tallies import MOST_HANDSHAKES_IN_MEMORY, MemoryTallies
from interop.census.target import Target, survey
from interop.census.workers import take_census
from interop.errors import InteropError, PeerUnavailable
from interop.identity import SERVER_NAME
from interop.proof import layout, second_opinion
from interop.proof.circumstances import not_tested
from interop.proof.compromise import evaluate
from interop.proof.directory import whole_directory, write_secret
from interop.proof.machine import describe_machine
from interop.proof.manifest import is_evidence, sign_manifest
from interop.proof.model import Replay, Report, Session, Skipped, Tally, failures, verdict_of
from interop.proof.opinions import contradictions
from interop.proof.recording import Recorder
from interop.proof.report.html import render_html
from interop.proof.scenarios import SCENARIOS
from interop.proof.servers import Identity, start_servers
from interop.proof.stage import Stage
from interop.proof.target import OwnServer, record_target, spki_sha256
from interop.versions import library_versions

if TYPE_CHECKING:
    from interop.progress import Progress

__all__ = ["prove"]

_WORKERS_AT_A_TARGET = 4
_MOST_SECONDS_AT_A_TARGET = 600.0


def prove(
    out: Path,
    *,
    payload: bytes,
    handshakes: int,
    progress: Progress,
    ask_tshark: bool = True,
    target: OwnServer | None = None,
) -> tuple[Report, str]:
    """Run the experiment and leave its evidence in `out`, with a second opinion if asked for.

    With `target` it is about somebody's own server too: sessions with it come on top of the others,
    and the census is of it. Raises `PeerUnavailable` where it does not answer.

    Returns the report and the fingerprint of the key that signed the manifest. Raises `InputError`
    where `out` cannot be written; then, and on any other exception, `out` is as it was before.
    """
    started = datetime.now(UTC)
    # Now, and not when all has been recorded.
    require_handshakes(handshakes, most=MOST_HANDSHAKES_IN_MEMORY, at_a_target=target is not None)
    if target is not None:
        spki_sha256(target.private_keys)
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
            theirs: tuple[tuple[Session, ...], tuple[Skipped, ...]] = ((), ())
            if target is not None:
                theirs = record_target(directory, target, payload, Path(private), progress)
            with ExitStack() as stack:
                anchors_file = Path(private, "anchors.pem")
                anchors_file.write_bytes(identity.trust_anchors.pem())
                recorder = partial(
                    Recorder,
                    payload,
                    trust_anchors=identity.trust_anchors,
                    trust_anchors_file=anchors_file,
                    client=identity.client,
                )
                servers = start_servers(stack, identity)
                stage = Stage(directory, SCENARIOS, servers, recorder)
                sessions, skipped = stage.record(progress)
                replays, replay_control = stage.replay(sessions, progress)
            sessions, skipped = sessions + theirs[0], skipped + theirs[1]
            _steal(directory, store, kek, identity)
            census = _take_census(directory, handshakes, target or identity, progress)
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
                target=target,
            )
            (directory / layout.REPORT_JSON).write_bytes(report.to_json())
            (directory / layout.REPORT_HTML).write_text(render_html(report), encoding="utf-8")
            fingerprint = _sign(directory, store, report)
    return report, fingerprint


def _issue(store: KeyStore) -> Identity:
    now = datetime.now(UTC)
    root = CertificateAuthority.create_root(store, "root", "pfs experiment root", now)
    issuing = root.issue_subordinate("issuing", "pfs experiment issuing CA", now)
    names = (SERVER_NAME,)
    return Identity(
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
        client=issuing.issue_client(key_name="client", dns_names=("client.test",), now=now),
        trust_anchors=root.trust_anchors,
    )


def _steal(directory: Path, store: KeyStore, kek: Path, identity: Identity) -> None:
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
    write_secret(directory / layout.client_key_of("client"), identity.client.private_key_pem())


def _take_census(
    directory: Path, handshakes: int, subject: Identity | OwnServer, progress: Progress
) -> dict[str, int | Tally]:
    """Count the values of handshakes in memory with our own endpoints, or with the target."""
    progress.stage("census of session keys", total=handshakes)
    tallies = MemoryTallies()
    if isinstance(subject, OwnServer):
        # One that makes none of these handshakes leaves it empty, and that refutes.
        with suppress(PeerUnavailable):
            survey(
                handshakes,
                Target(subject.address, subject.server_name, subject.trust_anchors),
                tallies,
                workers=_WORKERS_AT_A_TARGET,
                seconds=_MOST_SECONDS_AT_A_TARGET,
                progress=progress.advance,
            )
        handshakes = tallies.handshakes  # as many as it made in time
    else:
        recipe = TransportRecipe.of(subject.server, SERVER_NAME)
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
    target: OwnServer | None = None,
) -> Report:
    sha256 = hashlib.sha256(payload).hexdigest()
    thefts, cells = evaluate(
        directory,
        sessions,
        payload_bytes=len(payload),
        payload_sha256=sha256,
        target_keys=() if target is None else target.private_keys,
    )
    target_name = "" if target is None else target.name
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
            target=target_name,
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
        not_tested=not_tested(
            ((entry.name, entry.reason) for entry in skipped if not entry.refused),
            opinion,
            target_name,
        ),
        target=target_name,
        target_keys_sha256=() if target is None else spki_sha256(target.private_keys),
    )


def _sign(directory: Path, store: KeyStore, report: Report) -> str:
    store.create_key("manifest", KeyType.ED25519)
    key = store.signing_key("manifest")
    if not isinstance(key, Ed25519PrivateKey):
        raise InteropError("the key store returned a manifest key of another type")
    return sign_manifest(directory, key, report)

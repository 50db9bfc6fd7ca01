"""`pfs verify`: check an evidence directory against its manifest, then against itself.

First the manifest: its signature, and every file in the directory against it. Then everything in
the report that can be recomputed is: what each recording shows of its session, every cell of the
matrix, the census from its fingerprints, the replays from their captures, and the verdict from all
of it. Nothing in the report is believed; it is what the recomputed values are compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from certs.errors import CertsError
from interop.census.tallies import MOST_HANDSHAKES_IN_MEMORY
from interop.census.values import FINGERPRINT_BYTES, count_distinct
from interop.errors import InputError, InteropError
from interop.proof import layout
from interop.proof.compromise import attack_recording, evaluate, observe_session, read_key_log
from interop.proof.manifest import Change, check_manifest
from interop.proof.model import Replay, Report, Tally, failures, read_report, verdict_of
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Verification", "verify"]

_MAX_REPORT_BYTES = 64 * 1024 * 1024


class Verification(msgspec.Struct, frozen=True):
    """What came of checking an evidence directory.

    `changes` are files that are not as they were signed; `disagreements`, statements of the report
    that its own recordings do not bear out. `report` is None where it could not be read.
    """

    fingerprint: str
    changes: tuple[Change, ...]
    disagreements: tuple[str, ...]
    report: Report | None

    @property
    def intact(self) -> bool:
        """Whether the evidence is as it was signed, and says what its recordings say."""
        return self.report is not None and not self.changes and not self.disagreements

    @property
    def holds(self) -> bool:
        """Whether the evidence is intact and proves the claim."""
        return self.intact and self.report is not None and self.report.verdict == "proved"


def verify(directory: Path, *, fingerprint: str | None = None) -> Verification:
    """Check `directory`; with `fingerprint`, it must be signed by that key.

    Raises `InputError` where `directory` is no evidence directory at all.
    """
    signer, changes = check_manifest(directory, fingerprint=fingerprint)
    try:
        report = _read(directory)
        disagreements = tuple(_recompute(directory, report))
    except (InteropError, CertsError) as error:
        # Evidence that cannot even be read any more is changed evidence, not bad usage.
        changes.append(Change("evidence", str(error)))
        return Verification(signer, tuple(changes), (), None)
    return Verification(signer, tuple(changes), disagreements, report)


def _read(directory: Path) -> Report:
    path = directory / layout.REPORT_JSON
    try:
        if path.stat().st_size > _MAX_REPORT_BYTES:
            raise InputError(f"{path}: larger than {_MAX_REPORT_BYTES} bytes")
        return read_report(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _recompute(directory: Path, report: Report) -> list[str]:
    """Return a sentence for each statement of the report that recomputing does not yield."""
    sessions = tuple(
        observe_session(directory, session.name, client=session.client, server=session.server)
        for session in report.sessions
    )
    thefts, cells = evaluate(
        directory,
        sessions,
        payload_bytes=report.payload_bytes,
        payload_sha256=report.payload_sha256,
    )
    tallies = _tallies(directory)
    replays = tuple(_recount(directory, replay) for replay in report.replays)
    replay_control = _recount(directory, report.replay_control)
    found = failures(
        sessions=sessions,
        cells=cells,
        tallies=tallies,
        replays=replays,
        replay_control=replay_control,
    )
    compared: list[tuple[str, object, object]] = [
        ("the recorded sessions", report.sessions, sessions),
        ("what was stolen", report.thefts, thefts),
        ("the matrix", report.cells, cells),
        ("the census", report.tallies, tallies),
        ("the replays", report.replays, replays),
        ("the replay control", report.replay_control, replay_control),
        ("the failures", report.failures, found),
        ("the verdict", report.verdict, verdict_of(found)),
    ]
    return [
        f"the report's statement of {what} is not what its recordings yield"
        for what, stated, recomputed in compared
        if stated != recomputed
    ]


def _tallies(directory: Path) -> dict[str, Tally]:
    suffix = layout.fingerprints_of("").removeprefix(f"{layout.CENSUS}/")
    tallies: dict[str, Tally] = {}
    for path in sorted((directory / layout.CENSUS).glob(f"*{suffix}")):
        size = path.stat().st_size
        # Two shares of a kind can come of one handshake: a hybrid's, and the classical one beside.
        if size > 2 * MOST_HANDSHAKES_IN_MEMORY * FINGERPRINT_BYTES or size % FINGERPRINT_BYTES:
            raise InputError(f"{path}: not a file of fingerprints")
        tallies[path.name.removesuffix(suffix)] = count_distinct(path.read_bytes())
    return tallies


def _recount(directory: Path, replay: Replay) -> Replay:
    """Count a replay's executions anew: captures whose application data the server could read.

    What a server can decrypt with its own secrets is all that its application can have been given.
    """
    executed = 0
    for capture in replay.captures:
        keys = KeyMaterial(key_log=read_key_log(directory / layout.key_log_of(capture)))
        executed += bool(attack_recording(directory, capture, keys).result.client_bytes)
    return Replay(
        session=replay.session,
        attempts=len(replay.captures),
        executed=executed,
        captures=replay.captures,
    )

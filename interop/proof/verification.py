"""`pfs verify`: check an evidence directory against its manifest, then against itself.

First the manifest: its signature, and every file in the directory against it. Then everything in
the report that can be recomputed is: what each recording shows of its session, every cell of the
matrix, the census from its fingerprints, the replays from their captures, and the verdict from all
of it; and from the report, what the manifest states beside its files, and the page for people.
Nothing in the report is believed; it is what the recomputed values are compared with.

The second opinion is asked for again where its program is installed. Where it is not, what the
evidence records of it stands unrepeated, and a note says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from certs.errors import CertsError
from interop.census.tallies import MOST_HANDSHAKES_IN_MEMORY
from interop.census.values import FINGERPRINT_BYTES, count_distinct
from interop.errors import InputError, InteropError
from interop.proof import layout, second_opinion
from interop.proof.circumstances import not_tested
from interop.proof.compromise import attack_recording, evaluate, observe_session, read_key_log
from interop.proof.manifest import Change, check_manifest
from interop.proof.model import Replay, Report, Tally, failures, read_report, verdict_of
from interop.proof.opinions import SecondOpinion, contradictions
from interop.proof.replay import MANNERS, client_flight, was_sent
from interop.proof.report.html import render_html
from interop.proof.statement import predicate_of
from interop.proof.target import spki_sha256
from interop.versions import own_version
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Verification", "verify"]

_MAX_REPORT_BYTES = 64 * 1024 * 1024


class Verification(msgspec.Struct, frozen=True):
    """What came of checking an evidence directory.

    `changes` are files that are not as they were signed; `disagreements`, statements of the report
    that its own recordings do not bear out; `notes`, what could not be repeated here. `report` is
    None where it could not be read, and `second_opinion` where it was not asked for again.
    """

    fingerprint: str
    changes: tuple[Change, ...]
    disagreements: tuple[str, ...]
    report: Report | None
    notes: tuple[str, ...] = ()
    second_opinion: SecondOpinion | None = None

    @property
    def intact(self) -> bool:
        """Whether the evidence is as it was signed, and says what its recordings say."""
        return self.report is not None and not self.changes and not self.disagreements

    @property
    def holds(self) -> bool:
        """Whether the evidence is intact and proves the claim."""
        return self.intact and self.report is not None and self.report.verdict == "proved"


def verify(
    directory: Path,
    *,
    fingerprint: str | None = None,
    ask_again: bool = True,
    target_keys: Sequence[Path] = (),
) -> Verification:
    """Check `directory`; with `fingerprint`, it must be signed by that key.

    Without `ask_again`, no second opinion is asked for. `target_keys` are the files of the
    target's keys, for evidence about somebody's own server, which does not hold them. Raises
    `InputError` where `directory` is no evidence directory at all, or a key is missing or another.
    """
    signer, changes, predicate = check_manifest(directory, fingerprint=fingerprint)
    try:
        report = _read(directory)
    except (InteropError, CertsError) as error:
        changes.append(Change("evidence", str(error)))
        return Verification(signer, tuple(changes), (), None)
    _require_target_keys(report, target_keys)
    try:
        disagreements = list(_recompute(directory, report, target_keys))
        repeated: SecondOpinion | None = None
        notes: list[str] = []
        if ask_again and not changes:
            repeated, notes, unlike = _ask_again(directory, report)
            disagreements += unlike
    except (InteropError, CertsError) as error:
        # Evidence that cannot even be read any more is changed evidence, not bad usage.
        changes.append(Change("evidence", str(error)))
        return Verification(signer, tuple(changes), (), None)
    if predicate is not None and predicate != predicate_of(report, public_key=predicate.public_key):
        disagreements.append("the manifest's predicate is not what the report yields")
    notes += _compare_wording(directory, report, disagreements)
    return Verification(
        signer, tuple(changes), tuple(disagreements), report, tuple(notes), repeated
    )


def _require_target_keys(report: Report, target_keys: Sequence[Path]) -> None:
    if bool(report.target) is not bool(target_keys):
        raise InputError(
            f"this evidence is about {report.target}, whose key it does not hold; give --server-key"
            if report.target
            else "this evidence is about no server of anybody's: leave --server-key out"
        )
    for path in target_keys:
        if not {*spki_sha256([path])} <= {*report.target_keys_sha256}:
            raise InputError(f"{path}: not a key that {report.target} had in this evidence")
    if spki_sha256(target_keys) != report.target_keys_sha256:
        raise InputError(
            f"{report.target} had {len(report.target_keys_sha256)} keys in this evidence; give each"
        )


def _ask_again(directory: Path, report: Report) -> tuple[SecondOpinion, list[str], list[str]]:
    """Ask for the second opinion anew; return it, notes, and what it contradicts."""
    stated = report.second_opinion
    repeated = second_opinion.ask(
        directory,
        report.sessions,
        report.thefts,
        report.cells,
        payload_bytes=report.payload_bytes,
        payload_sha256=report.payload_sha256,
    )
    if repeated.version is None:
        return repeated, [f"the second opinion was not repeated: {repeated.reason}"], []
    unlike = [f"second opinion: {text}" for text in contradictions(report.cells, repeated)]
    if stated.version is None:
        note = (
            f"{repeated.program} {repeated.version} was asked here; the evidence records no opinion"
        )
        return repeated, [note], unlike
    if repeated.version != stated.version:
        note = (
            f"the second opinion is {repeated.program} {repeated.version}'s; "
            f"recorded was {stated.version}'s"
        )
        return repeated, [note], unlike
    notes = []
    for old, new in zip(stated.opinions, repeated.opinions, strict=False):
        if None in {old.observed, new.observed}:
            if new.observed is None and old.observed is not None:
                notes.append(f"{old.session} with {old.stolen} stolen: {new.reason}")
        elif old != new:
            unlike.append(
                f"second opinion on {old.session} with {old.stolen} stolen: not as stated"
            )
    if len(stated.opinions) != len(repeated.opinions):
        unlike.append("the second opinion is not on the cells of the matrix")
    return repeated, notes, unlike


def _compare_wording(directory: Path, report: Report, disagreements: list[str]) -> list[str]:
    """Compare what follows from the report in words of ours, if this version of us wrote them.

    These are the page for people and the limits of the run. Returns a note where it did not.
    """
    made_by, ours = report.versions.get("pfs-transport"), own_version()
    if made_by != ours:
        return [f"the page and the limits were not compared: pfs-transport {made_by} wrote them"]
    skipped = ((entry.name, entry.reason) for entry in report.skipped if not entry.refused)
    if report.not_tested != not_tested(skipped, report.second_opinion, report.target):
        disagreements.append("the report does not state all that was not tested")
    rendered = render_html(report).encode("utf-8", "replace")
    try:
        with (directory / layout.REPORT_HTML).open("rb") as file:
            stored = file.read(len(rendered) + 1)
    except OSError:
        return []  # the manifest names it, and says that it is missing
    if stored != rendered:
        disagreements.append(f"{layout.REPORT_HTML} does not show what the report states")
    return []


def _read(directory: Path) -> Report:
    path = directory / layout.REPORT_JSON
    try:
        if path.stat().st_size > _MAX_REPORT_BYTES:
            raise InputError(f"{path}: larger than {_MAX_REPORT_BYTES} bytes")
        return read_report(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _recompute(directory: Path, report: Report, target_keys: Sequence[Path]) -> list[str]:
    """Return a sentence for each statement of the report that recomputing does not yield."""
    sessions = tuple(
        observe_session(
            directory,
            session.name,
            client=session.client,
            server=session.server,
            ephemeral_key=session.ephemeral_key,
            resumes=session.resumes,
            ticket_key=session.ticket_key,
            client_key=session.client_key,
            target=session.target,
        )
        for session in report.sessions
    )
    thefts, cells = evaluate(
        directory,
        sessions,
        payload_bytes=report.payload_bytes,
        payload_sha256=report.payload_sha256,
        target_keys=target_keys,
    )
    tallies = _tallies(directory)
    replays = tuple(
        _recount(directory, replay, _sent(directory, replay)) for replay in report.replays
    )
    control = report.replay_control
    replay_control = _recount(directory, control, len(control.captures))
    found = (
        *failures(
            sessions=sessions,
            thefts=thefts,
            cells=cells,
            handshakes=report.handshakes,
            tallies=tallies,
            replays=replays,
            replay_control=replay_control,
            target=report.target,
        ),
        *contradictions(cells, report.second_opinion),
    )
    compared: list[tuple[str, object, object]] = [
        ("the recorded sessions", report.sessions, sessions),
        ("what was stolen", report.thefts, thefts),
        ("the matrix", report.cells, cells),
        ("the census", report.tallies, tallies),
        ("the replays", report.replays, replays),
        ("the replay control", control, replay_control),
        ("which captures there are", _named(report), _present(directory)),
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


def _named(report: Report) -> set[str]:
    """Return all captures that the report speaks of."""
    replays = (*report.replays, report.replay_control)
    names = {name for replay in replays for name in replay.captures}
    return {session.capture for session in report.sessions} | {*map(layout.capture_of, names)}


def _present(directory: Path) -> set[str]:
    """Return all captures that there are. One that is spoken of nowhere may show something else."""
    captures = (directory / layout.CAPTURES).iterdir()
    return {path.relative_to(directory).as_posix() for path in captures}


def _sent(directory: Path, replay: Replay) -> int:
    """Count anew the captures of a replay that show its session's flight being sent."""
    flight = client_flight(directory / layout.capture_of(replay.session))
    return sum(
        was_sent(flight, manner=manner, capture=directory / layout.capture_of(capture))
        for manner, capture in zip(MANNERS, replay.captures, strict=False)
    )


def _recount(directory: Path, replay: Replay, attempts: int) -> Replay:
    """Count a replay's executions anew: captures whose application data the server could read.

    What a server can decrypt with its own secrets is all that its application can have been given.
    """
    executed = 0
    for capture in replay.captures:
        keys = KeyMaterial(key_log=read_key_log(directory / layout.key_log_of(capture)))
        executed += bool(attack_recording(directory, capture, keys).result.client_bytes)
    return Replay(
        session=replay.session,
        attempts=attempts,
        executed=executed,
        captures=replay.captures,
    )

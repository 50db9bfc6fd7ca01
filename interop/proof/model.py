"""The report as data, and the verdict as a function of it.

`Report` is what ``report.json`` holds and what the terminal and the HTML page show. `failures`
is the whole of the judgement: the claims of the proof, each checked against the data, with the
controls among them. A run whose controls did not open is never *proved*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from interop.census.report import unseen
from interop.census.values import Tally
from interop.errors import InputError
from interop.proof.circumstances import Machine, NotTested  # noqa: TC001 - msgspec reads them
from interop.proof.opinions import SecondOpinion  # noqa: TC001 - the same

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CA_KEYS",
    "FORMAT",
    "HARVEST",
    "HARVEST_ML_KEM",
    "KEY_STORE",
    "LONG_TERM_THEFTS",
    "SERVER_KEY",
    "Cell",
    "Replay",
    "Report",
    "Session",
    "Skipped",
    "Tally",
    "Theft",
    "Verdict",
    "contradiction",
    "ephemeral_key_of",
    "failures",
    "read_report",
    "secrets_of",
    "verdict_of",
]

FORMAT: Literal["pfs-report/1"] = "pfs-report/1"

Observation = Literal["closed", "opened"]
Verdict = Literal["proved", "refuted"]

SERVER_KEY = "server-key"
KEY_STORE = "key-store"
CA_KEYS = "ca-keys"
HARVEST = "harvest"
HARVEST_ML_KEM = "harvest-ml-kem"
LONG_TERM_THEFTS = (SERVER_KEY, KEY_STORE)


def secrets_of(session: str) -> str:
    """Return the name of the theft of one session's secrets."""
    return f"session-secrets:{session}"


def ephemeral_key_of(key: str) -> str:
    """Return the name of the theft of one ephemeral private key; of a hybrid, of both halves."""
    return f"ephemeral-key:{key}"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded session, as its capture shows it.

    `ephemeral_key` names the stolen private key of its key exchange; empty where its client told
    nobody, as clients should. Two sessions that name the same one used it twice.
    """

    name: str
    client: str
    server: str
    capture: str
    version: str
    suite: str
    group: str | None
    forward_secret: bool
    encrypted_bytes: int
    ephemeral_key: str = ""


class Theft(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is stolen, and what of it lies in the evidence directory."""

    name: str
    title: str
    files: tuple[str, ...]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One theft tried on one session.

    `control` marks the cells that are there to be opened: they show that the attacker, given a
    secret of this kind, does open what theory says it opens. `recovered_bytes` counts octets of
    the payload; `whole` says that they are the payload, byte for byte.
    """

    session: str
    stolen: str
    expected: Observation
    observed: Observation
    recovered_bytes: int
    control: bool
    whole: bool
    reason: str
    basis: str


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One session's client flight sent again to the live server, each time into a capture.

    `attempts` counts the captures that show the flight being sent.
    """

    session: str
    attempts: int
    executed: int
    captures: tuple[str, ...]


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A session that could not be recorded here, and why."""

    name: str
    reason: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run found. `verdict` and `failures` follow from the rest.

    `started` and `created` are when the run began and when it was judged, RFC 3339 in UTC.
    """

    format: Literal["pfs-report/1"] = FORMAT
    verdict: Verdict
    failures: tuple[str, ...]
    started: str
    created: str
    machine: Machine
    versions: dict[str, str]
    payload_bytes: int
    payload_sha256: str
    sessions: tuple[Session, ...]
    skipped: tuple[Skipped, ...]
    thefts: tuple[Theft, ...]
    cells: tuple[Cell, ...]
    census: dict[str, int | Tally]
    replays: tuple[Replay, ...]
    replay_control: Replay
    second_opinion: SecondOpinion
    not_tested: tuple[NotTested, ...]

    @property
    def handshakes(self) -> int:
        """How many handshakes the census covers."""
        count = self.census.get("handshakes")
        return count if isinstance(count, int) else 0

    @property
    def tallies(self) -> dict[str, Tally]:
        """The census, a tally for each kind of value."""
        return {kind: tally for kind, tally in self.census.items() if isinstance(tally, Tally)}

    def to_json(self) -> bytes:
        """Return the report as UTF-8 JSON with a final newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def read_report(encoded: bytes) -> Report:
    """Parse ``report.json``; raises `InputError` where it is not one."""
    try:
        return msgspec.json.decode(encoded, type=Report)
    except msgspec.MsgspecError as error:
        raise InputError(f"report.json is not a report of this version: {error}") from error


def failures(
    *,
    sessions: tuple[Session, ...],
    thefts: tuple[Theft, ...],
    cells: tuple[Cell, ...],
    handshakes: int,
    tallies: dict[str, Tally],
    replays: tuple[Replay, ...],
    replay_control: Replay,
) -> tuple[str, ...]:
    """Return a sentence for each claim that the data does not bear out; none: proved.

    `handshakes` is how many the census was to make, and `tallies` what it counted of each kind.
    """
    return (
        *_session_failures(sessions),
        *_cell_failures(sessions, cells),
        *_theft_failures(sessions, thefts, cells),
        *_census_failures(handshakes, tallies),
        *_replay_failures(sessions, replays, replay_control),
    )


def verdict_of(found: tuple[str, ...]) -> Verdict:
    """Return the verdict that `failures` amounts to."""
    return "refuted" if found else "proved"


_OUR_SERVERS = "pfs ("  # begins the titles of the servers that the claim is about


def _is_ours(session: Session) -> bool:
    return session.server.startswith(_OUR_SERVERS)


# What must be among the recorded forward-secret sessions: (version, group or any).
_REQUIRED = (("TLS 1.2", None), ("TLS 1.3", "x25519"), ("TLS 1.3", "X25519MLKEM768"))


def _session_failures(sessions: tuple[Session, ...]) -> Iterator[str]:
    for version, group in _REQUIRED:
        if not any(
            session.forward_secret and session.version == version and group in (None, session.group)
            for session in sessions
        ):
            wanted = f"{version} ECDHE" if group is None else f"{version} {group}"
            yield f"no {wanted} session was recorded"
    if all(session.forward_secret for session in sessions):
        yield "no weak session was recorded, so nothing shows that the attacker can open one"
    for session in sessions:
        if not session.encrypted_bytes:
            yield f"{session.name}: the capture holds no encrypted application data"
        # What long-term keys open is a control only where the server is meant to be weak.
        if _is_ours(session) and not session.forward_secret:
            yield f"{session.name}: a server of ours without forward secrecy ({session.suite})"


def _cell_failures(sessions: tuple[Session, ...], cells: tuple[Cell, ...]) -> Iterator[str]:
    for cell in cells:
        if problem := contradiction(cell):
            yield f"{cell.session} with {cell.stolen} stolen: {problem}"
    own = {session.name: secrets_of(session.name) for session in sessions}
    tried = {(cell.session, cell.stolen) for cell in cells}
    for name in own:
        for stolen in (*LONG_TERM_THEFTS, *own.values()):
            if (name, stolen) not in tried:
                yield f"{name} with {stolen} stolen was not tried"
    # A closed cell counts only beside a control that the same kind of secret opened.
    opened = {(cell.session, cell.stolen) for cell in cells if cell.control and cell.whole}
    for stolen in LONG_TERM_THEFTS:
        if not any(theft == stolen for _, theft in opened):
            yield f"no control was opened by {stolen}"
    for name, stolen in own.items():
        if (name, stolen) not in opened:
            yield f"{name} was not opened by its own secrets"


# An ephemeral key of each of these groups must have opened its session.
_OPENED_GROUPS = ("x25519", "secp256r1", "X25519MLKEM768")


def _theft_failures(
    sessions: tuple[Session, ...], thefts: tuple[Theft, ...], cells: tuple[Cell, ...]
) -> Iterator[str]:
    """Check that each theft was tried on every session, and that it was the theft it says.

    A theft shows that by opening a session whole. One that theory has open nothing, such as the
    ML-KEM halves alone, shows it by its files: each lies also in a theft that did open one.
    """
    tried = {(cell.session, cell.stolen) for cell in cells}
    opening = {cell.stolen for cell in cells if cell.control and cell.whole}
    proven = {path for theft in thefts if theft.name in opening for path in theft.files}
    for theft in thefts:
        for session in sessions:
            if (session.name, theft.name) not in tried:
                yield f"{session.name} with {theft.name} stolen was not tried"
        if theft.name not in opening and not proven.issuperset(theft.files):
            yield f"nothing shows that {theft.name} is what it says: it opened nothing"
    told = [session for session in sessions if session.ephemeral_key]
    own = {ephemeral_key_of(session.ephemeral_key) for session in told}
    for stolen in sorted({CA_KEYS, HARVEST, HARVEST_ML_KEM, *own} - {t.name for t in thefts}):
        yield f"{stolen} was not stolen"
    if HARVEST not in opening:
        yield f"no session was opened by {HARVEST}"
    yield from _told_failures(told, cells)


def _told_failures(told: list[Session], cells: tuple[Cell, ...]) -> Iterator[str]:
    """Check that each session whose ephemeral key was told is opened by that key."""
    for group in _OPENED_GROUPS:
        if group not in {session.group for session in told}:
            yield f"no {group} session with a stolen ephemeral key was recorded"
    opened = {(cell.session, cell.stolen) for cell in cells if cell.whole}
    for session in told:
        if (session.name, ephemeral_key_of(session.ephemeral_key)) not in opened:
            yield f"{session.name} was not opened by its own ephemeral key"


def contradiction(cell: Cell) -> str:
    """Say how a cell contradicts its expectation; empty where it does not."""
    if cell.observed != cell.expected:
        return f"{cell.observed}, expected {cell.expected} ({cell.reason})"
    if cell.observed == "opened" and not cell.whole:
        return "opened, but not byte for byte"
    if cell.observed == "closed" and cell.recovered_bytes:
        return "closed, yet bytes were recovered"
    return ""


def _census_failures(handshakes: int, tallies: dict[str, Tally]) -> Iterator[str]:
    if not tallies or not handshakes:
        yield "the census is empty"
    # What is not looked at does not repeat, so each handshake must have brought its values.
    seen = {kind: tally.count for kind, tally in tallies.items()}
    tls13 = seen.get("client_traffic_secret_0", 0)
    for gap in unseen(seen, handshakes=handshakes, tls12=handshakes - tls13, tls13=tls13):
        yield f"census: {gap}"
    for kind, tally in tallies.items():
        if tally.distinct != tally.count:
            yield f"census: {tally.count - tally.distinct} of {tally.count} {kind} repeated"


def _replay_failures(
    sessions: tuple[Session, ...], replays: tuple[Replay, ...], control: Replay
) -> Iterator[str]:
    if not any(replay.attempts for replay in replays):
        yield "nothing was replayed"
    replayed = {replay.session for replay in replays if replay.attempts}
    for session in sessions:
        if _is_ours(session) and not session.ephemeral_key and session.name not in replayed:
            yield f"{session.name} was not replayed"
    for replay in replays:
        if replay.attempts != len(replay.captures):
            unsent = len(replay.captures) - replay.attempts
            yield f"{replay.session}: {unsent} of {len(replay.captures)} replays were not sent"
        if replay.executed:
            yield f"{replay.session}: {replay.executed} of {replay.attempts} replays executed"
    if not control.attempts or control.executed != control.attempts:
        yield "the replay control, a genuine session on the same server, did not execute"

"""The report as data, and the verdict as a function of it.

`Report` is what ``report.json`` holds and what the terminal and the HTML page show. `failures`
is the whole of the judgement: the claims of the proof, each checked against the data, with the
controls among them. A run whose controls did not open is never *proved*.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from interop.census.report import too_few, unseen
from interop.census.values import Tally
from interop.errors import InputError
from interop.proof.circumstances import Machine, NotTested  # noqa: TC001 - msgspec reads them
from interop.proof.opinions import SecondOpinion  # noqa: TC001 - the same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "CA_KEYS",
    "CLIENT_KEY",
    "EXPORTER",
    "FORMAT",
    "HARVEST",
    "HARVEST_ML_KEM",
    "KEY_STORE",
    "LATER_TRAFFIC",
    "LONG_TERM_THEFTS",
    "SERVER_KEY",
    "TARGET_KEY",
    "TRAFFIC",
    "Cell",
    "KeyExchange",
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
    "pre_shared_keys_of",
    "read_report",
    "secrets_of",
    "ticket_key_of",
    "verdict_of",
]

FORMAT: Literal["pfs-report/1"] = "pfs-report/1"

Observation = Literal["closed", "opened"]
Verdict = Literal["proved", "refuted"]

KeyExchange: TypeAlias = Literal[
    "(EC)DHE", "static RSA", "psk_dhe_ke", "psk_ke", "0-RTT", "resumed"
]

SERVER_KEY = "server-key"
CLIENT_KEY = "client-key"
KEY_STORE = "key-store"
TARGET_KEY = "target-key"
CA_KEYS = "ca-keys"
HARVEST = "harvest"
HARVEST_ML_KEM = "harvest-ml-kem"
EXPORTER = "exporter-secret"
TRAFFIC = "traffic-secret"
LATER_TRAFFIC = "later-traffic-secret"
LONG_TERM_THEFTS = (SERVER_KEY, KEY_STORE)


def secrets_of(session: str) -> str:
    """Return the name of the theft of one session's secrets."""
    return f"session-secrets:{session}"


def ephemeral_key_of(key: str) -> str:
    """Return the name of the theft of one ephemeral private key; of a hybrid, of both halves."""
    return f"ephemeral-key:{key}"


def ticket_key_of(key: str) -> str:
    """Return the name of the theft of a server's ticket key."""
    return f"ticket-key:{key}"


def pre_shared_keys_of(session: str) -> str:
    """Return the name of the theft of the pre-shared keys that one session's tickets stand for."""
    return f"pre-shared-key:{session}"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded session, as its capture shows it.

    `forward_secret` is False too where tickets or 0-RTT data give away what the key exchange would
    protect. The rest names what was stolen of it, each empty where nothing was: `ephemeral_key` the
    private key of its key exchange (two sessions that name the same one used it twice), `resumes`
    the session whose ticket it resumed by, `ticket_key` the key that its server's tickets are
    under, `client_key` the key of the client's certificate. `target` says that its server is the
    one that the run is about, somebody's own, and not one that was made for the run.
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
    resumed: bool = False
    early_data: bool = False
    ephemeral_key: str = ""
    resumes: str = ""
    ticket_key: str = ""
    client_key: str = ""
    target: bool = False

    @property
    def key_exchange(self) -> KeyExchange:
        """How it came to the keys of its application data."""
        if not self.resumed:
            return "static RSA" if self.group is None else "(EC)DHE"
        if self.version != "TLS 1.3":
            return "resumed"
        if self.early_data:
            return "0-RTT"
        return "psk_ke" if self.group is None else "psk_dhe_ke"

    @property
    def negotiated(self) -> str:
        """Version, group and how the keys came about, in a few words."""
        ways = (self.group, "" if self.key_exchange == "(EC)DHE" else self.key_exchange)
        return f"{self.version} {', '.join(way for way in ways if way)}"

    @property
    def is_ordinary(self) -> bool:
        """Whether neither end told any of its keys: nothing is stolen but what every server has."""
        return not self.ephemeral_key and not self.ticket_key


class Theft(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is stolen, and what of it lies in the evidence directory.

    `shown` says how the recordings show that it is what it says, where opening something does not;
    empty where they do not.
    """

    name: str
    title: str
    files: tuple[str, ...]
    shown: str = ""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One theft tried on one session.

    `control` marks the cells that are there to be opened: they show that the attacker, given a
    secret of this kind, does open what theory says it opens. `recovered_bytes` counts octets of
    the payload; `whole` says that they are the payload, byte for byte. `reply_bytes` counts octets
    of application data recovered from the server's side, and `part` names what theory has open
    where that is not all: then the reply must stay closed.
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
    reply_bytes: int = 0
    part: Literal["", "0-RTT data", "the client's data"] = ""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One session's client flight sent again to the live server, each time into a capture.

    `attempts` counts the captures that show the flight being sent.
    """

    session: str
    attempts: int
    executed: int
    captures: tuple[str, ...]


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A session that could not be recorded here, and why.

    `refused` says that the target refused it, and had better.
    """

    name: str
    reason: str
    refused: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run found. `verdict` and `failures` follow from the rest.

    `started` and `created` are when the run began and when it was judged, RFC 3339 in UTC. `target`
    is the HOST:PORT of somebody's own server that the run is about, if it is about one, whose keys
    have `target_keys_sha256`, in hex of their SubjectPublicKeyInfo, and are not in the evidence.
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
    target: str = ""
    target_keys_sha256: tuple[str, ...] = ()

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
    target: str = "",
) -> tuple[str, ...]:
    """Return a sentence for each claim that the data does not bear out; none: proved.

    `handshakes` is how many the census was to make, and `tallies` what it counted of each kind.
    """
    return (
        *_session_failures(sessions),
        *_cell_failures(sessions, cells),
        *_theft_failures(sessions, thefts, cells),
        *_census_failures(handshakes, tallies, at_a_target=bool(target)),
        *_replay_failures(sessions, replays, replay_control),
        *(_target_failures(target, sessions, thefts) if target else ()),
    )


def verdict_of(found: tuple[str, ...]) -> Verdict:
    """Return the verdict that `failures` amounts to."""
    return "refuted" if found else "proved"


_OUR_SERVERS = "pfs ("  # begins the titles of the servers that the claim is about


def _is_ours(session: Session) -> bool:
    return session.server.startswith(_OUR_SERVERS)


# What must be among the recorded sessions.
_REQUIRED: tuple[tuple[str, Callable[[Session], bool]], ...] = (
    ("TLS 1.2 ECDHE", lambda s: _is_plain(s) and s.version == "TLS 1.2"),
    ("TLS 1.3 x25519", lambda s: _is_plain(s) and (s.version, s.group) == ("TLS 1.3", "x25519")),
    ("TLS 1.3 X25519MLKEM768", lambda s: _is_plain(s) and s.group == "X25519MLKEM768"),
    ("mutual TLS", lambda s: bool(s.client_key) and s.key_exchange == "(EC)DHE"),
    ("resumed TLS 1.3", lambda s: s.is_ordinary and s.key_exchange == "psk_dhe_ke"),
    ("static RSA", lambda s: s.key_exchange == "static RSA"),
    *(
        (
            f"{version} {exchange} with a known ticket key",
            lambda s, version=version, exchange=exchange: (
                bool(s.ticket_key) and (s.version, s.key_exchange) == (version, exchange)
            ),
        )
        for version, exchange in (
            ("TLS 1.2", "(EC)DHE"),
            ("TLS 1.2", "resumed"),
            ("TLS 1.3", "(EC)DHE"),
            ("TLS 1.3", "psk_dhe_ke"),
            ("TLS 1.3", "psk_ke"),
            ("TLS 1.3", "0-RTT"),
        )
    ),
)
_REUSED_KEYS = 2  # one by a client in two sessions, one by a server


def _is_plain(session: Session) -> bool:
    """Say whether it is a full handshake of our own client, with nothing special to steal."""
    ordinary = session.is_ordinary and session.key_exchange == "(EC)DHE"
    return ordinary and session.client == "pfs" and not session.client_key


def _session_failures(sessions: tuple[Session, ...]) -> Iterator[str]:
    for wanted, fits in _REQUIRED:
        if not any(map(fits, sessions)):
            yield f"no {wanted} session was recorded"
    used = Counter(session.ephemeral_key for session in sessions if session.ephemeral_key)
    if sum(times > 1 for times in used.values()) < _REUSED_KEYS:
        yield "no client and no server used an ephemeral key twice"
    names = {session.name for session in sessions}
    for session in sessions:
        if not session.encrypted_bytes:
            yield f"{session.name}: the capture holds no encrypted application data"
        # What long-term keys open is a control only where the server is meant to be weak.
        if _is_ours(session) and not session.forward_secret:
            yield f"{session.name}: a server of ours without forward secrecy ({session.suite})"
        if session.resumed != bool(session.resumes) or session.resumes not in {"", *names}:
            yield f"{session.name}: nothing tells which session it resumed"


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
# Each has been stolen, whatever was recorded; those that hang on a session are added to them.
_REQUIRED_THEFTS = {CA_KEYS, CLIENT_KEY, HARVEST, HARVEST_ML_KEM, *LONG_TERM_THEFTS}


def _theft_failures(
    sessions: tuple[Session, ...], thefts: tuple[Theft, ...], cells: tuple[Cell, ...]
) -> Iterator[str]:
    """Check that each theft was tried on every session, and that it was the theft it says.

    A theft shows that by opening a session whole. One that theory has open nothing shows it by its
    files, each of which lies also in a theft that did open one, or by what the recordings tell of
    it (`Theft.shown`). The servers' and the CAs' keys do so by the certificates in any case: a key
    that nobody used opens nothing, and would show nothing by that.
    """
    tried = {(cell.session, cell.stolen) for cell in cells}
    opening = {cell.stolen for cell in cells if cell.control and cell.whole}
    proven = {path for theft in thefts if theft.name in opening for path in theft.files}
    for theft in thefts:
        for session in sessions:
            if (session.name, theft.name) not in tried:
                yield f"{session.name} with {theft.name} stolen was not tried"
        in_files = bool(theft.files) and proven.issuperset(theft.files)
        if not (theft.shown or theft.name in opening or in_files):
            yield f"nothing shows that {theft.name} is what it says: it opened nothing"
        if theft.name in {SERVER_KEY, CA_KEYS} and not theft.shown:
            yield (
                f"nothing shows that {theft.name} belongs to the certificates that servers showed"
            )
    told = [session for session in sessions if session.ephemeral_key]
    stolen_names = {theft.name for theft in thefts}
    for stolen in sorted((_REQUIRED_THEFTS | _own_thefts(sessions)) - stolen_names):
        yield f"{stolen} was not stolen"
    for kind in (EXPORTER, TRAFFIC, LATER_TRAFFIC):
        if stolen_names.isdisjoint(f"{kind}:{session.name}" for session in sessions):
            yield f"no {kind} of any session was stolen"
    if HARVEST not in opening:
        yield f"no session was opened by {HARVEST}"
    yield from _told_failures(told, cells)


def _target_failures(
    target: str, sessions: tuple[Session, ...], thefts: tuple[Theft, ...]
) -> Iterator[str]:
    """Check that the target was seen, and negotiated nothing but forward secrecy."""
    seen = [session for session in sessions if session.target]
    if not any(session.forward_secret for session in seen):
        yield f"no forward-secret session with {target} was recorded"
    if TARGET_KEY not in {theft.name for theft in thefts}:
        yield f"{TARGET_KEY} was not stolen"
    for session in seen:
        if not session.forward_secret:
            way = session.key_exchange
            what = "gives out a ticket that holds the main secret" if way == "(EC)DHE" else way
            yield f"{session.name}: {target} does {session.version} without forward secrecy: {what}"


def _own_thefts(sessions: tuple[Session, ...]) -> set[str]:
    """Name what must have been stolen because sessions say that they had it."""
    return {
        name
        for session in sessions
        for name, there in (
            (ephemeral_key_of(session.ephemeral_key), session.ephemeral_key),
            (ticket_key_of(session.ticket_key), session.ticket_key),
            (pre_shared_keys_of(session.resumes), session.version == "TLS 1.3" and session.resumes),
            (secrets_of(session.name), True),
        )
        if there
    }


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
    if cell.observed == "opened" and bool(cell.reply_bytes) is bool(cell.part):
        what = f"more than {cell.part}" if cell.part else "the request alone"
        return f"opened, and {what}"
    return ""


def _census_failures(
    handshakes: int, tallies: dict[str, Tally], *, at_a_target: bool
) -> Iterator[str]:
    if not tallies or not handshakes:
        yield "the census is empty"
    # What is not looked at does not repeat, so each handshake must have brought its values.
    seen = {kind: tally.count for kind, tally in tallies.items()}
    tls13 = seen.get("client_traffic_secret_0", 0)
    for gap in (
        *unseen(seen, handshakes=handshakes, tls12=handshakes - tls13, tls13=tls13),
        *too_few(seen, handshakes=handshakes, at_a_target=at_a_target),
    ):
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

"""The compromise matrix: every theft tried on every recorded session.

It reads the evidence directory and nothing else: the captures, and what lies in ``stolen/``. That
is why `pfs prove`, which has just written them, and `pfs verify`, anywhere and later, get the same
answer from the same code.

What a cell should show is decided by what the recording says was negotiated; `_EXPECTATIONS` is the
table, with the section of the standard for each entry. A session whose key exchange is forward
secret must stay closed to every long-term key; one that is not is a control and must open. One
session's secrets must open that session and no other, an ephemeral key those that used it. Every
classical key together opens x25519 and secp256r1, and no hybrid; no more do the ML-KEM halves.
Bytes count as recovered when they are bytes of the payload that was sent, known here by its length
and SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certs.keystore.hazmat import unseal_every_private_key
from interop.capture.files import CaptureProblem, read_streams
from interop.capture.items import DecryptionSecrets
from interop.direction import Direction
from interop.errors import InputError
from interop.proof import layout
from interop.proof.application import MAX_PAYLOAD_BYTES, payload_in
from interop.proof.attacker import Attacker, SessionResult
from interop.proof.directory import read_bounded
from interop.proof.model import (
    CA_KEYS,
    HARVEST,
    HARVEST_ML_KEM,
    KEY_STORE,
    LONG_TERM_THEFTS,
    SERVER_KEY,
    Cell,
    Session,
    Theft,
    ephemeral_key_of,
    secrets_of,
)
from interop.proof.stolen import StolenFiles, load_stolen
from interop.wire.key_log import KeyLog
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from certs.keystore.hazmat import StolenKey
    from interop.wire.material import Secret

__all__ = ["Attempt", "attack_recording", "evaluate", "observe_session", "read_key_log"]

# The request head comes on top of the payload; nothing recovered is larger than what was sent.
_MAX_STREAM_BYTES = MAX_PAYLOAD_BYTES + 64 * 1024
_MAX_SECRET_FILE_BYTES = 1024 * 1024
_AUTHORITIES = ("root", "issuing")


@dataclass(frozen=True)
class Attempt:
    """One theft tried on one recording."""

    result: SessionResult
    payload: bytes


def attack_recording(directory: Path, session: str, stolen: KeyMaterial | Secret) -> Attempt:
    """Try what was stolen on one session's capture.

    Raises `InputError` for a capture that is damaged, or does not hold exactly one TLS session.
    """
    path = directory / layout.capture_of(session)
    stream = bytearray()

    def collect(_session: int, direction: Direction, data: bytes | bytearray) -> None:
        if direction is Direction.CLIENT_TO_SERVER:
            stream.extend(data)
            if len(stream) > _MAX_STREAM_BYTES:
                raise InputError(f"{path}: more application data than any payload has")

    attacker = Attacker(stolen, collect)
    for event in read_streams(path):
        if isinstance(event, CaptureProblem):
            raise InputError(f"{path}: {event.message}")
        if not isinstance(event, DecryptionSecrets):
            attacker.feed(event)
    results = attacker.finish()
    if len(results) != 1:
        raise InputError(f"{path}: {len(results)} TLS sessions where one was recorded")
    return Attempt(results[0], payload_in(bytes(stream)))


def observe_session(
    directory: Path, name: str, *, client: str, server: str, ephemeral_key: str = ""
) -> Session:
    """Return what a capture shows to an attacker who has stolen nothing."""
    result = attack_recording(directory, name, KeyMaterial()).result
    if result.version is None or result.suite is None or result.forward_secret is None:
        raise InputError(f"{name}: the recorded handshake is not complete")
    return Session(
        name=name,
        client=client,
        server=server,
        capture=layout.capture_of(name),
        version=result.version,
        suite=result.suite,
        group=result.group,
        forward_secret=result.forward_secret,
        encrypted_bytes=result.encrypted_bytes,
        ephemeral_key=ephemeral_key,
    )


def evaluate(
    directory: Path, sessions: Sequence[Session], *, payload_bytes: int, payload_sha256: str
) -> tuple[tuple[Theft, ...], tuple[Cell, ...]]:
    """Carry out every theft and try it on every session; return both, thefts by row.

    Raises `InputError`, or a `CertsError` for the key store, where the directory lacks something
    or holds something else.
    """
    thefts: list[Theft] = []
    cells: list[Cell] = []
    for theft, keys in _thefts(directory, sessions):
        thefts.append(theft)
        for session in sessions:
            attempt = attack_recording(directory, session.name, keys)
            whole = len(attempt.payload) == payload_bytes and hmac.compare_digest(
                hashlib.sha256(attempt.payload).hexdigest(), payload_sha256
            )
            cells.append(_cell(session, theft, attempt, whole=whole))
    return tuple(thefts), tuple(cells)


def _cell(session: Session, theft: Theft, attempt: Attempt, *, whole: bool) -> Cell:
    result = attempt.result
    expected_open, basis = _expectation(session, theft)
    opened = result.opened or bool(attempt.payload)
    return Cell(
        session=session.name,
        stolen=theft.name,
        expected="opened" if expected_open else "closed",
        observed="opened" if opened else "closed",
        recovered_bytes=len(attempt.payload),
        control=expected_open,
        whole=whole,
        reason=f"by {result.opened_by}" if opened else result.reason,
        basis=basis,
    )


class _Expectation(NamedTuple):
    """Whether a kind of theft opens a kind of session, and where the standard says so."""

    opens: bool
    tls13: str
    tls12: str


_OPEN, _CLOSED = True, False
_LONG_TERM_CLOSED = _Expectation(_CLOSED, "RFC 9846, appendix F.1", "RFC 8422, section 2")
_LONG_TERM_OPEN = _Expectation(
    _OPEN, "no TLS 1.3 session is like this", "RFC 5246, section 7.4.7.1"
)
_SIGNATURES_ONLY = _Expectation(_CLOSED, "RFC 9846, section 4.5.2", "RFC 5246, section 7.4.3")
_OWN_SECRETS = _Expectation(_OPEN, "RFC 9846, section 7.3", "RFC 5246, section 6.3")
_OTHERS_SECRETS = _Expectation(_CLOSED, "RFC 9846, section 7.1", "RFC 5246, section 8.1")
_KEY_EXCHANGE = _Expectation(_OPEN, "RFC 9846, section 7.4.2", "RFC 8422, section 5.10")
_HALF_A_HYBRID = _Expectation(_CLOSED, "draft-ietf-tls-hybrid-design, section 3.3", "")

# By kind of theft, and by what the session is to it.
_EXPECTATIONS: Final[dict[tuple[str, str], _Expectation]] = {
    **{(theft, "forward secret"): _LONG_TERM_CLOSED for theft in LONG_TERM_THEFTS},
    **{(theft, "not forward secret"): _LONG_TERM_OPEN for theft in LONG_TERM_THEFTS},
    (CA_KEYS, "forward secret"): _SIGNATURES_ONLY,
    (CA_KEYS, "not forward secret"): _SIGNATURES_ONLY,
    ("session-secrets", "own"): _OWN_SECRETS,
    ("session-secrets", "another's"): _OTHERS_SECRETS,
    ("ephemeral-key", "own"): _KEY_EXCHANGE,
    ("ephemeral-key", "another's"): _OTHERS_SECRETS,
    (HARVEST, "classical key told"): _KEY_EXCHANGE,
    (HARVEST, "both halves told"): _HALF_A_HYBRID,
    (HARVEST, "nothing told"): _OTHERS_SECRETS,
    (HARVEST_ML_KEM, "classical key told"): _OTHERS_SECRETS,
    (HARVEST_ML_KEM, "both halves told"): _HALF_A_HYBRID,
    (HARVEST_ML_KEM, "nothing told"): _OTHERS_SECRETS,
}


def _expectation(session: Session, theft: Theft) -> tuple[bool, str]:
    """Say whether theory has this theft open this session, and where the standard says so."""
    kind, _, whose = theft.name.partition(":")
    expected = _EXPECTATIONS[kind, _relation(session, kind, whose)]
    return expected.opens, expected.tls13 if session.version == "TLS 1.3" else expected.tls12


def _relation(session: Session, kind: str, whose: str) -> str:
    if kind == "session-secrets":
        return "own" if whose == session.name else "another's"
    if kind == "ephemeral-key":
        return "own" if whose == session.ephemeral_key else "another's"
    if kind in {HARVEST, HARVEST_ML_KEM}:
        if not session.ephemeral_key:
            return "nothing told"
        return "both halves told" if "MLKEM" in (session.group or "") else "classical key told"
    return "forward secret" if session.forward_secret else "not forward secret"


def _thefts(directory: Path, sessions: Sequence[Session]) -> Iterator[tuple[Theft, KeyMaterial]]:
    key_files = sorted((directory / layout.STOLEN).glob("*.key.pem"))
    if not key_files:
        raise InputError(f"{directory}: no stolen server key in {layout.STOLEN}/")
    yield (
        Theft(
            name=SERVER_KEY,
            title="Server key",
            files=tuple(path.relative_to(directory).as_posix() for path in key_files),
        ),
        KeyMaterial(
            server_private_keys=tuple(
                load_pem_private_key(read_bounded(path, _MAX_SECRET_FILE_BYTES), None)
                for path in key_files
            )
        ),
    )
    in_store = _keys_of_store(directory)
    authorities = tuple(key.private_key for key in in_store if key.name in _AUTHORITIES)
    if len(authorities) < len(_AUTHORITIES):
        raise InputError(f"{directory}: the stolen key store lacks the keys of the CAs")
    for name, title, keys in (
        (CA_KEYS, "CA keys", authorities),
        (
            KEY_STORE,
            "Whole key store, with its KEK, earlier terms, deleted keys and audit log",
            tuple(key.private_key for key in in_store),
        ),
    ):
        theft = Theft(name=name, title=title, files=(layout.KEY_STORE, layout.KEK))
        yield theft, KeyMaterial(server_private_keys=keys)
    yield from _ephemeral_thefts(directory, sessions)
    for session in sessions:
        path = layout.key_log_of(session.name)
        yield (
            Theft(
                name=secrets_of(session.name),
                title=f"Secrets of {session.name}",
                files=(path,),
            ),
            KeyMaterial(key_log=read_key_log(directory / path)),
        )


def _ephemeral_thefts(
    directory: Path, sessions: Sequence[Session]
) -> Iterator[tuple[Theft, KeyMaterial]]:
    """Yield each ephemeral key, with both halves of a hybrid's; then all halves of either kind."""
    hybrids = {s.ephemeral_key for s in sessions if "MLKEM" in (s.group or "")} - {""}
    told = sorted({session.ephemeral_key for session in sessions} - {""})
    classical = {key: (layout.classical_key_of(key),) for key in told}
    kem = {key: (layout.ml_kem_key_of(key),) for key in told if key in hybrids}
    rows = [
        (ephemeral_key_of(key), f"Ephemeral key {key}", classical[key] + kem.get(key, ()))
        for key in told
    ]
    rows += [
        (HARVEST, "Every classical (EC)DHE key that was told", sum(classical.values(), ())),
        (HARVEST_ML_KEM, "Every ML-KEM key that was told", sum(kem.values(), ())),
    ]
    for name, title, files in rows:
        stolen, _ = load_stolen(StolenFiles(ephemeral_keys=[directory / path for path in files]))
        yield Theft(name=name, title=title, files=files), stolen


def _keys_of_store(directory: Path) -> tuple[StolenKey, ...]:
    # The thief works on a private copy: evidence may have lost its file modes on the way here
    # (archives, artifact stores), and a KEK that others can read is refused.
    with tempfile.TemporaryDirectory(prefix="pfs-theft-") as folder:
        kek = Path(folder, "kek")
        kek.touch(mode=0o600)
        kek.write_bytes(read_bounded(directory / layout.KEK, _MAX_SECRET_FILE_BYTES))
        store = Path(folder, "store")
        try:
            shutil.copyfile(directory / layout.KEY_STORE, store)
        except OSError as error:
            raise InputError(f"{directory / layout.KEY_STORE}: {error.strerror}") from error
        return tuple(unseal_every_private_key(store, f"file:{kek}"))


def read_key_log(path: Path) -> KeyLog:
    """Read a key log of the evidence; every line of it must be sound, for we wrote it."""
    key_log = KeyLog.parse(read_bounded(path, _MAX_SECRET_FILE_BYTES))
    if key_log.problem_count:
        raise InputError(f"{path}: {key_log.problem_count} damaged lines")
    return key_log

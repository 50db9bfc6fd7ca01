"""The compromise matrix: every theft tried on every recorded session.

It reads the evidence directory and nothing else: the captures, and what lies in ``stolen/``. That
is why `pfs prove`, which has just written them, and `pfs verify`, anywhere and later, get the same
answer from the same code.

The attacker holds all recordings. What opening one session tells about another, whose ticket it
issued or resumed by, he uses; so a session with such relatives is tried again when the others have
been. `interop.proof.expectations` says what each cell should show. Bytes count as recovered when
they are bytes of the payload that was sent, known here by its length and SHA-256.

Some thefts should open nothing, and then nothing opened shows that they are what they say. For
those `_SHOWN` looks in a session that its own secrets open: the client's key belongs to the
certificate that the client showed, pre-shared keys prove the binder of a ClientHello, the exporter
secret is what the session's key exchange yields, a later traffic secret what updates make of it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from interop.capture.files import CaptureProblem, read_streams
from interop.capture.items import DecryptionSecrets
from interop.direction import Direction
from interop.errors import InputError
from interop.proof import layout
from interop.proof.application import MAX_PAYLOAD_BYTES, payload_in
from interop.proof.attacker import Attacker, SessionResult
from interop.proof.expectations import Opens, expectation
from interop.proof.model import (
    CA_KEYS,
    EXPORTER,
    LATER_TRAFFIC,
    SERVER_KEY,
    Cell,
    Session,
    Theft,
    ephemeral_key_of,
)
from interop.proof.thefts import read_key_log, thefts
from interop.wire.key_schedule import HASH_OF_LENGTH, next_traffic_secret
from interop.wire.learned import LearnedSecrets
from interop.wire.session import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from interop.wire.facts import SessionFacts
    from interop.wire.material import Secret

__all__ = ["Attempt", "attack_recording", "evaluate", "observe_session", "read_key_log"]

# The request head comes on top of the payload; nothing recovered is larger than what was sent.
_MAX_STREAM_BYTES = MAX_PAYLOAD_BYTES + 64 * 1024


@dataclass(frozen=True)
class Attempt:
    """One theft tried on one recording."""

    result: SessionResult
    payload: bytes
    facts: SessionFacts


def attack_recording(
    directory: Path,
    session: str,
    stolen: KeyMaterial | Secret,
    *,
    learned: LearnedSecrets | None = None,
) -> Attempt:
    """Try what was stolen on one session's capture; `learned` is what other captures told.

    Raises `InputError` for a capture that is damaged, or does not hold exactly one TLS session.
    """
    path = directory / layout.capture_of(session)
    stream = bytearray()
    facts: list[SessionFacts] = []

    def collect(_session: int, direction: Direction, data: bytes | bytearray) -> None:
        if direction is Direction.CLIENT_TO_SERVER:
            stream.extend(data)
            if len(stream) > _MAX_STREAM_BYTES:
                raise InputError(f"{path}: more application data than any payload has")

    attacker = Attacker(stolen, collect, learned=learned, inspect=facts.append)
    for event in read_streams(path):
        if isinstance(event, CaptureProblem):
            raise InputError(f"{path}: {event.message}")
        if not isinstance(event, DecryptionSecrets):
            attacker.feed(event)
    results = attacker.finish()
    if len(results) != 1:
        raise InputError(f"{path}: {len(results)} TLS sessions where one was recorded")
    return Attempt(results[0], payload_in(bytes(stream)), facts[0])


def observe_session(
    directory: Path,
    name: str,
    *,
    client: str,
    server: str,
    ephemeral_key: str = "",
    resumes: str = "",
    ticket_key: str = "",
    client_key: str = "",
    target: bool = False,
) -> Session:
    """Return what a capture shows to an attacker who has stolen nothing."""
    attempt = attack_recording(directory, name, KeyMaterial())
    result, facts = attempt.result, attempt.facts
    if result.version is None or result.suite is None or result.resumed is None:
        raise InputError(f"{name}: the recorded handshake is not complete")
    # A TLS 1.2 ticket crosses in the clear and holds the main secret: here one is seen at all.
    holds_main_secret = result.version == "TLS 1.2" and (facts.tickets or result.resumed)
    early_data = result.resumed and facts.early_data_offered
    return Session(
        name=name,
        client=client,
        server=server,
        capture=layout.capture_of(name),
        version=result.version,
        suite=result.suite,
        group=result.group,
        forward_secret=bool(result.forward_secret) and not holds_main_secret and not early_data,
        encrypted_bytes=result.encrypted_bytes,
        resumed=result.resumed,
        early_data=early_data,
        ephemeral_key=ephemeral_key,
        resumes=resumes,
        ticket_key=ticket_key,
        client_key=client_key,
        target=target,
    )


def evaluate(
    directory: Path,
    sessions: Sequence[Session],
    *,
    payload_bytes: int,
    payload_sha256: str,
    target_keys: Sequence[Path] = (),
) -> tuple[tuple[Theft, ...], tuple[Cell, ...]]:
    """Carry out every theft and try it on every session; return both, thefts by row.

    `target_keys` are the files of the target's keys, if the run is about somebody's own server.
    Raises `InputError`, or a `CertsError` for the key store, where the directory lacks something or
    holds something else.
    """
    carried_out: list[Theft] = []
    cells: list[Cell] = []
    by_name = {session.name: session for session in sessions}
    for theft, stolen in thefts(directory, sessions, target_keys=target_keys):
        shown = ""
        if show := _SHOWN.get(theft.name.partition(":")[0]):
            shown = show(directory, theft, stolen, sessions)
        carried_out.append(msgspec.structs.replace(theft, shown=shown))
        for name, attempt in _attack_all(directory, by_name, stolen).items():
            whole = len(attempt.payload) == payload_bytes and hmac.compare_digest(
                hashlib.sha256(attempt.payload).hexdigest(), payload_sha256
            )
            cells.append(_cell(by_name[name], theft, attempt, by_name, whole=whole))
    return tuple(carried_out), tuple(cells)


def _attack_all(
    directory: Path, sessions: Mapping[str, Session], stolen: KeyMaterial
) -> dict[str, Attempt]:
    """Try one theft on all sessions, in order; then on those that have learned of each other."""
    learned = LearnedSecrets()
    attempts = {
        name: attack_recording(directory, name, stolen, learned=learned) for name in sessions
    }
    if len(learned):
        related = {name for s in sessions.values() if s.resumes for name in (s.name, s.resumes)}
        for name in sorted(related & attempts.keys()):
            if not attempts[name].result.opened:
                attempts[name] = attack_recording(directory, name, stolen, learned=learned)
    return attempts


_PARTS: Final[dict[Opens, Literal["0-RTT data", "the client's data"]]] = {
    "0-RTT data": "0-RTT data",
    "the client's data": "the client's data",
}


def _cell(
    session: Session,
    theft: Theft,
    attempt: Attempt,
    sessions: Mapping[str, Session],
    *,
    whole: bool,
) -> Cell:
    result = attempt.result
    expected = expectation(session, theft, sessions)
    opens = expected.opens != "nothing"
    opened = result.opened or bool(attempt.payload)
    return Cell(
        session=session.name,
        stolen=theft.name,
        expected="opened" if opens else "closed",
        observed="opened" if opened else "closed",
        recovered_bytes=len(attempt.payload),
        control=opens,
        whole=whole,
        reason=f"by {result.opened_by}" if opened else result.reason,
        basis=expected.basis(session),
        reply_bytes=result.server_bytes,
        part=_PARTS.get(expected.opens, ""),
    )


# What shows that a theft is what it says, where opening something does not.


def _chains(directory: Path, sessions: Sequence[Session]) -> list[list[x509.Certificate]]:
    """Return the certificates that servers showed, end entity first, as own secrets let them see.

    A session that does not open to its own secrets has none here, and refutes by itself.
    """
    chains = []
    for session in sessions:
        secrets = KeyMaterial(key_log=read_key_log(directory / layout.key_log_of(session.name)))
        facts = attack_recording(directory, session.name, secrets).facts
        if facts.server_certificates:
            chains.append([*map(x509.load_der_x509_certificate, facts.server_certificates)])
    return chains


def _server_keys_shown(
    directory: Path, _theft: Theft, stolen: KeyMaterial, sessions: Sequence[Session]
) -> str:
    """Find the public half of a stolen key in each certificate that a server of the run showed."""
    return _keys_shown(directory, stolen, [one for one in sessions if not one.target])


def _target_keys_shown(
    directory: Path, _theft: Theft, stolen: KeyMaterial, sessions: Sequence[Session]
) -> str:
    """Find the public half of a key of the target's in each certificate that the target showed."""
    return _keys_shown(directory, stolen, [one for one in sessions if one.target])


def _keys_shown(directory: Path, stolen: KeyMaterial, sessions: Sequence[Session]) -> str:
    public = [key.public_key() for key in stolen.server_private_keys]
    chains = _chains(directory, sessions)
    if not chains or not all(chain[0].public_key() in public for chain in chains):
        return ""
    return "each certificate that a server showed has the public half of one"


def _ca_keys_shown(
    directory: Path, _theft: Theft, stolen: KeyMaterial, sessions: Sequence[Session]
) -> str:
    """See that each certificate that servers showed is signed by a stolen key, and by all of them.

    The root's own certificate is not shown, but it signed the issuing CA's.
    """
    unused = {number: key.public_key() for number, key in enumerate(stolen.server_private_keys)}
    public = dict(unused)
    ours = [one for one in sessions if not one.target]
    for certificate in {each for chain in _chains(directory, ours) for each in chain}:
        signers = [number for number, key in public.items() if _is_signed_by(certificate, key)]
        if not signers:
            return ""
        unused = {number: key for number, key in unused.items() if number not in signers}
    return "" if unused else "they signed the certificates that servers showed"


def _is_signed_by(certificate: x509.Certificate, key: object) -> bool:
    algorithm = certificate.signature_hash_algorithm
    if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
        return False
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _client_key_shown(
    directory: Path, theft: Theft, stolen: KeyMaterial, sessions: Sequence[Session]
) -> str:
    """Find each stolen key's public half in the certificate that a client showed."""
    public = [key.public_key() for key in stolen.server_private_keys]
    for session in sessions:
        if not session.client_key or session.resumed:
            continue
        secrets = KeyMaterial(key_log=read_key_log(directory / layout.key_log_of(session.name)))
        shown = attack_recording(directory, session.name, secrets).facts.client_certificates
        if shown and x509.load_der_x509_certificate(shown[0]).public_key() in public:
            return f"its public half is in the certificate that the client of {session.name} showed"
    del theft
    return ""


def _pre_shared_keys_shown(
    directory: Path, theft: Theft, stolen: KeyMaterial, sessions: Sequence[Session]
) -> str:
    """Find a session whose ClientHello one of the keys binds (RFC 9846 section 4.3.11.2)."""
    for session in sessions:
        if session.resumes != theft.name.partition(":")[2]:
            continue
        facts = attack_recording(directory, session.name, stolen).facts
        if facts.secrets.get("pre_shared_key") in stolen.pre_shared_keys:
            return f"one of them makes the PSK binder in the ClientHello of {session.name}"
    return ""


def _exporter_secret_shown(
    directory: Path, theft: Theft, stolen: KeyMaterial, sessions: Sequence[Session]
) -> str:
    """Derive the exporter secret from the stolen key exchange of its session, and compare."""
    name = theft.name.partition(":")[2]
    own = {session.name: session.ephemeral_key for session in sessions}
    logged = {secrets.get("EXPORTER_SECRET") for secrets in stolen.key_log.values()}
    for row, key in thefts(directory, sessions):
        if own[name] and row.name == ephemeral_key_of(own[name]):
            facts = attack_recording(directory, name, key).facts
            if logged == {facts.secrets.get("exporter_secret", b"")}:
                return f"it is what the stolen ephemeral key of {name} yields"
    return ""


def _later_secret_shown(
    directory: Path, theft: Theft, stolen: KeyMaterial, _sessions: Sequence[Session]
) -> str:
    """Derive the third traffic secret from the first, as the server logged that."""
    name = theft.name.partition(":")[2]
    logged = read_key_log(directory / layout.key_log_of(name))
    for random, held in stolen.key_log.items():
        secret = logged.get(random, {}).get("CLIENT_TRAFFIC_SECRET_0", b"")
        if (hash_name := HASH_OF_LENGTH.get(len(secret))) is None:
            continue
        for _ in range(2):
            secret = next_traffic_secret(hash_name, secret)
        if held.get("CLIENT_TRAFFIC_SECRET_2") == secret:
            return f"it is what two updates make of the first traffic secret of {name}"
    return ""


_SHOWN: Final[dict[str, Callable[[Path, Theft, KeyMaterial, Sequence[Session]], str]]] = {
    SERVER_KEY: _server_keys_shown,
    CA_KEYS: _ca_keys_shown,
    "client-key": _client_key_shown,
    "target-key": _target_keys_shown,
    "pre-shared-key": _pre_shared_keys_shown,
    EXPORTER: _exporter_secret_shown,
    LATER_TRAFFIC: _later_secret_shown,
}

"""Somebody's own server as what a proof is about: recorded beside the servers made for the run.

The run is the same, controls and all; sessions with the target come on top of it. What a target
should do is tried first, then what it had better refuse: static RSA, a TLS 1.2 ticket, resumption
without a key exchange, 0-RTT data. A session that it refuses is named with its reason, and one that
it should have refused is recorded, opens, and refutes.

Two things are different. Secrets come from the clients' key logs, since the target's are its own.
And its private keys stay where they are: the evidence says which keys they were, and holds none.
"""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.errors import InputError, InteropError, PeerUnavailable
from interop.proof.application import Application
from interop.proof.compromise import attack_recording
from interop.proof.recording import Recorder, SessionRefused
from interop.proof.scenarios import TARGET_SCENARIOS
from interop.proof.servers import Server
from interop.proof.stage import Stage
from interop.proof.stolen import StolenFiles, load_stolen
from interop.wire.key_log import KeyLog
from interop.wire.material import KeyMaterial
from transport import CertificateRejected, KeyLogBuffer, TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from certs.credential import TrustAnchors
    from interop.peers.endpoints import Address
    from interop.progress import Progress
    from interop.proof.model import Session, Skipped
    from interop.proof.scenarios import Scenario

__all__ = ["OwnServer", "record_target", "spki_sha256"]

_DEADLINE_SECONDS: Final = 10.0  # some clients wait for an end that not every server makes


@dataclass(frozen=True, kw_only=True)
class OwnServer:
    """A server that whoever runs this owns.

    `private_keys` are the files of its keys, in PEM, one for each certificate that it has.
    """

    address: Address
    server_name: str
    trust_anchors: TrustAnchors
    private_keys: tuple[Path, ...]

    @property
    def name(self) -> str:
        """HOST:PORT."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def spki_sha256(private_keys: Sequence[Path]) -> tuple[str, ...]:
    """Return the SHA-256 of each key's SubjectPublicKeyInfo in hex, sorted; `InputError` if bad."""
    stolen, _ = load_stolen(StolenFiles(server_keys=private_keys))
    public = (key.public_key() for key in stolen.server_private_keys)
    return tuple(sorted({_sha256_of(each) for each in public}))


def _sha256_of(key: PublicKeyTypes) -> str:
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def record_target(
    directory: Path, target: OwnServer, payload: bytes, private: Path, progress: Progress
) -> tuple[tuple[Session, ...], tuple[Skipped, ...]]:
    """Record sessions with the target, as `Stage.record` does; `private` is a temporary folder.

    Raises `PeerUnavailable` where there was not one, and `InputError` where the target is not who
    it should be, or showed no certificate of any of the keys.
    """
    _require_reachable(target)
    anchors_file = private / "target-anchors.pem"
    anchors_file.write_bytes(target.trust_anchors.pem())
    key_log = KeyLogBuffer()
    server = Server(f"target {target.name}", target.address, Application(), key_log)

    shown: set[str] = set()

    def recorder() -> Recorder:
        return _Recorder(directory, target, payload, anchors_file, key_log, shown=shown)

    stage = Stage(directory, TARGET_SCENARIOS, {"target": server}, recorder)
    sessions, skipped = stage.record(progress)
    if not sessions:
        raise PeerUnavailable(f"no session with {target.name} could be made: {skipped[0].reason}")
    if shown and shown.isdisjoint(spki_sha256(target.private_keys)):
        files = ", ".join(map(str, target.private_keys))
        raise InputError(f"{files}: not the key of any certificate that {target.name} showed")
    return sessions, skipped


def _require_reachable(target: OwnServer) -> None:
    """Connect once: through the relay that records, a refusal would look like an end."""
    try:
        socket.create_connection(target.address, _DEADLINE_SECONDS).close()
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise PeerUnavailable(f"{target.name} cannot be reached: {why}") from error


class _Recorder(Recorder):
    """Records what the target does; what it does not do is no failure of the run.

    It cannot be asked what arrived. So a recording counts if its secrets open all that was sent.
    Then `shown` gets the SHA-256 of the SubjectPublicKeyInfo in the certificate that was shown.
    """

    def __init__(
        self,
        directory: Path,
        target: OwnServer,
        payload: bytes,
        anchors_file: Path,
        key_log: KeyLogBuffer,
        *,
        shown: set[str],
    ) -> None:
        super().__init__(
            payload,
            trust_anchors=target.trust_anchors,
            trust_anchors_file=anchors_file,
            server_name=target.server_name,
            key_log=key_log,
            acknowledged=False,
            deadline_seconds=_DEADLINE_SECONDS,
        )
        self._directory = directory
        self._sent = payload
        self._secrets = key_log
        self._shown = shown
        self._name = target.name

    def record(
        self, scenario: Scenario, *, server_address: Address, capture: Path
    ) -> dict[str, bytes]:
        known = len(self._secrets.getvalue())
        try:
            files = super().record(scenario, server_address=server_address, capture=capture)
            secrets = KeyMaterial(key_log=KeyLog.parse(self._secrets.getvalue()[known:]))
            attempt = attack_recording(self._directory, scenario.name, secrets)
        except PeerUnavailable:
            raise
        except CertificateRejected as error:
            raise InputError(f"{self._name}: {error}") from error
        except (InteropError, TransportError, OSError) as error:
            if not scenario.weak:
                raise PeerUnavailable(f"the target does not do it: {error}") from error
            if self._was_begun(scenario):
                raise PeerUnavailable(f"the target began it, and it broke: {error}") from error
            raise SessionRefused(f"refused, as it should be: {error}") from error
        if attempt.payload != self._sent:
            raise PeerUnavailable("the target ended the session before all was sent")
        if certificates := attempt.facts.server_certificates:
            leaf = x509.load_der_x509_certificate(certificates[0])
            self._shown.add(_sha256_of(leaf.public_key()))
        return files

    def _was_begun(self, scenario: Scenario) -> bool:
        """Say whether the recording shows the target doing what it had better refuse."""
        try:
            result = attack_recording(self._directory, scenario.name, KeyMaterial()).result
        except InputError:
            return False  # not one whole session is in it
        return bool(result.resumed) if scenario.resumes else result.version is not None

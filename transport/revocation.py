"""Peers held to revocation lists and stapled OCSP responses, on both sides and both engines.

Theory of operation
-------------------
`PeerRevocation` is what an `EndpointContext` carries: whose lists a peer's certificates must be
off, and what a client makes of a server's staple. `TLSCore` hands it to each connection, and the
handshake asks it from inside (`transport.openssl_peers`), so that a refusal is an alert and not a
connection that ends after it was established.

**Lists** come from `certs.revocation.RevocationLists`, which never change, or from `CRLFiles`,
which are read anew when they change. Either way every certificate of the path but the trust anchor
needs a list of its issuer that is of now; a missing, ended or forged list refuses the peer. The
alert is certificate_revoked for a listed one, and certificate_unknown for the rest, which is no
fault of the peer's certificate. New lists that cannot be used are reported and the old ones stay
until they end by themselves.

**A resumed session** shows no certificates. Those that it remembers from its full handshake are
held to the lists again, after the handshake and before any byte of the application, so a
revocation ends resumption at once, whatever context or store the session comes from. A session
whose issuers' lists were never verified here is refused; a client's next attempt is a full
handshake. The staple that a session began with is not asked for again while the session lasts,
an hour unless the policy says otherwise; sessions are kept apart by what they were checked against
(`EndpointContext.scope`).

**Staples** (RFC 6066 section 8). By default what a server staples is verified, and a staple that
proves nothing, or proves revocation, ends the handshake; a server without one is accepted unless
its certificate promises a staple (RFC 7633). An attacker with a stolen key staples nothing, so only
`REQUIRE` or must-staple defends against that one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from certs.errors import CertsError, NotKnownGood, RevocationFault, UnusableOCSPResponse
from certs.ocsp import CertificateStatus, StatusProof, requires_staple, verify_ocsp_response
from certs.revocation import MAX_CRL_FILE_BYTES, RevocationLists
from transport.background import Background
from transport.errors import AlertDescription, APIMisuse
from transport.openssl_peers import PeerRefusal, check_peer, remembered_chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography import x509
    from OpenSSL import SSL

__all__ = [
    "CRLFiles",
    "Fingerprint",
    "PeerRevocation",
    "StaplePolicy",
    "fingerprint",
    "peer_revocation",
    "read_crl_files",
]

_LOGGER: Final = logging.getLogger(__name__)
_CHECK_SECONDS: Final = 2.0
_MIN_PATH_LENGTH: Final = 2
_ADVICE: Final = {
    RevocationFault.REVOKED: "replace the peer's certificate and its key",
    RevocationFault.NO_LIST: "give a CRL of this authority too: each one above a peer needs one",
    RevocationFault.BAD_SIGNATURE: "fetch this authority's CRL anew, from the authority",
    RevocationFault.NOT_YET_VALID: "check this machine's clock",
    RevocationFault.EXPIRED: "fetch this authority's newer CRL, and look why it was not fetched",
}

# Modification time in nanoseconds, size in bytes, inode; None for a file that is not there.
Fingerprint = tuple[int, int, int] | None


class StaplePolicy(StrEnum):
    """What a client makes of the OCSP response that a server staples, or does not."""

    IGNORE = "ignore"
    CHECK = "check"
    REQUIRE = "require"


def fingerprint(path: Path) -> Fingerprint:
    """Return what tells whether a file was changed or replaced."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_crl_files(paths: Sequence[Path]) -> RevocationLists:
    """Read files of CRLs, PEM or DER, 64 MiB each at most. Raises `UnusableCRL`, `OSError`."""
    contents = []
    for path in paths:
        with path.open("rb") as file:
            contents.append(file.read(MAX_CRL_FILE_BYTES + 1))
    return RevocationLists(*contents)


class CRLFiles:
    """Files of CRLs, in use at once and read anew when they change.

    They are looked at every `check_seconds`, by a thread that ends with this object. `report` is
    called there with the `UnusableCRL` or `OSError` of new files that cannot be used, once for each
    change; it must not raise. By default they go to the log of this module. Raises `UnusableCRL`
    and `OSError`: there have to be lists to begin with.
    """

    def __init__(
        self,
        *paths: Path | str,
        check_seconds: float = _CHECK_SECONDS,
        report: Callable[[Exception], None] | None = None,
    ) -> None:
        self._paths = tuple(Path(path) for path in paths)
        self._check_seconds = check_seconds
        self._report = report or _log_failure
        self._seen = self._look()  # before reading: what changes meanwhile is seen at the next look
        self._lists = read_crl_files(self._paths)
        self._background = Background(self, name="pfs-crl", first_wait_seconds=check_seconds)

    def __repr__(self) -> str:
        return f"<CRLFiles {', '.join(map(str, self._paths))}>"

    @property
    def lists(self) -> RevocationLists:
        """The lists as they were last read."""
        self._background.ensure_running()
        return self._lists

    def refresh(self) -> None:
        """Read the files now if they changed; raises nothing, see `report`."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            lists = read_crl_files(self._paths)
        except (CertsError, OSError) as error:
            self._report(error)
        else:
            lists.prepare(self._lists.known_issuers)
            self._lists = lists

    def look_after(self) -> float:
        """Call `refresh`; for the background thread's use."""
        self.refresh()
        return self._check_seconds

    def _look(self) -> list[Fingerprint]:
        return [fingerprint(path) for path in self._paths]


def _log_failure(error: Exception) -> None:
    _LOGGER.warning("new CRLs cannot be used, the old ones stay: %s", error)


@dataclass(frozen=True, slots=True, eq=False)
class PeerRevocation:
    """What a connection's peer must not be revoked by; `staples` is for clients, None on servers.

    `scope` is equal for two of them that check peers in the same way.
    """

    crls: RevocationLists | CRLFiles | None = None
    staples: StaplePolicy | None = None

    @property
    def scope(self) -> tuple[object, ...]:
        """What sessions must have in common to be resumed in each other's place."""
        return (self.crls, self.staples)

    def watch(self, connection: SSL.Connection) -> None:
        """Let a new connection's handshake be checked."""
        check_peer(
            connection,
            path=None if self.crls is None else self._refuse_path,
            staple=None if self.staples in {None, StaplePolicy.IGNORE} else self._refuse_staple,
        )

    def require_resumable(self, connection: SSL.Connection) -> None:
        """Raise `CertificateRejected` if a resumed session's peer is not to be taken any more."""
        lists = self._lists()
        if lists is None:
            return
        try:
            lists.require_still_good(remembered_chain(connection), _now())
        except NotKnownGood as fault:
            raise _refusal(fault).error() from None

    def _lists(self) -> RevocationLists | None:
        return self.crls.lists if isinstance(self.crls, CRLFiles) else self.crls

    def _refuse_path(self, path: Sequence[x509.Certificate]) -> PeerRefusal | None:
        lists = self._lists()
        if lists is None:
            return None
        try:
            lists.require_good(path, _now())
        except NotKnownGood as fault:
            return _refusal(fault)
        return None

    def _refuse_staple(
        self, staple: bytes | None, path: Sequence[x509.Certificate]
    ) -> PeerRefusal | None:
        if len(path) < _MIN_PATH_LENGTH:
            return None  # the certificate is itself a trust anchor: nobody is above it to say more
        certificate, issuer = path[:2]
        if staple is None:
            if self.staples is not StaplePolicy.REQUIRE and not requires_staple(certificate):
                return None
            return _staple_refusal(
                "the server stapled no OCSP response, and one is required",
                "turn on OCSP stapling at the server",
            )
        try:
            proof = verify_ocsp_response(staple, certificate, issuer, _now())
        except UnusableOCSPResponse as error:
            return _staple_refusal(
                f"the server's staple proves nothing: {error}",
                "let the server fetch a new OCSP response",
            )
        return None if proof.status is CertificateStatus.GOOD else _refusal_by_status(proof)


def peer_revocation(
    crls: RevocationLists | CRLFiles | None, staples: StaplePolicy | str | None
) -> PeerRevocation | None:
    """Return what to check peers by, None where there is nothing. Raises `APIMisuse`."""
    if not isinstance(crls, RevocationLists | CRLFiles | None):
        raise APIMisuse(
            f"crls is a {type(crls).__name__}",
            advice="pass CRLFiles(path, …), or RevocationLists(content, …)",
        )
    try:
        policy = None if staples is None else StaplePolicy(staples)
    except ValueError:
        raise APIMisuse(
            f"{staples!r} is no way to treat staples",
            advice=f"pass one of {', '.join(StaplePolicy)}",
        ) from None
    if crls is None and policy in {None, StaplePolicy.IGNORE}:
        return None
    return PeerRevocation(crls, policy)


def _refusal(fault: NotKnownGood) -> PeerRefusal:
    revoked = fault.fault is RevocationFault.REVOKED
    return PeerRefusal(
        AlertDescription.certificate_revoked if revoked else AlertDescription.certificate_unknown,
        f"the peer's certificate was rejected: {fault}",
        _ADVICE[fault.fault],
    )


def _refusal_by_status(proof: StatusProof) -> PeerRefusal:
    if proof.status is CertificateStatus.REVOKED:
        when = "" if proof.revoked_at is None else f" at {proof.revoked_at:%F %T} UTC"
        return _staple_refusal(
            f"the server's certificate was revoked{when}, as it staples itself",
            "replace the server's certificate and its key",
        )
    return _staple_refusal(
        "the server's OCSP responder does not know its certificate",
        "issue the server's certificate anew",
    )


def _staple_refusal(problem: str, advice: str) -> PeerRefusal:
    return PeerRefusal(AlertDescription.bad_certificate_status_response, problem, advice)


def _now() -> datetime:
    return datetime.now(UTC)

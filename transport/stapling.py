"""A server's own OCSP responses, stapled to its certificate and kept fresh (RFC 6066 section 8).

Theory of operation
-------------------
A `Stapler` belongs to one credential and holds at most one response. A handshake asks `current`,
which looks at one tuple and a clock; everything else happens elsewhere:

- *bytes* never change, so they are verified at once and there is no thread;
- a *file* is looked at every two seconds, and read when it changed;
- a *callable* is called by the thread: at the start, then halfway between the response's thisUpdate
  and its nextUpdate, so that a responder may be away for the other half. After a failure it is
  asked again after 5 seconds, then 10, doubling up to 5 minutes; each wait is varied by a tenth, so
  that the workers of a server do not all ask at once. It may block: only its own thread waits.

**A staple is an extra.** Whatever is wrong with one is reported and costs no handshake: an
unreadable file, a responder that is down, a response for another certificate. A new response that
proves nothing does not replace one that still does. A response past its nextUpdate is never served,
since clients refuse it, and would have accepted none. One that says *revoked* is served: it is
true, and hiding it would be the wrong kind of helpful; one that says *unknown* is not.

The exception is *bytes*: whoever hands over bytes that prove nothing has made a mistake that can be
told to them, so that raises.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from certs.errors import UnusableOCSPResponse
from certs.ocsp import MAX_OCSP_RESPONSE_BYTES, CertificateStatus, StatusProof, read_own_staple
from transport.background import Background
from transport.revocation import Fingerprint, fingerprint

if TYPE_CHECKING:
    from cryptography import x509

    from certs.credential import Credential

__all__ = ["StapleSource", "Stapler", "seconds_until_refresh"]

StapleSource = bytes | Path | Callable[[], bytes]

_LOGGER: Final = logging.getLogger(__name__)
_FILE_CHECK_SECONDS: Final = 2.0
_FIRST_RETRY_SECONDS: Final = 5.0
_LONGEST_RETRY_SECONDS: Final = 300.0
_MAX_DOUBLINGS: Final = 20
_SHORTEST_REFRESH_SECONDS: Final = 1.0
_JITTER: Final = 0.1


class _Held(NamedTuple):
    response: bytes
    proof: StatusProof
    ends: float  # seconds since 1970


class Stapler:
    """Keeps one credential's OCSP response; `current` is what to staple now.

    `report` is told what goes wrong, once for each attempt and once when a response ends without a
    successor; on any thread, and it must not raise. By default it is a line in this module's log.
    Raises `UnusableOCSPResponse` for bytes that prove nothing.
    """

    def __init__(
        self,
        source: StapleSource,
        credential: Credential,
        *,
        report: Callable[[Exception], None] | None = None,
        file_check_seconds: float = _FILE_CHECK_SECONDS,
    ) -> None:
        self._source = source
        self._chain: tuple[x509.Certificate, ...] = credential.chain
        self._report = report or _log_failure
        self._file_check_seconds = file_check_seconds
        self._held: _Held | None = None
        self._end_reported = False
        self._failures = 0
        self._seen: Fingerprint = None
        self._looked = False
        self._background: Background | None = None
        if isinstance(source, bytes):
            self._take(source)
            return
        wait_seconds = 0.0
        if isinstance(source, Path):
            wait_seconds = self.look_after()  # so that the first handshake has it already
        self._background = Background(self, name="pfs-staple", first_wait_seconds=wait_seconds)

    def __repr__(self) -> str:
        held = self._held
        state = (
            "nothing"
            if held is None
            else f"{held.proof.status}, until {held.proof.next_update:%F %T}"
        )
        return f"<Stapler: {state}>"

    def current(self) -> bytes | None:
        """Return the response to staple now, in DER; None if there is none that holds."""
        if self._background is not None:
            self._background.ensure_running()
        held = self._held
        if held is None:
            return None
        if time.time() < held.ends:
            return held.response
        if not self._end_reported:
            self._end_reported = True
            self._report(
                UnusableOCSPResponse(
                    f"the OCSP response ended at {held.proof.next_update:%F %T} UTC and nothing "
                    "took its place, so none is stapled; look at the responder"
                )
            )
        return None

    def serves(self, source: StapleSource, credential: Credential) -> bool:
        """Return whether this is the stapler of that source and that certificate."""
        same_source = source is self._source or (not callable(source) and source == self._source)
        return same_source and credential.chain == self._chain

    def look_after(self) -> float:
        """Read or fetch if it is time to; for the background thread's use."""
        if isinstance(self._source, Path):
            self._look_at_file(self._source)
            return self._file_check_seconds
        if callable(self._source):
            return self._fetch(self._source)
        return _LONGEST_RETRY_SECONDS

    def _look_at_file(self, path: Path) -> None:
        seen = fingerprint(path)
        if self._looked and seen == self._seen:
            return
        self._looked, self._seen = True, seen  # before reading, and whatever comes of it
        try:
            with path.open("rb") as file:
                self._take(file.read(MAX_OCSP_RESPONSE_BYTES + 1))
        except (OSError, UnusableOCSPResponse) as error:
            self._report(error)

    def _fetch(self, source: Callable[[], bytes]) -> float:
        try:
            self._take(source())
        except Exception as error:  # noqa: BLE001 - a source is anybody's code
            self._failures += 1
            self._report(error)
        else:
            self._failures = 0
        proof = None if self._held is None else self._held.proof
        wait_seconds = seconds_until_refresh(proof, _now(), failures=self._failures)
        return wait_seconds * (1 - _JITTER * random.random())  # noqa: S311 - no secret

    def _take(self, response: bytes) -> None:
        if not isinstance(response, bytes):
            raise UnusableOCSPResponse(
                f"an OCSP response is bytes in DER, not a {type(response).__name__}"
            )
        now = _now()
        proof = read_own_staple(response, self._chain, now)
        if proof.status is CertificateStatus.UNKNOWN:
            raise UnusableOCSPResponse(
                "the OCSP responder does not know this certificate, so its answer is not stapled"
            )
        if proof.next_update <= now:
            raise UnusableOCSPResponse(
                f"the OCSP response ended at {proof.next_update:%F %T} UTC; fetch a newer one"
            )
        if proof.status is CertificateStatus.REVOKED:
            self._report(
                UnusableOCSPResponse(
                    "this server's own certificate is revoked, and its staple says so: replace "
                    "the certificate and its key"
                )
            )
        self._held = _Held(response, proof, proof.next_update.timestamp())
        self._end_reported = False


def seconds_until_refresh(proof: StatusProof | None, now: datetime, *, failures: int) -> float:
    """Return how long to wait until the next response is fetched.

    `failures` is how many attempts in a row have failed: 5 seconds after the first, doubling up to
    5 minutes. After a success it is half of the response's life, and, for a responder that hands
    out responses older than that, half of what is left; a second at least.
    """
    if failures or proof is None:
        doublings = min(max(failures - 1, 0), _MAX_DOUBLINGS)
        return min(_FIRST_RETRY_SECONDS * (1 << doublings), _LONGEST_RETRY_SECONDS)
    halfway = proof.this_update + (proof.next_update - proof.this_update) / 2
    left = proof.next_update - now
    wait = halfway - now if halfway > now else left / 2
    return max(wait.total_seconds(), _SHORTEST_REFRESH_SECONDS)


def _log_failure(error: Exception) -> None:
    _LOGGER.warning("the OCSP staple is not renewed: %s", error)


def _now() -> datetime:
    return datetime.now(UTC)

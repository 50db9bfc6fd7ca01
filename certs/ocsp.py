"""OCSP responses (RFC 6960): writing them, and reading one that a server staples.

`build_ocsp_response` signs what an authority knows about one certificate, with the authority's own
key or that of a responder it delegated to. `verify_ocsp_response` turns the bytes of a staple into
a `StatusProof`, or raises `UnusableOCSPResponse`: whoever holds a proof knows that every check was
made. A proof may say *revoked*: that is for the caller to act on.

**The checks**, with the section that asks for each: a successful answer (4.2.1); about this
certificate and this issuer, by the hashes of the issuer's name and key, SHA-1 or SHA-256, and the
serial number (3.2 step 1); signed by the issuer itself, or by a responder whose certificate the
issuer signed for this purpose with id-kp-OCSPSigning (4.2.2.2), never by anybody else; of now, by
thisUpdate and nextUpdate (4.2.2.1), which must be there: an answer without an end could be stapled
for ever (RFC 9654 section 3.2.4 asks for it too). Clocks may differ by five minutes. The responder
is found by the name or key hash in the response. Whether a delegated responder was itself revoked
is not asked: RFC 6960 section 4.2.2.2.1 leaves that to the authority, which gives such certificates
a short life and id-pkix-ocsp-nocheck.

Signatures with SHA-1 are refused. As an *identifier* of the issuer SHA-1 stays: nothing rests on
its collision resistance, and it is what most responders use.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.errors import IssuanceError, UnsupportedKey, UnusableOCSPResponse
from certs.key_types import PrivateKey, PublicKey, require_public_key, signature_hash
from certs.revocation import CLOCK_SKEW, require_signer, require_window

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MAX_OCSP_RESPONSE_BYTES",
    "CertificateStatus",
    "StatusProof",
    "build_ocsp_response",
    "read_own_staple",
    "requires_staple",
    "verify_ocsp_response",
]

MAX_OCSP_RESPONSE_BYTES: Final = 64 * 1024
_MAX_RESPONDER_CERTIFICATES: Final = 10
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class CertificateStatus(StrEnum):
    """What a responder says of a certificate (RFC 6960 section 2.2)."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


_STATUSES: Final = {
    ocsp.OCSPCertStatus.GOOD: CertificateStatus.GOOD,
    ocsp.OCSPCertStatus.REVOKED: CertificateStatus.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN: CertificateStatus.UNKNOWN,
}
_LIBRARY_STATUSES: Final = {status: theirs for theirs, status in _STATUSES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusProof:
    """What a verified response says, and from when to when it may be relied on."""

    status: CertificateStatus
    this_update: datetime
    next_update: datetime
    produced_at: datetime
    revoked_at: datetime | None = None
    reason: x509.ReasonFlags | None = None


# Writing


def build_ocsp_response(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    signing_key: PrivateKey,
    *,
    now: datetime,
    next_update: datetime,
    status: CertificateStatus = CertificateStatus.GOOD,
    revoked_at: datetime | None = None,
    reason: x509.ReasonFlags | None = None,
    responder: x509.Certificate | None = None,
    identifier_hash: hashes.SHA1 | hashes.SHA256 | None = None,
) -> bytes:
    """Sign a response about one certificate and return it in DER (RFC 6960 section 4.2).

    `signing_key` is the issuer's (in a store, ``store.signing_key(ca.name, ca.key_version)``), or,
    with `responder`, that of a delegated responder. `revoked_at` is for a revoked certificate
    and no other. `identifier_hash` is SHA-1 unless given, which every client knows.
    producedAt is the system's time: the library leaves no choice. Raises
    `IssuanceError` for a key that is not the signer's or may not sign this, a responder without
    id-kp-OCSPSigning or of another issuer, and times without a zone or in the wrong order.
    """
    signer = issuer if responder is None else responder
    require_signer(signer, signing_key)
    require_window(now, next_update)
    if (revoked_at is not None) != (status is CertificateStatus.REVOKED):
        raise IssuanceError("a time of revocation belongs to a revoked certificate, and only there")
    if reason is not None and status is not CertificateStatus.REVOKED:
        raise IssuanceError("a reason belongs to a revoked certificate, and only there")
    if not _may_sign(signer):
        raise IssuanceError(
            "the signer's certificate does not let it sign OCSP responses (keyUsage "
            "digitalSignature); delegate to a responder"
        )
    if not _is_issued_by(certificate, issuer):
        raise IssuanceError("the certificate was not issued by this issuer")
    if responder is not None and not _is_delegated(responder, issuer, now):
        raise IssuanceError(
            "the responder's certificate is not one that the issuer signed for OCSP; issue one "
            "with the extended key usage id-kp-OCSPSigning"
        )
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            certificate,
            issuer,
            identifier_hash or hashes.SHA1(),  # noqa: S303 - an identifier, see the module's top
            _LIBRARY_STATUSES[status],
            _whole_second(now),
            _whole_second(next_update),
            None if revoked_at is None else _whole_second(revoked_at),
            reason,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, signer)
    )
    if responder is not None:
        builder = builder.certificates([responder])
    response = builder.sign(signing_key, signature_hash(signing_key.public_key()))
    return response.public_bytes(Encoding.DER)


def _may_sign(signer: x509.Certificate) -> bool:
    """Whether keyUsage allows it; a certificate without keyUsage may do anything (4.2.1.3)."""
    try:
        usage = signer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.digital_signature


# Reading


def requires_staple(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that its server must staple (RFC 7633, "must-staple")."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.TLSFeature)
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in found.value


def verify_ocsp_response(
    der: bytes, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime
) -> StatusProof:
    """Return what a response proves about a certificate; the module's top lists the checks.

    `der` has 64 KiB at most. Raises `UnusableOCSPResponse`, saying which check failed.
    """
    response = _load(der)
    single = _single_about(response, certificate, issuer)
    signer = _find_signer(response, issuer, now)
    _require_signature(response, signer)
    return _proof(response, single, now)


def read_own_staple(der: bytes, chain: Sequence[x509.Certificate], now: datetime) -> StatusProof:
    """Return what a server's own staple says; `chain` is the server's, leaf first.

    A chain that stops short of the leaf's issuer leaves the signature to the clients, which know
    it; the rest is checked as `verify_ocsp_response` does. Raises `UnusableOCSPResponse`.
    """
    if len(chain) > 1:
        return verify_ocsp_response(der, chain[0], chain[1], now)
    response = _load(der)
    return _proof(response, _single_about(response, chain[0], None), now)


def _load(der: bytes) -> ocsp.OCSPResponse:
    if len(der) > MAX_OCSP_RESPONSE_BYTES:
        raise UnusableOCSPResponse(f"the OCSP response exceeds {MAX_OCSP_RESPONSE_BYTES} bytes")
    try:
        response = ocsp.load_der_ocsp_response(der)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise UnusableOCSPResponse(
                f"the OCSP responder answered {response.response_status.name.lower()}; ask it again"
            )
        critical = [one.oid.dotted_string for one in response.extensions if one.critical]
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise UnusableOCSPResponse("the OCSP response cannot be parsed; fetch it anew") from None
    if critical:
        raise UnusableOCSPResponse(
            f"the OCSP response has an unknown critical extension, {critical[0]}"
        )
    return response


def _single_about(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate | None
) -> ocsp.OCSPSingleResponse:
    """Find the part that is about this certificate; one response may be about several."""
    for single in response.responses:
        try:
            hashed = single.hash_algorithm
        except UnsupportedAlgorithm:
            continue
        if single.serial_number != certificate.serial_number:
            continue
        if issuer is None or _identifies(single, hashed, certificate, issuer):
            return single
    raise UnusableOCSPResponse(
        "the OCSP response is about another certificate; fetch one for the certificate in use"
    )


def _identifies(
    single: ocsp.OCSPSingleResponse,
    hashed: hashes.HashAlgorithm,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
) -> bool:
    if not isinstance(hashed, hashes.SHA1 | hashes.SHA256):
        return False
    # The library's request for this certificate has the identifiers as they should be.
    wanted = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashed).build()
    return (single.issuer_name_hash, single.issuer_key_hash) == (
        wanted.issuer_name_hash,
        wanted.issuer_key_hash,
    )


def _find_signer(
    response: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime
) -> x509.Certificate:
    """Return the certificate of whom the response says it is from, if that one may sign it."""
    if _is_responder(response, issuer):
        return issuer
    try:
        candidates = response.certificates[:_MAX_RESPONDER_CERTIFICATES]
    except ValueError:
        candidates = []
    for candidate in candidates:
        if _is_responder(response, candidate) and _is_delegated(candidate, issuer, now):
            return candidate
    raise UnusableOCSPResponse(
        "the OCSP response is neither from the certificate's issuer nor from a responder that the "
        "issuer delegated to (id-kp-OCSPSigning)"
    )


def _is_responder(response: ocsp.OCSPResponse, candidate: x509.Certificate) -> bool:
    if response.responder_name is not None:
        return response.responder_name == candidate.subject
    try:
        key = candidate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    digest = x509.SubjectKeyIdentifier.from_public_key(key).digest  # SHA-1, as 4.2.1 says
    return response.responder_key_hash == digest


def _is_delegated(candidate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> bool:
    try:
        usages = candidate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    in_time = candidate.not_valid_before_utc <= now + CLOCK_SKEW and (
        now <= candidate.not_valid_after_utc
    )
    return (
        in_time and ExtendedKeyUsageOID.OCSP_SIGNING in usages and _is_issued_by(candidate, issuer)
    )


def _is_issued_by(issued: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _require_signature(response: ocsp.OCSPResponse, signer: x509.Certificate) -> None:
    try:
        key = require_public_key(signer.public_key())
        _verify(key, response)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm, UnsupportedKey):
        raise UnusableOCSPResponse(
            "the OCSP response's signature does not verify; fetch it anew"
        ) from None


def _verify(key: PublicKey, response: ocsp.OCSPResponse) -> None:
    hashed = response.signature_hash_algorithm
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        if not isinstance(hashed, _HASHES):
            raise UnusableOCSPResponse("the OCSP response's signature uses a hash that is too weak")
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), hashed)
        else:
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashed))
    else:
        key.verify(response.signature, response.tbs_response_bytes)


def _proof(
    response: ocsp.OCSPResponse, single: ocsp.OCSPSingleResponse, now: datetime
) -> StatusProof:
    begins, ends = single.this_update_utc, single.next_update_utc
    if ends is None:
        raise UnusableOCSPResponse(
            "the OCSP response does not say until when it holds (nextUpdate); ask the responder "
            "for one that does"
        )
    if max(begins, response.produced_at_utc) > now + CLOCK_SKEW:
        raise UnusableOCSPResponse(
            f"the OCSP response begins in the future, at {begins:%F %T} UTC; check the clocks"
        )
    if now >= ends + CLOCK_SKEW:
        raise UnusableOCSPResponse(
            f"the OCSP response ended at {ends:%F %T} UTC; fetch a newer one"
        )
    return StatusProof(
        status=_STATUSES[single.certificate_status],
        this_update=begins,
        next_update=ends,
        produced_at=response.produced_at_utc,
        revoked_at=single.revocation_time_utc,
        reason=single.revocation_reason,
    )


def _whole_second(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)

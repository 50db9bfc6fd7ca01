"""Certificate revocation lists (CRLs): writing them, and holding a path of certificates to them.

Theory of operation
-------------------
`build_crl` writes a list (RFC 5280 section 5) with a key that may sign inside its store.
`RevocationLists` reads any number of lists and answers one question: is each certificate of this
verified path known to be good now? It fails closed. A certificate without a list of its issuer is
refused like one that is listed, since whoever can keep a list away could otherwise undo it.

**Why not the TLS library's own check.** It hashes the whole list for its signature in every
handshake: 3.5 milliseconds for 100,000 entries, seven times the handshake. Here a signature is
checked when an issuer is first met, and a later look costs a hash of the issuer's certificate and
one set lookup, however long the list is.

**Which lists count.** One of the same issuer name, whose authority key identifier does not say
another key, and whose signature verifies under the issuer's key, which must be allowed to sign
lists (section 6.3.3 steps f and g). A list may be limited to CAs, to end entities, or to the
certificates that name its distribution point (section 5.2.5). What cannot be processed in full is
refused when it is read: delta and indirect lists, lists of some reasons only, unknown critical
extensions, lists without an end, and SHA-1 signatures. A certificate on any list that counts is
revoked, even if that list is past its time; to be good it must be off all of them, and one must be
of now. The trust anchor that ends a path is not asked about (section 6.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from certs.errors import (
    IssuanceError,
    NotKnownGood,
    RevocationFault,
    UnsupportedKey,
    UnusableCRL,
)
from certs.key_types import PrivateKey, public_key_der, require_public_key, signature_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "CLOCK_SKEW",
    "MAX_CRL_FILE_BYTES",
    "RevocationLists",
    "RevokedCertificate",
    "build_crl",
    "require_signer",
    "require_window",
]

MAX_CRL_FILE_BYTES: Final = 64 * 1024 * 1024  # 100,000 entries take 5.3 MiB
CLOCK_SKEW: Final = timedelta(minutes=5)
_MAX_LISTS: Final = 1000
_MAX_REMEMBERED_ISSUERS: Final = 256
_MAX_CRL_NUMBER: Final = 1 << 159  # section 5.2.3: 20 octets
_SERIAL_LIMIT: Final = 1 << 159
_EARLIEST: Final = datetime(1950, 1, 1, tzinfo=UTC)  # UTCTime's first year, section 4.1.2.5.1
_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_CRITICAL: Final = b"\x01\x01\xff"  # as every critical extension has it, in DER
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


# Writing


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """An entry of a list: the serial number, when it was revoked, and why.

    Raises `IssuanceError` for a serial number that no certificate has (section 4.1.2.2), a time
    without a zone or before 1950, and the reasons that section 5.3.1 keeps out of full lists
    (`remove_from_crl`) or that are said by leaving the reason out (`unspecified`).
    """

    serial_number: int
    revoked_at: datetime
    reason: x509.ReasonFlags | None = None

    def __post_init__(self) -> None:
        # The library's builder, made at once from all of it, checks nothing; and it is made so
        # because a hundred thousand entries are.
        if not 0 < self.serial_number < _SERIAL_LIMIT:
            raise IssuanceError("a serial number is positive and has at most 20 octets")
        if self.revoked_at.tzinfo is None:
            raise IssuanceError("the time of a revocation has no time zone; give an aware datetime")
        if self.revoked_at < _EARLIEST:
            raise IssuanceError("a revocation before 1950 cannot be written; give its time")
        if self.reason in (x509.ReasonFlags.remove_from_crl, x509.ReasonFlags.unspecified):
            raise IssuanceError(
                f"{self.reason.value} is no reason of a list's entry; give another, or none"
            )

    def to_entry(self) -> x509.RevokedCertificate:
        """Return the entry as cryptography builds it."""
        builder = x509.RevokedCertificateBuilder(
            self.serial_number, self.revoked_at.astimezone(UTC).replace(tzinfo=None, microsecond=0)
        )
        if self.reason is not None:
            builder = builder.add_extension(x509.CRLReason(self.reason), critical=False)
        return builder.build()


def build_crl(
    issuer: x509.Certificate,
    signing_key: PrivateKey,
    revoked: Iterable[RevokedCertificate],
    *,
    number: int,
    now: datetime,
    next_update: datetime,
) -> x509.CertificateRevocationList:
    """Sign a full list of an authority, valid from `now` to `next_update` (RFC 5280 section 5).

    The key of an authority in a store is ``store.signing_key(ca.name, ca.key_version)``. `number`
    must rise with each list of an issuer (section 5.2.3). A hundred thousand entries take about a
    second. Raises `IssuanceError` for a key that is not the issuer's, an issuer that may not sign
    lists, a serial number given twice, times without a zone or in the wrong order.
    """
    require_signer(issuer, signing_key)
    if not _may_sign_lists(issuer):
        raise IssuanceError("this issuer's certificate does not let it sign CRLs (keyUsage)")
    require_window(now, next_update)
    if not 0 <= number < _MAX_CRL_NUMBER:
        raise IssuanceError("a CRL number is not negative and has at most 20 octets")
    entries = [one.to_entry() for one in revoked]
    if len({entry.serial_number for entry in entries}) != len(entries):
        raise IssuanceError("a serial number is given twice; list each certificate once")
    # Adding one entry at a time copies the list each time; all at once, it is linear.
    builder = (
        x509.CertificateRevocationListBuilder(revoked_certificates=entries)
        .issuer_name(issuer.subject)
        .last_update(_whole_second(now))
        .next_update(_whole_second(next_update))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority_key_identifier(issuer), critical=False)
    )
    return builder.sign(signing_key, signature_hash(signing_key.public_key()))


def require_signer(signer: x509.Certificate, signing_key: PrivateKey) -> None:
    """Raise `IssuanceError` unless the key is that of the certificate."""
    try:
        certified = public_key_der(require_public_key(signer.public_key()))
    except (UnsupportedKey, UnsupportedAlgorithm, ValueError):
        certified = b""
    if public_key_der(signing_key.public_key()) != certified:
        raise IssuanceError("the signing key does not belong to the signer's certificate")


def require_window(this_update: datetime, next_update: datetime) -> None:
    """Raise `IssuanceError` unless both times have a zone and are in order."""
    if this_update.tzinfo is None or next_update.tzinfo is None:
        raise IssuanceError("a time has no time zone; give aware datetimes")
    if next_update <= this_update:
        raise IssuanceError("the next update would come before this one; give a later time")


def _whole_second(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = require_public_key(issuer.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


# Reading


@dataclass(frozen=True, slots=True, eq=False)
class _Scope:
    """What a list is limited to by its issuingDistributionPoint (RFC 5280 section 5.2.5)."""

    end_entities_only: bool = False
    authorities_only: bool = False
    points: frozenset[x509.GeneralName] = frozenset()

    def covers(self, certificate: x509.Certificate) -> bool:
        if (self.end_entities_only or self.authorities_only) and (
            _is_authority(certificate) != self.authorities_only
        ):
            return False
        return not self.points or not self.points.isdisjoint(_distribution_points(certificate))


@dataclass(frozen=True, slots=True, eq=False)
class _List:
    """One list, read and found usable; its signature is not checked yet."""

    parsed: x509.CertificateRevocationList = field(repr=False)
    issuer: x509.Name
    key_identifier: bytes | None
    this_update: datetime
    next_update: datetime
    serial_numbers: frozenset[int] = field(repr=False)
    scope: _Scope | None

    def is_for(self, issuer: x509.Certificate) -> bool:
        """Whether it claims to be of this issuer."""
        if self.issuer != issuer.subject:
            return False
        own = _subject_key_identifier(issuer)
        return self.key_identifier is None or own is None or self.key_identifier == own

    def is_signed_by(self, issuer: x509.Certificate) -> bool:
        if not _may_sign_lists(issuer):
            return False
        try:
            return self.parsed.is_signature_valid(require_public_key(issuer.public_key()))
        except (TypeError, ValueError, UnsupportedAlgorithm, UnsupportedKey):
            return False

    def covers(self, certificate: x509.Certificate) -> bool:
        return self.scope is None or self.scope.covers(certificate)


@dataclass(frozen=True, slots=True, eq=False)
class _OfIssuer:
    """The lists of one issuer: those whose signature holds, and whether there are others."""

    genuine: tuple[_List, ...]
    some_forged: bool


class RevocationLists:
    """CRLs that certificate paths are held to; immutable, safe for threads.

    Each of `files` is the content of a file: PEM with one or several lists, or one list in DER,
    64 MiB at most. Raises `UnusableCRL` if one cannot be used, or if there is none.
    """

    def __init__(self, *files: bytes) -> None:
        self._lists = tuple(_read(der) for data in files for der in _split(data))
        if not 0 < len(self._lists) <= _MAX_LISTS:
            raise UnusableCRL(
                f"{len(self._lists)} CRLs were given; give 1 to {_MAX_LISTS}, one for each issuer"
            )
        self._by_issuer: dict[x509.Certificate, _OfIssuer] = {}

    def __repr__(self) -> str:
        entries = sum(len(one.serial_numbers) for one in self._lists)
        return f"<RevocationLists: {len(self._lists)} lists, {entries} entries>"

    @property
    def next_update(self) -> datetime:
        """When the first of the lists ends, and peers of its issuer begin to be refused."""
        return min(one.next_update for one in self._lists)

    @property
    def known_issuers(self) -> tuple[x509.Certificate, ...]:
        """The issuers met so far, for `prepare` of the lists that take these lists' place."""
        return tuple(self._by_issuer)

    def prepare(self, issuers: Iterable[x509.Certificate]) -> None:
        """Check the signatures of these issuers' lists now, rather than when one is first met.

        For 100,000 entries that takes a tenth of a second, which a handshake can do without.
        """
        for issuer in issuers:
            self._of(issuer)

    def require_good(self, path: Sequence[x509.Certificate], now: datetime) -> None:
        """Return if each certificate of a verified path, leaf first, is known to be good.

        The last one is the trust anchor. Raises `NotKnownGood` for the first that is not.
        """
        for certificate, issuer in pairwise(path):
            self._require_good(certificate, issuer, now)

    def require_still_good(self, chain: Iterable[x509.Certificate], now: datetime) -> None:
        """Hold the certificates of a resumed session to the lists again.

        It verified before, and its path is not there any more: an issuer is taken from those met so
        far, by name, and one that was never met makes its certificates not known to be good.
        Self-signed certificates are passed over. Raises `NotKnownGood`.
        """
        for certificate in chain:
            if certificate.issuer == certificate.subject:
                continue
            issuers = [one for one in self.known_issuers if _may_have_issued(one, certificate)]
            if not issuers:
                raise NotKnownGood(
                    f"no CRL of {_named(certificate.issuer)} was verified since the session began",
                    RevocationFault.NO_LIST,
                )
            for issuer in issuers:
                self._require_good(certificate, issuer, now)

    def _require_good(
        self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime
    ) -> None:
        found = self._of(issuer)
        in_scope = [one for one in found.genuine if one.covers(certificate)]
        if any(certificate.serial_number in one.serial_numbers for one in in_scope):
            raise NotKnownGood(
                f"the certificate of {_named(certificate.subject)} with serial number "
                f"{certificate.serial_number:x} is revoked",
                RevocationFault.REVOKED,
            )
        started = [one for one in in_scope if one.this_update <= now + CLOCK_SKEW]
        if any(now < one.next_update for one in started):
            return
        name = _named(issuer.subject)
        if started:
            ended = max(one.next_update for one in started)
            raise NotKnownGood(
                f"the CRL of {name} ended at {ended:%F %T} UTC", RevocationFault.EXPIRED
            )
        if in_scope:
            raise NotKnownGood(
                f"the CRL of {name} begins in the future", RevocationFault.NOT_YET_VALID
            )
        if found.some_forged:
            raise NotKnownGood(
                f"the CRL of {name} is not signed by its key", RevocationFault.BAD_SIGNATURE
            )
        raise NotKnownGood(
            f"no CRL of {name} covers the certificate of {_named(certificate.subject)}",
            RevocationFault.NO_LIST,
        )

    def _of(self, issuer: x509.Certificate) -> _OfIssuer:
        known = self._by_issuer.get(issuer)
        if known is None:
            claimed = [one for one in self._lists if one.is_for(issuer)]
            genuine = tuple(one for one in claimed if one.is_signed_by(issuer))
            known = _OfIssuer(genuine, len(genuine) < len(claimed))
            if len(self._by_issuer) >= _MAX_REMEMBERED_ISSUERS:
                self._by_issuer.clear()
            self._by_issuer[issuer] = known
        return known


def _split(data: bytes) -> list[bytes]:
    """Return the lists in a file, each as PEM or DER."""
    if len(data) > MAX_CRL_FILE_BYTES:
        raise UnusableCRL(f"a CRL file has more than {MAX_CRL_FILE_BYTES} bytes; split it")
    if data[:1] == b"\x30":
        return [data]
    if _BEGIN not in data:
        raise UnusableCRL(
            "a CRL file is neither PEM nor DER; give blocks that begin with "
            "-----BEGIN X509 CRL-----"
        )
    blocks = [b"-----BEGIN" + rest for rest in data.split(b"-----BEGIN")[1:]]
    if not all(block.startswith(_BEGIN) and _END in block for block in blocks):
        raise UnusableCRL("a CRL file has a block that is cut off or is no CRL; fetch it anew")
    return blocks


def _read(data: bytes) -> _List:
    try:
        parsed = (
            x509.load_der_x509_crl(data) if data[:1] == b"\x30" else x509.load_pem_x509_crl(data)
        )
        hashed = parsed.signature_hash_algorithm
        extensions = parsed.extensions
        next_update = parsed.next_update_utc
        serial_numbers = frozenset(entry.serial_number for entry in parsed)
        critical_of_entry = _critical_of_entry(parsed)
        issuer, this_update = parsed.issuer, parsed.last_update_utc
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        reason = " ".join(str(error).split())[:120]
        raise UnusableCRL(f"a CRL cannot be read ({reason}); fetch it anew") from None
    name = _named(issuer)
    if next_update is None:
        raise UnusableCRL(f"the CRL of {name} does not say when it ends (nextUpdate)")
    if critical_of_entry is not None:  # section 5.3: such a list must not be used
        raise UnusableCRL(
            f"an entry of the CRL of {name} has a critical extension, {critical_of_entry}"
        )
    if hashed is not None and not isinstance(hashed, _HASHES):
        raise UnusableCRL(f"the CRL of {name} is signed with {hashed.name}, which can be forged")
    return _List(
        parsed=parsed,
        issuer=issuer,
        key_identifier=_identifier_of_signer(extensions),
        this_update=this_update,
        next_update=next_update,
        serial_numbers=serial_numbers,
        scope=_scope(extensions, name),
    )


def _critical_of_entry(parsed: x509.CertificateRevocationList) -> str | None:
    """Return the OID of some entry's critical extension; few lists have one, and long ones none."""
    if _CRITICAL not in parsed.tbs_certlist_bytes:
        return None
    found = (one for entry in parsed for one in entry.extensions if one.critical)
    return next((one.oid.dotted_string for one in found), None)


def _identifier_of_signer(extensions: x509.Extensions) -> bytes | None:
    try:
        found = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return None
    return found.value.key_identifier


def _scope(extensions: x509.Extensions, name: str) -> _Scope | None:
    scope = None
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.DeltaCRLIndicator):
            raise UnusableCRL(f"the CRL of {name} is a delta; give the full list")
        if isinstance(value, x509.IssuingDistributionPoint):
            scope = _read_scope(value, name)
        elif extension.critical:  # section 5.2: such a list must not be used
            oid = extension.oid.dotted_string
            raise UnusableCRL(f"the CRL of {name} has an unknown critical extension, {oid}")
    return scope


def _read_scope(point: x509.IssuingDistributionPoint, name: str) -> _Scope:
    if (
        point.indirect_crl
        or point.only_some_reasons
        or point.only_contains_attribute_certs
        or point.relative_name is not None
    ):
        raise UnusableCRL(
            f"the CRL of {name} is indirect, or for some reasons or kinds of certificate only; "
            "give the issuer's full list"
        )
    return _Scope(
        end_entities_only=point.only_contains_user_certs,
        authorities_only=point.only_contains_ca_certs,
        points=frozenset(point.full_name or ()),
    )


def _may_have_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether names and key identifiers say so; the signature verified before."""
    if issuer.subject != certificate.issuer:
        return False
    own, named = _subject_key_identifier(issuer), _identifier_of_signer(certificate.extensions)
    return own is None or named is None or own == named


def _may_sign_lists(issuer: x509.Certificate) -> bool:
    """Whether keyUsage allows it; a certificate without keyUsage may do anything (4.2.1.3)."""
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.crl_sign


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _subject_key_identifier(issuer: x509.Certificate) -> bytes | None:
    try:
        found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return None
    return found.value.digest


def _distribution_points(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    except x509.ExtensionNotFound:
        return set()
    return {name for point in found.value for name in point.full_name or ()}


def _named(name: x509.Name) -> str:
    """Return a name on one line, safe to print."""
    return ascii(name.rfc4514_string() or "(no name)")[1:-1]

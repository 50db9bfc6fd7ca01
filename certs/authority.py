"""Certification authorities whose keys stay in a key store, and which survive a crash at any line.

Theory of operation
-------------------
An authority is a key of the store and a certificate for it; its name is the key's name. Issuing
goes through one function, `_issue`, in this order:

1. the subject's key exists in the store (a commit of its own);
2. cryptography's builder hands the to-be-signed bytes to the signing key, whose *witness* stores
   them with their serial number (a commit, state ``signing``) before the private key is opened;
3. the signature is made and checked against the issuer's public key;
4. the certificate is stored in the announced row, and with it, for a CA, the authority itself (one
   commit).

Killed between any two of these, the store opens again and says what happened: after 1 there is a
key without a certificate, after 2 and 3 a row that `unfinished` lists. None of it stands in the way
of another attempt: a CA picks its unused key up again (the audit log tells that it was made for
one), an end entity gets a fresh version of its key. What is never possible is a signature on bytes
that the store does not know.

An issuing CA is renewed with a new version of its key, and goes on under its name. Certificates
from before stay valid with the CA certificate in their own chains. A CRL is of one key (a verifier
looks for the one that the issuer's certificate names), so a CA signs a list with each of its keys
whose certificate still lasts, and each names all that the CA ever revoked. A serial number that was
announced and never completed can be revoked like any other: somebody may hold its certificate.

What is read back is checked, not believed: `load` holds the stored certificates to the keys in the
sealed records, link by link up to the root, so that an edited database cannot slip in another root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from certs import profiles
from certs.credential import Credential, TrustAnchors
from certs.errors import IssuanceError, KeyExists, KeyNotFound, ValidationError
from certs.key_types import (
    PRIVATE_KEY_TYPES,
    KeyType,
    public_key_der,
    require_public_key,
    signature_hash,
)
from certs.keystore.names import require_name
from certs.keystore.tables import damaged
from certs.ledger import Ledger, PlannedCertificate
from certs.revocation import RevokedCertificate, build_crl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime, timedelta

    from certs.keystore.revocations import Revocation
    from certs.keystore.store import KeyInfo, KeyStore
    from certs.ledger import IssuedCertificate
    from certs.profiles import CertificateProfile, IPAddress

__all__ = ["CertificateAuthority"]

_FOR_AN_AUTHORITY = {"made_for": "authority"}  # in the log, of the making of its key
_SERVED = tuple(one for one in PRIVATE_KEY_TYPES if one is not KeyType.ML_DSA_65)
_NO_REASONS = {  # a hold would have to be lifted, the others are of other lists
    x509.ReasonFlags.certificate_hold,
    x509.ReasonFlags.remove_from_crl,
    x509.ReasonFlags.aa_compromise,
    x509.ReasonFlags.unspecified,
}
_MAX_DEPTH = 8  # authorities above one another; bounds what an edited table can make `load` follow


class CertificateAuthority:
    """A CA of a store. Make a root with `create_root`, get an existing CA with `load`.

    It is valid as long as its store is open. `certificate` is its own certificate, `parent` the CA
    that issued it (None for a root), `key_version` the version of its key that signs.
    """

    def __init__(
        self,
        store: KeyStore,
        name: str,
        key_version: int,
        certificate: x509.Certificate,
        parent: CertificateAuthority | None,
    ) -> None:
        self.store = store
        self.name = name
        self.key_version = key_version
        self.certificate = certificate
        self.parent = parent
        self._ledger = Ledger(store.database)

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self.name!r}>"

    @classmethod
    def create_root(
        cls,
        store: KeyStore,
        name: str,
        common_name: str,
        now: datetime,
        *,
        key_type: KeyType = KeyType.EC_P384,
    ) -> CertificateAuthority:
        """Make a root CA: a key in the store and a certificate that it signs itself.

        Raises `IssuanceError` if the authority exists, or its name is that of some other key.
        """
        return _create(store, name, common_name, now, key_type=key_type, parent=None)

    @classmethod
    def load(cls, store: KeyStore, name: str) -> CertificateAuthority:
        """Return an authority of the store, with those above it.

        Raises `KeyNotFound` if there is none of that name, `ValidationError` if a stored
        certificate is not for its key or was not issued by the authority above it.
        """
        return _load(store, name, _MAX_DEPTH)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a server sends after its own certificate: this CA's and up, without the root."""
        if self.parent is None:
            return ()
        return (self.certificate, *self.parent.chain)

    @property
    def trust_anchors(self) -> TrustAnchors:
        """The root above this authority."""
        if self.parent is not None:
            return self.parent.trust_anchors
        return TrustAnchors((self.certificate,))

    @classmethod
    def load_issuer(cls, store: KeyStore, serial: int) -> CertificateAuthority:
        """Return the authority that issued a serial number; `KeyNotFound` if none here did."""
        found = Ledger(store.database).find(serial)
        if found is None:
            raise KeyNotFound(f"no authority of this store issued a certificate {serial:x}")
        return cls.load(store, found.planned.signer[0])

    def unfinished(self) -> tuple[PlannedCertificate, ...]:
        """Return what this authority was about to sign and did not complete, oldest first.

        Each names a serial number that may have been signed; another process may be at it now.
        """
        return tuple(one for one in self._ledger.unfinished() if one.signer[0] == self.name)

    def issue_subordinate(
        self, name: str, common_name: str, now: datetime, *, key_type: KeyType = KeyType.EC_P256
    ) -> CertificateAuthority:
        """Make an issuing CA below this one (path length 0: it issues end entities only).

        Raises `IssuanceError` as `create_root` does, and if this authority may not issue a CA.
        """
        return _create(self.store, name, common_name, now, key_type=key_type, parent=self)

    def issue_server(
        self,
        *,
        key_name: str,
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[str | IPAddress] = (),
        key_type: KeyType = KeyType.EC_P256,
        now: datetime,
        lifetime: timedelta | None = None,
        profile: CertificateProfile = profiles.TLS_SERVER,
    ) -> Credential:
        """Issue a TLS server certificate with a new key, and return both with the chain.

        The key is made in the store, exportable, under `key_name`; if that name exists, a new
        version of it is made, so no key is certified twice. `profile` is `TLS_SERVER`, or
        `TLS_SERVER_KEY_TRANSPORT` for the static-RSA server of a control; `lifetime` shortens it.
        Raises `IssuanceError` for bad names, a key of that name that is of another type or not
        exportable, or an issuer that is out of its validity or revoked.
        """
        subject, names = profiles.subject_alternative_names(dns_names, ip_addresses)
        profile = profiles.with_lifetime(profile, lifetime)
        return self._issue_end_entity(
            profile, key_name, key_type, now, subject=subject, names=names
        )

    def issue_client(
        self,
        *,
        key_name: str,
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[str | IPAddress] = (),
        uris: Sequence[str] = (),
        key_type: KeyType = KeyType.EC_P256,
        now: datetime,
        lifetime: timedelta | None = None,
    ) -> Credential:
        """Issue a TLS client certificate with a new key, as `issue_server` does for a server.

        A client with one URI (``spiffe://example.org/service``), or one DNS name and no URI, is a
        principal (`certs.keystore.access.principal_of`).
        """
        subject, names = profiles.subject_alternative_names(dns_names, ip_addresses, uris)
        profile = profiles.with_lifetime(profiles.TLS_CLIENT, lifetime)
        return self._issue_end_entity(
            profile, key_name, key_type, now, subject=subject, names=names
        )

    def renew(self, now: datetime) -> CertificateAuthority:
        """Make a new version of this CA's key and a certificate for it, and return that CA.

        What was issued before stays valid: its chain has the old certificate, which is not revoked.
        Give servers new certificates, and publish new lists (`crls`), before the old one ends. A
        root is not renewed, since whoever trusts it has to be given the new one by hand: make
        another root, hand out both, and issue from the new one. Raises `IssuanceError` for that.
        """
        if self.parent is None:
            raise IssuanceError(
                f"{self.name!r} is a root, which is not renewed; make another root, hand it out "
                "beside this one, and issue from it"
            )
        key = self.store.rotate(self.name)
        certificate = _issue(
            self.store,
            profiles.ISSUING_CA,
            key,
            now,
            subject=self.certificate.subject,
            parent=self.parent,
        )
        self._ledger.renew_authority(self.name, self.certificate, certificate)
        return CertificateAuthority(self.store, self.name, key.version, certificate, self.parent)

    def issued(self) -> Iterator[IssuedCertificate]:
        """Yield all that this authority signed or was about to, oldest first."""
        self.store.key(self.name)  # whoever may see the key may see this
        return self._ledger.signed_by(self.name)

    def find(self, serial: int) -> IssuedCertificate:
        """Return one of those; raise `IssuanceError` if there is none of that serial number."""
        self.store.key(self.name)
        found = self._ledger.find(serial)
        if found is None or found.planned.signer[0] != self.name:
            raise IssuanceError(f"{self.name!r} issued no certificate {serial:x}; list them")
        return found

    def revoke(
        self, serial: int, reason: x509.ReasonFlags | None, now: datetime
    ) -> IssuedCertificate:
        """Revoke for good what this authority issued; its next `crls` say so, and none before.

        A serial number whose signing was announced and broken off can be revoked, too. Raises
        `IssuanceError` for one that is not this authority's, a root, or a reason that does not fit;
        `InvalidInput` if it is revoked already.
        """
        found = self.find(serial)
        if found.planned.subject == found.planned.signer:
            raise IssuanceError(
                f"{self.name!r} is a root, which no list revokes; take it out of what trusts it"
            )
        if reason in _NO_REASONS:
            raise IssuanceError(f"{reason.value} is no reason to revoke for good; give another")
        entry = RevokedCertificate(serial, now, reason)
        self.store.revoke_certificate(
            self.name,
            serial,
            reason=x509.ReasonFlags.unspecified.value if reason is None else reason.value,
            revoked_at=entry.revoked_at,
        )
        return self.find(serial)

    def crls(
        self, now: datetime, lifetime: timedelta
    ) -> tuple[x509.CertificateRevocationList, ...]:
        """Sign lists of what this authority revoked: one with each key that lasts, newest first.

        Most often that is one list; after `renew`, verifiers of older certificates need that of the
        older key. Each has a number that no other list of this authority has, higher than before.
        Raises `IssuanceError` if no certificate of the authority is good any more.
        """
        revoked = tuple(map(_entry, self._ledger.revocations(self.name)))
        lists = [
            self._crl(certificate, version, revoked, now, now + lifetime)
            for version, certificate in self._certificates(now)
        ]
        if not lists:
            raise IssuanceError(f"no certificate of {self.name!r} is good any more; renew it first")
        return tuple(lists)

    def _certificates(self, now: datetime) -> list[tuple[int, x509.Certificate]]:
        """Return this authority's own certificates that are good, and their keys' versions."""
        issuer = None if self.parent is None else self.parent.certificate
        found = []
        for one in reversed(self._ledger.issued_to(self.name)):
            certificate = one.certificate
            if certificate is None or one.revocation is not None:
                continue
            if now < certificate.not_valid_after_utc:
                _require_issued_by(certificate, issuer or certificate, self.name)
                found.append((one.planned.subject[1], certificate))
        return found

    def _crl(
        self,
        certificate: x509.Certificate,
        key_version: int,
        revoked: Sequence[RevokedCertificate],
        now: datetime,
        next_update: datetime,
    ) -> x509.CertificateRevocationList:
        number = self.store.next_crl_number(self.name)
        details = {"crl_number": str(number), "entries": str(len(revoked))}
        signing_key = self.store.signing_key(self.name, key_version, details=details)
        return build_crl(
            certificate, signing_key, revoked, number=number, now=now, next_update=next_update
        )

    def _issue_end_entity(
        self,
        profile: CertificateProfile,
        key_name: str,
        key_type: KeyType,
        now: datetime,
        *,
        subject: x509.Name,
        names: Sequence[x509.GeneralName],
    ) -> Credential:
        if profile.is_ca:
            raise IssuanceError(f"{profile.name} is a CA profile; use issue_subordinate")
        if key_type not in _SERVED:
            raise IssuanceError(
                f"no endpoint serves with a {key_type} key; use one of {', '.join(_SERVED)}"
            )
        key = _fresh_exportable_key(self.store, key_name, key_type)
        certificate = _issue(
            self.store, profile, key, now, subject=subject, parent=self, names=names
        )
        self._ledger.record_issued(certificate)
        private_key = self.store.export_private_key(key.name, key.version)
        return Credential(private_key, (certificate, *self.chain))


def _create(
    store: KeyStore,
    name: str,
    common_name: str,
    now: datetime,
    *,
    key_type: KeyType,
    parent: CertificateAuthority | None,
) -> CertificateAuthority:
    require_name(name)
    subject = profiles.common_name(common_name)
    profile = profiles.ROOT_CA if parent is None else profiles.ISSUING_CA
    ledger = Ledger(store.database)
    if ledger.authority(name) is not None:
        raise IssuanceError(
            f"there is an authority named {name!r} already; load it, or choose another name"
        )
    key = _unused_authority_key(store, name, key_type)
    certificate = _issue(store, profile, key, now, subject=subject, parent=parent)
    ledger.record_authority(name, None if parent is None else parent.name, certificate)
    return CertificateAuthority(store, name, key.version, certificate, parent)


def _issue(
    store: KeyStore,
    profile: CertificateProfile,
    key: KeyInfo,
    now: datetime,
    *,
    subject: x509.Name,
    parent: CertificateAuthority | None,
    names: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    """Sign a certificate for a key of the store, after its to-be-signed bytes are stored."""
    _require_not_revoked(store, parent)
    public_key = store.public_key(key.name, key.version)
    signer = (key.name, key.version) if parent is None else (parent.name, parent.key_version)
    issuer_key = (
        public_key if parent is None else require_public_key(parent.certificate.public_key())
    )
    serial = x509.random_serial_number()  # 159 random bits, positive, 20 octets at most
    builder = profiles.build(
        profile,
        subject=subject,
        public_key=public_key,
        issuer=None if parent is None else parent.certificate,
        serial=serial,
        now=now,
        names=names,
    )

    def record(to_be_signed: bytes) -> None:
        Ledger(store.database).record_signing(
            PlannedCertificate(
                serial, profile.name, signer, (key.name, key.version), to_be_signed, now
            )
        )

    details = {
        "serial": f"{serial:x}",
        "subject": subject.rfc4514_string(),
        "names": ", ".join(str(name.value) for name in names),
        "profile": profile.name,
    }
    signing_key = store.signing_key(*signer, witness=record, details=details)
    certificate = builder.sign(signing_key, signature_hash(issuer_key))
    _require_issued_by(certificate, certificate if parent is None else parent.certificate, key.name)
    return certificate


def _require_not_revoked(store: KeyStore, authority: CertificateAuthority | None) -> None:
    if authority is None:
        return
    found = Ledger(store.database).find(authority.certificate.serial_number)
    if found is not None and found.revocation is not None:
        raise IssuanceError(
            f"the certificate of {authority.name!r} was revoked, so what it issues is refused; "
            "renew it first"
        )


def _entry(revocation: Revocation) -> RevokedCertificate:
    try:
        reason = x509.ReasonFlags(revocation.reason)
    except ValueError:
        raise damaged("revocations.reason") from None
    said = None if reason is x509.ReasonFlags.unspecified else reason
    return RevokedCertificate(revocation.serial, revocation.revoked_at, said)


def _unused_authority_key(store: KeyStore, name: str, key_type: KeyType) -> KeyInfo:
    """Make an authority's key, or take up the one that a broken-off attempt left.

    The audit log tells such a key from any other: it was made here, for this, and is not
    exportable, so it cannot have left the store. An imported key may be known elsewhere.
    """
    try:
        return store.create_key(name, key_type, details=_FOR_AN_AUTHORITY)
    except KeyExists:
        key = store.key(name)
    made = store.creation(name)
    ours = made is not None and _FOR_AN_AUTHORITY.items() <= made.details.items()
    if not ours or key.key_type is not key_type or key.exportable or key.version != 1:
        raise IssuanceError(
            f"the key named {name!r} exists and is not one for an authority; choose another name"
        )
    return key


def _fresh_exportable_key(store: KeyStore, name: str, key_type: KeyType) -> KeyInfo:
    """Make an end entity's key: version 1 of a new name, or the next version of its name."""
    try:
        return store.create_key(name, key_type, exportable=True)
    except KeyExists:
        key = store.key(name)
    if key.key_type is not key_type or not key.exportable:
        raise IssuanceError(
            f"the key named {name!r} exists and is not an exportable {key_type} key; "
            "choose another name"
        )
    return store.rotate(name)


def _load(store: KeyStore, name: str, depth: int) -> CertificateAuthority:
    row = Ledger(store.database).authority(name) if depth > 0 else None
    if row is None:
        raise KeyNotFound(
            f"there is no authority named {name!r} in this store; make it first (pfs ca init)"
        )
    parent = None if row.parent is None else _load(store, row.parent, depth - 1)
    stored_key = public_key_der(store.public_key(name, row.key_version))
    certified = public_key_der(require_public_key(row.certificate.public_key()))
    if stored_key != certified:
        raise ValidationError(
            (f"the certificate stored for authority {name!r} is not for its key; restore a backup",)
        )
    issuer = row.certificate if parent is None else parent.certificate
    _require_issued_by(row.certificate, issuer, name)
    return CertificateAuthority(store, name, row.key_version, row.certificate, parent)


def _require_issued_by(certificate: x509.Certificate, issuer: x509.Certificate, name: str) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise ValidationError(
            (f"the certificate of {name!r} was not issued by its authority; restore a backup",)
        ) from None

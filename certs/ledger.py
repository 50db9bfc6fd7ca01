"""The ledger of certificates: what was about to be signed, then what was signed.

Every certificate passes through two durable commits. The first stores its serial number and the
exact to-be-signed bytes, in the state ``signing``; only then is the CA's key touched. The second
stores the certificate. A crash between the two leaves a row that names the serial: a signature may
or may not have been made, so that serial counts as issued for everything that protects others
(above all, revocation), though nobody here holds the certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import insert, select, update

from certs.errors import IssuanceError
from certs.keystore.database import DuplicateRow
from certs.keystore.revocations import (
    Revocation,
    every_revocation,
)
from certs.keystore.tables import (
    SERIAL_BYTES,
    as_bytes,
    as_number,
    as_text,
    as_time,
    authorities,
    certificates,
    damaged,
    revocations,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from certs.keystore.database import Database

__all__ = ["AuthorityRow", "IssuedCertificate", "Ledger", "PlannedCertificate"]

_TOGETHER = 500
_WITH_REVOCATION = select(
    certificates,
    revocations.c.signer_name.label("revoker"),
    revocations.c.revoked_at,
    revocations.c.reason,
).outerjoin(revocations, revocations.c.serial == certificates.c.serial)


@dataclass(frozen=True, slots=True)
class PlannedCertificate:
    """A certificate about to be signed; `signer` and `subject` are keys of the store."""

    serial: int
    profile: str
    signer: tuple[str, int]
    subject: tuple[str, int]
    to_be_signed: bytes
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate of the ledger, and its revocation if there is one.

    `certificate` is None if its signing was announced and not completed: it may have been signed,
    or be about to be.
    """

    planned: PlannedCertificate
    certificate: x509.Certificate | None
    revocation: Revocation | None

    @property
    def serial(self) -> int:
        """The serial number."""
        return self.planned.serial

    @property
    def names(self) -> tuple[str, ...]:
        """The DNS names, IP addresses and URIs that it is for; for a CA, its subject."""
        if self.certificate is None:
            return ()
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return (self.certificate.subject.rfc4514_string(),)
        return tuple(str(name.value) for name in found.value)


@dataclass(frozen=True, slots=True)
class AuthorityRow:
    """A CA as it is stored: the version of its key, its certificate, and the CA above it."""

    name: str
    parent: str | None
    key_version: int
    certificate: x509.Certificate


class Ledger:
    """The certificates and authorities of one store's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_signing(self, planned: PlannedCertificate) -> None:
        """Store the serial and the bytes, durably, before they are signed."""
        try:
            with self._database.write() as connection:
                connection.execute(
                    insert(certificates).values(
                        serial=_serial_bytes(planned.serial),
                        state="signing",
                        profile=planned.profile,
                        signer_name=planned.signer[0],
                        signer_version=planned.signer[1],
                        subject_name=planned.subject[0],
                        subject_version=planned.subject[1],
                        to_be_signed=planned.to_be_signed,
                        recorded_at=int(planned.recorded_at.timestamp()),
                    )
                )
        except DuplicateRow:
            raise IssuanceError(
                f"serial {planned.serial:x} was used before; issue the certificate again"
            ) from None

    def record_issued(self, certificate: x509.Certificate) -> None:
        """Store the signed certificate in the row that announced it."""
        with self._database.write() as connection:
            _complete(connection, certificate)

    def record_authority(
        self, name: str, parent: str | None, certificate: x509.Certificate
    ) -> None:
        """Store a CA's certificate and the CA itself, at once; `IssuanceError` if it exists."""
        try:
            with self._database.write() as connection:
                _complete(connection, certificate)
                serial = _serial_bytes(certificate.serial_number)
                connection.execute(
                    insert(authorities).values(name=name, parent=parent, serial=serial)
                )
        except DuplicateRow:
            raise IssuanceError(
                f"there is an authority named {name!r} already; load it, or choose another name"
            ) from None

    def renew_authority(
        self, name: str, old: x509.Certificate, certificate: x509.Certificate
    ) -> None:
        """Store a CA's new certificate and let it take the place of the old one, at once."""
        with self._database.write() as connection:
            _complete(connection, certificate)
            done = connection.execute(
                update(authorities)
                .where(
                    authorities.c.name == name,
                    authorities.c.serial == _serial_bytes(old.serial_number),
                )
                .values(serial=_serial_bytes(certificate.serial_number))
            )
            if done.rowcount != 1:
                raise IssuanceError(
                    f"authority {name!r} was renewed by somebody else meanwhile; load it again"
                )

    def authority(self, name: str) -> AuthorityRow | None:
        """Return a CA's row, or None."""
        with self._database.read() as connection:
            row = connection.execute(
                select(
                    authorities.c.parent,
                    certificates.c.subject_name,
                    certificates.c.subject_version,
                    certificates.c.certificate,
                )
                .join(certificates, certificates.c.serial == authorities.c.serial)
                .where(authorities.c.name == name)
            ).first()
        if row is None:
            return None
        if as_text(row.subject_name, "certificates.subject_name") != name:
            raise damaged("certificates.subject_name")
        return AuthorityRow(
            name=name,
            parent=None if row.parent is None else as_text(row.parent, "authorities.parent"),
            key_version=as_number(row.subject_version, "certificates.subject_version", least=1),
            certificate=_certificate(row.certificate),
        )

    def unfinished(self) -> tuple[PlannedCertificate, ...]:
        """Return every row still ``signing``, oldest first: under way elsewhere, or broken off."""
        query = (
            select(certificates)
            .where(certificates.c.state == "signing")
            .order_by(certificates.c.recorded_at, certificates.c.serial)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(map(_planned, rows))

    def signed_by(self, name: str) -> Iterator[IssuedCertificate]:
        """Yield all that a CA signed or was about to, oldest first, in constant memory."""
        query = (
            _WITH_REVOCATION.where(certificates.c.signer_name == name)
            .order_by(certificates.c.recorded_at, certificates.c.serial)
            .execution_options(yield_per=_TOGETHER)
        )
        with self._database.read() as connection, connection.execute(query) as rows:
            yield from map(_issued, rows)

    def issued_to(self, name: str) -> tuple[IssuedCertificate, ...]:
        """Return the certificates for the versions of a key, oldest first."""
        query = _WITH_REVOCATION.where(certificates.c.subject_name == name).order_by(
            certificates.c.subject_version, certificates.c.recorded_at
        )
        with self._database.read() as connection:
            return tuple(map(_issued, connection.execute(query).all()))

    def find(self, serial: int) -> IssuedCertificate | None:
        """Return what the ledger has of this serial number, or None."""
        if not 0 < serial < 1 << 8 * SERIAL_BYTES:
            return None
        query = _WITH_REVOCATION.where(certificates.c.serial == _serial_bytes(serial))
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _issued(row)

    def revocations(self, name: str) -> tuple[Revocation, ...]:
        """Return every revocation of what a CA signed."""
        with self._database.read() as connection:
            return tuple(every_revocation(connection, name))

    def certificate(self, serial: int) -> x509.Certificate | None:
        """Return the certificate of this serial number, or None if none was completed."""
        with self._database.read() as connection:
            row = connection.execute(
                select(certificates.c.certificate).where(
                    certificates.c.serial == _serial_bytes(serial)
                )
            ).first()
        return None if row is None or row.certificate is None else _certificate(row.certificate)


def _planned(row: Row[*tuple[object, ...]]) -> PlannedCertificate:
    return PlannedCertificate(
        serial=int.from_bytes(as_bytes(row.serial, "certificates.serial")),
        profile=as_text(row.profile, "certificates.profile"),
        signer=(
            as_text(row.signer_name, "certificates.signer_name"),
            as_number(row.signer_version, "certificates.signer_version"),
        ),
        subject=(
            as_text(row.subject_name, "certificates.subject_name"),
            as_number(row.subject_version, "certificates.subject_version"),
        ),
        to_be_signed=as_bytes(row.to_be_signed, "certificates.to_be_signed"),
        recorded_at=as_time(row.recorded_at, "certificates.recorded_at"),
    )


def _issued(row: Row[*tuple[object, ...]]) -> IssuedCertificate:
    planned, revocation = _planned(row), None
    if row.revoked_at is not None:
        revocation = Revocation(
            serial=planned.serial,
            signer=as_text(row.revoker, "revocations.signer_name"),
            revoked_at=as_time(row.revoked_at, "revocations.revoked_at"),
            reason=as_text(row.reason, "revocations.reason"),
        )
    certificate = None if row.certificate is None else _certificate(row.certificate)
    return IssuedCertificate(planned, certificate, revocation)


def _complete(connection: Connection, certificate: x509.Certificate) -> None:
    """Move a row from ``signing`` to ``issued``, if it announced exactly this certificate."""
    done = connection.execute(
        update(certificates)
        .where(
            certificates.c.serial == _serial_bytes(certificate.serial_number),
            certificates.c.state == "signing",
            certificates.c.to_be_signed == certificate.tbs_certificate_bytes,
        )
        .values(state="issued", certificate=certificate.public_bytes(Encoding.DER))
    )
    if done.rowcount != 1:
        raise IssuanceError(
            f"serial {certificate.serial_number:x} was not announced with these bytes, so its "
            "certificate is not accepted; issue it again"
        )


def _certificate(value: object) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(as_bytes(value, "certificates.certificate"))
    except ValueError:
        raise damaged("certificates.certificate") from None


def _serial_bytes(serial: int) -> bytes:
    return serial.to_bytes(SERIAL_BYTES)

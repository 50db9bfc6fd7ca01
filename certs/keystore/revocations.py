"""Which certificates were revoked, and how far an authority has counted its lists (CRLs).

Neither is sealed: both are public. Whoever edits the database can still not take a revocation back
without a trace, since each is made in one commit with its entry in the audit log, and so is told
there with its serial number, reason and time. When the log is verified, the rows must be those that
it tells of, and no list's number may be behind one that was given out.

A revocation names its certificate by the serial number alone: after a restore it is there even if
the certificate was issued after the backup, and lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from certs.errors import AuditLogAltered, InvalidInput
from certs.keystore.tables import (
    SERIAL_BYTES,
    as_bytes,
    as_number,
    as_text,
    as_time,
    crl_numbers,
    damaged,
    revocations,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Row

    from certs.keystore.audit import AuditEntry, AuditRow

__all__ = [
    "NUMBER_CRL",
    "REVOKE",
    "Revocation",
    "ToldRevocations",
    "add_revocation",
    "crl_number",
    "every_revocation",
    "find_revocation",
    "raise_crl_number",
    "told_crl_number",
]

REVOKE = "revoke-certificate"  # operations
NUMBER_CRL = "number-crl"
_TOGETHER = 500


@dataclass(frozen=True, slots=True)
class Revocation:
    """A certificate was revoked: its serial, whose key signed it, when, and why (RFC 5280 5.3.1).

    `reason` is the name that the standard gives it, such as ``keyCompromise``.
    """

    serial: int
    signer: str
    revoked_at: datetime
    reason: str

    @property
    def details(self) -> dict[str, str]:
        """What the audit log says of it."""
        return {
            "serial": f"{self.serial:x}",
            "reason": self.reason,
            "revoked_at": str(int(self.revoked_at.timestamp())),
        }

    @classmethod
    def told(cls, entry: AuditEntry) -> Revocation:
        """Read what the audit log says of it."""
        details = entry.details
        try:
            when = datetime.fromtimestamp(int(details["revoked_at"]), UTC)
            return cls(int(details["serial"], 16), entry.name, when, details["reason"])
        except (KeyError, ValueError, OverflowError, OSError):
            raise InvalidInput("an entry of the audit log tells of no revocation") from None


def add_revocation(connection: Connection, revocation: Revocation) -> None:
    """Insert it in a write transaction; `InvalidInput` if the serial is revoked already."""
    if find_revocation(connection, revocation.serial) is not None:
        raise InvalidInput(f"certificate {revocation.serial:x} is revoked already, for good")
    connection.execute(
        insert(revocations).values(
            serial=revocation.serial.to_bytes(SERIAL_BYTES),
            signer_name=revocation.signer,
            revoked_at=int(revocation.revoked_at.timestamp()),
            reason=revocation.reason,
        )
    )


def find_revocation(connection: Connection, serial: int) -> Revocation | None:
    """Return the revocation of a serial number, or None."""
    wanted = serial.to_bytes(SERIAL_BYTES)
    row = connection.execute(select(revocations).where(revocations.c.serial == wanted)).first()
    return None if row is None else _revocation(row)


def every_revocation(connection: Connection, signer: str | None = None) -> Iterator[Revocation]:
    """Yield the revocations of what a key signed, or all, in the order of their serial numbers."""
    query = select(revocations).order_by(revocations.c.serial)
    if signer is not None:
        query = query.where(revocations.c.signer_name == signer)
    with connection.execute(query, execution_options={"yield_per": _TOGETHER}) as rows:
        yield from map(_revocation, rows)


def told_crl_number(entry: AuditEntry) -> int:
    """Read what the audit log says of the number of a list."""
    number = entry.details.get("crl_number", "")
    if not number.isdecimal():
        raise InvalidInput("an entry of the audit log tells of no list's number")
    return int(number)


def crl_number(connection: Connection, name: str) -> int:
    """Return the number that was last given to a list of an authority; 0 before one."""
    query = select(crl_numbers.c.number).where(crl_numbers.c.name == name)
    found = connection.execute(query).scalar()
    return 0 if found is None else as_number(found, "crl_numbers.number", least=1)


def raise_crl_number(connection: Connection, name: str, number: int) -> None:
    """Note a number in a write transaction, if it is a higher one."""
    known = crl_number(connection, name)
    if not known:
        connection.execute(insert(crl_numbers).values(name=name, number=number))
    elif number > known:
        ours = crl_numbers.c.name == name
        connection.execute(update(crl_numbers).where(ours).values(number=number))


class ToldRevocations:
    """What a log tells of revocations and lists: `take` every row of it, then `require`."""

    def __init__(self) -> None:
        self._revoked: dict[int, tuple[int, Revocation]] = {}
        self._numbers: dict[str, tuple[int, int]] = {}

    def take(self, row: AuditRow, entry: AuditEntry) -> None:
        """Take the next row, which was checked and tells of what was done."""
        if entry.operation == REVOKE:
            revocation = Revocation.told(entry)
            self._revoked[revocation.serial] = (row.number, revocation)
        elif entry.operation == NUMBER_CRL:
            self._numbers[entry.name] = (told_crl_number(entry), row.number)

    def require(self, connection: Connection) -> None:
        """Hold the store's rows to it; raise `AuditLogAltered` with the row of the log."""
        missing = dict(self._revoked)
        for found in every_revocation(connection):
            number, told = missing.pop(found.serial, (None, None))
            if found != told:
                raise AuditLogAltered(
                    f"the revocation of {found.serial:x} is not that which the audit log tells of",
                    row=number,
                )
        for serial, (number, _) in missing.items():
            raise AuditLogAltered(
                f"certificate {serial:x} is not revoked, and row {number} of the audit log says "
                "that it was: an older copy was put back, or the row was removed",
                row=number,
            )
        for name, (told_number, number) in self._numbers.items():
            if crl_number(connection, name) < told_number:
                raise AuditLogAltered(
                    f"the lists of {name!r} were counted back: row {number} of the audit log tells "
                    f"of list {told_number}",
                    row=number,
                )


def _revocation(row: Row[*tuple[object, ...]]) -> Revocation:
    serial = as_bytes(row.serial, "revocations.serial")
    if len(serial) != SERIAL_BYTES:
        raise damaged("revocations.serial")
    return Revocation(
        serial=int.from_bytes(serial),
        signer=as_text(row.signer_name, "revocations.signer_name"),
        revoked_at=as_time(row.revoked_at, "revocations.revoked_at"),
        reason=as_text(row.reason, "revocations.reason"),
    )

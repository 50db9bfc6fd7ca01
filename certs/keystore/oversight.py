"""The auditor's part of `KeyStore`: who may do what, and the log of what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from certs.keystore.access import Grant, require_principal, require_role, require_scope
from certs.keystore.audit import (
    AuditEntry,
    AuditRow,
    LogLeaves,
    export_header,
    export_line,
)
from certs.keystore.grants import all_grants, change_grants
from certs.keystore.notes import Checkpoint, NoteKey
from certs.keystore.revisions import ToldRevisions
from certs.keystore.use import KeyUse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

__all__ = ["KeyOversight"]

_MADE_FIRST = frozenset({"create", "import", "secret-set"})


class KeyOversight(KeyUse):
    """The part of `KeyStore` that grants and that reads the audit log.

    Each operation is recorded as any other. `AccessDenied` if the principal may not.
    """

    @property
    def principal(self) -> str:
        """On whose behalf this store acts."""
        return self._gate.principal

    def acting_as(self, principal: str) -> Self:
        """Return this open store acting for another principal; both share what closing closes.

        For programs that serve several: `certs.keystore.access.principal_of` names the principal of
        a client certificate.
        """
        gate = self._gate.acting_as(require_principal(principal))
        return type(self)(self.database, self._keyring, self._clock, gate)

    def grant(self, principal: str, role: str, scope: str) -> None:
        """Give a principal a role for a scope: a name and what is below it, or ``*``."""
        self._change_grants("grant", principal, role, scope)

    def revoke(self, principal: str, role: str, scope: str) -> None:
        """Take exactly that grant away; `InvalidInput` if there is none or nobody could grant."""
        self._change_grants("revoke", principal, role, scope)

    def grants(self) -> dict[str, frozenset[Grant]]:
        """Return every principal that is granted anything, with its grants."""
        with self._gate.perform("grants", ""), self.database.read() as connection:
            return all_grants(connection, self._keyring)

    def audit_entries(self, start: int = 0) -> Iterator[tuple[int, AuditEntry]]:
        """Yield the log's rows from number `start` on, unchecked, in constant memory."""
        with self._gate.perform("audit-read", ""):
            pass
        with self.database.read() as connection:
            for row in self._gate.log.rows(connection, start):
                yield row.number, AuditEntry.parse(row.entry)

    def verify_audit_log(self, earlier: bytes | None = None) -> bytes:
        """Check the whole log, and grants and keys against it; return its checkpoint, signed.

        `earlier` is such a checkpoint from before, kept elsewhere: with it, a store that was put
        back to an older copy is found out too. Raises `AuditLogAltered` with the first row that is
        not as logged; `InvalidInput` or `BadSignature` for `earlier`.
        """
        with self._gate.perform("audit-verify", ""), self.database.read() as connection:
            log = self._gate.log
            known = None if earlier is None else Checkpoint.open(earlier, log.key(connection))
            told = ToldRevisions()
            note = log.check(connection, known, told.take)
            told.require(connection, self._keyring)
            return note

    def audit_log_key(self) -> NoteKey:
        """Return the public key that checks the log, its exports and proofs, without the store."""
        with self._gate.perform("audit-read", ""), self.database.read() as connection:
            return self._gate.log.key(connection)

    def creation(self, name: str) -> AuditEntry | None:
        """Return what the log tells of how a key came to be; None if it began with the key there.

        All of the log is checked for it. Raises `AuditLogAltered`.
        """
        found: list[AuditEntry] = []

        def take(_: AuditRow, entry: AuditEntry) -> None:
            if entry.name == name and entry.outcome == "done" and entry.operation in _MADE_FIRST:
                found.append(entry)

        with self._gate.perform("show", name), self.database.read() as connection:
            self._gate.log.check(connection, None, take)
        return found[0] if found else None

    def export_audit_log(self, write: Callable[[bytes], object]) -> bytes:
        """Write the log for checking elsewhere, piece by piece; return its checkpoint, signed.

        Each row is checked before it is written.
        """
        with self._gate.perform("audit-read", ""):
            pass  # the reading is in the log, and in what is written, before anything is written
        with self.database.read() as connection:
            log = self._gate.log
            write(export_header(log.key(connection)))
            return log.check(connection, None, lambda row, _: write(export_line(row)))

    def prove_audit_entry(self, number: int) -> bytes:
        """Return a row with the proof that it is in the log, and nothing of other rows."""
        with self._gate.perform("audit-read", ""), self.database.read() as connection:
            log, leaves = self._gate.log, LogLeaves(number)
            log.check(connection, None, lambda row, _: leaves.take(row))
            return leaves.inclusion_text(log.key(connection))

    def prove_audit_extension(self, earlier: bytes) -> bytes:
        """Return a proof that the log extends an earlier signed checkpoint, without any rows."""
        with self._gate.perform("audit-read", ""), self.database.read() as connection:
            log, leaves = self._gate.log, LogLeaves()
            key = log.key(connection)
            known = Checkpoint.open(earlier, key)
            log.check(connection, known, lambda row, _: leaves.take(row))
            return leaves.extension_text(known, key)

    def _change_grants(self, operation: str, principal: str, role: str, scope: str) -> None:
        with self._gate.perform(operation, "") as act:
            grant = Grant(require_role(role), require_scope(scope))
            require_principal(principal)
            act.details = {"principal": principal, "role": grant.role.value, "scope": grant.scope}

            def change(connection: Connection) -> None:
                revision = change_grants(
                    connection, self._keyring, principal, grant, give=operation == "grant"
                )
                act.details["revision"] = str(revision)

            act.commit(change)

"""The one place through which every operation of a store goes, before it acts and answers.

`KeyStore` wraps each of its public operations in `Gate.perform`::

    with self._gate.perform("sign", name, version) as act:
        ...                      # act.version, act.signed_sha256 are filled in when they are known
        return signature

*Before.* Entering is where access is decided (`certs.keystore.access`). A refusal is recorded, then
`AccessDenied` is raised, and nothing was done.

*After.* The block ends before its result leaves the method, and its outcome (value or exception) is
in the audit log, durably, before the caller has anything. If recording fails, that failure takes
the result's place: what cannot be recorded is not given out.

*With.* An operation that changes the store calls `Act.commit_with` last in the transaction that
changes it, so that the change and its record are one commit. There is then nothing left to record
at the block's end, unless the block raises after all.

What cannot be recorded: that the database cannot be written. Such a failure is only raised.

Names of operations are `OPERATIONS`; for those on the store as a whole the key's name is empty. A
principal whose grant is revoked finishes the operation that it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from certs.errors import AccessDenied, AuditLogAltered, StoreError, StoreFault
from certs.keystore.access import is_permitted
from certs.keystore.audit import AuditEntry
from certs.keystore.grants import grants_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy import Connection

    from certs.keystore.audit_log import AuditLog
    from certs.keystore.database import Database
    from certs.keystore.keyring import Keyring

__all__ = ["OPERATIONS", "Act", "Gate"]

_UNRECORDABLE = {
    StoreFault.LOCKED,
    StoreFault.READ_ONLY,
    StoreFault.FULL,
    StoreFault.UNREADABLE,
    StoreFault.CLOSED,
}

OPERATIONS = frozenset(
    {
        # one key
        "create",
        "import",
        "show",
        "versions",
        "rotate",
        "disable",
        "enable",
        "public-key",
        "sign",
        "verify",
        "wrap",
        "unwrap",
        "generate-data-key",
        "export",
        "secret-set",
        "secret-get",
        "delete",
        "recover",
        "purge",
        # the store as a whole
        "list",
        "snapshot",
        "rotate-store",
        "rewrap",
        "rekey",
        "grant",
        "revoke",
        "grants",
        "audit-read",
        "audit-verify",
    }
)


@dataclass(slots=True)
class Act:
    """One operation under way; the store fills in what becomes known only while it runs.

    `version` is the version acted on. `signed_sha256` is the SHA-256 of what is about to be signed
    (of the digest, for a prehashed signature), set before the private key is opened. `details` are
    public facts for the record.
    """

    operation: str
    name: str
    version: int | None
    _record: Callable[[Act, str, str, Connection | None], None] = field(repr=False)
    signed_sha256: bytes | None = None
    details: dict[str, str] = field(default_factory=dict)
    _recorded: bool = False

    def commit_with(self, connection: Connection) -> None:
        """Record success in the transaction that makes the change; its commit is the record's."""
        self._record(self, "done", "", connection)
        self._recorded = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if kind is None:
            if not self._recorded:
                self._record(self, "done", "", None)
        elif not isinstance(error, StoreError) or error.fault not in _UNRECORDABLE:
            try:
                self._record(self, "failed", kind.__name__, None)
            except AuditLogAltered:
                if not isinstance(error, AuditLogAltered):
                    raise  # else what is being raised says more
        return False


class Gate:
    """Decides for one principal whether an operation may go on, and records what came of it."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        log: AuditLog,
        clock: Callable[[], datetime],
        principal: str,
    ) -> None:
        self.log = log
        self.principal = principal
        self._database = database
        self._keyring = keyring
        self._clock = clock

    def acting_as(self, principal: str) -> Gate:
        """Return the gate of another principal to the same store."""
        return Gate(self._database, self._keyring, self.log, self._clock, principal)

    def perform(self, operation: str, name: str, version: int | None = None) -> Act:
        """Admit one operation: a context that has recorded it when its block has ended.

        Raises `AccessDenied`, once the refusal is recorded.
        """
        act = Act(operation, name, version, self._record)
        with self._database.read() as connection:
            granted = grants_of(connection, self._keyring, self.principal)
        if not is_permitted(granted, operation, name):
            self._record(act, "refused", "", None)
            what = f"{operation} on {name!a}" if name else f"{operation} on the store"
            raise AccessDenied(
                f"{self.principal} may not {what}; someone who may grant it can (pfs keys grant)"
            )
        return act

    def _record(self, act: Act, outcome: str, reason: str, connection: Connection | None) -> None:
        entry = AuditEntry(
            time=int(self._clock().timestamp()),
            principal=self.principal,
            operation=act.operation,
            name=act.name,
            outcome=outcome,
            version=act.version,
            reason=reason,
            signed_sha256=act.signed_sha256,
            details=act.details,
        )
        if connection is not None:
            self.log.append(connection, entry)
            return
        with self._database.write() as own:
            self.log.append(own, entry)

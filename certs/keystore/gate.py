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

*Again.* What is asked for often and changes nothing that was there goes through `Gate.by_memory`,
which takes the block as a function of the act. It may rely on what the store remembers, and is done
again if that turns out to hold no longer (`certs.keystore.memory`).

*With.* An operation that changes the store does so in `Act.commit`, or `Act.add` for a new key: the
change and its record are one commit (`certs.keystore.commits`). There is then nothing left to
record at the block's end, unless the block raises after all.

What cannot be recorded: that the database cannot be written. Such a failure is only raised.

Names of operations are `OPERATIONS`; for those on the store as a whole the key's name is empty. A
principal whose grant is revoked finishes the operation that it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from certs.errors import AccessDenied, AuditLogAltered, StoreError, StoreFault
from certs.keystore.access import is_permitted
from certs.keystore.audit import AuditEntry
from certs.keystore.grants import grants_of
from certs.keystore.memory import Outdated

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy import Connection

    from certs.keystore.audit_log import AuditLog
    from certs.keystore.commits import GroupCommit
    from certs.keystore.database import Database
    from certs.keystore.keyring import Keyring
    from certs.keystore.records import NewKey

__all__ = ["OPERATIONS", "Act", "Gate"]

_Result = TypeVar("_Result")

_UNRECORDABLE = {
    StoreFault.LOCKED,
    StoreFault.READ_ONLY,
    StoreFault.FULL,
    StoreFault.UNREADABLE,
    StoreFault.CLOSED,
}

_LARGEST = 2**63
_MOST_REASON_CHARACTERS = 64  # the name of an exception

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
        "revoke-certificate",
        "number-crl",
        # the store as a whole
        "list",
        "snapshot",
        "backup",
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
    _gate: Gate = field(repr=False)
    signed_sha256: bytes | None = None
    details: dict[str, str] = field(default_factory=dict)
    relied_on: int | None = None
    _recorded: bool = False

    def commit(self, work: Callable[[Connection], _Result]) -> _Result:
        """Do `work` in a write transaction that also records success; return what it returned.

        `work` may run on another thread. What it raises is raised here, once it is undone.
        """
        result = self._gate.commits.run(work, partial(self._gate.entry, self, "done"))
        self._recorded = True
        return result

    def add(self, addition: NewKey) -> None:
        """Insert a new key in a commit that also records success; `DuplicateRow` if it is taken."""
        self._gate.commits.add(addition, self._gate.entry(self, "done"), self.relied_on)
        self._recorded = True

    def find(self, what: tuple[object, ...], read: Callable[[Connection], _Result]) -> _Result:
        """Return what one reading statement finds, or what is remembered of it by this name."""
        return self._gate.find(what, read, afresh=self.relied_on is None)

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
                self._gate.record(self, "done")
        elif not isinstance(error, StoreError) or error.fault not in _UNRECORDABLE:
            if not isinstance(error, Exception):
                self.relied_on = None  # an interrupt is one, whatever the store is now
            try:
                self._gate.record(self, "failed", kind.__name__)
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
        commits: GroupCommit,
        clock: Callable[[], datetime],
        principal: str,
    ) -> None:
        self.commits = commits
        self.principal = principal
        self._database = database
        self._keyring = keyring
        self._clock = clock

    @property
    def log(self) -> AuditLog:
        """The audit log."""
        return self.commits.log

    def acting_as(self, principal: str) -> Gate:
        """Return the gate of another principal to the same store."""
        return Gate(self._database, self._keyring, self.commits, self._clock, principal)

    def by_memory(
        self, operation: str, name: str, version: int | None, body: Callable[[Act], _Result]
    ) -> _Result:
        """Do what changes nothing that was in the store, and return it once it is recorded.

        `body` may run twice; of the first time nothing remains then. Raises what it raises, and as
        `perform` does.
        """
        # The first operation of an open store reads all it needs: there is no telling yet whether
        # somebody else writes meanwhile, and it would be done twice.
        relied_on = self.commits.memory.generation if self.log.was_met else None
        try:
            with self._admit(Act(operation, name, version, self, relied_on=relied_on)) as act:
                return body(act)
        except Outdated:
            with self.perform(operation, name, version) as act:
                return body(act)

    def perform(self, operation: str, name: str, version: int | None = None) -> Act:
        """Admit one operation: a context that has recorded it when its block has ended.

        Raises `AccessDenied`, once the refusal is recorded.
        """
        return self._admit(Act(operation, name, version, self))

    def find(
        self,
        what: tuple[object, ...],
        read: Callable[[Connection], _Result],
        *,
        afresh: bool,
    ) -> _Result:
        """Return what a reading statement finds, `afresh` or as it is remembered."""
        if afresh:
            return self._database.ask(read)
        return self.commits.memory.recall(what, lambda: self._database.ask(read))

    def _admit(self, act: Act) -> Act:
        operation, name = act.operation, act.name
        granted = act.find(
            ("grants", self.principal),
            lambda connection: grants_of(connection, self._keyring, self.principal),
        )
        if not is_permitted(granted, operation, name):
            self.record(act, "refused")
            what = f"{operation} on {name!a}" if name else f"{operation} on the store"
            raise AccessDenied(
                f"{self.principal} may not {what}; someone who may grant it can (pfs keys grant)"
            )
        return act

    def require_recordable(self, operation: str, name: str, details: dict[str, str]) -> None:
        """Raise `InvalidInput` if a row of the log, whatever comes of it, cannot hold this."""
        longest = AuditEntry(
            time=_LARGEST,
            principal=self.principal,
            operation=operation,
            name=name,
            outcome="refused",
            version=_LARGEST,
            reason="E" * _MOST_REASON_CHARACTERS,
            signed_sha256=bytes(32),
            details=details,
        )
        longest.encode()

    def record(self, act: Act, outcome: str, reason: str = "") -> None:
        """Record an outcome by itself, durably."""
        self.commits.record(self.entry(act, outcome, reason), act.relied_on)

    def entry(self, act: Act, outcome: str, reason: str = "") -> AuditEntry:
        """Return what the log is to say of an operation as it stands now."""
        return AuditEntry(
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

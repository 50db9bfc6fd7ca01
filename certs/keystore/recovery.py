"""Bringing a store back from a backup, and checking that one could.

Theory of operation
-------------------
A backup is of a moment, and what was taken away after it (a key deleted or disabled, a grant
revoked) is there again in what it restores. Nobody is to find that out later, so a restore takes
one of two things:

* the log of what came after: an export of the audit log, younger than the backup. Its rows are
  checked to continue those of the backup, and everything in them that took something away, or gave
  it back, is done again in the restored store, row by row, and recorded there. What the backup
  cannot know is reported by name: keys and versions that were made later are lost.
* or the word that the store is wanted as of the backup, all the same.

Either way the restored log goes on from the backup's with a row that says so. It therefore does not
contain the rows that came after the backup, and a checkpoint from then finds that out for whoever
kept one (`pfs keys audit verify --checkpoint`): a restored store does not pass for the old one.

*All or nothing.* Rows are written, checked and changed in the one transaction that makes the
database. Every record is opened, every row of the audit log checked against the checkpoint in the
backup, before a store stands anywhere. Checking a backup is restoring it into a temporary file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from certs.errors import (
    AuditLogAltered,
    CorruptEnvelope,
    InvalidInput,
    KeyNotFound,
    StoreError,
    StoreFault,
)
from certs.keystore.access import OWNER, Grant, require_principal, require_role, require_scope
from certs.keystore.address import create_database
from certs.keystore.audit import AuditEntry, AuditRow, verify_export
from certs.keystore.audit_log import AuditLog
from certs.keystore.backup import BackupHeader, BackupRows, read_header
from certs.keystore.grants import change_grants
from certs.keystore.identity import read_root
from certs.keystore.kek import using_provider
from certs.keystore.keyring import Keyring, root_context
from certs.keystore.notes import Checkpoint
from certs.keystore.records import (
    KeyInfo,
    erase_versions,
    find_key,
    keys_after,
    opened,
    put_state,
    read_version,
)
from certs.keystore.revisions import ToldRevisions
from certs.keystore.revocations import (
    NUMBER_CRL,
    REVOKE,
    Revocation,
    add_revocation,
    raise_crl_number,
    told_crl_number,
)
from certs.keystore.rows import write_rows
from certs.keystore.store import utc_now
from certs.keystore.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from certs.keystore.kek import KEKProvider

__all__ = ["Restored", "check_backup", "restore_backup"]

_PAGE = 500
_MADE = frozenset({"create", "import", "rotate", "secret-set"})


@dataclass(frozen=True, slots=True)
class Restored:
    """What a backup held, and what came of what happened after it.

    `done_again` tells of each later change, `lost` of each key, version and certificate that was
    made later and is in no backup, and of a later change of the KEK.
    """

    store_id: str
    created_at: datetime
    rows: int
    keys: int
    log_rows: int
    later_rows: int = 0
    done_again: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def check_backup(source: str | os.PathLike[str], kek: KEKProvider | str) -> Restored:
    """Check a whole backup as restoring it would, and keep nothing.

    Raises as `restore_backup` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        return restore_backup(source, Path(folder, "store"), kek, as_of_backup=True)


def restore_backup(
    source: str | os.PathLike[str],
    address: str | os.PathLike[str],
    kek: KEKProvider | str,
    *,
    later_log: Iterable[bytes] | None = None,
    as_of_backup: bool = False,
    principal: str = OWNER,
    clock: Callable[[], datetime] = utc_now,
) -> Restored:
    """Make a new store at an address from a backup, under the KEK that it was made under.

    `later_log` is an export of the audit log from after the backup, line by line;
    `as_of_backup` says that what was taken away since may be there again. Raises `InvalidInput` if
    neither is given, or for what is no backup; `CorruptEnvelope` or `AuditLogAltered` if it is not
    as it was written, or the later log does not continue it; `WrongKEK`; `StoreError`.
    """
    if (later_log is None) is not as_of_backup:
        raise InvalidInput(
            "what was deleted, disabled or revoked after the backup would be there again: give the "
            "later audit log (pfs keys audit export), or say that the store is wanted as of the "
            "backup"
        )
    now = int(clock().timestamp())
    found: list[Restored] = []
    with Path(source).open("rb") as file, using_provider(kek) as provider:
        header = read_header(file)
        if header.schema != SCHEMA_VERSION:
            raise StoreError(
                f"the backup is of a store of schema {header.schema}, and this program restores "
                f"schema {SCHEMA_VERSION}; restore it with the program that made it, then upgrade",
                fault=StoreFault.NEWER_SCHEMA,
            )
        context = root_context(header.store_id, header.root_generation).encode()
        keyring = Keyring(header.store_id, provider.unwrap(header.wrapped_root_key, context))
        work = _Restoring(keyring, header, require_principal(principal), now)

        def fill(connection: Connection) -> None:
            found.append(work.run(connection, BackupRows(file, keyring, header), later_log))

        create_database(address, fill)
    keyring.close()
    return found[0]


class _Restoring:
    """One restore, inside the transaction that makes the database."""

    def __init__(self, keyring: Keyring, header: BackupHeader, principal: str, now: int) -> None:
        self._keyring = keyring
        self._header = header
        self._principal = principal
        self._now = now
        self._log = AuditLog(keyring)

    def run(
        self, connection: Connection, rows: BackupRows, later_log: Iterable[bytes] | None
    ) -> Restored:
        write_rows(connection, rows)
        root = read_root(connection)
        if (root.store_id, root.wrapped) != (self._header.store_id, self._header.wrapped_root_key):
            raise CorruptEnvelope("the backup's rows are of another store than its header says")
        checkpoint = self._checked_log(connection, rows.checkpoint)
        keys = self._open_everything(connection)
        later: list[AuditEntry] = []
        if later_log is not None:
            later = self._later(connection, rows.checkpoint, checkpoint.size, later_log)
        self._append(
            connection,
            "restore",
            log_rows=str(checkpoint.size),
            later_rows=str(len(later)) if later_log is not None else "unknown",
            backup_of=str(self._header.created_at),
        )
        done_again = [
            told for entry in later if (told := self._do_again(connection, entry)) is not None
        ]
        return Restored(
            store_id=self._header.store_id.hex(),
            created_at=datetime.fromtimestamp(self._header.created_at, UTC),
            rows=rows.rows,
            keys=keys,
            log_rows=checkpoint.size,
            later_rows=len(later),
            done_again=tuple(done_again),
            lost=tuple(_lost(later)),
        )

    def _checked_log(self, connection: Connection, note: bytes) -> Checkpoint:
        """Check the log's rows against the backup's checkpoint, grants and keys against the log."""
        told = ToldRevisions()
        checkpoint = Checkpoint.open(note, self._log.key(connection))
        if self._log.check(connection, checkpoint, told.take) != note:
            raise AuditLogAltered("the backup's log is not that of its checkpoint", row=None)
        told.require(connection, self._keyring)
        return checkpoint

    def _open_everything(self, connection: Connection) -> int:
        count, last = 0, ""
        while page := keys_after(connection, self._keyring, last, _PAGE):
            for info in page:
                for version in range(1, info.version + 1):
                    sealed = read_version(connection, info, version)
                    if not info.purged:
                        opened(self._keyring, sealed)
            count, last = count + len(page), page[-1].name
        return count

    def _later(
        self, connection: Connection, note: bytes, known: int, later_log: Iterable[bytes]
    ) -> list[AuditEntry]:
        entries: list[AuditEntry] = []

        def each(row: AuditRow, entry: AuditEntry) -> None:
            if row.number >= known and entry.outcome == "done":
                entries.append(entry)

        verify_export(later_log, self._log.key(connection), note, each)
        return entries

    def _do_again(self, connection: Connection, entry: AuditEntry) -> str | None:
        """Do again what took something away or gave it back; return what is to be told of it."""
        if entry.operation in {"grant", "revoke"}:
            return self._grant_again(connection, entry)
        change = _CHANGES.get(entry.operation)
        of_a_certificate = entry.operation in {REVOKE, NUMBER_CRL}
        if change is None and not of_a_certificate:
            return None
        try:
            info = find_key(connection, self._keyring, entry.name)
        except KeyNotFound:
            return None  # made after the backup, and lost with it
        if change is None:
            return self._list_again(connection, entry)
        if entry.version is not None and entry.version > info.version:
            return None
        if entry.operation == "purge":
            erase_versions(connection, info)
        revision = put_state(connection, self._keyring, change(info, entry), self._now)
        self._append(connection, entry.operation, entry.name, entry.version, revision=str(revision))
        version = "" if entry.version is None else f" version {entry.version}"
        return f"{entry.operation} {entry.name}{version}"

    def _list_again(self, connection: Connection, entry: AuditEntry) -> str | None:
        """Revoke a certificate again, were it lost itself; go on counting lists where they were."""
        if entry.operation == NUMBER_CRL:
            raise_crl_number(connection, entry.name, told_crl_number(entry))
            return None
        revocation = Revocation.told(entry)
        add_revocation(connection, revocation)
        self._append(connection, REVOKE, entry.name, None, **revocation.details)
        return f"{REVOKE} {revocation.serial:x} of {entry.name}"

    def _grant_again(self, connection: Connection, entry: AuditEntry) -> str | None:
        details = entry.details
        grant = Grant(require_role(details["role"]), require_scope(details["scope"]))
        principal, give = require_principal(details["principal"]), entry.operation == "grant"
        try:
            revision = change_grants(connection, self._keyring, principal, grant, give=give)
        except InvalidInput:
            return None  # it is not there to be taken
        self._append(
            connection,
            entry.operation,
            principal=principal,
            role=grant.role.value,
            scope=grant.scope,
            revision=str(revision),
        )
        return f"{entry.operation} {grant.role.value} for {grant.scope} to {principal}"

    def _append(
        self,
        connection: Connection,
        operation: str,
        name: str = "",
        version: int | None = None,
        **details: str,
    ) -> None:
        entry = AuditEntry(
            self._now, self._principal, operation, name, "done", version=version, details=details
        )
        self._log.append(connection, [entry.encode()], self._log.end(connection))


def _deleted(info: KeyInfo, entry: AuditEntry) -> KeyInfo:
    purge_at = entry.details.get("purge_at", "")
    when = datetime.fromtimestamp(entry.time, UTC)
    until = datetime.fromtimestamp(int(purge_at), UTC) if purge_at.isdecimal() else when
    return replace(info, deleted_at=when, purge_at=until)


def _recovered(info: KeyInfo, _: AuditEntry) -> KeyInfo:
    return replace(info, deleted_at=None, purge_at=None)


def _purged(info: KeyInfo, entry: AuditEntry) -> KeyInfo:
    return replace(info if info.deleted_at else _deleted(info, entry), purged=True)


def _disabled(info: KeyInfo, entry: AuditEntry) -> KeyInfo:
    if entry.version is None:
        return replace(info, enabled=False)
    return replace(info, disabled_versions=info.disabled_versions | {entry.version})


def _enabled(info: KeyInfo, entry: AuditEntry) -> KeyInfo:
    if entry.version is None:
        return replace(info, enabled=True)
    return replace(info, disabled_versions=info.disabled_versions - {entry.version})


_CHANGES: dict[str, Callable[[KeyInfo, AuditEntry], KeyInfo]] = {
    "delete": _deleted,
    "recover": _recovered,
    "purge": _purged,
    "disable": _disabled,
    "enable": _enabled,
}


def _lost(later: Iterable[AuditEntry]) -> list[str]:
    lost = []
    for entry in later:
        if entry.operation in _MADE:
            lost.append(f"key {entry.name} version {entry.version}")
        elif entry.operation == "sign" and "serial" in entry.details:
            lost.append(f"certificate {entry.details['serial']}, signed by {entry.name}")
        elif entry.operation == "rekey":
            lost.append("the change to another KEK: the store is under the earlier one; rekey it")
    return lost

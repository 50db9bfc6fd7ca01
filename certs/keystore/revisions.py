"""Holding grants, key states and revocations to what the audit log tells of them.

Whoever edits the database cannot write a state or a grant that opens, but can put back an older one
with its row, which is genuine and in its place: a key disabled since is enabled again, a grant that
was revoked is back. So each change raises a revision, and its entry in the log names it. When the
log is verified, every row must be of the revision that the log tells last.

Only operations that change a state or a grant are believed: what a signature is said to be about
is its caller's to say, and may well have a "revision" of its own.

A store whose log began with an upgrade has keys that the log tells nothing of until they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from certs.errors import AuditLogAltered
from certs.keystore.grants import grant_revisions
from certs.keystore.records import keys_after
from certs.keystore.revocations import ToldRevocations

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from certs.keystore.audit import AuditEntry, AuditRow
    from certs.keystore.keyring import Keyring

__all__ = ["ToldRevisions"]

_PAGE = 500
_OF_KEYS = frozenset(
    {
        *("create", "import", "rotate", "secret-set"),
        *("disable", "enable", "delete", "recover", "purge"),
    }
)
_OF_GRANTS = frozenset({"init", "upgrade", "grant", "revoke"})


class ToldRevisions:
    """What a log tells of revisions: `take` every row of it, in order, then `require`."""

    def __init__(self) -> None:
        self._grants: dict[str, tuple[int, int]] = {}
        self._keys: dict[str, tuple[int, int]] = {}
        self._revocations = ToldRevocations()

    def take(self, row: AuditRow, entry: AuditEntry) -> None:
        """Take the next row, which was checked."""
        revision = entry.details.get("revision", "")
        if entry.outcome != "done":
            return
        self._revocations.take(row, entry)
        if not revision.isdecimal():
            return
        if entry.operation in _OF_KEYS:
            self._keys[entry.name] = (row.number, int(revision))
        elif entry.operation in _OF_GRANTS:
            self._grants[entry.details.get("principal", "")] = (row.number, int(revision))

    def require(self, connection: Connection, keyring: Keyring) -> None:
        """Hold the store's rows to it; raise `AuditLogAltered` with the row of the log."""
        self._require_keys(connection, keyring)
        self._revocations.require(connection)
        found = grant_revisions(connection, keyring)
        for principal, (number, revision) in self._grants.items():
            if found.pop(principal, None) != revision:
                raise _put_back(f"the grants of {principal}", revision, number)
        if found:
            raise AuditLogAltered(f"the audit log tells of no grant to {min(found)}", row=None)

    def _require_keys(self, connection: Connection, keyring: Keyring) -> None:
        missing = dict(self._keys)
        last = ""
        while page := keys_after(connection, keyring, last, _PAGE):
            for info in page:
                number, revision = missing.pop(info.name, (None, info.revision))
                if info.revision != revision:
                    raise _put_back(f"the state of key {info.name!r}", revision, number)
            last = page[-1].name
        if missing:
            name = min(missing)
            number, revision = missing[name]
            raise _put_back(f"the state of key {name!r}", revision, number)


def _put_back(what: str, revision: int, number: int | None) -> AuditLogAltered:
    return AuditLogAltered(
        f"{what} is not that of revision {revision}, which row {number} of the audit log tells of: "
        "an older row was put back, or it was removed",
        row=number,
    )

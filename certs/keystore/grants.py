"""Grants in the store's database: sealed, so that whoever edits the file grants himself nothing.

One row a principal holds all that it is granted, sealed under the root key and bound to the
principal's name and to a revision that each change raises. Removing a row takes rights away and
gives none. Putting an older row back gives back what was revoked; it reads as genuine, so the audit
log remembers each principal's revision (`details` of ``grant`` and ``revoke``), and
`certs.keystore.revisions` holds the rows to it when the log is verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, insert, select, update

from certs.errors import CorruptEnvelope, InvalidInput
from certs.keystore.access import (
    OWNER,
    OWNERS_GRANTS,
    Grant,
    encode_grants,
    is_permitted,
    parse_grants,
    require_principal,
)
from certs.keystore.tables import as_bytes, as_number, as_text, damaged, grants

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from certs.keystore.keyring import Keyring

__all__ = [
    "all_grants",
    "begin_grants",
    "change_grants",
    "grant_revisions",
    "grants_of",
]

_KIND = "grants"
_PURPOSE = "access"
_MOST_PRINCIPALS = 10_000
_ONE = select(grants).where(grants.c.principal == bindparam("wanted"))


def begin_grants(connection: Connection, keyring: Keyring) -> None:
    """Give the owner every role on everything: what a store starts with."""
    connection.execute(
        insert(grants).values(
            principal=OWNER, revision=1, sealed=_seal(keyring, OWNER, 1, OWNERS_GRANTS)
        )
    )


def grants_of(connection: Connection, keyring: Keyring, principal: str) -> frozenset[Grant]:
    """Return what a principal is granted: nothing, unless a row says otherwise."""
    return _found(connection, keyring, principal)[1]


def all_grants(connection: Connection, keyring: Keyring) -> dict[str, frozenset[Grant]]:
    """Return the grants of every principal that has any, in the order of their names."""
    rows = connection.execute(select(grants).order_by(grants.c.principal)).all()
    found = {
        principal: granted for principal, _, granted in (_opened(keyring, row) for row in rows)
    }
    return {principal: granted for principal, granted in found.items() if granted}


def change_grants(
    connection: Connection, keyring: Keyring, principal: str, grant: Grant, *, give: bool
) -> int:
    """Add a grant or take it away, in a write transaction; return the principal's new revision.

    Raises `InvalidInput` if there is nothing to take away, or if nobody could grant afterwards.
    """
    revision, before = _found(connection, keyring, principal)
    if not give and grant not in before:
        raise InvalidInput(
            f"{principal} has no role {grant.role} for {grant.scope}; see the grants"
        )
    after = before | {grant} if give else before - {grant}
    values = {"revision": revision + 1, "sealed": _seal(keyring, principal, revision + 1, after)}
    if revision:
        connection.execute(update(grants).where(grants.c.principal == principal).values(values))
    else:
        principals = connection.execute(select(grants.c.principal)).all()
        if len(principals) >= _MOST_PRINCIPALS:
            raise InvalidInput(f"a store knows at most {_MOST_PRINCIPALS} principals")
        connection.execute(insert(grants).values(principal=principal, **values))
    everyone = all_grants(connection, keyring).values() if not give else ()
    if not give and not any(is_permitted(one, "grant", "") for one in everyone):
        raise InvalidInput(
            "nobody could grant anything afterwards; grant that to another one first"
        )
    return revision + 1


def grant_revisions(connection: Connection, keyring: Keyring) -> dict[str, int]:
    """Return each principal's revision."""
    rows = connection.execute(select(grants)).all()
    return {principal: revision for principal, revision, _ in (_opened(keyring, r) for r in rows)}


def _found(
    connection: Connection, keyring: Keyring, principal: str
) -> tuple[int, frozenset[Grant]]:
    """Return a principal's revision, 0 if there is no row, and its grants."""
    row = connection.execute(_ONE, {"wanted": principal}).first()
    if row is None:
        return 0, frozenset()
    found, revision, granted = _opened(keyring, row)
    if found != principal:  # a damaged index finds other rows than the one asked for
        raise damaged("grants.principal")
    return revision, granted


def _seal(keyring: Keyring, principal: str, revision: int, granted: frozenset[Grant]) -> bytes:
    return keyring.seal_above_terms(
        encode_grants(granted), kind=_KIND, name=principal, version=revision, purpose=_PURPOSE
    )


def _opened(keyring: Keyring, row: Row[*tuple[object, ...]]) -> tuple[str, int, frozenset[Grant]]:
    principal = as_text(row.principal, "grants.principal")
    revision = as_number(row.revision, "grants.revision", least=1)
    try:
        require_principal(principal)
    except InvalidInput:
        raise CorruptEnvelope("a row of the grants names no principal") from None
    plaintext = keyring.unseal_above_terms(
        as_bytes(row.sealed, "grants.sealed"),
        kind=_KIND,
        name=principal,
        version=revision,
        purpose=_PURPOSE,
    )
    return principal, revision, parse_grants(plaintext)

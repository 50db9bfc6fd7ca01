"""Renewing the keys above the keys: rotate, rewrap and rekey, each by itself, each safe to kill.

*Rotate* adds a term: one commit, and what is sealed from then on is sealed under it.

*Rewrap* moves records to the newest term, a bounded number in each commit, while others go on
working. Where it has got to is nowhere but in the records themselves: a record says which term it
is under. Killed at any instant it therefore leaves every record under one term or another, all of
which open, and the next run takes up the rest. A record is opened at its place and sealed for that
same place, so moving it can neither repair nor hide tampering: what does not open is left as it is
and named at the end.

*Rekey* wraps the root key under another KEK: one row, one commit. Before it the old KEK opens the
store, after it only the new one. The new wrapping is opened once before it is stored. Copies of the
file from before still open with the old KEK: whoever has both needs more than a rekey.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select, update

from certs.errors import CorruptEnvelope, KEKUnavailable, StoreError, StoreFault
from certs.keystore.identity import read_root
from certs.keystore.kek.provider import MAX_WRAPPED_BYTES
from certs.keystore.keyring import SealedTerm, root_context
from certs.keystore.kinds import kind_of, require_key_type
from certs.keystore.records import STATE_KIND, counted_term, insert_term, newest_term
from certs.keystore.tables import (
    as_bytes,
    as_number,
    as_text,
    damaged,
    key_states,
    key_versions,
    keys,
    store_info,
    terms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row, Table

    from certs.keystore.database import Database
    from certs.keystore.kek import KEKProvider
    from certs.keystore.keyring import Keyring

__all__ = [
    "Rewrapped",
    "Rewrapping",
    "Wrapping",
    "rotate_term",
    "store_wrapping",
    "wrap_again",
]


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """What a rewrap did: the newest term, how many records it moved, how many are elsewhere yet."""

    term: int
    moved: int
    left: int


# Of a record's place, what its table calls the version.
_NUMBERS = {"key_versions": "version", "key_states": "revision"}


def rotate_term(connection: Connection, keyring: Keyring, now: int) -> int:
    """Add a term and return its number. Runs in a write transaction."""
    newest, _ = newest_term(connection)
    following = keyring.new_term(newest.number + 1)
    insert_term(connection, following, invocations=0, now=now)
    return following.number


class Rewrapping:
    """One run over all records that are not under the newest term, batch by batch.

    Call `batch` in a write transaction until it returns 0; `report` then says what came of it.
    """

    def __init__(self, keyring: Keyring, records_a_batch: int) -> None:
        self._keyring = keyring
        self._limit = records_a_batch
        self._tables = [key_versions, key_states]
        self._after: tuple[str, int] = ("", 0)
        self._moved = 0
        self.damaged: list[str] = []

    def batch(self, connection: Connection, now: int) -> int:
        """Move the next records; return how many were looked at."""
        newest, _ = newest_term(connection)
        while self._tables:
            rows = self._next_rows(connection, self._tables[0], newest.number)
            if rows:
                for row in rows:
                    self._move(connection, self._tables[0], row, now)
                return len(rows)
            self._tables.pop(0)
            self._after = ("", 0)
        return 0

    def report(self, connection: Connection) -> Rewrapped:
        """Return what this run did; raise `CorruptEnvelope` if some records did not open."""
        newest, _ = newest_term(connection)
        left = 0
        for table in (key_versions, key_states):
            older = and_(table.c.term < newest.number, func.length(table.c.sealed) > 0)
            count = connection.execute(select(func.count()).select_from(table).where(older))
            left += as_number(count.scalar(), f"{table.name}.term")
        if self.damaged:
            raise CorruptEnvelope(
                f"{self._moved} records were moved to term {newest.number}, but "
                f"{len(self.damaged)} do not open and were left as they are, the first: "
                f"{self.damaged[0]}"
            )
        return Rewrapped(newest.number, self._moved, left)

    def _next_rows(
        self, connection: Connection, table: Table, newest: int
    ) -> Sequence[Row[*tuple[object, ...]]]:
        number = table.c[_NUMBERS[table.name]]
        name, last = self._after
        return connection.execute(
            select(
                table.c.name,
                number.label("number"),
                table.c.term,
                table.c.sealed,
                terms.c.sealed.label("sealed_term"),
                keys.c.key_type,
                keys.c.purpose,
            )
            .outerjoin(terms, terms.c.number == table.c.term)
            .join(keys, keys.c.name == table.c.name)
            .where(
                table.c.term < newest,
                func.length(table.c.sealed) > 0,  # of a purged key nothing is left to move
                or_(table.c.name > name, and_(table.c.name == name, number > last)),
            )
            .order_by(table.c.name, number)
            .limit(self._limit)
        ).all()

    def _move(
        self, connection: Connection, table: Table, row: Row[*tuple[object, ...]], now: int
    ) -> None:
        name = as_text(row.name, f"{table.name}.name")
        number = as_number(row.number, f"{table.name}.{_NUMBERS[table.name]}", least=1)
        if (name, number) <= self._after:  # a damaged index turns back: this would never end
            raise damaged(f"{table.name}.name")
        self._after = (name, number)
        key_type = require_key_type(as_text(row.key_type, "keys.key_type"))
        kind = STATE_KIND if table is key_states else kind_of(key_type)
        purpose = as_text(row.purpose, "keys.purpose")
        old_term = as_number(row.term, f"{table.name}.term", least=1)
        if row.sealed_term is None:
            self.damaged.append(f"term {old_term}, which seals {name!r}, is missing")
            return
        try:
            plaintext = self._keyring.unseal(
                SealedTerm(old_term, as_bytes(row.sealed_term, "terms.sealed")),
                as_bytes(row.sealed, f"{table.name}.sealed"),
                kind=kind,
                name=name,
                version=number,
                purpose=purpose,
            )
        except CorruptEnvelope as error:
            self.damaged.append(str(error))
            return
        term = counted_term(connection, self._keyring, now)
        record = self._keyring.seal(
            term, plaintext, kind=kind, name=name, version=number, purpose=purpose
        )
        done = connection.execute(
            update(table)
            .where(
                table.c.name == name,
                table.c[_NUMBERS[table.name]] == number,
                table.c.sealed == row.sealed,  # a damaged index may lead to another row's
            )
            .values(term=term.number, sealed=record)
        )
        if done.rowcount != 1:
            raise damaged(f"{table.name}.name")
        self._moved += 1


@dataclass(frozen=True, slots=True)
class Wrapping:
    """A root key wrapped under another KEK, and the wrapped form that it replaces."""

    replaces: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)


def wrap_again(database: Database, current: KEKProvider, new: KEKProvider) -> Wrapping:
    """Wrap the root key under another KEK. Nothing is written, and no lock is held meanwhile.

    Raises `WrongKEK` or `CorruptEnvelope` for the current KEK, `KEKUnavailable` for a new one that
    does not unwrap what it wrapped.
    """
    with database.read() as connection:
        root = read_root(connection)
    associated_data = root_context(root.store_id, root.generation).encode()
    root_key = current.unwrap(root.wrapped, associated_data)
    wrapped = new.wrap(root_key, associated_data)
    if len(wrapped) > MAX_WRAPPED_BYTES or not hmac.compare_digest(
        new.unwrap(wrapped, associated_data), root_key
    ):
        raise KEKUnavailable("the new KEK does not unwrap what it wrapped; nothing was changed")
    return Wrapping(root.wrapped, wrapped)


def store_wrapping(connection: Connection, wrapping: Wrapping) -> None:
    """Put the new wrapped form in the old one's place, unless somebody else replaced it first."""
    done = connection.execute(
        update(store_info)
        .where(store_info.c.wrapped_root_key == wrapping.replaces)
        .values(wrapped_root_key=wrapping.wrapped)
    )
    if done.rowcount != 1:
        raise StoreError(
            "the store was rekeyed by another process meanwhile; nothing was changed",
            fault=StoreFault.LOCKED,
        )

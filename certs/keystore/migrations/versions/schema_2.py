"""Schema 2: each key's state, sealed.

Each key is opened once, so that only what was sealed with it, and not an edited row, goes into the
state that is sealed now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import context, op

from certs.keystore.kinds import require_key_type
from certs.keystore.migrations import work_of
from certs.keystore.records import (
    KeyInfo,
    counted_term,
    opened,
    read_version,
    seal_state,
)
from certs.keystore.tables import as_number, as_text, as_time

if TYPE_CHECKING:
    from certs.keystore.keyring import Keyring

__all__ = ["upgrade"]

revision = "2"
down_revision = "1"

_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_COLUMNS = ("name", "key_type", "purpose", "exportable", "latest_version", "created_at")


def upgrade() -> None:
    """Make the table of states and seal one for each key; `CorruptEnvelope` for an edited key."""
    states = op.create_table(
        "key_states",
        sa.Column("name", _text, sa.ForeignKey("keys.name"), primary_key=True),
        sa.Column("revision", _number, sa.CheckConstraint("revision >= 1"), nullable=False),
        sa.Column("term", _number, sa.ForeignKey("terms.number"), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_index("ix_key_states_term", "key_states", ["term"])
    work = work_of(context.config)
    keys = sa.table("keys", *(sa.column(name) for name in _COLUMNS))
    for row in op.get_bind().execute(sa.select(keys).order_by(keys.c.name)).all():
        op.execute(sa.insert(states).values(_sealed_state(work.keyring, row, work.entry.time)))


def _sealed_state(
    keyring: Keyring, row: sa.Row[*tuple[object, ...]], now: int
) -> dict[str, str | int | bytes]:
    connection = op.get_bind()
    info = KeyInfo(
        name=as_text(row.name, "keys.name"),
        key_type=require_key_type(as_text(row.key_type, "keys.key_type")),
        purpose=as_text(row.purpose, "keys.purpose"),
        exportable=bool(as_number(row.exportable, "keys.exportable", most=1)),
        version=as_number(row.latest_version, "keys.latest_version", least=1),
        created_at=as_time(row.created_at, "keys.created_at"),
    )
    opened(keyring, read_version(connection, info, None))  # raises if the row was edited
    term = counted_term(connection, keyring, now)
    return {
        "name": info.name,
        "revision": info.revision,
        "term": term.number,
        "sealed": seal_state(keyring, term, info),
    }

"""Schema 3: grants, of which the owner has all, and the audit log, which begins now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from certs.keystore.migrations import work_of
from certs.keystore.schema import begin_oversight

__all__ = ["upgrade"]

revision = "3"
down_revision = "2"

_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_flag = sa.SmallInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables and their first rows."""
    op.create_table(
        "grants",
        sa.Column("principal", _text, primary_key=True),
        sa.Column("revision", _number, sa.CheckConstraint("revision >= 1"), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "audit_log",
        sa.Column("number", _number, sa.CheckConstraint("number >= 0"), primary_key=True),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "audit_head",
        sa.Column("singleton", _flag, sa.CheckConstraint("singleton = 1"), primary_key=True),
        sa.Column("size", _number, nullable=False),
        sa.Column("frontier", sa.LargeBinary, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    work = work_of(context.config)
    begin_oversight(op.get_bind(), work.keyring, work.entry)

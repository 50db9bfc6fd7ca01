"""Schema 5: revoked certificates, and the numbers of the lists that name them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["upgrade"]

revision = "5"
down_revision = "4"

_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables, empty."""
    op.create_table(
        "revocations",
        sa.Column("serial", sa.LargeBinary, primary_key=True),
        sa.Column("signer_name", _text, sa.ForeignKey("keys.name"), nullable=False),
        sa.Column("revoked_at", _number, nullable=False),
        sa.Column("reason", _text, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "crl_numbers",
        sa.Column("name", _text, sa.ForeignKey("keys.name"), primary_key=True),
        sa.Column("number", _number, sa.CheckConstraint("number >= 1"), nullable=False),
        sqlite_strict=True,
    )

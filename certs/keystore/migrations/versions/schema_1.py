"""Schema 1: private keys with versions, certificates and authorities."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["upgrade"]

revision = "1"
down_revision = None

_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_flag = sa.SmallInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "store_info",
        sa.Column("singleton", _flag, sa.CheckConstraint("singleton = 1"), primary_key=True),
        sa.Column("schema_version", _number, nullable=False),
        sa.Column("store_id", sa.LargeBinary, nullable=False),
        sa.Column("root_generation", _number, nullable=False),
        sa.Column("wrapped_root_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _number, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "terms",
        sa.Column("number", _number, sa.CheckConstraint("number >= 1"), primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("invocations", _number, nullable=False),
        sa.Column("created_at", _number, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "keys",
        sa.Column("name", _text, primary_key=True),
        sa.Column("key_type", _text, nullable=False),
        sa.Column("purpose", _text, nullable=False),
        sa.Column("exportable", _flag, sa.CheckConstraint("exportable IN (0, 1)"), nullable=False),
        sa.Column(
            "latest_version", _number, sa.CheckConstraint("latest_version >= 1"), nullable=False
        ),
        sa.Column("created_at", _number, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "key_versions",
        sa.Column("name", _text, sa.ForeignKey("keys.name"), primary_key=True),
        sa.Column("version", _number, sa.CheckConstraint("version >= 1"), primary_key=True),
        sa.Column("term", _number, sa.ForeignKey("terms.number"), nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _number, nullable=False),
        sqlite_strict=True,
    )
    op.create_index("ix_key_versions_term", "key_versions", ["term"])
    _make_certificates()


def _make_certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.LargeBinary, primary_key=True),
        sa.Column(
            "state", _text, sa.CheckConstraint("state IN ('signing', 'issued')"), nullable=False
        ),
        sa.Column("profile", _text, nullable=False),
        sa.Column("signer_name", _text, nullable=False),
        sa.Column("signer_version", _number, nullable=False),
        sa.Column("subject_name", _text, nullable=False),
        sa.Column("subject_version", _number, nullable=False),
        sa.Column("to_be_signed", sa.LargeBinary, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=True),
        sa.Column("recorded_at", _number, nullable=False),
        sa.CheckConstraint("(state = 'issued') = (certificate IS NOT NULL)"),
        sa.ForeignKeyConstraint(
            ["signer_name", "signer_version"], ["key_versions.name", "key_versions.version"]
        ),
        sa.ForeignKeyConstraint(
            ["subject_name", "subject_version"], ["key_versions.name", "key_versions.version"]
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "authorities",
        sa.Column("name", _text, sa.ForeignKey("keys.name"), primary_key=True),
        sa.Column("parent", _text, sa.ForeignKey("authorities.name"), nullable=True),
        sa.Column("serial", sa.LargeBinary, sa.ForeignKey("certificates.serial"), nullable=False),
        sqlite_strict=True,
    )

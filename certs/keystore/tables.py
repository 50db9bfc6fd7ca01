"""The tables of a store's database, and what a row must look like to be believed.

SQLite neither enforces declared types on read nor keeps a damaged page from yielding an integer
where a blob was, so values are narrowed here (`as_bytes`, `as_text`, `as_number`) before anything
else sees them. docs/formats.md ("Database") describes the columns.

Times are whole seconds since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
)

from certs.errors import StoreError, StoreFault

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "SERIAL_BYTES",
    "alembic_version",
    "as_bytes",
    "as_number",
    "as_text",
    "as_time",
    "audit_head",
    "audit_log",
    "authorities",
    "certificates",
    "crl_numbers",
    "damaged",
    "grants",
    "key_states",
    "key_versions",
    "keys",
    "metadata",
    "revocations",
    "store_info",
    "terms",
]

SCHEMA_VERSION = 5
SERIAL_BYTES = 20  # of a certificate's serial number, with zeros in front
APPLICATION_ID = 0x50465353  # "PFSS", in SQLite's header: how a store is told from another database

_LATEST_TIME = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())

metadata = MetaData()


def _number() -> TypeEngine[int]:
    """64 bits: BIGINT, which SQLite's strict tables know only as INTEGER."""
    return BigInteger().with_variant(Integer(), "sqlite")


def _text() -> TypeEngine[str]:
    """Text that sorts by its bytes, as SQLite's does and PostgreSQL's "C" collation."""
    return Text().with_variant(Text(collation="C"), "postgresql")


def _flag() -> TypeEngine[int]:
    return SmallInteger().with_variant(Integer(), "sqlite")


store_info = Table(
    "store_info",
    metadata,
    Column("singleton", _flag(), CheckConstraint("singleton = 1"), primary_key=True),
    Column("schema_version", _number(), nullable=False),
    Column("store_id", LargeBinary, nullable=False),
    Column("root_generation", _number(), nullable=False),
    Column("wrapped_root_key", LargeBinary, nullable=False),
    Column("created_at", _number(), nullable=False),
    sqlite_strict=True,
)

terms = Table(
    "terms",
    metadata,
    Column("number", _number(), CheckConstraint("number >= 1"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("invocations", _number(), nullable=False),
    Column("created_at", _number(), nullable=False),
    sqlite_strict=True,
)

keys = Table(
    "keys",
    metadata,
    Column("name", _text(), primary_key=True),
    Column("key_type", _text(), nullable=False),
    Column("purpose", _text(), nullable=False),
    Column("exportable", _flag(), CheckConstraint("exportable IN (0, 1)"), nullable=False),
    Column("latest_version", _number(), CheckConstraint("latest_version >= 1"), nullable=False),
    Column("created_at", _number(), nullable=False),
    sqlite_strict=True,
)

key_versions = Table(
    "key_versions",
    metadata,
    Column("name", _text(), ForeignKey("keys.name"), primary_key=True),
    Column("version", _number(), CheckConstraint("version >= 1"), primary_key=True),
    Column("term", _number(), ForeignKey("terms.number"), nullable=False, index=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", _number(), nullable=False),
    sqlite_strict=True,
)

# What may change about a key (disabled, deleted, …), sealed; `revision` counts its changes.
key_states = Table(
    "key_states",
    metadata,
    Column("name", _text(), ForeignKey("keys.name"), primary_key=True),
    Column("revision", _number(), CheckConstraint("revision >= 1"), nullable=False),
    Column("term", _number(), ForeignKey("terms.number"), nullable=False, index=True),
    Column("sealed", LargeBinary, nullable=False),
    sqlite_strict=True,
)

# A row is written before its certificate is signed (state "signing"), and completed afterwards.
certificates = Table(
    "certificates",
    metadata,
    Column("serial", LargeBinary, primary_key=True),
    Column("state", _text(), CheckConstraint("state IN ('signing', 'issued')"), nullable=False),
    Column("profile", _text(), nullable=False),
    Column("signer_name", _text(), nullable=False),
    Column("signer_version", _number(), nullable=False),
    Column("subject_name", _text(), nullable=False),
    Column("subject_version", _number(), nullable=False),
    Column("to_be_signed", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=True),
    Column("recorded_at", _number(), nullable=False),
    CheckConstraint("(state = 'issued') = (certificate IS NOT NULL)"),
    ForeignKeyConstraint(
        ["signer_name", "signer_version"], ["key_versions.name", "key_versions.version"]
    ),
    ForeignKeyConstraint(
        ["subject_name", "subject_version"], ["key_versions.name", "key_versions.version"]
    ),
    sqlite_strict=True,
)

authorities = Table(
    "authorities",
    metadata,
    Column("name", _text(), ForeignKey("keys.name"), primary_key=True),
    Column("parent", _text(), ForeignKey("authorities.name"), nullable=True),
    Column("serial", LargeBinary, ForeignKey("certificates.serial"), nullable=False),
    sqlite_strict=True,
)

# By serial number alone: a certificate that a restore lost can still be revoked.
revocations = Table(
    "revocations",
    metadata,
    Column("serial", LargeBinary, primary_key=True),
    Column("signer_name", _text(), ForeignKey("keys.name"), nullable=False),
    Column("revoked_at", _number(), nullable=False),
    Column("reason", _text(), nullable=False),
    sqlite_strict=True,
)

# The number of the newest list that an authority signed, or was about to.
crl_numbers = Table(
    "crl_numbers",
    metadata,
    Column("name", _text(), ForeignKey("keys.name"), primary_key=True),
    Column("number", _number(), CheckConstraint("number >= 1"), nullable=False),
    sqlite_strict=True,
)

# What each principal is granted, sealed; `revision` counts its changes.
grants = Table(
    "grants",
    metadata,
    Column("principal", _text(), primary_key=True),
    Column("revision", _number(), CheckConstraint("revision >= 1"), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    sqlite_strict=True,
)

# Rows are only ever added; each bears the log's signature over all up to and including it.
audit_log = Table(
    "audit_log",
    metadata,
    Column("number", _number(), CheckConstraint("number >= 0"), primary_key=True),
    Column("entry", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    sqlite_strict=True,
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("singleton", _flag(), CheckConstraint("singleton = 1"), primary_key=True),
    Column("size", _number(), nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    Column("key", LargeBinary, nullable=False),
    sqlite_strict=True,
)

# What Alembic keeps of the migrations; its definition is Alembic's.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def as_bytes(value: object, column: str) -> bytes:
    """Return a blob from a row; raise `StoreError` (damaged) if it is anything else."""
    if isinstance(value, bytes):
        return value
    raise damaged(column)


def as_text(value: object, column: str) -> str:
    """Return a text from a row."""
    if isinstance(value, str):
        return value
    raise damaged(column)


def as_number(value: object, column: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return an integer within bounds from a row."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise damaged(column)


def as_time(value: object, column: str) -> datetime:
    """Return a time from a row's seconds."""
    return datetime.fromtimestamp(as_number(value, column, most=_LATEST_TIME), UTC)


def damaged(column: str) -> StoreError:
    """Return the error for a column that holds what is never written there."""
    return StoreError(
        f"the store's database is damaged: column {column} holds a value that is never written "
        "there; restore it from a backup",
        fault=StoreFault.DAMAGED,
    )

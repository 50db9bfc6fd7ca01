"""Schema 4: Alembic's own table, which Alembic has made by the time that this runs."""

from __future__ import annotations

__all__ = ["upgrade"]

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Change nothing."""

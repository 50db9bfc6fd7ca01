"""The migrations of a store's database, run by `certs.keystore.schema` through Alembic.

To change the schema: change `certs.keystore.tables`, raise `SCHEMA_VERSION`, add a module to
`versions` whose revision is that number, and describe it in docs/formats.md. A migration is never
changed once it was released. Tests run all of them from nothing, on each kind of database, and
compare what comes out with `tables`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

    from certs.keystore.audit import AuditEntry
    from certs.keystore.keyring import Keyring

__all__ = ["Work", "work_of"]


@dataclass(frozen=True, slots=True)
class Work:
    """What a migration may need: the write transaction, the keys, what the log is to say."""

    connection: Connection
    keyring: Keyring
    entry: AuditEntry


def work_of(config: Config | None) -> Work:
    """Return what `certs.keystore.schema` gave to this run."""
    if config is None:
        raise RuntimeError("migrations are run by certs.keystore.schema")
    return cast("Work", config.attributes["work"])

"""The schema of a store's database: what a new one begins with, and how an older one is brought up.

Migrations are Alembic's, in `certs.keystore.migrations`; a revision is named by the schema that it
leads to. All that are missing run in one transaction: a store is of the old schema or of the new
one, whatever happens meanwhile, and of several processes that open it one does the work.

What a program can read is decided by `store_info.schema_version`, which every schema has; Alembic's
own table came with schema 4, so an older store is given it first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import insert, inspect, update

from certs.keystore import migrations
from certs.keystore.access import OWNER
from certs.keystore.audit import AuditEntry
from certs.keystore.audit_log import AuditLog
from certs.keystore.grants import begin_grants
from certs.keystore.identity import schema_of
from certs.keystore.tables import SCHEMA_VERSION, alembic_version, store_info

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from certs.keystore.database import Database
    from certs.keystore.keyring import Keyring

__all__ = ["begin_oversight", "mark_schema", "migrate", "upgrade"]


def begin_oversight(connection: Connection, keyring: Keyring, entry: AuditEntry) -> None:
    """Grant the owner everything and begin the audit log, whose first row tells of it."""
    begin_grants(connection, keyring)
    first = replace(entry, details={**entry.details, "principal": OWNER, "revision": "1"})
    AuditLog.begin(connection, keyring, first)


def mark_schema(connection: Connection) -> None:
    """Note in a new database that it needs no migration."""
    connection.execute(insert(alembic_version).values(version_num=str(SCHEMA_VERSION)))


def upgrade(database: Database, keyring: Keyring, now: int, principal: str) -> None:
    """Bring the store to `SCHEMA_VERSION` if it is older; all or nothing.

    Raises `CorruptEnvelope` if a key of the older store was tampered with.
    """
    if database.ask(schema_of) == SCHEMA_VERSION:
        return
    with database.write() as connection:
        old = schema_of(connection)
        if old == SCHEMA_VERSION:
            return  # another process was first
        entry = AuditEntry(now, principal, "upgrade", "", "done", details={"schema": str(old)})
        migrate(connection, keyring, entry, old)
        connection.execute(update(store_info).values(schema_version=SCHEMA_VERSION))


def migrate(connection: Connection, keyring: Keyring, entry: AuditEntry, old: int) -> None:
    """Run the migrations after schema `old`; 0 is an empty database. `entry` is for the log."""
    from alembic import command  # noqa: PLC0415 - slow to import, and seldom needed
    from alembic.config import Config  # noqa: PLC0415 - the same

    folder = Path(migrations.__file__).parent
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["work"] = migrations.Work(connection, keyring, entry)
    if old and not inspect(connection).has_table(alembic_version.name):
        command.stamp(config, str(old))
    command.upgrade(config, "head")

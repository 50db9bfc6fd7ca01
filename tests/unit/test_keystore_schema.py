"""Migrations: from nothing and from the first schema they lead to what the tables say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from certs.keystore import KeyStore, KeyType, migrations
from certs.keystore.address import open_database
from certs.keystore.audit import AuditEntry
from certs.keystore.kek import FileKEK
from certs.keystore.keyring import Keyring, new_store_id
from certs.keystore.schema import migrate
from certs.keystore.tables import SCHEMA_VERSION, metadata

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

ENTRY = AuditEntry(1, "owner", "upgrade", "", "done")


def shape(connection: Connection) -> dict[str, object]:
    """Return all that the database says of its tables."""
    found = inspect(connection)
    return {
        table: (
            sorted((each["name"], str(each["type"]), each["nullable"]) for each in columns),
            found.get_pk_constraint(table)["constrained_columns"],
            sorted(
                (each["constrained_columns"], each["referred_table"])
                for each in found.get_foreign_keys(table)
            ),
            sorted(each["sqltext"] for each in found.get_check_constraints(table)),
            sorted((each["name"] or "", each["column_names"]) for each in found.get_indexes(table)),
            found.get_table_options(table),
        )
        for table in found.get_table_names()
        for columns in [found.get_columns(table)]
    }


def test_all_migrations_from_nothing_make_what_a_new_store_has(
    store_address: str, tmp_path: Path
) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    KeyStore.create(store_address, kek).close()
    with open_database(store_address) as database, database.write() as connection:
        made = shape(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        metadata.drop_all(connection)
        assert shape(connection) == {}
        migrate(connection, Keyring(new_store_id(), Keyring.new_root_key()), ENTRY, 0)
        assert shape(connection) == made
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        assert version == str(SCHEMA_VERSION)


def test_revisions_are_the_numbers_of_the_schemas() -> None:
    script = ScriptDirectory(migrations.__path__[0])
    assert [each.revision for each in script.walk_revisions()] == [
        str(number) for number in range(SCHEMA_VERSION, 0, -1)
    ]


def test_a_migration_that_breaks_off_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "store.db"
    kek = FileKEK.create(tmp_path / "kek")
    with KeyStore.create(address, kek) as store:
        store.create_key("a", KeyType.ED25519)
    with open_database(address) as database, database.write() as connection:
        later = ("revocations", "crl_numbers")
        for table in ("alembic_version", "grants", "audit_log", "audit_head", "key_states", *later):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("UPDATE store_info SET schema_version = 1")
        before = shape(connection)

    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("certs.keystore.schema.begin_grants", break_off)
        with pytest.raises(KeyboardInterrupt):
            KeyStore.open(address, kek)
    with open_database(address) as database, database.read() as connection:
        assert shape(connection) == before
    with KeyStore.open(address, kek) as store:
        assert store.key("a").version == 1
        store.verify_audit_log()

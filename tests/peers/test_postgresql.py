"""A store in PostgreSQL: its troubles in plain words, its server lost, and many processes at once.

What a store does is tested on both databases elsewhere (`store_address`); here is what is the
server's own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from certs.errors import AuditLogAltered, CorruptEnvelope, InvalidInput, StoreError, StoreFault
from certs.keystore import KeyStore, KeyType
from certs.keystore.address import open_database
from interop.peers.postgresql import PostgreSQLServer, run_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from certs.keystore.kek import FileKEK
    from interop.peers.programs import Program

DEADLINE_SECONDS = 120
HOW_TO = Path(__file__).parents[2] / "docs/how-to.md"
PFS = Path(sys.executable).with_name("pfs")


@pytest.fixture
def address(postgresql: PostgreSQLServer) -> str:
    return postgresql.new_database()


def name_of(address: str) -> str:
    found = re.search(r"/(d[0-9a-f]{12})\?", address)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("table", ["alembic_version", "keys"])
def test_a_database_of_something_else_is_left_alone(address: str, kek: FileKEK, table: str) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {table} AS SELECT 'abc123' AS version_num")
        with pytest.raises(StoreError, match=f"has a table '{table}' of something else"):
            KeyStore.create(address, kek)
        assert connection.execute(f"TABLE {table}").fetchall() == [("abc123",)]
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert found.fetchall() == [(table,)]


def test_what_cannot_be_opened_is_told(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK, tmp_path: Path
) -> None:
    cases = {
        address: (StoreFault.MISSING, "no key store in postgresql:d"),
        postgresql.url("none"): (StoreFault.MISSING, r"does not exist; create the database"),
        postgresql.url(name_of(address), user="mallory"): (StoreFault.UNREADABLE, "let this user"),
        f"postgresql://pfs@/x?host={tmp_path}": (StoreFault.UNREADABLE, "cannot be reached"),
        "postgresql://pfs@127.0.0.1:1/x": (StoreFault.UNREADABLE, "cannot be reached"),
    }
    for url, (fault, text) in cases.items():
        with pytest.raises(StoreError, match=text) as caught:
            KeyStore.open(url, kek)
        assert caught.value.fault is fault
        assert "\n" not in str(caught.value)
    for url in ("postgresql://a:hunter2@h/x", "postgresql:///x?password=hunter2"):
        with pytest.raises(InvalidInput, match="passfile") as refused:
            KeyStore.open(url, kek)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(InvalidInput, match="no URL of a PostgreSQL"):
        KeyStore.create("postgresql://pfs@/x?nonsense=1", kek)


def test_somebody_elses_database_is_left_alone(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK
) -> None:
    postgresql.run("CREATE TABLE store_info (a integer)", name_of(address))
    with pytest.raises(StoreError) as caught:
        KeyStore.open(address, kek)
    assert caught.value.fault is StoreFault.NOT_A_STORE
    with pytest.raises(StoreError) as caught:
        KeyStore.create(address, kek)
    assert caught.value.fault is StoreFault.EXISTS
    assert (
        postgresql.run(
            r"SELECT count(*) FROM pg_tables WHERE schemaname='public'", name_of(address)
        )
        == "1\n"
    )


def test_a_role_that_may_only_read_is_told(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK
) -> None:
    KeyStore.create(address, kek).close()
    role = f"reads_{name_of(address)}"
    postgresql.run(
        f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        name_of(address),
    )
    with KeyStore.open(postgresql.url(name_of(address), user=role), kek) as store:
        with pytest.raises(StoreError, match="does not let this role") as caught:
            store.create_key("a", KeyType.ED25519)
        assert caught.value.fault is StoreFault.READ_ONLY
    postgresql.run(f"ALTER DATABASE {name_of(address)} SET default_transaction_read_only = on")
    with KeyStore.open(address, kek) as store:
        store.create_key("a", KeyType.ED25519)  # writers say READ WRITE themselves


def test_a_locked_store_is_told_and_nothing_is_written(address: str, kek: FileKEK) -> None:
    with (
        KeyStore.create(address, kek, busy_timeout_seconds=0.2) as store,
        open_database(address) as other,
    ):
        with other.write():
            with pytest.raises(StoreError, match="locked by another") as caught:
                store.create_key("a", KeyType.ED25519)
            assert caught.value.fault is StoreFault.LOCKED
        assert list(store.keys()) == []
        store.create_key("a", KeyType.ED25519)


def test_a_newer_schema_is_told(address: str, kek: FileKEK) -> None:
    with KeyStore.create(address, kek) as store, store.database.write() as connection:
        connection.exec_driver_sql("UPDATE store_info SET schema_version = 6")
    with pytest.raises(StoreError, match=r"schema 6 .* reads 5; upgrade") as caught:
        KeyStore.open(address, kek)
    assert caught.value.fault is StoreFault.NEWER_SCHEMA


def test_sessions_are_durable_whatever_the_server_says(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK
) -> None:
    postgresql.run(f"ALTER DATABASE {name_of(address)} SET synchronous_commit = off")
    with KeyStore.create(address, kek) as store, store.database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("synchronous_commit", "lock_timeout", "transaction_isolation")
        }
    assert settings == {
        "synchronous_commit": "on",
        "lock_timeout": "10s",
        "transaction_isolation": "repeatable read",
    }


TAMPERING = {
    "swapped": "UPDATE key_versions SET sealed = CASE name"
    " WHEN 'a' THEN (SELECT sealed FROM key_versions WHERE name = 'b')"
    " ELSE (SELECT sealed FROM key_versions WHERE name = 'a') END",
    "renamed": "ALTER TABLE key_versions DROP CONSTRAINT key_versions_name_fkey;"
    " UPDATE key_versions SET name = 'x' WHERE name = 'a';"
    " UPDATE key_versions SET name = 'a' WHERE name = 'b';"
    " UPDATE key_versions SET name = 'b' WHERE name = 'x'",
    "edited": "UPDATE key_versions SET sealed = set_byte(sealed, 30, get_byte(sealed, 30) # 1)",
    "truncated": "UPDATE key_versions SET sealed = substring(sealed for 20)",
    "emptied": "UPDATE key_states SET sealed = ''",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_an_edited_row_is_detected(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK, how: str
) -> None:
    with KeyStore.create(address, kek) as store:
        for name in ("a", "b"):
            store.create_key(name, KeyType.ED25519)
        postgresql.run(TAMPERING[how], name_of(address))
        for name in ("a", "b"):
            with pytest.raises(CorruptEnvelope):
                store.sign(name, b"m")


REORDERED = (
    "UPDATE audit_log SET number = 1000 + number WHERE number IN (1, 2);"
    " UPDATE audit_log SET number = 2 WHERE number = 1001;"
    " UPDATE audit_log SET number = 1 WHERE number = 1002"
)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("DELETE FROM audit_log WHERE number = 2", 2),
        ("UPDATE audit_log SET entry = set_byte(entry, 20, 33) WHERE number = 2", 2),
        (REORDERED, 1),
    ],
    ids=["deleted", "edited", "reordered"],
)
def test_a_row_of_the_log_that_was_tampered_with_is_located(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK, statement: str, row: int
) -> None:
    with KeyStore.create(address, kek) as store:
        for name in ("a", "b", "c"):
            store.create_key(name, KeyType.ED25519)
        store.verify_audit_log()
        postgresql.run(statement, name_of(address))
        with pytest.raises(AuditLogAltered) as caught:
            store.verify_audit_log()
        assert caught.value.row == row


HAMMER = """
import sys
from certs.keystore import KeyStore, KeyType
from certs.errors import KeyExists
address, kek, me = sys.argv[1:]
with KeyStore.open(address, "file:" + kek, busy_timeout_seconds=60) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    for turn in range(12):
        try:
            store.create_key(f"shared-{turn}", KeyType.ED25519)
            won += 1
        except KeyExists:
            pass
        version = store.set_secret("secret", f"{me} {turn}".encode()).version
        assert store.get_secret("secret", version) == f"{me} {turn}".encode()
        store.verify("signs", store.sign("signs", b"m").signature, b"m")
    print(won)
"""


@pytest.mark.slow
def test_eight_processes_lose_nothing_and_keep_one_log(
    store_address: str, kek: FileKEK, tmp_path: Path
) -> None:
    with KeyStore.create(store_address, kek) as store:
        store.create_key("signs", KeyType.ED25519)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, store_address, str(tmp_path / "kek"), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        done = [process.communicate("go\n", timeout=DEADLINE_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [errors for _, errors in done] == [""] * 8
    assert sum(int(output) for output, _ in done) == 12
    with KeyStore.open(store_address, kek) as store:
        assert store.key("secret").version == 96
        kept = [store.get_secret("secret", version).decode() for version in range(1, 97)]
        assert sorted(kept) == sorted(f"{me} {turn}" for me in range(8) for turn in range(12))
        store.verify_audit_log()
        entries = [entry for _, entry in store.audit_entries()]
        written = [entry.version for entry in entries if entry.operation == "secret-set"]
        assert written == [*range(1, 97)]
        assert sum(entry.operation == "sign" for entry in entries) == 96
        assert sum(entry.operation == "create" for entry in entries) == 97


@contextmanager
def own_server(
    require_program: Callable[[str], Program], **options: object
) -> Iterator[PostgreSQLServer]:
    require_program("postgresql")
    with run_postgresql(**options) as server:  # type: ignore[arg-type]
        yield server


def test_a_server_killed_under_writers_has_all_that_was_acknowledged(
    require_program: Callable[[str], Program], kek: FileKEK
) -> None:
    """SIGKILL of the whole server, its recovery, and a store that goes on by itself."""
    with own_server(require_program) as server:
        address = server.new_database()
        made: list[str] = []
        stop = threading.Event()
        with KeyStore.create(address, kek) as store:

            def work(me: int) -> None:
                turn = 0
                while not stop.is_set():
                    name = f"k{me}-{turn}"
                    try:
                        store.create_key(name, KeyType.ED25519)
                    except StoreError:
                        stop.wait(0.05)
                    else:
                        made.append(name)
                    turn += 1

            threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
            for thread in threads:
                thread.start()
            while len(made) < 40:
                time.sleep(0.01)
            (backend,) = server.run(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'pfs' LIMIT 1"
            ).split()
            before = len(made)
            os.kill(int(backend), signal.SIGKILL)  # the postmaster ends all others, and recovers
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(made) < before + 40 and time.monotonic() < deadline:
                time.sleep(0.01)
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_SECONDS)
            assert len(made) >= before + 40
            there = {info.name for info in KeyStore.keys(store)}
            assert there >= set(made)
            store.verify_audit_log()


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"


def test_connections_that_died_idle_are_replaced_without_a_word(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK
) -> None:
    with KeyStore.create(address, kek) as store:
        store.create_key("a", KeyType.ED25519)
        postgresql.run(TERMINATE.format(name_of(address)))
        store.sign("a", b"m")
        store.verify_audit_log()


def test_a_connection_cut_inside_an_operation_undoes_it(
    postgresql: PostgreSQLServer, address: str, kek: FileKEK
) -> None:
    with KeyStore.create(address, kek) as store:

        def cut_off() -> None:
            with store.database.write() as connection:
                connection.exec_driver_sql("DELETE FROM audit_log")
                postgresql.run(TERMINATE.format(name_of(address)))

        with pytest.raises(StoreError, match="connection was lost"):
            cut_off()
        store.create_key("a", KeyType.ED25519)
        store.verify_audit_log()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_is_told_and_nothing_is_half_written(
    require_program: Callable[[str], Program], kek: FileKEK, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine mounts no small disk")
    try:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o011)
        data = small / "data"
        data.mkdir(mode=0o700)
        with own_server(
            require_program,
            data_folder=data,
            settings=("wal_keep_size=0", "max_wal_size=32MB", "min_wal_size=32MB"),
        ) as server:
            address = server.new_database()
            with KeyStore.create(address, kek) as store:
                made = []
                fault = None
                while fault is None and len(made) < 2000:
                    name = f"s{len(made):05}"
                    try:
                        store.set_secret(name, os.urandom(60_000))
                    except StoreError as error:
                        fault = error.fault
                    else:
                        made.append(name)
                assert fault in {StoreFault.FULL, StoreFault.UNREADABLE}, fault
    finally:
        subprocess.run(["umount", "-l", small], check=False)


def test_the_how_to_runs_as_printed(postgresql: PostgreSQLServer, tmp_path: Path) -> None:
    text = HOW_TO.read_text("utf-8")
    section = text[text.index("## Share a store between machines") :]
    block = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]
    lines = block.splitlines(keepends=True)
    assert lines[0].startswith("pip install")  # as it is here
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "".join(lines[1:])],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{PFS.parent}:{os.environ['PATH']}",
            "PGHOST": str(postgresql.folder),
            "PGUSER": "pfs",
        },
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done

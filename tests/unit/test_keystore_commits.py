"""Group commit: together in one transaction, each for himself, and nothing given out unrecorded."""

from __future__ import annotations

import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from certs.errors import AccessDenied, AuditLogAltered, InvalidInput, KeyExists, StoreError
from certs.keystore import KeyStore, KeyType
from certs.keystore.audit import AuditEntry
from certs.keystore.audit_log import _END
from certs.keystore.kek import FileKEK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from certs.keystore.audit_log import LogEnd
    from certs.keystore.database import Database

DEADLINE_SECONDS = 30


@pytest.fixture
def store(store_address: str, tmp_path: Path) -> Iterator[KeyStore]:
    with KeyStore.create(store_address, FileKEK.create(tmp_path / "kek")) as made:
        made.create_key("signs", KeyType.ED25519)
        yield made


class Gathering:
    """Holds the first batch open until as many callers wait as a test wants; counts batches."""

    def __init__(self, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.commits = 0
        self.inside = threading.Event()
        self.go_on = threading.Event()
        write = type(store.database).write

        @contextmanager
        def counted(database: Database) -> Iterator[Connection]:
            with write(database) as connection:
                self.commits += 1
                self.inside.set()
                assert self.go_on.wait(DEADLINE_SECONDS)
                yield connection

        monkeypatch.setattr(type(store.database), "write", counted)

    def together(self, calls: list[Callable[[], object]]) -> list[object]:
        """Make the first call; when it is in its transaction all others, then let it go on."""

        def outcome(call: Callable[[], object]) -> object:
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - the test judges it
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            first = pool.submit(outcome, calls[0])
            assert self.inside.wait(DEADLINE_SECONDS)
            others = [pool.submit(outcome, call) for call in calls[1:]]
            waiting = self.store._gate.commits._waiting
            deadline = threading.Event()
            for _ in range(DEADLINE_SECONDS * 100):
                if len(waiting) == len(others):
                    break
                deadline.wait(0.01)
            assert len(waiting) == len(others)
            self.go_on.set()
            return [future.result(DEADLINE_SECONDS) for future in (first, *others)]


def test_who_waits_for_the_same_commit_shares_the_next(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Gathering(store, monkeypatch)
    calls: list[Callable[[], object]] = [lambda: store.sign("signs", b"first")]
    calls += [lambda n=n: store.create_key(f"k{n}", KeyType.ED25519) for n in range(5)]
    calls += [lambda n=n: store.sign("signs", b"%d" % n) for n in range(4)]
    outcomes = gathering.together(calls)
    assert not [each for each in outcomes if isinstance(each, Exception)]
    assert gathering.commits == 2
    assert names(store) == [*(f"k{n}" for n in range(5)), "signs"]
    store.verify_audit_log()
    operations = [entry.operation for _, entry in store.audit_entries()]
    assert (operations.count("sign"), operations.count("create")) == (5, 6)


def test_one_that_fails_is_undone_alone(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gathering = Gathering(store, monkeypatch)
    calls: list[Callable[[], object]] = [lambda: store.sign("signs", b"first")]
    calls += [lambda n=n: store.create_key(f"k{n % 3}", KeyType.ED25519) for n in range(6)]
    outcomes = gathering.together(calls)
    failed = [each for each in outcomes if isinstance(each, Exception)]
    assert [type(each) for each in failed] == [KeyExists] * 3
    assert names(store) == ["k0", "k1", "k2", "signs"]
    for name in ("k0", "k1", "k2"):
        store.sign(name, b"m")
    store.verify_audit_log()
    created = [entry for _, entry in store.audit_entries() if entry.operation == "create"]
    assert [entry.outcome for entry in created].count("failed") == 3
    with store.database.read() as connection:
        sealed = connection.exec_driver_sql("SELECT invocations FROM terms").scalar()
    assert sealed == 8  # of what was undone nothing is left, not even a count


def test_an_entry_that_cannot_be_logged_fails_alone(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Gathering(store, monkeypatch)
    details = {f"fact {number}": "x" * 500 for number in range(20)}
    entry = AuditEntry(1, "user:alice", "sign", "signs", "done", details=details)
    done: list[int] = []
    calls: list[Callable[[], object]] = [lambda: store.sign("signs", b"first")]
    calls += [lambda: store.sign("signs", b"m"), lambda: store.create_key("k", KeyType.ED25519)]
    calls.append(lambda: store._gate.commits.run(lambda _: done.append(1), lambda: entry))
    outcomes = gathering.together(calls)
    assert [type(each) for each in outcomes if isinstance(each, Exception)] == [InvalidInput]
    assert names(store) == ["k", "signs"]
    assert done
    store.verify_audit_log()


def test_what_no_commit_records_is_given_to_nobody(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Gathering(store, monkeypatch)
    append = store._gate.log.append

    def altered(connection: Connection, lines: list[bytes], end: LogEnd) -> None:
        if len(lines) > 1:
            raise AuditLogAltered("altered", row=3)
        append(connection, lines, end)

    monkeypatch.setattr(store._gate.log, "append", altered)
    calls: list[Callable[[], object]] = [lambda: store.sign("signs", b"first")]
    calls += [lambda: store.sign("signs", b"m"), lambda: store.create_key("k", KeyType.ED25519)]
    outcomes = gathering.together(calls)
    assert [type(each) for each in outcomes[1:]] == [AuditLogAltered] * 2
    assert names(store) == ["signs"]


def test_many_threads_lose_nothing(store: KeyStore) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            store.sign("signs", b"%d %d" % (number, turn))
            store.set_secret("shared", b"%d %d" % (number, turn))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert store.key("shared").version == 80
    assert {store.get_secret("shared", version) for version in range(1, 81)} == {
        b"%d %d" % (number, turn) for number in range(8) for turn in range(10)
    }
    store.verify_audit_log()
    entries = [entry for _, entry in store.audit_entries()]
    assert sum(entry.operation == "sign" for entry in entries) == 80
    assert [e.version for e in entries if e.operation == "secret-set"] == [*range(1, 81)]


def test_an_interrupted_waiter_takes_its_part_back(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the main thread, which waits for another's commit."""
    gathering = Gathering(store, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(store.sign, "signs", b"first")
        assert gathering.inside.wait(DEADLINE_SECONDS)
        main = threading.main_thread().ident
        assert main is not None
        interrupt = threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT])
        go_on = threading.Timer(0.6, gathering.go_on.set)  # the interrupt itself is recorded, too
        for timer in (interrupt, go_on):
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            store.create_key("mine", KeyType.ED25519)
        for timer in (interrupt, go_on):
            timer.join()
        first.result(DEADLINE_SECONDS)
    assert names(store) == ["signs"]
    last = [entry for _, entry in store.audit_entries() if entry.operation == "create"][-1]
    assert (last.name, last.outcome, last.reason) == ("mine", "failed", "KeyboardInterrupt")
    store.create_key("mine", KeyType.ED25519)
    store.verify_audit_log()


def test_an_interrupted_leader_leaves_the_others_an_error_and_the_store_in_use(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Gathering(store, monkeypatch)
    append = store._gate.log.append
    monkeypatch.setattr(
        store._gate.log,
        "append",
        lambda connection, entries, end: (
            append(connection, entries, end)
            if len(entries) == 1
            else signal.raise_signal(signal.SIGINT)
        ),
    )
    errors: list[object] = []

    def lead() -> None:
        try:
            store.create_key("mine", KeyType.ED25519)
        except BaseException as error:  # noqa: BLE001 - the test judges it
            errors.append(error)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.sign, "signs", b"first")
        assert gathering.inside.wait(DEADLINE_SECONDS)
        other = pool.submit(lambda: wait_for(store, 1) or store.create_key("b", KeyType.ED25519))
        release = threading.Timer(0, lambda: wait_for(store, 2) or gathering.go_on.set())
        release.start()
        lead()
        release.join()
        first.result(DEADLINE_SECONDS)
        with pytest.raises(StoreError, match="another thread's work"):
            other.result(DEADLINE_SECONDS)
    assert [type(error) for error in errors] == [KeyboardInterrupt]
    monkeypatch.setattr(store._gate.log, "append", append)
    assert names(store) == ["signs"]
    store.create_key("b", KeyType.ED25519)


def test_an_answer_is_logged_before_the_change_that_shares_its_commit(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sign("signs", b"remembered")
    gathering = Gathering(store, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(store.sign, "signs", b"first")
        assert gathering.inside.wait(DEADLINE_SECONDS)
        disabled = pool.submit(store.disable, "signs")
        wait_for(store, 1)
        signed = pool.submit(store.sign, "signs", b"second")
        wait_for(store, 2)
        gathering.go_on.set()
        first.result(DEADLINE_SECONDS)
        disabled.result(DEADLINE_SECONDS)
        signed.result(DEADLINE_SECONDS)
    told = [(e.operation, e.outcome) for _, e in store.audit_entries()]
    assert told[-4:-1] == [("sign", "done"), ("sign", "done"), ("disable", "done")]


def test_a_key_is_created_before_the_change_that_shares_its_commit(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.grant("user:service", "crypto-officer", "*")
    service = store.acting_as("user:service")
    service.create_key("remembered", KeyType.ED25519)
    gathering = Gathering(store, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(store.sign, "signs", b"first")
        assert gathering.inside.wait(DEADLINE_SECONDS)
        revoked = pool.submit(store.revoke, "user:service", "crypto-officer", "*")
        wait_for(store, 1)
        created = pool.submit(service.create_key, "new", KeyType.ED25519)
        wait_for(store, 2)
        gathering.go_on.set()
        for each in (first, revoked, created):
            each.result(DEADLINE_SECONDS)
    told = [(e.operation, e.outcome) for _, e in store.audit_entries()]
    assert told[-4:-1] == [("sign", "done"), ("create", "done"), ("revoke", "done")]
    with pytest.raises(AccessDenied):
        service.create_key("newer", KeyType.ED25519)


def names(store: KeyStore) -> list[str]:
    return [info.name for info in KeyStore.keys(store)]


def wait_for(store: KeyStore, count: int) -> None:
    pause = threading.Event()
    for _ in range(DEADLINE_SECONDS * 100):
        if len(store._gate.commits._waiting) >= count:
            return
        pause.wait(0.01)
    pytest.fail("nobody waited")


def test_the_end_of_the_log_is_found_without_reading_the_log(store: KeyStore) -> None:
    for number in range(50):
        store.sign("signs", b"%d" % number)
    engine = store.database.engine
    explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}[engine.dialect.name]
    statement = _END.compile(engine, compile_kwargs={"literal_binds": True})
    with store.database.read() as connection:
        plan = [str(row) for row in connection.exec_driver_sql(f"{explain} {statement}")]
    assert any("audit_log" in line for line in plan)
    assert not [line for line in plan if re.search(r"(Seq Scan on|SCAN) audit_log\b", line)], plan

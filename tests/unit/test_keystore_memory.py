"""What an open store remembers, and that no answer follows from what no longer holds.

Two open stores on one database stand for two processes: neither knows of the other but through it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from certs.errors import AccessDenied, CertsError, KeyDeleted, KeyDisabled, StoreError
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK
from certs.keystore.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from certs.keystore.gate import Act

DEADLINE_SECONDS = 30


class Two(NamedTuple):
    """One store, opened twice."""

    here: KeyStore
    elsewhere: KeyStore

    def log(self) -> list[tuple[str, str, str]]:
        return [(e.operation, e.outcome, e.reason) for _, e in self.here.audit_entries()]


@pytest.fixture
def two(store_address: str, tmp_path: Path) -> Iterator[Two]:
    kek = FileKEK.create(tmp_path / "kek")
    with (
        KeyStore.create(store_address, kek) as here,
        KeyStore.open(store_address, kek) as elsewhere,
    ):
        here.create_key("k", KeyType.ED25519)
        here.sign("k", b"m")  # and is remembered
        yield Two(here, elsewhere)


def count_reads(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    ask = store.database.ask

    def counted(read: Callable[..., object]) -> object:
        reads.append(1)
        return ask(read)

    monkeypatch.setattr(store.database, "ask", counted)
    return reads


def test_what_is_remembered_is_not_read_again(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.here.sign("k", b"m")
    reads = count_reads(two.here, monkeypatch)
    before = len(two.log())
    del reads[:]
    two.here.sign("k", b"m")
    two.here.sign("k", b"n")
    assert not reads
    assert len(two.log()) > before + 1  # and both are recorded


def test_the_first_operation_of_an_open_store_is_done_once(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(two.elsewhere, monkeypatch)
    two.elsewhere.sign("k", b"m")
    assert len(reads) == 2  # what was granted, and the key


def test_a_key_disabled_elsewhere_signs_nothing(two: Two) -> None:
    two.elsewhere.disable("k")
    with pytest.raises(KeyDisabled):
        two.here.sign("k", b"m")
    assert two.log()[-2] == ("sign", "failed", "KeyDisabled")


def test_a_key_enabled_elsewhere_signs(two: Two) -> None:
    two.here.disable("k")
    with pytest.raises(KeyDisabled):
        two.here.sign("k", b"m")
    two.elsewhere.enable("k")
    assert two.here.sign("k", b"m").version == 1
    assert [outcome for operation, outcome, _ in two.log() if operation == "sign"] == [
        "done",
        "failed",
        "done",
    ]


def test_a_key_rotated_elsewhere_signs_with_its_new_version(two: Two) -> None:
    two.elsewhere.rotate("k")
    assert two.here.sign("k", b"m").version == 2
    assert two.here.sign("k", b"m", version=1).version == 1


def test_a_key_deleted_and_purged_elsewhere_is_gone(two: Two) -> None:
    two.elsewhere.delete("k")
    with pytest.raises(KeyDeleted, match="was deleted"):
        two.here.sign("k", b"m")
    two.elsewhere.purge("k")
    with pytest.raises(KeyDeleted, match="was purged"):
        two.here.sign("k", b"m")


def test_what_was_revoked_elsewhere_is_refused(two: Two) -> None:
    two.here.grant("user:service", "crypto-user", "k")
    service = two.here.acting_as("user:service")
    service.sign("k", b"m")
    two.elsewhere.revoke("user:service", "crypto-user", "k")
    with pytest.raises(AccessDenied):
        service.sign("k", b"m")
    assert two.log()[-2] == ("sign", "refused", "")


def test_what_was_granted_elsewhere_is_not_refused(two: Two) -> None:
    service = two.here.acting_as("user:service")
    for _ in range(2):
        with pytest.raises(AccessDenied):
            service.sign("k", b"m")
    two.elsewhere.grant("user:service", "crypto-user", "k")
    service.sign("k", b"m")
    assert [outcome for operation, outcome, _ in two.log() if operation == "sign"] == [
        "done",
        "refused",
        "refused",
        "done",
    ]


def test_a_change_here_is_known_at_once(two: Two) -> None:
    two.here.rotate("k")
    assert two.here.sign("k", b"m").version == 2
    two.here.disable("k")
    with pytest.raises(KeyDisabled):
        two.here.sign("k", b"m")


def test_a_new_key_leaves_what_is_remembered(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(two.here, monkeypatch)
    two.here.sign("k", b"m")
    del reads[:]
    two.here.create_key("new", KeyType.ED25519)
    two.here.import_key("imported", bytes(32))
    two.here.sign("k", b"m")
    assert not reads
    assert two.here.sign("new", b"m").version == 1


@pytest.mark.parametrize("add", ["create_key", "import_key"])
def test_who_may_no_longer_create_does_not(two: Two, add: str) -> None:
    two.here.grant("user:service", "crypto-officer", "web")
    service = two.here.acting_as("user:service")
    what = KeyType.AES_256 if add == "create_key" else bytes(32)
    getattr(service, add)("web/a", what)
    two.elsewhere.revoke("user:service", "crypto-officer", "web")
    with pytest.raises(AccessDenied):
        getattr(service, add)("web/b", what)
    assert [outcome for _, outcome, _ in two.log()][-3:-1] == ["done", "refused"]
    assert [key.name for key in KeyStore.keys(two.elsewhere)] == ["k", "web/a"]


def test_a_key_is_created_once_though_the_store_was_changed_meanwhile(two: Two) -> None:
    two.here.create_key("a", KeyType.ED25519)
    two.elsewhere.rotate("k")
    two.here.create_key("b", KeyType.ED25519)
    assert [key.name for key in KeyStore.keys(two.elsewhere)] == ["a", "b", "k"]
    assert [entry for entry in two.log() if entry[0] == "create"] == [("create", "done", "")] * 3


def test_an_interrupt_is_not_taken_for_what_is_to_be_done_again(two: Two) -> None:
    def interrupted(_: Act) -> None:
        two.elsewhere.rotate("k")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two.here._gate.by_memory("sign", "k", None, interrupted)
    assert two.log()[-2] == ("sign", "failed", "KeyboardInterrupt")


def test_a_closed_store_remembers_nothing(two: Two) -> None:
    memory = two.here._gate.commits.memory
    two.here.sign("k", b"m")
    assert memory._held
    two.here.close()
    assert not memory._held
    with pytest.raises(StoreError, match="closed"):
        two.here.sign("k", b"m")


def test_what_was_read_before_something_was_forgotten_is_not_kept() -> None:
    memory = Memory()

    def read() -> str:
        memory.forget()
        return "old"

    assert memory.recall(("a",), read) == "old"
    assert memory.recall(("a",), lambda: "new") == "new"
    assert memory.recall(("a",), lambda: "newer") == "new"


def test_room_is_bounded() -> None:
    memory = Memory()
    for number in range(5000):
        memory.recall((number,), lambda: b"x")
        assert len(memory._held) <= 1024


def test_changes_of_several_at_once_are_met_by_every_answer(two: Two) -> None:
    """After each change elsewhere, every thread here answers as the store then is."""
    errors: list[BaseException] = []
    floor = [1]
    stop = threading.Event()

    def sign() -> None:
        try:
            while not stop.is_set():
                least = floor[0]
                assert two.here.sign("k", b"m").version >= least
        except (AssertionError, CertsError) as error:
            errors.append(error)

    threads = [threading.Thread(target=sign) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        floor[0] = two.elsewhere.rotate("k").version
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert not errors
    two.here.verify_audit_log()

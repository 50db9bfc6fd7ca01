"""Real processes: racing for one name, and killed with SIGKILL at every commit.

Each child is this interpreter running a program given as text, so what is killed is what runs.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import CertificateAuthority
from certs.errors import KEKUnavailable, KeyNotFound, StoreError
from certs.key_types import public_key_der
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK
from certs.keystore.revocations import crl_number
from certs.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DEADLINE_SECONDS = 60

PREAMBLE = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from sqlalchemy import event
from certs.authority import CertificateAuthority
from certs.errors import CertsError
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
folder = sys.argv[1]
address = os.environ.get("STORE", "")

def together():
    print("ready", flush=True)
    sys.stdin.readline()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_commit(store, number):
    seen = 0
    @event.listens_for(store.database.engine, "commit")
    def commit(connection):
        nonlocal seen
        if connection.get_execution_options().get("pfs_transaction") == "write":
            seen += 1
            if seen == number:
                die()
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def race(program: str, folder: Path, runners: int) -> list[str]:
    """Start several processes, let go of them at once, and return what each printed last."""
    processes = [start(program, folder, number) for number in range(runners)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=DEADLINE_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [error for _, error in results] == [""] * runners
    return [output.strip() for output, _ in results]


def run(program: str, *arguments: object) -> int:
    """Run a program to its end, which may be its death; return its exit status."""
    process = start(program, *arguments)
    _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode in {0, -signal.SIGKILL}, errors
    return process.returncode


@pytest.fixture
def store_address(store_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a place on each kind of database, to the programs too."""
    monkeypatch.setenv("STORE", store_address)
    return store_address


def test_of_processes_racing_for_one_name_exactly_one_wins(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    KeyStore.create(store_address, kek).close()
    results = race(
        """
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    together()
    wins = 0
    for turn in range(20):
        try:
            store.create_key(f"k{turn}", KeyType.ED25519)
            wins += 1
        except CertsError as error:
            assert type(error).__name__ == "KeyExists", repr(error)
    print(wins)
""",
        tmp_path,
        3,
    )
    assert sum(map(int, results)) == 20
    with KeyStore.open(store_address, kek) as store:
        listed = list(store.keys())
        assert len({public_key_der(store.public_key(info.name)) for info in listed}) == 20


def test_processes_rotating_one_name_never_fork_a_version(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    with KeyStore.create(store_address, kek) as store:
        store.create_key("a", KeyType.ED25519)
    results = race(
        """
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    together()
    print(*[store.rotate("a").version for _ in range(20)])
""",
        tmp_path,
        3,
    )
    versions = [int(word) for result in results for word in result.split()]
    assert sorted(versions) == list(range(2, 62))
    with KeyStore.open(store_address, kek) as store:
        keys = {public_key_der(store.public_key("a", version)) for version in range(1, 62)}
        assert len(keys) == 61
        with store.database.read() as connection:
            assert connection.exec_driver_sql("SELECT invocations FROM terms").scalar() == 122


def test_of_processes_racing_to_create_one_store_exactly_one_wins(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    results = race(
        """
together()
try:
    KeyStore.create(address, "file:" + folder + "/kek").close()
    print("won")
except CertsError as error:
    print(type(error).__name__, error.fault.name)
""",
        tmp_path,
        3,
    )
    assert sorted(results) == ["StoreError EXISTS", "StoreError EXISTS", "won"]
    KeyStore.open(store_address, kek).close()
    in_a_file = not store_address.startswith("postgresql:")
    assert {each.name for each in tmp_path.iterdir()} == {"kek", *(["store.db"] * in_a_file)}


def test_of_processes_racing_to_create_one_kek_exactly_one_wins(tmp_path: Path) -> None:
    results = race(
        """
together()
try:
    FileKEK.create(folder + "/kek")
    print("won")
except CertsError as error:
    print(type(error).__name__)
""",
        tmp_path,
        3,
    )
    assert sorted(results) == [KEKUnavailable.__name__] * 2 + ["won"]
    FileKEK.open(tmp_path / "kek")


ISSUE = """
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    die_at_commit(store, int(sys.argv[2]))
    issuing = CertificateAuthority.load(store, "issuing")
    issuing.issue_server(key_name="web", dns_names=["localhost"], now=NOW)
"""


def test_killed_at_any_commit_an_issuance_leaves_a_store_that_says_what_happened(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    path = store_address
    with KeyStore.create(path, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        root.issue_subordinate("issuing", "Test Issuing CA", NOW)
    states = [(0, 0)]  # versions of the key, serials announced and not completed
    while True:
        commit = len(states)
        ended = run(ISSUE, tmp_path, commit) == 0
        with KeyStore.open(path, kek) as store:
            issuing = CertificateAuthority.load(store, "issuing")
            listed = list(store.keys())
            versions = max((info.version for info in listed if info.name == "web"), default=0)
            if versions:
                store.public_key("web")
            states.append((versions, len(issuing.unfinished())))
            for broken in issuing.unfinished():
                assert Ledger(store.database).certificate(broken.serial) is None
        if ended:
            break
    steps = [(v - u, b - a) for (u, a), (v, b) in itertools.pairwise(states)]
    # Killed before the key; before the announcement, or after the certificate was stored and
    # before its key was given out; between the two.
    assert set(steps) == {(0, 0), (1, 0), (1, 1)}
    assert steps[0] == (0, 0)
    assert steps[-1] == (1, 0)


FOUND = """
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    die_at_commit(store, int(sys.argv[2]))
    root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
"""


def test_killed_at_any_commit_a_root_can_be_created_again(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    KeyStore.create(store_address, kek).close()
    seen = set()
    for commit in range(1, 8):  # the seventh commit would store the authority for good
        assert run(FOUND, tmp_path, commit) == -signal.SIGKILL
        with KeyStore.open(store_address, kek) as store:
            seen.add((len(list(store.keys())), len(Ledger(store.database).unfinished())))
            with pytest.raises(KeyNotFound):
                CertificateAuthority.load(store, "root")
    assert seen >= {(0, 0), (1, 0), (1, 1)}
    with KeyStore.open(store_address, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        assert root.key_version == 1
        assert CertificateAuthority.load(store, "root").certificate == root.certificate


WITNESSED = """
class Stopping(KeyStore):
    # A store whose keys die where argv[2] says: between the record and the signature, or after it.
    def signing_key(self, name, version=None, *, witness=None, details=None):
        def stop(data):
            if sys.argv[2] == "unrecorded":
                die()
            witness(data)
            if sys.argv[2] == "recorded":
                die()
        return super().signing_key(name, version, witness=stop, details=details)

with Stopping.open(address, "file:" + folder + "/kek") as store:
    issuing = CertificateAuthority.load(store, "issuing")
    issuing.issue_server(key_name="web", dns_names=["localhost"], now=NOW)
"""


@pytest.mark.parametrize(
    ("moment", "unfinished", "status"),
    [("unrecorded", 0, -signal.SIGKILL), ("recorded", 1, -signal.SIGKILL), ("never", 0, 0)],
)
def test_the_bytes_are_stored_between_the_witness_and_the_signature(
    tmp_path: Path, store_address: str, kek: FileKEK, moment: str, unfinished: int, status: int
) -> None:
    with KeyStore.create(store_address, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        root.issue_subordinate("issuing", "Test Issuing CA", NOW)
    assert run(WITNESSED, tmp_path, moment) == status
    with KeyStore.open(store_address, kek) as store:
        issuing = CertificateAuthority.load(store, "issuing")
        rows = issuing.unfinished()
        assert len(rows) == unfinished
        for row in rows:
            # The stored bytes are a complete to-be-signed certificate naming its serial and issuer.
            assert row.serial.to_bytes(20).lstrip(b"\0") in row.to_be_signed
            assert issuing.certificate.subject.public_bytes() in row.to_be_signed
            assert public_key_der(store.public_key("web")) in row.to_be_signed


CREATE = """
from sqlalchemy import Engine
if sys.argv[2] == "commit":
    @event.listens_for(Engine, "commit")
    def commit(connection):
        die()
elif sys.argv[2] == "dispose":
    @event.listens_for(Engine, "engine_disposed")
    def disposed(engine):
        die()
KeyStore.create(address, "file:" + folder + "/kek").close()
"""


@pytest.mark.parametrize("moment", ["commit", "dispose"])
def test_killed_while_it_is_made_a_store_does_not_exist(
    tmp_path: Path, store_address: str, kek: FileKEK, moment: str
) -> None:
    assert run(CREATE, tmp_path, moment) == -signal.SIGKILL
    with pytest.raises(StoreError, match="no key store"):
        KeyStore.open(store_address, kek)
    KeyStore.create(store_address, kek).close()


def test_a_certificate_stored_by_one_process_is_the_one_another_reads(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    with KeyStore.create(store_address, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        process = start(
            """
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    root = CertificateAuthority.load(store, "root")
    sub = root.issue_subordinate("issuing", "Test Issuing CA", NOW)
    sys.stdout.buffer.write(sub.trust_anchors.pem())
""",
            tmp_path,
        )
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, errors) == (0, "")
        assert x509.load_pem_x509_certificate(output.encode()) == root.certificate
        issuing = CertificateAuthority.load(store, "issuing")
        assert issuing.certificate.public_bytes(Encoding.DER)
        assert store.key("issuing").key_type is KeyType.EC_P256


REVOKE = """
from datetime import timedelta
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    die_at_commit(store, int(sys.argv[2]))
    root = CertificateAuthority.load(store, "root")
    root.revoke(int(sys.argv[3]), None, NOW)
    root.crls(NOW, timedelta(days=7))
"""


def test_killed_at_any_commit_a_revocation_is_there_or_not_and_numbers_only_grow(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    with KeyStore.create(store_address, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        serials = [
            root.issue_server(key_name="web", dns_names=["localhost"], now=NOW).leaf.serial_number
            for _ in range(20)
        ]
    seen = []  # whether it was revoked, and by how much the number of lists grew
    number = 0
    for commit, serial in enumerate(serials, 1):
        ended = run(REVOKE, tmp_path, commit, serial) == 0
        with KeyStore.open(store_address, kek) as store:
            store.verify_audit_log()
            root = CertificateAuthority.load(store, "root")
            revoked = root.find(serial).revocation is not None
            told = [
                entry.details["serial"] == f"{serial:x}"
                for _, entry in store.audit_entries()
                if entry.operation == "revoke-certificate"
            ]
            assert any(told) is revoked
            with store.database.read() as connection:
                before, number = number, crl_number(connection, "root")
            seen.append((revoked, number - before))
            (crl,) = root.crls(NOW, timedelta(days=7))
            assert (crl.get_revoked_certificate_by_serial_number(serial) is not None) is revoked
            signed = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            assert signed == number + 1
            number = signed
        if ended:
            break
    assert ended
    assert set(seen) == {(False, 0), (True, 0), (True, 1)}


RENEW = """
with KeyStore.open(address, "file:" + folder + "/kek") as store:
    die_at_commit(store, int(sys.argv[2]))
    CertificateAuthority.load(store, "issuing").renew(NOW)
"""


def test_killed_at_any_commit_a_renewal_can_be_made_again(
    tmp_path: Path, store_address: str, kek: FileKEK
) -> None:
    with KeyStore.create(store_address, kek) as store:
        root = CertificateAuthority.create_root(store, "root", "Test Root", NOW)
        issuing = root.issue_subordinate("issuing", "Test Issuing CA", NOW)
    for commit in itertools.count(1):
        ended = run(RENEW, tmp_path, commit) == 0
        with KeyStore.open(store_address, kek) as store:
            found = CertificateAuthority.load(store, "issuing")
            assert len(found.crls(NOW, timedelta(days=7))) == 1 + (found.key_version > 1)
            leaf = found.issue_server(key_name="web", dns_names=["localhost"], now=NOW)
            assert leaf.chain[1] == found.certificate
        if ended:
            break
        assert found.certificate == issuing.certificate
    assert found.key_version > 1

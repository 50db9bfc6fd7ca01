"""What a store does with keys of every type and purpose, and with secrets; and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from certs.authority import CertificateAuthority
from certs.errors import (
    BadSignature,
    CertsError,
    CorruptEnvelope,
    InvalidInput,
    InvalidName,
    KeyDeleted,
    KeyDisabled,
    KeyExists,
    KeyNotExportable,
    KeyNotFound,
    PurgeProtected,
    UnsupportedKey,
    WrongPurpose,
)
from certs.key_types import PRIVATE_KEY_TYPES, public_key_der
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK
from certs.keystore.kinds import purposes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that stands until it is moved."""

    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, store_address: str, clock: Clock) -> Iterator[KeyStore]:
    kek = FileKEK.create(tmp_path / "kek")
    with KeyStore.create(store_address, kek, clock=clock) as opened:
        yield opened


@pytest.mark.parametrize("key_type", PRIVATE_KEY_TYPES)
def test_what_a_key_signed_verifies_and_nothing_else_does(
    store: KeyStore, key_type: KeyType
) -> None:
    store.create_key("a", key_type)
    store.rotate("a")
    made = store.sign("a", b"message")
    assert made.version == 2
    assert store.verify("a", made.signature, b"message") == made
    with pytest.raises(BadSignature):
        store.verify("a", made.signature, b"messagf")
    with pytest.raises(BadSignature, match="version 1"):
        store.verify("a", made.signature, b"message", version=1)
    with pytest.raises(BadSignature):
        store.verify("a", b"", b"message")
    older = store.sign("a", b"message", version=1)
    assert store.verify("a", older.signature, b"message", version=1).version == 1


def test_an_ml_dsa_key_founds_an_authority(store: KeyStore) -> None:
    root = CertificateAuthority.create_root(store, "root", "Root", NOW, key_type=KeyType.ML_DSA_65)
    issuing = root.issue_subordinate("issuing", "Issuing", NOW)
    loaded = CertificateAuthority.load(store, "issuing")
    assert loaded.certificate == issuing.certificate
    loaded.certificate.verify_directly_issued_by(root.certificate)
    assert isinstance(root.certificate, x509.Certificate)


@pytest.mark.parametrize("key_type", KeyType)
@pytest.mark.parametrize("purpose", ["sign", "wrap", "data", "secret", "other"])
def test_a_purpose_that_a_type_does_not_serve_is_refused(
    store: KeyStore, key_type: KeyType, purpose: str
) -> None:
    if purpose in purposes_of(key_type) and key_type is not KeyType.SECRET:
        assert store.create_key("a", key_type, purpose=purpose).purpose == purpose
        return
    with pytest.raises((WrongPurpose, UnsupportedKey)):
        store.create_key("a", key_type, purpose=purpose)
    assert list(store.keys(deleted=True)) == []


def test_a_key_is_used_for_its_purpose_alone(store: KeyStore) -> None:
    store.create_key("sign", KeyType.RSA_3072)
    store.create_key("wrap", KeyType.AES_256, purpose="wrap")
    store.create_key("rsa", KeyType.RSA_3072, purpose="wrap")
    store.create_key("data", KeyType.AES_256, purpose="data")
    store.set_secret("secret", b"s")
    store.sign("sign", b"m")
    wrapped = {name: store.wrap(name, b"k") for name in ("wrap", "rsa")}
    data = store.generate_data_key("data")
    for name in ("wrap", "rsa", "data", "secret"):
        with pytest.raises(WrongPurpose):
            store.sign(name, b"m")
        with pytest.raises(WrongPurpose):
            store.signing_key(name)
    for name in ("sign", "data", "secret"):
        with pytest.raises(WrongPurpose):
            store.wrap(name, b"k")
    for name in ("sign", "wrap", "rsa", "secret"):
        with pytest.raises(WrongPurpose):
            store.generate_data_key(name)
    for name in ("sign", "wrap", "rsa", "data"):
        with pytest.raises(WrongPurpose):
            store.get_secret(name)
        with pytest.raises(WrongPurpose):
            store.set_secret(name, b"s")
    for name in ("sign", "secret"):
        with pytest.raises(WrongPurpose):
            store.unwrap(name, wrapped["wrap"])
    with pytest.raises(CorruptEnvelope):
        store.unwrap("data", wrapped["wrap"])
    with pytest.raises(CorruptEnvelope):
        store.unwrap("rsa", wrapped["wrap"])
    with pytest.raises(CorruptEnvelope):
        store.unwrap("wrap", wrapped["rsa"])
    with pytest.raises(WrongPurpose):
        store.rotate("secret")
    assert store.unwrap("data", data.wrapped) == data.plaintext
    assert repr(data.plaintext) not in repr(data)


@pytest.mark.parametrize("key_type", [KeyType.AES_256, KeyType.RSA_3072])
def test_what_is_wrapped_unwraps_whole_or_not_at_all(store: KeyStore, key_type: KeyType) -> None:
    store.create_key("a", key_type, purpose="wrap")
    store.create_key("b", key_type, purpose="wrap")
    wrapped = store.wrap("a", b"key material")
    store.rotate("a")
    assert store.unwrap("a", wrapped) == b"key material"  # by version 1, which it names
    assert store.unwrap("a", store.wrap("a", b"x")) == b"x"
    with pytest.raises(CorruptEnvelope):
        store.unwrap("b", wrapped)
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        with pytest.raises((CorruptEnvelope, KeyNotFound)):
            store.unwrap("a", bytes(changed))
    for length in (*range(0, len(wrapped), 7), len(wrapped) - 1):
        with pytest.raises(CorruptEnvelope):
            store.unwrap("a", wrapped[:length])
    for bad in (b"", bytes(65_537)):
        with pytest.raises(InvalidInput):
            store.wrap("a", bad)


def test_a_context_must_be_the_same_again(store: KeyStore) -> None:
    store.create_key("a", KeyType.AES_256)
    store.create_key("r", KeyType.RSA_3072, purpose="wrap")
    key = store.generate_data_key("a", context=b"backup 7")
    assert store.unwrap("a", key.wrapped, context=b"backup 7") == key.plaintext
    for context in (b"", b"backup 8"):
        with pytest.raises(CorruptEnvelope):
            store.unwrap("a", key.wrapped, context=context)
    with pytest.raises(InvalidInput):
        store.generate_data_key("a", context=bytes(4097))
    with pytest.raises(InvalidInput, match="without a context"):
        store.wrap("r", b"k", context=b"c")
    with pytest.raises(InvalidInput, match="at most 318"):
        store.wrap("r", bytes(319))
    assert store.unwrap("r", store.wrap("r", bytes(318))) == bytes(318)


def test_whoever_has_the_public_key_wraps_for_the_store(store: KeyStore) -> None:
    store.create_key("r", KeyType.RSA_3072, purpose="wrap")
    public_key = store.public_key("r")
    assert isinstance(public_key, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    header = bytes.fromhex("50465357 01 02 0000000000000001")  # as docs/formats.md has it
    assert store.unwrap("r", header + public_key.encrypt(b"theirs", oaep)) == b"theirs"


def test_a_symmetric_key_is_imported_and_exported_only_if_it_may(store: KeyStore) -> None:
    key = bytes(range(32))
    store.import_key("in", key, exportable=True)
    store.import_key("kept", key)
    assert store.export_symmetric_key("in") == key
    with pytest.raises(KeyNotExportable):
        store.export_symmetric_key("kept")
    with pytest.raises(WrongPurpose):
        store.export_private_key("in")
    store.rotate("in")
    assert store.export_symmetric_key("in", 1) == key != store.export_symmetric_key("in")
    with pytest.raises(UnsupportedKey):
        store.import_key("short", key[:-1])


def test_a_secret_has_versions_and_is_never_overwritten(store: KeyStore) -> None:
    assert store.set_secret("db/password", b"one").version == 1
    assert store.set_secret("db/password", b"two").version == 2
    assert store.get_secret("db/password") == b"two"
    assert store.get_secret("db/password", 1) == b"one"
    for value in (b"", bytes(65_534)):
        with pytest.raises(InvalidInput):
            store.set_secret("db/password", value)
    store.set_secret("db/large", bytes(65_533))
    assert store.get_secret("db/large") == bytes(65_533)
    with pytest.raises(WrongPurpose):
        store.public_key("db/large")
    with pytest.raises(UnsupportedKey):
        store.create_key("b", KeyType.SECRET)


def test_a_disabled_key_does_nothing_until_it_is_enabled(store: KeyStore) -> None:
    store.create_key("a", KeyType.ED25519, exportable=True)
    made = store.sign("a", b"m")
    held = store.signing_key("a")
    store.disable("a")
    assert not store.key("a").enabled
    for call in (
        lambda: store.sign("a", b"m"),
        lambda: held.sign(b"m"),  # type: ignore[union-attr, call-arg] - an Ed25519 key
        lambda: store.export_private_key("a"),
    ):
        with pytest.raises(KeyDisabled):
            call()
    store.verify("a", made.signature, b"m")  # what was signed stays verifiable
    store.enable("a")
    assert store.sign("a", b"m") == made
    store.rotate("a")
    store.disable("a", 1)
    assert [one.enabled for one in store.versions("a")] == [False, True]
    with pytest.raises(KeyDisabled, match="version 1"):
        store.sign("a", b"m", version=1)
    assert store.sign("a", b"m").version == 2
    store.enable("a", 1)
    assert store.sign("a", b"m", version=1) == made
    with pytest.raises(KeyNotFound):
        store.disable("a", 3)


def test_a_deleted_key_is_recovered_until_its_retention_is_over(
    store: KeyStore, clock: Clock
) -> None:
    store.create_key("a", KeyType.ED25519)
    before = public_key_der(store.public_key("a"))
    store.delete("a", retention=timedelta(days=7))
    assert list(store.keys()) == []
    assert [one.name for one in store.keys(deleted=True)] == ["a"]
    for call in (store.public_key, store.rotate, store.disable, store.delete, store.signing_key):
        with pytest.raises(KeyDeleted, match="2026-11-08"):
            call("a")
    with pytest.raises(KeyExists):
        store.create_key("a", KeyType.ED25519)
    clock.now = NOW + timedelta(days=7) - timedelta(seconds=1)
    store.recover("a")
    assert public_key_der(store.public_key("a")) == before
    with pytest.raises(InvalidInput):
        store.recover("a")
    store.delete("a", retention=timedelta(days=7))
    clock.now += timedelta(days=7)
    with pytest.raises(KeyDeleted, match="over"):
        store.recover("a")
    with pytest.raises(InvalidInput):
        store.delete("a", retention=timedelta(days=-1))


def table_files(store: KeyStore, table: str) -> list[Path]:
    """Return where a server on this machine keeps a table."""
    with store.database.read() as connection:
        folder = connection.exec_driver_sql("SHOW data_directory").scalar()
        file = connection.exec_driver_sql(f"SELECT pg_relation_filepath('{table}')").scalar()
    return [Path(folder, file)]


def settle(store: KeyStore) -> None:
    if store.database.engine.dialect.name == "postgresql":
        with store.database.transaction(None) as connection:
            connection.exec_driver_sql("CHECKPOINT")


def test_a_purged_key_is_gone_and_its_name_with_it(store: KeyStore) -> None:
    store.set_secret("a", b"a secret of some length")
    store.set_secret("b", b"another")
    with pytest.raises(PurgeProtected, match="delete it first"):
        store.purge("a")
    store.delete("a")
    with store.database.read() as connection:
        sealed = connection.exec_driver_sql(
            "SELECT sealed FROM key_versions WHERE name = 'a'"
        ).scalar()
    assert isinstance(sealed, bytes)
    files = (
        list(Path(store.database.name).parent.glob("store.db*"))
        if store.database.engine.dialect.name == "sqlite"
        else table_files(store, "key_versions")
    )
    settle(store)
    assert any(sealed in file.read_bytes() for file in files)
    store.purge("a")
    settle(store)
    assert not any(sealed in file.read_bytes() for file in files)
    for call in (store.get_secret, store.recover):
        with pytest.raises(KeyDeleted):
            call("a")
    with pytest.raises(KeyDeleted):
        store.set_secret("a", b"again")
    assert store.get_secret("b") == b"another"
    store.rotate_term()
    assert store.rewrap().left == 0


def test_purge_protection_lasts_as_long_as_the_retention(store: KeyStore, clock: Clock) -> None:
    store.create_key("a", KeyType.ED25519, purge_protected=True)
    store.delete("a", retention=timedelta(days=90))
    clock.now += timedelta(days=89)
    with pytest.raises(PurgeProtected, match="purge-protected until 2027-01-30"):
        store.purge("a")
    clock.now += timedelta(days=1)
    store.purge("a")
    assert store.key("a").purged


def test_an_error_is_one_line_and_names_the_key(store: KeyStore) -> None:
    store.create_key("a", KeyType.ED25519)
    store.delete("a")
    with pytest.raises(CertsError) as caught:
        store.sign("a", b"m")
    assert "'a'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_of_the_names_is_listed_by_itself(store: KeyStore) -> None:
    names = ["w", "wea", "web", "web-1", "web.2", "web/a", "web/b/c", "web0", "webmail", "x"]
    for name in names:
        store.create_key(name, KeyType.ED25519)
    store.delete("web/b/c")

    def listed(under: str, *, deleted: bool = False) -> list[str]:
        return [info.name for info in store.keys(under, deleted=deleted)]

    assert listed("") == [name for name in sorted(names) if name != "web/b/c"]
    assert listed("web") == ["web", "web/a"]
    assert listed("web", deleted=True) == ["web", "web/a", "web/b/c"]
    assert listed("w") == ["w"]
    assert listed("web/b") == []
    with pytest.raises(InvalidName):
        listed("web/")

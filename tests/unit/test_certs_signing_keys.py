"""Keys that sign and never leave the store."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from certs.errors import (
    KeyNotExportable,
    StoreError,
    StoreFault,
    WrongPurpose,
)
from certs.key_types import (
    PRIVATE_KEY_TYPES,
    PrivateKey,
    public_key_der,
    signature_hash,
)
from certs.keystore import KeyStore, KeyType

if TYPE_CHECKING:
    from pathlib import Path

    from certs.keystore.kek import FileKEK

from stores import private_bytes

NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_only_signing_keys_are_made(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store, pytest.raises(WrongPurpose):
        store.create_key("a", KeyType.ED25519, purpose="wrap")


def test_signing_keys_sign_for_their_public_key(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        for key_type in PRIVATE_KEY_TYPES:
            store.create_key(key_type, key_type)
        for name in (KeyType.EC_P256, KeyType.EC_P384):
            key = store.signing_key(name)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            algorithm = ec.ECDSA(hashes.SHA256())
            key.public_key().verify(key.sign(bytearray(b"m"), algorithm), b"m", algorithm)
            assert (key.curve.name, key.key_size) == (
                key.public_key().curve.name,
                key.public_key().key_size,
            )
        for name in (KeyType.RSA_2048, KeyType.RSA_3072):
            key = store.signing_key(name)
            assert isinstance(key, rsa.RSAPrivateKey)
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            signature = key.sign(b"m", pss, hashes.SHA256())
            key.public_key().verify(signature, b"m", pss, hashes.SHA256())
            assert key.key_size == key.public_key().key_size
        key = store.signing_key(KeyType.ED25519)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        key.public_key().verify(key.sign(b"m"), b"m")


@pytest.mark.parametrize("key_type", PRIVATE_KEY_TYPES)
def test_a_signing_key_goes_into_cryptographys_builder_and_gives_nothing_away(
    path: Path, kek: FileKEK, key_type: KeyType
) -> None:
    name = x509.Name([])
    with KeyStore.create(path, kek) as store:
        store.create_key("a", key_type, exportable=True)
        key = store.signing_key("a")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW)
            .sign(key, signature_hash(key.public_key()))
        )
        certificate.verify_directly_issued_by(certificate)

        with pytest.raises(KeyNotExportable, match="signs inside its store"):
            private_bytes(key)
        for refused in ("private_numbers", "private_bytes_raw"):
            if hasattr(key, refused):
                with pytest.raises(KeyNotExportable):
                    getattr(key, refused)()
        with pytest.raises(KeyNotExportable):
            pickle.dumps(key)
        assert copy.copy(key) is key
        assert copy.deepcopy(key) is key


def test_a_signing_key_does_nothing_but_sign(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("e", KeyType.EC_P256)
        store.create_key("r", KeyType.RSA_2048)
        elliptic, modular = store.signing_key("e"), store.signing_key("r")
        assert isinstance(elliptic, ec.EllipticCurvePrivateKey)
        assert isinstance(modular, rsa.RSAPrivateKey)
        with pytest.raises(WrongPurpose):
            elliptic.exchange(ec.ECDH(), elliptic.public_key())
        ciphertext = modular.public_key().encrypt(b"m", padding.PKCS1v15())
        with pytest.raises(WrongPurpose):
            modular.decrypt(ciphertext, padding.PKCS1v15())


def signature(key: PrivateKey, message: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(message)


def test_a_witness_sees_what_is_signed_and_can_prevent_it(path: Path, kek: FileKEK) -> None:
    seen: list[bytes] = []

    def refuse(data: bytes) -> None:
        seen.append(data)
        raise StoreError("no", fault=StoreFault.FULL)

    with KeyStore.create(path, kek) as store:
        for key_type in (KeyType.EC_P256, KeyType.ED25519, KeyType.RSA_2048):
            store.create_key(key_type, key_type)
        one = store.signing_key(KeyType.ED25519, witness=seen.append)
        assert isinstance(one, ed25519.Ed25519PrivateKey)
        one.public_key().verify(one.sign(b"first"), b"first")
        for name in (KeyType.EC_P256, KeyType.ED25519, KeyType.RSA_2048):
            key = store.signing_key(name, witness=refuse)
            with pytest.raises(StoreError, match="no"):
                signature(key, b"second")
    assert seen == [b"first", b"second", b"second", b"second"]


def test_a_signing_key_stays_with_its_version(path: Path, kek: FileKEK) -> None:
    with KeyStore.create(path, kek) as store:
        store.create_key("a", KeyType.ED25519)
        key = store.signing_key("a")
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        store.rotate("a")
        store.public_key("a", 1)
        key.public_key().verify(key.sign(b"m"), b"m")
        assert public_key_der(key.public_key()) == public_key_der(store.public_key("a", 1))
        assert public_key_der(key.public_key()) != public_key_der(store.public_key("a"))

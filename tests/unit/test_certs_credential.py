"""Credentials and trust anchors: what is accepted from PEM, what is refused, in which words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from certs.credential import Credential, TrustAnchors
from certs.errors import CredentialError, KeyNotExportable
from certs.key_types import PRIVATE_KEY_TYPES, PrivateKey, generate_private_key
from certs.keystore import KeyStore, KeyType
from certs.keystore.kek import FileKEK

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificatePublicKeyTypes,
    )

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf\n\x1b[31m")])


def certificate_for(
    public_key: CertificatePublicKeyTypes, signer: CertificateIssuerPrivateKeyTypes | None = None
) -> x509.Certificate:
    signer = signer or ec.generate_private_key(ec.SECP256R1())
    edwards = isinstance(signer, ed25519.Ed25519PrivateKey)
    return (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(public_key)
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(signer, None if edwards else hashes.SHA256())
    )


def pem_of(
    key: PrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    password: bytes | None = None,
) -> bytes:
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


def chain_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def leaf(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return certificate_for(key.public_key())


@pytest.mark.parametrize(
    "key_type", [one for one in PRIVATE_KEY_TYPES if one is not KeyType.ML_DSA_65]
)
@pytest.mark.parametrize("password", [None, b"a password"])
def test_a_credential_is_read_from_pem_and_written_again(
    key_type: KeyType, password: bytes | None
) -> None:
    private_key = generate_private_key(key_type)
    leaf = certificate_for(private_key.public_key())
    pem = pem_of(private_key, password=password)
    credential = Credential.from_pem(chain_pem(leaf), pem, password)
    assert credential.leaf == leaf
    again = Credential.from_pem(credential.certificates_pem(), credential.private_key_pem())
    assert again.chain == credential.chain
    assert again.private_key_pem() == pem_of(private_key)


def test_traditional_forms_and_idle_passwords_are_read(
    key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate
) -> None:
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    for pem in (pem_of(key, traditional), pem_of(key, traditional, b"pw")):
        assert Credential.from_pem(chain_pem(leaf), pem, b"pw").leaf == leaf


def test_a_chain_of_a_foreign_ca_is_read() -> None:
    root = trustme.CA()
    issued = root.create_child_ca().issue_cert("example.test")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    credential = Credential.from_pem(chain, issued.private_key_pem.bytes())
    assert len(credential.chain) == 2
    root_pem = root.cert_pem.bytes()
    with_root = Credential.from_pem(chain + root_pem, issued.private_key_pem.bytes())
    assert len(with_root.chain) == 3
    with pytest.raises(CredentialError, match="was not issued by"):
        Credential.from_pem(
            chain_pem(credential.chain[0]) + root_pem, issued.private_key_pem.bytes()
        )
    with pytest.raises(CredentialError, match="does not belong to the certificate"):
        Credential.from_pem(chain_pem(*reversed(credential.chain)), issued.private_key_pem.bytes())


def test_a_key_that_is_not_the_leafs_is_refused(leaf: x509.Certificate) -> None:
    other = pem_of(generate_private_key(KeyType.EC_P256))
    with pytest.raises(CredentialError, match="does not belong to the certificate of CN=leaf"):
        Credential.from_pem(chain_pem(leaf), other)


def test_an_encrypted_key_wants_its_password(
    key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate
) -> None:
    for form in serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL:
        encrypted = pem_of(key, form, b"right")
        with pytest.raises(CredentialError, match="encrypted; give its password"):
            Credential.from_pem(chain_pem(leaf), encrypted)
        with pytest.raises(CredentialError, match="does not open with this password"):
            Credential.from_pem(chain_pem(leaf), encrypted, b"wrong")
        Credential.from_pem(chain_pem(leaf), encrypted, b"right")


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_not_pem_is_told_by_which_part(
    key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate, pem: bytes
) -> None:
    with pytest.raises(CredentialError, match="the certificate chain is not readable PEM"):
        Credential.from_pem(pem, pem_of(key))
    with pytest.raises(CredentialError, match="the private key is not readable PEM"):
        Credential.from_pem(chain_pem(leaf), pem)
    with pytest.raises(CredentialError, match="the trust anchors file is not readable PEM"):
        TrustAnchors.from_pem(pem)


def test_two_files_given_the_wrong_way_round_are_told(
    key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate
) -> None:
    with pytest.raises(CredentialError, match="certificate chain is not readable"):
        Credential.from_pem(pem_of(key), chain_pem(leaf))


@pytest.mark.parametrize(
    "private_key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - weak on purpose, to be refused
        dsa.generate_private_key(2048),
    ],
    ids=["P-521", "secp256k1", "RSA-1024", "DSA"],
)
def test_a_key_type_that_is_not_served_with_is_refused(
    private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey,
) -> None:
    leaf = certificate_for(private_key.public_key())
    pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(CredentialError, match=r"not served with|not a private key of EC"):
        Credential.from_pem(chain_pem(leaf), pem)


def test_a_key_that_cannot_sign_is_refused(leaf: x509.Certificate) -> None:
    pem = x25519.X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(CredentialError, match="not a private key of EC"):
        Credential.from_pem(chain_pem(leaf), pem)


def test_what_is_read_is_bounded(key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> None:
    with pytest.raises(CredentialError, match="more than 262144"):
        Credential.from_pem(chain_pem(leaf) + b"\n" * 300_000, pem_of(key))
    with pytest.raises(CredentialError, match="more than 65536"):
        Credential.from_pem(chain_pem(leaf), pem_of(key) + b"\n" * 70_000)
    with pytest.raises(CredentialError, match="at most 10"):
        Credential.from_pem(chain_pem(*[leaf] * 11), pem_of(key))
    with pytest.raises(CredentialError, match="at least its leaf"):
        Credential(key, ())
    with pytest.raises(CredentialError, match="at least one"):
        TrustAnchors(())


def test_a_credential_shows_its_subject_and_nothing_else(
    key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate
) -> None:
    credential = Credential(key, (leaf,))
    assert repr(credential) == r"<Credential CN=leaf\n\x1b[31m, 1 certificates>"
    secret = key.private_numbers().private_value
    for form in (repr(credential), str(credential), f"{credential!r}"):
        assert form.isprintable()
        assert str(secret) not in form
        assert f"{secret:x}" not in form


def test_a_credential_is_frozen(key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> None:
    credential = Credential(key, (leaf,))
    with pytest.raises(AttributeError):
        credential.chain = ()  # type: ignore[misc] # that it fails is what is tested


def test_a_key_that_signs_in_its_store_makes_a_credential_but_no_pem(tmp_path: Path) -> None:
    kek = FileKEK.create(tmp_path / "kek")
    with KeyStore.create(tmp_path / "store.db", kek) as store:
        store.create_key("a", KeyType.EC_P256)
        key = store.signing_key("a")
        credential = Credential(key, (certificate_for(key.public_key(), key),))
        with pytest.raises(KeyNotExportable):
            credential.private_key_pem()


def test_trust_anchors_are_read_and_written() -> None:
    one, other = trustme.CA(), trustme.CA()
    anchors = TrustAnchors.from_pem(one.cert_pem.bytes() + b"\n" + other.cert_pem.bytes())
    assert len(anchors.certificates) == 2
    assert TrustAnchors.from_pem(anchors.pem()) == anchors
    assert anchors != TrustAnchors.from_pem(one.cert_pem.bytes())
    many = TrustAnchors(anchors.certificates * 3)
    assert repr(many).endswith(" and 3 more>")
    assert "more" not in repr(anchors)


@pytest.mark.fuzz
@given(st.data())
def test_any_damage_to_pem_is_a_typed_error_or_harmless(
    key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate, data: st.DataObject
) -> None:
    certificates, private = bytearray(chain_pem(leaf)), bytearray(pem_of(key))
    target = data.draw(st.sampled_from([certificates, private]))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(target) - 1))
        target[position] = data.draw(st.integers(0, 255))
    try:
        credential = Credential.from_pem(bytes(certificates), bytes(private))
    except CredentialError as error:
        text = str(error)
        assert "\n" not in text
        assert text.isprintable()
    else:
        assert credential.private_key.public_key() == key.public_key()

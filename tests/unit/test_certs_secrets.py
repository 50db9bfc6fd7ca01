"""No secret in any text: representations, exceptions with their whole chain, log records.

The search is tested against itself first: it finds a secret that was put where it looks.
"""

from __future__ import annotations

import base64
import logging
import traceback
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from certs.credential import Credential
from certs.errors import CertsError
from certs.key_types import PRIVATE_KEY_TYPES, PrivateKey, generate_private_key
from certs.keystore import KeyStore, KeyType
from certs.keystore.hazmat import unseal_every_private_key
from certs.keystore.kek import FileKEK
from certs.keystore.payload import PrivateKeyPayload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def secret_numbers(key: PrivateKey) -> list[bytes]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return [key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8)]
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        parts = (numbers.p, numbers.q, numbers.d)
        return [each.to_bytes((each.bit_length() + 7) // 8) for each in parts]
    return [key.private_bytes_raw()]


def found_in(text: str, secrets: list[bytes]) -> bool:
    """Whether a run of 8 bytes of any secret is in the text, as hex, base64, repr or a number."""
    lowered = text.lower()
    joined = text.replace("\n", "")
    for secret in secrets:
        if str(int.from_bytes(secret)) in text:
            return True
        for start in range(len(secret) - 8):
            piece = secret[start : start + 9]
            needles = (piece[:8].hex(), base64.b64encode(piece).decode(), repr(piece)[2:-1])
            if needles[0] in lowered or needles[1] in joined or needles[2] in text:
                return True
    return False


@pytest.mark.parametrize("attempt", range(20))
def test_the_search_finds_what_it_looks_for(attempt: int) -> None:
    del attempt  # another key each time: an unlucky one must be found as well
    key = generate_private_key(KeyType.ED25519)
    secrets = secret_numbers(key)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    texts = [
        secrets[0].hex(),
        repr(secrets[0]),
        pem,
        f"key {int.from_bytes(secrets[0])}",
        f"...{secrets[0][8:16].hex().upper()}",
    ]
    assert [text for text in texts if not found_in(text, secrets)] == []
    assert not found_in("nothing of the kind", secrets)


@pytest.mark.parametrize("key_type", PRIVATE_KEY_TYPES)
def test_no_representation_and_no_exception_holds_private_bytes(
    tmp_path: Path, key_type: KeyType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kek = FileKEK.create(tmp_path / "kek")
    key = generate_private_key(key_type)
    secrets = [*secret_numbers(key), (tmp_path / "kek").read_bytes()]
    plaintext = PrivateKeyPayload(key, key_type, exportable=True).encode()
    with KeyStore.create(tmp_path / "store.db", kek) as store:
        info = store.import_key("a", key, exportable=True)
        signing_key = store.signing_key("a")
        stolen = unseal_every_private_key(tmp_path / "store.db", kek)
        shown: list[object] = [
            info,
            kek,
            store,
            signing_key,
            stolen,
            store._keyring,
            store.database,
            vars(signing_key),
            PrivateKeyPayload.parse(plaintext),
        ]
        keep, give = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        plain = serialization.NoEncryption()
        failing: list[Callable[[], object]] = [
            lambda: store.create_key("a", key_type),
            lambda: store.import_key("a", key),
            lambda: store.import_key("b", signing_key),
            lambda: signing_key.private_bytes(keep, give, plain),
            lambda: PrivateKeyPayload.parse(plaintext[:-1]),
            lambda: PrivateKeyPayload.parse(b"\x02" + plaintext[1:]),
            lambda: PrivateKeyPayload.parse(plaintext[:2] + b"\x63" + plaintext[3:]),
            lambda: PrivateKeyPayload.parse(plaintext[:2] + b"\x01\x30" + plaintext[3:]),
            lambda: PrivateKeyPayload.parse(plaintext[:2] + b"\x02" + plaintext[3:] + b"x"),
            lambda: Credential.from_pem(b"", key.private_bytes(keep, give, plain)),
            lambda: Credential.from_pem(key.private_bytes(keep, give, plain), b""),
        ]
        texts = [repr(each) + str(each) for each in shown]
        for call in failing:
            with pytest.raises(CertsError) as caught:
                call()
            texts.append(str(caught.value) + repr(caught.value))
            texts.extend(traceback.format_exception(caught.value))
            assert "\n" not in str(caught.value)
    texts.append(caplog.text)
    for text in texts:
        assert not found_in(text, secrets), text


def test_a_payload_of_an_unknown_form_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    plaintext = PrivateKeyPayload(key, KeyType.ED25519, exportable=True).encode()
    assert plaintext[:3] == b"\x01\x01\x03"
    assert PrivateKeyPayload.parse(plaintext).exportable
    hidden = PrivateKeyPayload(key, KeyType.ED25519, exportable=False).encode()
    assert not PrivateKeyPayload.parse(hidden).exportable
    other = PrivateKeyPayload(
        generate_private_key(KeyType.EC_P256), KeyType.EC_P256, exportable=True
    )
    for changed in (
        b"",
        plaintext[:3],
        b"\x00" + plaintext[1:],
        b"\x01\x03" + plaintext[2:],
        b"\x01\x81" + plaintext[2:],
        plaintext[:2] + b"\x00" + plaintext[3:],
        plaintext[:2] + b"\x01" + plaintext[3:],
        plaintext[:3] + other.encode()[3:],
        plaintext[:-1],
    ):
        with pytest.raises(CertsError):
            PrivateKeyPayload.parse(changed)

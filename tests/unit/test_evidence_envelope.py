"""The envelope of the manifest: DSSE as its specification has it, and as others read it."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope as ForeignEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from interop.proof.envelope import (
    Envelope,
    EnvelopeError,
    pre_authentication_encoding,
    seal_envelope,
)
from interop.proof.manifest import key_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

TYPE = "application/vnd.in-toto+json"
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'


def sealed(key: Ed25519PrivateKey) -> Envelope:
    return seal_envelope(TYPE, PAYLOAD, key, key_id=key_fingerprint(key.public_key()))


def foreign_key(key: Ed25519PrivateKey) -> SSlibKey:
    public_key = key.public_key()
    raw = public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return SSlibKey(key_fingerprint(public_key), "ed25519", "ed25519", keyval={"public": raw.hex()})


def test_what_is_signed_is_what_the_specification_gives_as_an_example() -> None:
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_are_of_octets() -> None:
    assert pre_authentication_encoding("\u00e9", b"\xc3\xa9\n") == b"DSSEv1 2 \xc3\xa9 3 \xc3\xa9\n"


def test_securesystemslib_verifies_ours() -> None:
    key = Ed25519PrivateKey.generate()
    foreign = ForeignEnvelope.from_dict(json.loads(sealed(key).encode()))
    assert (foreign.payload, foreign.payload_type) == (PAYLOAD, TYPE)
    assert foreign.verify([foreign_key(key)], 1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda one: one.update(payloadType="text/plain"), id="type"),
        pytest.param(
            lambda one: one.update(payload=base64.b64encode(PAYLOAD + b" ").decode()), id="payload"
        ),
        pytest.param(
            lambda one: one["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()),
            id="signature",
        ),
    ],
)
def test_securesystemslib_rejects_ours_when_changed(
    spoil: Callable[[dict[str, Any]], None],
) -> None:
    key = Ed25519PrivateKey.generate()
    document = json.loads(sealed(key).encode())
    spoil(document)
    with pytest.raises(VerificationError):
        ForeignEnvelope.from_dict(document).verify([foreign_key(key)], 1)


def test_securesystemslib_rejects_another_key() -> None:
    ours, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    claimed = foreign_key(other)
    claimed.keyid = foreign_key(ours).keyid
    with pytest.raises(VerificationError):
        ForeignEnvelope.from_dict(json.loads(sealed(ours).encode())).verify([claimed], 1)


def test_an_envelope_is_read_as_it_was_written() -> None:
    envelope = sealed(Ed25519PrivateKey.generate())
    assert Envelope.decode(envelope.encode()) == envelope


@pytest.mark.parametrize(
    "respell",
    [
        pytest.param(lambda one: json.dumps(one).encode() + b"\n", id="white space"),
        pytest.param(lambda one: json.dumps(one, separators=(",", ":")).encode(), id="no newline"),
        pytest.param(
            lambda one: json.dumps(one | {"more": 1}, separators=(",", ":")).encode() + b"\n",
            id="a member more",
        ),
        pytest.param(
            lambda one: (
                json.dumps(
                    one | {"signatures": one["signatures"] * 2}, separators=(",", ":")
                ).encode()
                + b"\n"
            ),
            id="two signatures",
        ),
        pytest.param(
            lambda one: (
                json.dumps(one | {"payload": one["payload"] + "\n"}, separators=(",", ":")).encode()
                + b"\n"
            ),
            id="base64 with a line end",
        ),
        pytest.param(lambda _one: b"[" * 100_000, id="nested"),
        pytest.param(lambda _one: b"\xff", id="not text"),
    ],
)
def test_any_other_spelling_is_rejected(respell: Callable[[dict[str, Any]], bytes]) -> None:
    document = json.loads(sealed(Ed25519PrivateKey.generate()).encode())
    with pytest.raises(EnvelopeError):
        Envelope.decode(respell(document))


def test_spare_bits_of_base64_are_rejected() -> None:
    """One octet is two characters and four spare bits, which base64's own decoders ignore."""
    envelope = seal_envelope(TYPE, b"a", Ed25519PrivateKey.generate(), key_id="")
    encoded = envelope.encode()
    assert b'"YQ=="' in encoded
    with pytest.raises(EnvelopeError):
        Envelope.decode(encoded.replace(b'"YQ=="', b'"YR=="'))

"""DSSE, the Dead Simple Signing Envelope v1.0: one payload, one Ed25519 signature, as JSON.

The signature is over the pre-authentication encoding of type and payload, never over JSON, so
whoever verifies needs to parse nothing that is not authenticated first. The JSON around it is: the
envelope's writer leaves exactly one form of it, and its reader takes no other. So no two different
files hold the same envelope, and no byte of one can change unnoticed, even in places that DSSE
leaves open (white space, base64 of another alphabet or with spare bits, unknown members, `keyid`).
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Envelope", "EnvelopeError", "pre_authentication_encoding", "seal_envelope"]

SIGNATURE_BYTES = 64


class EnvelopeError(Exception):
    """The envelope is not what a writer of it writes."""


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: PAE(type, payload) of the DSSE protocol, version 1."""
    encoded_type = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(encoded_type), encoded_type, len(payload), payload)


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815 - the member's name in DSSE
    signatures: tuple[_Signature]


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One signed payload. `key_id` is a hint, and authenticates nothing by itself."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What `signature` is over."""
        return pre_authentication_encoding(self.payload_type, self.payload)

    def encode(self) -> bytes:
        """Return the envelope as it is stored: JSON without white space, and a final newline."""
        document = _Document(
            payload=base64.b64encode(self.payload).decode(),
            payloadType=self.payload_type,
            signatures=(
                _Signature(keyid=self.key_id, sig=base64.b64encode(self.signature).decode()),
            ),
        )
        return msgspec.json.encode(document) + b"\n"

    @classmethod
    def decode(cls, encoded: bytes) -> Envelope:
        """Read what `encode` wrote; raises `EnvelopeError` for anything else."""
        try:
            document = msgspec.json.decode(encoded, type=_Document)
            (signature,) = document.signatures
            envelope = cls(
                payload_type=document.payloadType,
                payload=base64.b64decode(document.payload, validate=True),
                key_id=signature.keyid,
                signature=base64.b64decode(signature.sig, validate=True),
            )
        except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as error:
            raise EnvelopeError("not a DSSE envelope with one signature") from error
        if len(envelope.signature) != SIGNATURE_BYTES:
            raise EnvelopeError(f"the signature is not {SIGNATURE_BYTES} octets long")
        if envelope.encode() != encoded:
            raise EnvelopeError("the envelope is spelled in another way than it is written")
        return envelope


def seal_envelope(
    payload_type: str, payload: bytes, key: Ed25519PrivateKey, *, key_id: str
) -> Envelope:
    """Sign `payload`."""
    return Envelope(
        payload_type=payload_type,
        payload=payload,
        key_id=key_id,
        signature=key.sign(pre_authentication_encoding(payload_type, payload)),
    )

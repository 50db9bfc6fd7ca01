"""One way to sign for each type of key: the algorithm is the key's, never the caller's to choose.

Whoever needs another padding or hash signs through `KeyStore.signing_key`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from certs.key_types import PrivateKey, PublicKey, key_type_of, signature_hash

__all__ = ["Signature", "algorithm_of", "is_signature", "sign_message"]


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature, and what is needed to verify it: the key's name, version and algorithm."""

    name: str
    version: int
    algorithm: str
    signature: bytes


def sign_message(key: PrivateKey, message: bytes) -> bytes:
    """Sign with the key's own algorithm; ECDSA signatures are DER (RFC 3279, 2.2.3)."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, _ecdsa(key.public_key()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, _pss(), hashes.SHA256())
    return key.sign(message)


def is_signature(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether `sign_message` with this key could have made the signature."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, _ecdsa(key))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, _pss(), hashes.SHA256())
        else:
            key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def algorithm_of(key: PublicKey) -> str:
    """Return the name of the key's algorithm, such as ``ECDSA-SHA256``."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA-{type(_hash(key)).__name__}"
    if isinstance(key, rsa.RSAPublicKey):
        return "RSASSA-PSS-SHA256"
    return {"ed25519": "Ed25519", "ml-dsa-65": "ML-DSA-65"}[key_type_of(key).value]


def _ecdsa(key: ec.EllipticCurvePublicKey) -> ec.ECDSA:
    return ec.ECDSA(_hash(key))


def _hash(key: ec.EllipticCurvePublicKey) -> hashes.SHA256 | hashes.SHA384:
    return signature_hash(key) or hashes.SHA256()


def _pss() -> padding.PSS:
    """RSASSA-PSS with a salt as long as the digest (RFC 8017, 9.1)."""
    return padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)

"""The kinds of key this package makes, stores and puts into certificates, as one table.

A new type of private key is one row here: the store, the authority and the credential take
everything they need to know about a type from its row. Symmetric keys and opaque secrets have a
type too, and no row: they are bytes, which `certs.keystore` makes and never puts anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa

from certs.errors import UnsupportedKey

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_RSA_BITS",
    "MIN_RSA_BITS",
    "PRIVATE_KEY_TYPES",
    "KeyType",
    "PrivateKey",
    "PublicKey",
    "generate_private_key",
    "key_type_of",
    "public_key_der",
    "require_private_key",
    "require_public_key",
    "signature_hash",
]

PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA65PrivateKey
)
PublicKey: TypeAlias = (
    ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey | mldsa.MLDSA65PublicKey
)

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384  # OpenSSL's own bound; a larger modulus only serves to stall a peer
_RSA_PUBLIC_EXPONENT = 65537


class KeyType(StrEnum):
    """The types of key that a store keeps. RSA-2048 is there for compatibility controls.

    `SECRET` is the type of opaque bytes, which are set and read and take part in no cryptography.
    """

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    ED25519 = "ed25519"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ML_DSA_65 = "ml-dsa-65"
    AES_256 = "aes-256"
    SECRET = "secret"  # noqa: S105 - the name of a type


@dataclass(frozen=True, slots=True)
class _Traits:
    """One type's generator, and the shape (algorithm, size) by which a key is recognised."""

    generate: Callable[[], PrivateKey]
    shape: tuple[str, int]


def _ec(curve: ec.EllipticCurve) -> _Traits:
    return _Traits(lambda: ec.generate_private_key(curve), (curve.name, curve.key_size))


def _rsa(bits: int) -> _Traits:
    return _Traits(lambda: rsa.generate_private_key(_RSA_PUBLIC_EXPONENT, bits), ("rsa", bits))


_TRAITS: dict[KeyType, _Traits] = {
    KeyType.EC_P256: _ec(ec.SECP256R1()),
    KeyType.EC_P384: _ec(ec.SECP384R1()),
    KeyType.ED25519: _Traits(ed25519.Ed25519PrivateKey.generate, ("ed25519", 256)),
    KeyType.RSA_2048: _rsa(2048),
    KeyType.RSA_3072: _rsa(3072),
    KeyType.RSA_4096: _rsa(4096),
    KeyType.ML_DSA_65: _Traits(mldsa.MLDSA65PrivateKey.generate, ("ml-dsa", 65)),
}
PRIVATE_KEY_TYPES = tuple(_TRAITS)
_BY_SHAPE = {traits.shape: key_type for key_type, traits in _TRAITS.items()}


def generate_private_key(key_type: KeyType) -> PrivateKey:
    """Return a fresh private key of this type; `UnsupportedKey` for types that have none."""
    traits = _TRAITS.get(key_type)
    if traits is None:
        raise UnsupportedKey(f"{key_type} is not a type of private key")
    return traits.generate()


def require_private_key(key: object) -> PrivateKey:
    """Return `key` if it is a private key of a known algorithm; raise `UnsupportedKey` if not."""
    if isinstance(key, PrivateKey):
        return key
    raise UnsupportedKey(
        f"a {type(key).__name__} is not a private key of EC, Ed25519, RSA or ML-DSA-65"
    )


def require_public_key(key: object) -> PublicKey:
    """Return `key` if it is a public key of a known algorithm; raise `UnsupportedKey` if not."""
    if isinstance(key, PublicKey):
        return key
    raise UnsupportedKey(
        f"a {type(key).__name__} is not a public key of EC, Ed25519, RSA or ML-DSA-65"
    )


def key_type_of(key: PrivateKey | PublicKey) -> KeyType:
    """Return the key's type; raise `UnsupportedKey` for a curve or size that the store lacks."""
    shape = _shape_of(key)
    try:
        return _BY_SHAPE[shape]
    except KeyError:
        known = ", ".join(PRIVATE_KEY_TYPES)
        raise UnsupportedKey(
            f"the store does not keep {shape[0]} keys of {shape[1]} bits; use one of {known}"
        ) from None


def _shape_of(key: PrivateKey | PublicKey) -> tuple[str, int]:
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return (key.curve.name, key.curve.key_size)
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        return ("rsa", key.key_size)
    if isinstance(key, mldsa.MLDSA65PrivateKey | mldsa.MLDSA65PublicKey):
        return ("ml-dsa", 65)
    return ("ed25519", 256)


def public_key_der(key: PublicKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7), by which keys are compared."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def signature_hash(key: PublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash that certificates are signed with under this key; None if it takes none.

    P-384 takes SHA-384 so that neither half is the weaker one (RFC 5758, 3.2). Ed25519 (RFC 8410,
    3) and ML-DSA (RFC 9881, 2) hash by themselves.
    """
    if isinstance(key, ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey):
        return None
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size > ec.SECP256R1.key_size:
        return hashes.SHA384()
    return hashes.SHA256()

"""What an attacker computes with a stolen ephemeral key: the shared secret of a key exchange.

The attacker holds private keys and sees both public values. A private key is *the* key of an
exchange if its public value is one of the two; then the shared secret follows from it and the
other side's value. `EphemeralKeys` is the index that finds it.

A hybrid group is two exchanges concatenated (draft-ietf-tls-ecdhe-mlkem), so both halves must be
had: either side's classical key, and the *client's* ML-KEM key, for only the holder of the
decapsulation key can open the server's ciphertext. Half a hybrid opens nothing, and
`shared_secret` says which half is missing, since that sentence is what the harvest-now,
decrypt-later experiment is after.

The groups that are computed are those that cryptography has: no ML-KEM-512, no binary curves, no
SM2, and not the drafts of Kyber that preceded ML-KEM. The others are named, and stay closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x448, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interop.errors import DissectError
from interop.wire import der
from interop.wire.codec import Reader
from interop.wire.registry import NamedGroup, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EphemeralKeys",
    "EphemeralPrivateKey",
    "FiniteFieldPrivateKey",
    "NoSharedSecret",
    "ffdhe_group",
    "ffdhe_prime",
    "finite_field_private_key",
    "finite_field_shared_secret",
    "shared_secret",
    "split_public_value",
]


@dataclass(frozen=True, slots=True, repr=False)
class FiniteFieldPrivateKey:
    """A finite-field Diffie-Hellman key: `exponent` in the group of `prime` and `generator`.

    Plain integers, because cryptography is giving up finite-field Diffie-Hellman and a recording
    of it stays readable.
    """

    prime: int
    generator: int
    exponent: int

    @property
    def public(self) -> int:
        """The value that crossed the wire."""
        return pow(self.generator, self.exponent, self.prime)

    def __repr__(self) -> str:
        return f"FiniteFieldPrivateKey({self.prime.bit_length()} bits)"


EphemeralPrivateKey = (
    x25519.X25519PrivateKey
    | x448.X448PrivateKey
    | ec.EllipticCurvePrivateKey
    | mlkem.MLKEM768PrivateKey
    | mlkem.MLKEM1024PrivateKey
    | FiniteFieldPrivateKey
)

_CURVES: dict[int, type[ec.EllipticCurve]] = {
    NamedGroup.SECP192R1: ec.SECP192R1,
    NamedGroup.SECP224R1: ec.SECP224R1,
    NamedGroup.SECP256R1: ec.SECP256R1,
    NamedGroup.SECP384R1: ec.SECP384R1,
    NamedGroup.SECP521R1: ec.SECP521R1,
    NamedGroup.SECP256K1: ec.SECP256K1,
    NamedGroup.BRAINPOOLP256R1: ec.BrainpoolP256R1,
    NamedGroup.BRAINPOOLP384R1: ec.BrainpoolP384R1,
    NamedGroup.BRAINPOOLP512R1: ec.BrainpoolP512R1,
    NamedGroup.BRAINPOOLP256R1TLS13: ec.BrainpoolP256R1,
    NamedGroup.BRAINPOOLP384R1TLS13: ec.BrainpoolP384R1,
    NamedGroup.BRAINPOOLP512R1TLS13: ec.BrainpoolP512R1,
}

# In DER: dhKeyAgreement of PKCS #3, dhpublicnumber of X9.42
_DH_OIDS = (bytes.fromhex("2a864886f70d010301"), bytes.fromhex("2a8648ce3e0201"))
_MAX_PRIME_BITS = 16_384

# RFC 7919 appendix A: bits, and the number added to make the prime safe
_FFDHE = {
    NamedGroup.FFDHE2048: (2048, 560316),
    NamedGroup.FFDHE3072: (3072, 2625351),
    NamedGroup.FFDHE4096: (4096, 5736041),
    NamedGroup.FFDHE6144: (6144, 15705020),
    NamedGroup.FFDHE8192: (8192, 10965728),
}


class _Hybrid(NamedTuple):
    """Lengths of the parts of a hybrid's public values, in bytes."""

    classical: NamedGroup
    classical_length: int
    kem: str
    encapsulation_key_length: int
    ciphertext_length: int
    kem_first: bool


_HYBRIDS = {
    NamedGroup.X25519MLKEM768: _Hybrid(
        NamedGroup.X25519, 32, "ML-KEM-768", 1184, 1088, kem_first=True
    ),
    NamedGroup.SECP256R1MLKEM768: _Hybrid(
        NamedGroup.SECP256R1, 65, "ML-KEM-768", 1184, 1088, kem_first=False
    ),
    NamedGroup.SECP384R1MLKEM1024: _Hybrid(
        NamedGroup.SECP384R1, 97, "ML-KEM-1024", 1568, 1568, kem_first=False
    ),
}

# ML-KEM alone (draft-ietf-tls-mlkem): the client sends the key, the server the ciphertext.
_KEMS: dict[int, str] = {NamedGroup.MLKEM768: "ML-KEM-768", NamedGroup.MLKEM1024: "ML-KEM-1024"}


# TLS 1.2 peers may still agree on compressed points (RFC 4492 section 5.1.2).
_POINT_FORMS = (PublicFormat.UncompressedPoint, PublicFormat.CompressedPoint)


class NoSharedSecret(Exception):
    """Why the shared secret cannot be computed, in one clause."""


class EphemeralKeys:
    """Private keys by the public value they belong to."""

    def __init__(self, keys: Iterable[EphemeralPrivateKey] = ()) -> None:
        self._by_public: dict[bytes, EphemeralPrivateKey] = {}
        self._finite_field: dict[int, FiniteFieldPrivateKey] = {}
        self._count = 0
        for key in keys:
            self._count += 1
            if isinstance(key, FiniteFieldPrivateKey):
                self._finite_field[key.public] = key
            elif isinstance(key, ec.EllipticCurvePrivateKey):
                public = key.public_key()
                for form in _POINT_FORMS:
                    self._by_public[public.public_bytes(Encoding.X962, form)] = key
            else:
                self._by_public[key.public_key().public_bytes_raw()] = key

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"EphemeralKeys({len(self)} keys)"

    def of(self, public: bytes) -> EphemeralPrivateKey | None:
        """Find the private key of a public value."""
        return self._by_public.get(public)

    def of_finite_field(self, public: int, prime: int) -> FiniteFieldPrivateKey | None:
        """Find the private key of a finite-field public value."""
        key = self._finite_field.get(public)
        if key is None or key.prime != prime:
            return None
        return key


@lru_cache(maxsize=len(_FFDHE))
def ffdhe_prime(group: NamedGroup) -> int:
    """Compute the prime of an ffdhe group (RFC 7919 appendix A).

    p = 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1, with e summed to b bits and some.
    """
    bits, addend = _FFDHE[group]
    precision = bits + 64
    term = total = 1 << precision
    divisor = 1
    while term:
        term //= divisor
        total += term
        divisor += 1
    scaled_e = total >> (precision - (bits - 130))
    return int(2**bits - 2 ** (bits - 64) + (scaled_e + addend) * 2**64 - 1)


def ffdhe_group(prime: int) -> NamedGroup | None:
    """Name the group a prime belongs to; None for one of somebody's own making."""
    for group, (bits, _) in _FFDHE.items():
        if prime.bit_length() == bits and ffdhe_prime(group) == prime:
            return group
    return None


def finite_field_private_key(data: bytes) -> FiniteFieldPrivateKey | None:
    """Read a finite-field Diffie-Hellman key in PKCS #8 (RFC 5958); None for any other kind.

    Both ways of naming the algorithm are read: PKCS #3's, and that of X9.42 (RFC 3279 section
    2.3.3). A prime of more than 16,384 bits is none that a session uses.
    """
    try:
        reader = der.open_element(Reader(data, "private_key"), der.SEQUENCE, "key")
        der.integer(reader, "version")
        algorithm = der.open_element(reader, der.SEQUENCE, "algorithm")
        if der.open_element(algorithm, der.OBJECT_IDENTIFIER, "oid").rest() not in _DH_OIDS:
            return None
        parameters = der.open_element(algorithm, der.SEQUENCE, "parameters")
        prime, generator = (der.integer(parameters, name) for name in ("prime", "generator"))
        inner = der.open_element(reader, der.OCTET_STRING, "private_key")
        exponent = der.integer(inner, "exponent")
    except DissectError:
        return None
    if prime.bit_length() > _MAX_PRIME_BITS or not prime & 1:
        return None
    return FiniteFieldPrivateKey(prime, generator, exponent)


def split_public_value(group: int, public: bytes, *, from_client: bool) -> tuple[bytes, ...]:
    """Take the parts of a key share: of a hybrid both halves, classical first; else itself.

    A hybrid's value of the wrong length is given whole.
    """
    hybrid = _HYBRIDS.get(NamedGroup(group)) if group in _HYBRIDS else None
    if hybrid is None:
        return (public,)
    kem_length = hybrid.encapsulation_key_length if from_client else hybrid.ciphertext_length
    if len(public) != kem_length + hybrid.classical_length:
        return (public,)
    if hybrid.kem_first:
        return public[kem_length:], public[:kem_length]
    return public[: hybrid.classical_length], public[hybrid.classical_length :]


def _exchange(key: EphemeralPrivateKey, group: int, peer: bytes) -> bytes | None:
    """Run one classical exchange; None if the key is of another kind. May raise ValueError."""
    if isinstance(key, x25519.X25519PrivateKey):
        return key.exchange(x25519.X25519PublicKey.from_public_bytes(peer))
    if isinstance(key, x448.X448PrivateKey):
        return key.exchange(x448.X448PublicKey.from_public_bytes(peer))
    if isinstance(key, ec.EllipticCurvePrivateKey) and group in _CURVES:
        public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[group](), peer)
        return key.exchange(ec.ECDH(), public)
    return None


def _classical(keys: EphemeralKeys, group: int, client: bytes, server: bytes) -> bytes:
    name = name_of(NamedGroup, group)
    for own, peer in ((client, server), (server, client)):
        if (key := keys.of(own)) is not None:
            try:
                secret = _exchange(key, group, peer)
            except (ValueError, UnsupportedAlgorithm):  # a point off the curve, of small order, …
                raise NoSharedSecret(f"the peer's {name} value is not a valid one") from None
            if secret is not None:
                return secret
    raise NoSharedSecret(f"no ephemeral {name} key of this session is at hand")


def _kem(keys: EphemeralKeys, name: str, encapsulation_key: bytes, sealed: bytes) -> bytes:
    key = keys.of(encapsulation_key)
    if not isinstance(key, mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey):
        raise NoSharedSecret(f"the client's {name} key is not at hand")
    try:
        return key.decapsulate(sealed)
    except ValueError:
        raise NoSharedSecret(f"the server's {name} ciphertext is not a valid one") from None


def _hybrid(keys: EphemeralKeys, group: NamedGroup, client: bytes, server: bytes) -> bytes:
    """Compute both halves, or say which one is missing."""
    hybrid = _HYBRIDS[group]
    client_parts = split_public_value(group, client, from_client=True)
    server_parts = split_public_value(group, server, from_client=False)
    if len(client_parts) != 2 or len(server_parts) != 2:  # noqa: PLR2004 - two halves
        raise NoSharedSecret(f"a {name_of(NamedGroup, group)} value has the wrong length")
    try:
        sealed = _kem(keys, hybrid.kem, client_parts[1], server_parts[1])
    except NoSharedSecret as missing:
        _classical(keys, hybrid.classical, client_parts[0], server_parts[0])
        raise NoSharedSecret(f"the classical half is known, but {missing}") from None
    try:
        classical = _classical(keys, hybrid.classical, client_parts[0], server_parts[0])
    except NoSharedSecret as missing:
        raise NoSharedSecret(f"the {hybrid.kem} half is known, but {missing}") from None
    return sealed + classical if hybrid.kem_first else classical + sealed


def _finite_field(keys: EphemeralKeys, prime: int, client: bytes, server: bytes) -> int:
    client_value, server_value = int.from_bytes(client, "big"), int.from_bytes(server, "big")
    if not (1 < client_value < prime - 1 and 1 < server_value < prime - 1):
        raise NoSharedSecret("a DHE value is out of range")
    for own, peer in ((client_value, server_value), (server_value, client_value)):
        if (key := keys.of_finite_field(own, prime)) is not None:
            return pow(peer, key.exponent, prime)
    raise NoSharedSecret("no ephemeral DHE key of this session is at hand")


def finite_field_shared_secret(
    keys: EphemeralKeys, prime: int, client: bytes, server: bytes
) -> bytes:
    """Compute TLS 1.2's DHE secret, without its leading zeros (RFC 5246 section 8.1.2).

    Raises `NoSharedSecret`.
    """
    secret = _finite_field(keys, prime, client, server)
    return secret.to_bytes((secret.bit_length() + 7) // 8, "big")


def shared_secret(keys: EphemeralKeys, group: int, client: bytes, server: bytes) -> bytes:
    """Compute the secret of an exchange from whichever private keys are at hand.

    `client` and `server` are the two key_exchange values (RFC 9846 section 7.4). Raises
    `NoSharedSecret`.
    """
    if group in _FFDHE:
        prime = ffdhe_prime(NamedGroup(group))
        secret = _finite_field(keys, prime, client, server)
        return secret.to_bytes((prime.bit_length() + 7) // 8, "big")
    if group in _KEMS:
        return _kem(keys, _KEMS[group], client, server)
    if group in _HYBRIDS:
        return _hybrid(keys, NamedGroup(group), client, server)
    return _classical(keys, group, client, server)

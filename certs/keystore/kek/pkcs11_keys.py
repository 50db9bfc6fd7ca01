"""Private keys that were made in a token and sign there, behind cryptography's own interfaces.

They go straight into ``CertificateBuilder.sign`` or any other code that signs. The digest is made
here and only it crosses to the token (Ed25519 hashes by itself, so there the message does). Each
signature is verified under the public key before it is handed out: a fault in the token, or a
public key that belongs to another pair, must not reach a peer. (A faulty RSA or ECDSA signature can
give the private key away.)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pkcs11
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric import utils as asymmetric_utils
from pkcs11 import MGF, Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from certs.errors import (
    KEKUnavailable,
    KeyExists,
    KeyNotFound,
    UnsupportedKey,
    WrongPurpose,
)
from certs.key_types import PublicKey
from certs.keystore.kept import KeptPrivateKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.utils import Buffer

    from certs.key_types import KeyType, PrivateKey
    from certs.keystore.kek.pkcs11_token import TokenUse

__all__ = [
    "TokenECPrivateKey",
    "TokenEd25519PrivateKey",
    "TokenKeys",
    "TokenRSAPrivateKey",
]

_MAX_LABEL_CHARACTERS = 128
_CURVES = {"ec-p256": ("secp256r1", ec.SECP256R1()), "ec-p384": ("secp384r1", ec.SECP384R1())}
_RSA_BITS = {"rsa-2048": 2048, "rsa-3072": 3072, "rsa-4096": 4096}
_ED25519_PARAMETERS = bytes.fromhex("06032b6570")  # the object identifier 1.3.101.112, DER
_DIGEST_INFO = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),  # RFC 8017, 9.2, note 1
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_PSS = {
    "sha256": (Mechanism.SHA256, MGF.SHA256),
    "sha384": (Mechanism.SHA384, MGF.SHA384),
    "sha512": (Mechanism.SHA512, MGF.SHA512),
}

_Public = TypeVar("_Public", bound=PublicKey)
_Sign = Callable[[bytes, Mechanism, object], bytes]


class _InToken(KeptPrivateKey[_Public]):
    """A key that its token signs with."""

    def __init__(self, label: str, public_key: _Public, sign: _Sign) -> None:
        super().__init__(public_key, repr(label), "token and never leaves it; sign with it")
        self._sign = sign

    def _refuse_signature(self) -> NoReturn:
        raise KEKUnavailable(
            f"the token's signature by key {self._described} does not verify under the public key "
            "beside it, and was thrown away; check the token"
        )


class TokenECPrivateKey(_InToken[ec.EllipticCurvePublicKey], ec.EllipticCurvePrivateKey):
    """An elliptic-curve key that signs inside its token."""

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """The size of the curve's order, in bits."""
        return self._public_key.key_size

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign inside the token."""
        if not isinstance(signature_algorithm, ec.ECDSA) or (
            signature_algorithm.deterministic_signing
        ):
            raise UnsupportedAlgorithm("a token signs by ECDSA with its own random numbers")
        algorithm = signature_algorithm.algorithm
        order_bytes = (self.key_size + 7) // 8
        digest = _digest(bytes(data), algorithm)[:order_bytes]  # as SEC 1, 4.1.3 truncates
        raw = self._sign(digest, Mechanism.ECDSA, None)
        half = len(raw) // 2
        signature = asymmetric_utils.encode_dss_signature(
            int.from_bytes(raw[:half]), int.from_bytes(raw[half:])
        )
        try:
            self._public_key.verify(signature, bytes(data), signature_algorithm)
        except InvalidSignature:
            self._refuse_signature()
        return signature

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Raise `WrongPurpose`."""
        del algorithm, peer_public_key
        self._refuse_use("agree on a secret")


class TokenEd25519PrivateKey(_InToken[ed25519.Ed25519PublicKey], ed25519.Ed25519PrivateKey):
    """An Ed25519 key that signs inside its token."""

    def sign(self, data: Buffer) -> bytes:
        """Sign inside the token."""
        signature = self._sign(bytes(data), Mechanism.EDDSA, None)
        try:
            self._public_key.verify(signature, bytes(data))
        except InvalidSignature:
            self._refuse_signature()
        return signature

    def private_bytes_raw(self) -> NoReturn:
        """Raise `KeyNotExportable`."""
        self._refuse_export()


class TokenRSAPrivateKey(_InToken[rsa.RSAPublicKey], rsa.RSAPrivateKey):
    """An RSA key that signs inside its token, PKCS #1 v1.5 or PSS."""

    @property
    def key_size(self) -> int:
        """The size of the modulus, in bits."""
        return self._public_key.key_size

    def sign(
        self,
        data: bytes,
        padding: padding.AsymmetricPadding,
        algorithm: asymmetric_utils.Prehashed
        | hashes.HashAlgorithm
        | asymmetric_utils.NoDigestInfo,
    ) -> bytes:
        """Sign inside the token."""
        if isinstance(algorithm, asymmetric_utils.NoDigestInfo):
            raise UnsupportedAlgorithm("a token signs with a digest's name, not without")
        message = bytes(data)
        digest = _digest(message, algorithm)
        mechanism, parameters, block = self._padded(padding, _hash_of(algorithm), digest)
        signature = self._sign(block, mechanism, parameters)
        try:
            self._public_key.verify(signature, message, padding, algorithm)
        except InvalidSignature:
            self._refuse_signature()
        return signature

    def decrypt(self, ciphertext: bytes, padding: padding.AsymmetricPadding) -> NoReturn:
        """Raise `WrongPurpose`."""
        del ciphertext, padding
        self._refuse_use("decrypt")

    def _padded(
        self, scheme: padding.AsymmetricPadding, algorithm: hashes.HashAlgorithm, digest: bytes
    ) -> tuple[Mechanism, object, bytes]:
        """Return the mechanism, its parameters, and the bytes that the token signs."""
        name = algorithm.name
        if name not in _DIGEST_INFO:
            raise UnsupportedAlgorithm(f"a token signs SHA-256, SHA-384 or SHA-512, not {name}")
        if isinstance(scheme, padding.PKCS1v15):
            return Mechanism.RSA_PKCS, None, _DIGEST_INFO[name] + digest
        if not isinstance(scheme, padding.PSS):
            raise UnsupportedAlgorithm("a token signs with PKCS #1 v1.5 or PSS")
        # cryptography hands a PSS object to its own backend, which reads these two the same way.
        masked_by = scheme.mgf._algorithm.name  # noqa: SLF001 - it has no public name
        salt = scheme._salt_length  # noqa: SLF001 - it has no public name
        if salt is padding.PSS.MAX_LENGTH:
            salt = padding.calculate_max_pss_salt_length(self._public_key, algorithm)
        elif salt is padding.PSS.DIGEST_LENGTH:
            salt = algorithm.digest_size
        if masked_by != name or not isinstance(salt, int):
            raise UnsupportedAlgorithm("PSS takes one hash for both uses, and a length of its salt")
        return Mechanism.RSA_PKCS_PSS, (*_PSS[name], salt), digest


class TokenKeys:
    """The key pairs of one token, by their labels."""

    def __init__(self, use: TokenUse) -> None:
        self._use = use

    def generate(self, label: str, key_type: KeyType) -> PrivateKey:
        """Make a key pair that stays in the token; see `KeepsPrivateKeys`."""
        if not label or len(label) > _MAX_LABEL_CHARACTERS or not label.isprintable():
            raise UnsupportedKey(f"a label has 1 to {_MAX_LABEL_CHARACTERS} printable characters")
        with self._use.writing("make a key pair in the token") as session:
            if _objects(session, label, ObjectClass.PRIVATE_KEY):
                raise KeyExists(
                    f"the token has a key of label {label!r} and it is never replaced; "
                    "choose another label"
                )
            pair = _generate_pair(session, label, str(key_type))
            if len(_objects(session, label, ObjectClass.PRIVATE_KEY)) != 1:
                for half in pair:
                    half.destroy()
                raise KeyExists(
                    f"another process made a key of label {label!r} at the same time; try again"
                )
        return self.find(label)

    def find(self, label: str) -> PrivateKey:
        """Return the key that signs with the pair of this label; see `KeepsPrivateKeys`."""
        with self._use.call("look for a key pair in the token") as session:
            privates = _objects(session, label, ObjectClass.PRIVATE_KEY)
            publics = _objects(session, label, ObjectClass.PUBLIC_KEY)
            if len(privates) != 1 or len(publics) != 1:
                raise KeyNotFound(
                    f"the token has {len(privates)} private and {len(publics)} public keys of "
                    f"label {label!r}, and one of each makes a pair; list them with its own tool"
                )
            (private,) = privates
            if not private[Attribute.SENSITIVE] or private[Attribute.EXTRACTABLE]:
                raise UnsupportedKey(
                    f"the token's key {label!r} can be taken out of the token; make one that "
                    "is sensitive and cannot be extracted"
                )
            public_key = _public_key(publics[0], label)
        return self._signer(label, private, public_key)

    def _signer(self, label: str, private: pkcs11.Object, public_key: PublicKey) -> PrivateKey:
        def sign(data: bytes, mechanism: Mechanism, parameters: object) -> bytes:
            with self._use.call(f"sign with key {label!r} in the token"):
                if not isinstance(private, pkcs11.SignMixin):
                    raise WrongPurpose(f"key {label!r} of the token does not sign; use another key")
                return bytes(private.sign(data, mechanism=mechanism, mechanism_param=parameters))

        if isinstance(public_key, ec.EllipticCurvePublicKey):
            return TokenECPrivateKey(label, public_key, sign)
        if isinstance(public_key, rsa.RSAPublicKey):
            return TokenRSAPrivateKey(label, public_key, sign)
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            return TokenEd25519PrivateKey(label, public_key, sign)
        raise UnsupportedKey(f"the token's key {label!r} is not of EC, Ed25519 or RSA")


def _objects(session: pkcs11.Session, label: str, kind: ObjectClass) -> list[pkcs11.Object]:
    sought: Mapping[Attribute, object] = {
        Attribute.CLASS: kind,
        Attribute.LABEL: label,
        Attribute.TOKEN: True,
    }
    return list(session.get_objects(dict(sought)))


def _generate_pair(
    session: pkcs11.Session, label: str, key_type: str
) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
    identifier = secrets.token_bytes(16)
    uses = MechanismFlag.SIGN | MechanismFlag.VERIFY
    kept = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    if key_type in _RSA_BITS:
        return session.generate_keypair(
            pkcs11.KeyType.RSA,
            _RSA_BITS[key_type],
            id=identifier,
            label=label,
            store=True,
            capabilities=uses,
            private_template=kept,
        )
    if key_type in _CURVES:
        kind, parameters = pkcs11.KeyType.EC, encode_named_curve_parameters(_CURVES[key_type][0])
        mechanism = Mechanism.EC_KEY_PAIR_GEN
    elif key_type == "ed25519":
        kind, parameters = pkcs11.KeyType.EC_EDWARDS, _ED25519_PARAMETERS
        mechanism = Mechanism.EC_EDWARDS_KEY_PAIR_GEN
    else:
        raise UnsupportedKey(f"keys of type {key_type} are not made in a token; make it in a store")
    domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: parameters}, local=True)
    return domain.generate_keypair(
        id=identifier,
        label=label,
        store=True,
        capabilities=uses,
        mechanism=mechanism,
        private_template=kept,
    )


def _public_key(key: pkcs11.Object, label: str) -> PublicKey:
    kind = key[Attribute.KEY_TYPE]
    try:
        if kind == pkcs11.KeyType.RSA:
            return rsa.RSAPublicNumbers(
                int.from_bytes(key[Attribute.PUBLIC_EXPONENT]),
                int.from_bytes(key[Attribute.MODULUS]),
            ).public_key()
        point = _octet_string(key[Attribute.EC_POINT])
        if kind == pkcs11.KeyType.EC_EDWARDS:
            return ed25519.Ed25519PublicKey.from_public_bytes(point)
        for name, curve in _CURVES.values():
            if key[Attribute.EC_PARAMS] == encode_named_curve_parameters(name):
                return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except ValueError:
        pass
    raise UnsupportedKey(f"the token's key {label!r} is of no type that is used here")


def _octet_string(encoded: bytes) -> bytes:
    """Return the content of a DER OCTET STRING of less than 128 bytes (PKCS #11, CKA_EC_POINT)."""
    if len(encoded) < 2 or encoded[0] != 4 or encoded[1] != len(encoded) - 2:  # noqa: PLR2004 - DER
        raise ValueError("not an octet string")
    return encoded[2:]


def _hash_of(
    algorithm: asymmetric_utils.Prehashed | hashes.HashAlgorithm,
) -> hashes.HashAlgorithm:
    if isinstance(algorithm, asymmetric_utils.Prehashed):
        return algorithm._algorithm  # noqa: SLF001 - it has no public name
    return algorithm


def _digest(data: bytes, algorithm: asymmetric_utils.Prehashed | hashes.HashAlgorithm) -> bytes:
    hash_algorithm = _hash_of(algorithm)
    if isinstance(algorithm, asymmetric_utils.Prehashed):
        if len(data) != hash_algorithm.digest_size:
            raise ValueError(f"a digest of {hash_algorithm.name} has another length")
        return data
    digest = hashes.Hash(hash_algorithm)
    digest.update(data)
    return digest.finalize()

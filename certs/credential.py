"""What an endpoint shows of itself, and whom it trusts: a key with its chain, and trust anchors.

Both are checked when they are made, so that code holding one need not ask again: the key is the
leaf's, it is of a type that TLS servers use here, and each certificate was issued by the one after
it. A chain that is out of order works with some peers and fails with others; here it fails at once.

What comes from outside is bounded before it is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from certs.errors import CredentialError, UnsupportedKey
from certs.key_types import (
    MAX_RSA_BITS,
    MIN_RSA_BITS,
    PrivateKey,
    PublicKey,
    public_key_der,
    require_private_key,
    require_public_key,
)

__all__ = [
    "MAX_ANCHORS_PEM_BYTES",
    "MAX_CHAIN_LENGTH",
    "MAX_CHAIN_PEM_BYTES",
    "MAX_KEY_PEM_BYTES",
    "Credential",
    "TrustAnchors",
]

MAX_CHAIN_PEM_BYTES = 256 * 1024
MAX_CHAIN_LENGTH = 10
MAX_KEY_PEM_BYTES = 64 * 1024
MAX_ANCHORS_PEM_BYTES = 8 * 1024 * 1024  # a system's whole bundle is about 250 KiB
_SHOWN_ANCHORS = 3
_SERVER_CURVES = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """A private key and the certificates that vouch for it, leaf first, usually without the root.

    Raises `CredentialError` if the chain is empty, longer than 10 or out of order, if the key is
    not the leaf's, or if it is none of EC P-256, EC P-384, Ed25519 and RSA of 2048 to 16384 bits.
    `private_key` may be a key that signs in its store (`KeyStore.signing_key`).
    """

    private_key: PrivateKey
    chain: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        if not self.chain:
            raise CredentialError(
                "a credential needs at least its leaf certificate; none was given"
            )
        if len(self.chain) > MAX_CHAIN_LENGTH:
            raise CredentialError(
                f"a chain has at most {MAX_CHAIN_LENGTH} certificates, not {len(self.chain)}"
            )
        public_key = _server_key(self.leaf)
        if public_key_der(self.private_key.public_key()) != public_key_der(public_key):
            raise CredentialError(
                f"the private key does not belong to the certificate of {_named(self.leaf)}; "
                "give the key that this certificate was issued for, the leaf first in its chain"
            )
        for issued, issuer in zip(self.chain, self.chain[1:], strict=False):
            _require_issued_by(issued, issuer)

    def __repr__(self) -> str:
        return f"<Credential {_named(self.leaf)}, {len(self.chain)} certificates>"

    @property
    def leaf(self) -> x509.Certificate:
        """The end-entity certificate."""
        return self.chain[0]

    @classmethod
    def from_pem(
        cls, certificates: bytes, private_key: bytes, password: bytes | None = None
    ) -> Self:
        """Read a chain (leaf first, 256 KiB at most) and its key (PKCS#8 or traditional, 64 KiB).

        Raises `CredentialError`: not PEM, an encrypted key without its password or with another, a
        key that does not match, a type that is not served with.
        """
        chain = _load_certificates(certificates, MAX_CHAIN_PEM_BYTES, "certificate chain")
        return cls(_load_private_key(private_key, password), chain)

    def certificates_pem(self) -> bytes:
        """Return the chain as PEM, leaf first."""
        return _pem(self.chain)

    def private_key_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM.

        Raises `KeyNotExportable` if the key signs in its store.
        """
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """The certificates that a path may end in; `CredentialError` if there is none."""

    certificates: tuple[x509.Certificate, ...]

    def __post_init__(self) -> None:
        if not self.certificates:
            raise CredentialError("trust anchors need at least one certificate; none was given")

    def __repr__(self) -> str:
        shown = [_named(one) for one in self.certificates[:_SHOWN_ANCHORS]]
        more = len(self.certificates) - len(shown)
        return f"<TrustAnchors {', '.join(shown)}{f' and {more} more' if more else ''}>"

    @classmethod
    def from_pem(cls, certificates: bytes) -> Self:
        """Read certificates from PEM (8 MiB at most); raise `CredentialError`."""
        return cls(_load_certificates(certificates, MAX_ANCHORS_PEM_BYTES, "trust anchors file"))

    def pem(self) -> bytes:
        """Return the certificates as PEM."""
        return _pem(self.certificates)


def _load_certificates(data: bytes, limit_bytes: int, what: str) -> tuple[x509.Certificate, ...]:
    if len(data) > limit_bytes:
        raise CredentialError(f"the {what} has {len(data)} bytes, more than {limit_bytes}")
    try:
        certificates = tuple(x509.load_pem_x509_certificates(data))
        for certificate in certificates:
            # cryptography reads these lazily, and their errors belong here.
            _ = certificate.subject, certificate.issuer, certificate.extensions
    except (ValueError, x509.DuplicateExtension):
        raise CredentialError(
            f"the {what} is not readable PEM; "
            "give blocks that begin with -----BEGIN CERTIFICATE-----"
        ) from None
    return certificates


def _load_private_key(data: bytes, password: bytes | None) -> PrivateKey:
    """Read a PEM key. Causes are never chained or quoted: they may hold part of the input."""
    if len(data) > MAX_KEY_PEM_BYTES:
        raise CredentialError(f"the private key has more than {MAX_KEY_PEM_BYTES} bytes")
    encrypted = b"ENCRYPTED" in data
    if encrypted and password is None:
        raise CredentialError("the private key is encrypted; give its password")
    try:
        # A password for a key that is not encrypted is an error in cryptography; here it is idle.
        key = serialization.load_pem_private_key(data, password if encrypted else None)
        return require_private_key(key)
    except UnsupportedKey as error:
        raise CredentialError(f"{error}; give such a key") from None
    except UnsupportedAlgorithm:
        raise CredentialError(
            "the private key's algorithm or encryption is not supported; convert it to PKCS#8"
        ) from None
    except (ValueError, TypeError):
        raise CredentialError(
            "the private key does not open with this password; give the right one"
            if encrypted
            else "the private key is not readable PEM; give a block that begins with "
            "-----BEGIN PRIVATE KEY-----"
        ) from None


def _server_key(certificate: x509.Certificate) -> PublicKey:
    """Return the certificate's key if it is of a type that TLS servers use here."""
    try:
        key = require_public_key(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm, UnsupportedKey):
        key = None
    if isinstance(key, ec.EllipticCurvePublicKey):
        allowed = isinstance(key.curve, _SERVER_CURVES)
    elif isinstance(key, rsa.RSAPublicKey):
        allowed = MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
    else:
        allowed = isinstance(key, ed25519.Ed25519PublicKey)
    if key is None or not allowed:
        raise CredentialError(
            f"the certificate of {_named(certificate)} has a key that is not served with; "
            "use EC P-256, EC P-384, Ed25519 or RSA of at least 2048 bits"
        )
    return key


def _require_issued_by(issued: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise CredentialError(
            f"in the chain, {_named(issued)} was not issued by {_named(issuer)}, which follows it; "
            "give the leaf first, then each issuer"
        ) from None


def _named(certificate: x509.Certificate) -> str:
    """Return a subject on one line, safe to print."""
    return ascii(certificate.subject.rfc4514_string() or "(no subject)")[1:-1]


def _pem(certificates: tuple[x509.Certificate, ...]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)

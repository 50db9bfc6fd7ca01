"""A CA whose private key tests have, so that it can revoke what it issued and say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from certs.credential import Credential, TrustAnchors
from certs.ocsp import build_ocsp_response
from certs.revocation import RevokedCertificate, build_crl

if TYPE_CHECKING:
    from certs.key_types import PrivateKey

NOW = datetime.now(UTC).replace(microsecond=0)
WEEK = timedelta(days=7)


class World(NamedTuple):
    """A CA whose key the tests have, and what it issued."""

    authority: x509.Certificate
    key: PrivateKey
    anchors: TrustAnchors
    server: Credential
    client: Credential
    other_client: Credential

    def issue(
        self, *, usage: x509.ObjectIdentifier, must_staple: bool = False, days: int = 0
    ) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        start = NOW - timedelta(days=1) + timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")]))
            .issuer_name(self.authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=2))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self.authority.extensions.get_extension_for_class(
                        x509.SubjectKeyIdentifier
                    ).value
                ),
                critical=False,
            )
        )
        if must_staple:
            feature = x509.TLSFeature([x509.TLSFeatureType.status_request])
            builder = builder.add_extension(feature, critical=False)
        leaf = builder.sign(self.key, hashes.SHA256())
        return Credential(key, (leaf,))

    def crl(self, *revoked: Credential, start: datetime = NOW) -> bytes:
        return build_crl(
            self.authority,
            self.key,
            [RevokedCertificate(one.leaf.serial_number, NOW) for one in revoked],
            number=1,
            now=start,
            next_update=start + WEEK,
        ).public_bytes(Encoding.PEM)

    def staple(
        self, credential: Credential, *, start: datetime = NOW, life: timedelta = WEEK, **more: Any
    ) -> bytes:
        return build_ocsp_response(
            credential.leaf, self.authority, self.key, now=start, next_update=start + life, **more
        )


def make_world() -> World:
    """Make a CA with foreign code, and have it issue for a server and two clients."""
    ca = trustme.CA(key_type=trustme.KeyType.ECDSA)

    def issue(name: str) -> Credential:
        issued = ca.issue_cert(name, key_type=trustme.KeyType.ECDSA)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return Credential.from_pem(chain, issued.private_key_pem.bytes())

    return World(
        x509.load_pem_x509_certificate(ca.cert_pem.bytes()),
        load_pem_private_key(ca.private_key_pem.bytes(), None),  # type: ignore[arg-type] # of an EC key
        TrustAnchors.from_pem(ca.cert_pem.bytes()),
        issue("localhost"),
        issue("client.example"),
        issue("other.example"),
    )

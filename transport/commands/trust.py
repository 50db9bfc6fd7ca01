"""How the commands read whom to trust, and the credential to show: errors name the file."""

from __future__ import annotations

import re
import ssl
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning

from certs.credential import MAX_ANCHORS_PEM_BYTES, TrustAnchors
from certs.errors import CredentialError
from transport.credentials import CredentialFiles
from transport.errors import APIMisuse

if TYPE_CHECKING:
    from certs.credential import Credential

__all__ = ["read_anchors", "read_credential", "system_anchors"]

_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL
)
_SERIAL_WARNING: Final = "Parsed a serial number which wasn't positive"


def read_anchors(path: Path) -> TrustAnchors:
    """Read the authorities in a PEM file; raises `CredentialError`."""
    content = _read(path)
    try:
        return TrustAnchors.from_pem(content)
    except CredentialError as error:
        raise CredentialError(f"{path}: {error}") from None


def read_credential(certificates: Path, key: Path) -> Credential:
    """Read a chain and its key; raises `CredentialError` and `OSError`."""
    try:
        return CredentialFiles(certificates, key).load()
    except CredentialError as error:
        raise CredentialError(f"{certificates} with {key}: {error}") from None


def system_anchors() -> TrustAnchors:
    """Read the authorities that this system trusts; raises `APIMisuse` and `CredentialError`.

    Some system has a root that is not as RFC 5280 wants it. Nobody here can mend that, so it is
    left out if it cannot be read, and no warning is given of it if it can.
    """
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None:
        raise APIMisuse("this system has no file of trusted authorities", advice="give --ca FILE")
    blocks = _CERTIFICATE.findall(_read(Path(paths.cafile)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _SERIAL_WARNING, CryptographyDeprecationWarning)
        return TrustAnchors(tuple(filter(None, map(_readable, blocks))))


def _readable(block: bytes) -> x509.Certificate | None:
    try:
        certificate = x509.load_pem_x509_certificate(block)
        _ = certificate.subject, certificate.issuer, certificate.extensions  # are read lazily
    except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm):
        return None
    return certificate


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ANCHORS_PEM_BYTES + 1)
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror}") from error

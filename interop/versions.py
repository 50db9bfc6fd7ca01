"""Which versions a report was made with: the toolkit's, and of what it ran with."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

from OpenSSL import SSL

__all__ = ["library_versions", "own_version"]

_DISTRIBUTION = "pfs-transport"


def own_version() -> str:
    """Return the toolkit's version."""
    return metadata.version(_DISTRIBUTION)


def library_versions(*more: str) -> dict[str, str]:
    """Return the versions of the toolkit, of what it stands on, and of `more` that are installed.

    OpenSSL's is what the library that is loaded says of itself, not what was compiled against.
    """
    versions: dict[str, str] = {}
    for name in (_DISTRIBUTION, "cryptography", "pyOpenSSL", *more):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    openssl = SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "replace")
    return versions | {
        "OpenSSL": openssl.removeprefix("OpenSSL "),
        "Python": platform.python_version(),
    }

"""A server's identity for one run: issued by a CA of its own, whose keys are gone afterwards."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from certs.authority import CertificateAuthority
from certs.keystore import KeyStore
from certs.keystore.kek import create_kek

if TYPE_CHECKING:
    from certs.credential import Credential, TrustAnchors

__all__ = ["SERVER_NAME", "Identity", "issue_identity"]

SERVER_NAME = "localhost"


class Identity(NamedTuple):
    """A server's credential, made for one run, and the anchors that its clients trust."""

    credential: Credential
    trust_anchors: TrustAnchors


def issue_identity() -> Identity:
    """Issue a certificate for `SERVER_NAME`, with an ECDSA key, from a CA in a temporary store."""
    with tempfile.TemporaryDirectory(prefix="pfs-identity-") as folder:
        kek = f"file:{Path(folder, 'kek')}"
        create_kek(kek).close()
        with KeyStore.create(Path(folder, "store"), kek) as store:
            now = datetime.now(UTC)
            root = CertificateAuthority.create_root(store, "root", "pfs run root", now)
            credential = root.issue_subordinate("issuing", "pfs run CA", now).issue_server(
                key_name="server", dns_names=(SERVER_NAME,), now=now
            )
            return Identity(credential, root.trust_anchors)

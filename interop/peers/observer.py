"""A client that looks and does not judge: it takes what a server negotiates, and verifies nothing.

For measuring somebody else's server, never for talking to it. No policy of `transport` stands over
it, because a server outside of it is what the measurement may be about; the certificate is checked
only where trust anchors are given. It offers ECDHE key exchange and whatever else the TLS library
still speaks on TLS 1.2 and 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL, crypto

from transport import openssl

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.credential import TrustAnchors

__all__ = ["OBSERVER_OFFERS", "ObserverOffer", "observer_context"]

_SUITES: Final = b"DEFAULT:@SECLEVEL=1"


@dataclass(frozen=True, slots=True)
class ObserverOffer:
    """What the client offers: versions, and groups in OpenSSL's syntax (`*`: with a key share)."""

    name: str
    least_version: int
    greatest_version: int
    groups: str


_1_2, _1_3 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
# What a browser offers, and single key exchanges, which a server may make with another key.
OBSERVER_OFFERS: Final = (
    ObserverOffer(
        "all versions and groups", _1_2, _1_3, "*X25519MLKEM768/*x25519:secp256r1:secp384r1"
    ),
    ObserverOffer("TLS 1.3 with x25519", _1_3, _1_3, "x25519"),
    ObserverOffer("TLS 1.3 with secp256r1", _1_3, _1_3, "secp256r1"),
    ObserverOffer("TLS 1.2", _1_2, _1_2, "x25519:secp256r1:secp384r1"),
)


def observer_context(
    offer: ObserverOffer,
    write_line: Callable[[bytes], None],
    trust_anchors: TrustAnchors | None = None,
) -> SSL.Context:
    """Build the context of an observing client; `write_line` gets each line of its key log.

    Without `trust_anchors` any certificate will do. Raises `PolicyViolation` for groups that the
    library does not know.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(offer.least_version)
    context.set_max_proto_version(offer.greatest_version)
    context.set_cipher_list(_SUITES)
    openssl.set_groups(context, offer.groups)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_keylog_callback(lambda _connection, line: write_line(line))
    if trust_anchors is None:
        context.set_verify(SSL.VERIFY_NONE)
        return context
    store = context.get_cert_store()
    if store is not None:
        for certificate in trust_anchors.certificates:
            store.add_cert(crypto.X509.from_cryptography(certificate))
    context.set_verify(SSL.VERIFY_PEER)
    return context

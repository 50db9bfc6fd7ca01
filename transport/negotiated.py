"""What was negotiated counts, not what was configured.

A suite list says what the library was *told*. Two things were measured to come out otherwise: an
ECDHE-only suite list still completes TLS 1.3 on ``ffdhe2048``, and a configuration file named by
the environment moves groups and versions of a context that did not set its own. So each handshake,
on both engines and both sides, ends here: the facts that the library reports about the finished
handshake become a `NegotiatedSession`, or a `PolicyViolation` is raised and no application byte
moves.

`NegotiatedSession` is a proof value: `verify_negotiated` is the only place that makes one, so
whoever holds one knows that the check took place. It is plain data: it can be compared, logged and
sent to another process, and holds no secret.

Of a resumed session the library reports a group in either case: that of the fresh key exchange, or,
had there been none (psk_ke), the one remembered from the session before. The group is therefore no
proof there. What excludes psk_ke is that it takes an option (ALLOW_NO_DHE_KEX) which the context's
self-check refuses to find.

One more fact is out of reach: the binding does not report which signature scheme the peer signed
its handshake with. The library refuses a scheme that was not offered (RFC 9846 section 4.5.2), the
context's self-check reads the offered list back from a real ClientHello, and the peer's key is
checked here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from transport.errors import PolicyViolation
from transport.policy import GROUPS, SUITES, ProtocolVersion, Resumption, SecurityPolicy

__all__ = ["HandshakeFacts", "NegotiatedSession", "key_strength", "verify_negotiated"]

_ED25519_BITS = 256


class HandshakeFacts(NamedTuple):
    """What the TLS library reports of a finished handshake, not judged yet.

    `version`, `suite` and `group` are IANA's names where they are known to this package, else the
    library's own; `group` is None for a key exchange without one, such as static RSA.
    """

    version: str
    suite: str
    group: str | None
    resumed: bool
    extended_main_secret: bool
    server_name: str | None = None
    alpn: str | None = None
    peer_certificate: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiatedSession:
    """Proof that a handshake ended in what its policy admits.

    `suite` and `group` are IANA names. `extended_main_secret` is True on TLS 1.3, where the key
    schedule always covers the transcript (RFC 7627 gives TLS 1.2 the same). `server_name` is what
    the client asked for (RFC 6066 section 3), `alpn` the agreed protocol (RFC 7301), and
    `peer_certificate` the peer's own certificate in DER, None for a client without one.
    """

    policy: str
    version: ProtocolVersion
    suite: str
    group: str
    resumed: bool
    extended_main_secret: bool
    server_name: str | None
    alpn: str | None
    peer_certificate: bytes | None = field(repr=False)


def verify_negotiated(
    facts: HandshakeFacts, policy: SecurityPolicy, *, require_peer_certificate: bool
) -> NegotiatedSession:
    """Return the proof that `facts` are within `policy`, or raise `PolicyViolation`."""
    if facts.version not in policy.versions:
        raise _violation("version", facts.version, policy)
    version = ProtocolVersion(facts.version)
    suite = SUITES.get(facts.suite)
    if facts.suite not in policy.suites or suite is None or suite.version is not version:
        raise _violation("suite", facts.suite, policy)
    if facts.group is None:
        raise _violation("no group, so no forward secrecy, in", facts.suite, policy)
    if facts.group not in policy.groups or version not in GROUPS[facts.group].versions:
        raise _violation("group", facts.group, policy)
    if facts.resumed and not (
        policy.resumption is Resumption.PSK_DHE_KE and version is ProtocolVersion.TLS_1_3
    ):
        raise _violation("resumed session of", facts.version, policy)
    if policy.require_extended_main_secret and not facts.extended_main_secret:
        raise PolicyViolation(
            f"the peer negotiated {facts.version} without extended main secret, which policy "
            f"{policy.name!r} requires",
            advice="update the peer to a TLS stack with RFC 7627, or to TLS 1.3",
        )
    if facts.peer_certificate is not None:
        _check_peer_key(facts.peer_certificate, policy)
    elif require_peer_certificate:
        raise PolicyViolation(
            "the handshake ended without a peer certificate though one is required",
            advice="report this: the TLS library should have refused it",
        )
    return NegotiatedSession(
        policy=policy.name,
        version=version,
        suite=facts.suite,
        group=facts.group,
        resumed=facts.resumed,
        extended_main_secret=facts.extended_main_secret,
        server_name=facts.server_name,
        alpn=facts.alpn,
        peer_certificate=facts.peer_certificate,
    )


def _check_peer_key(certificate: bytes, policy: SecurityPolicy) -> None:
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PolicyViolation(
            f"the peer's certificate has a key that cannot be judged ({error})",
            advice="give the peer a certificate with an ECDSA, Ed25519 or RSA key",
        ) from error
    kind, bits, least = key_strength(key, policy)
    if bits < least:
        raise PolicyViolation(
            f"the peer's {kind} key has {bits} bits, below the {least} of policy {policy.name!r}",
            advice="give the peer a larger key",
        )


def key_strength(key: object, policy: SecurityPolicy) -> tuple[str, int, int]:
    """Return a public key's kind and bits, and the least bits that `policy` admits of its kind."""
    if isinstance(key, RSAPublicKey):
        return "RSA", key.key_size, policy.minimum_rsa_key_bits
    bits = key.curve.key_size if isinstance(key, EllipticCurvePublicKey) else _ED25519_BITS
    return "EC", bits, policy.minimum_ec_key_bits


def _violation(what: str, value: str, policy: SecurityPolicy) -> PolicyViolation:
    return PolicyViolation(
        f"the handshake negotiated {what} {value}, which policy {policy.name!r} does not admit",
        advice="the TLS library left its configuration: look for OPENSSL_CONF in the environment",
    )

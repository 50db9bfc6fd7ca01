"""Which peers may speak: rules over a verified certificate, as data, ending in a proof.

A trusted chain says who the peer is; an `Authorization` says whether that peer is wanted. It comes
after the library has verified the chain, on either side, and returns an `AuthorizedPeer` or raises
`PeerNotAuthorized`. `Authorization.authorize` is the only place that makes the proof.

**DNS patterns** compare ASCII labels without regard to case. ``*`` stands for exactly one label,
only as the whole left-most one, with at least two labels after it. **URI patterns** compare scheme
and authority without regard to case and the path exactly; ``*`` stands for exactly one path
segment, only as a whole segment. So ``spiffe://example.org/ns/*/sa/web`` admits
``spiffe://example.org/ns/prod/sa/web`` and no deeper or shallower path. Scheme and authority take
no wildcard: a pattern never spans two trust domains.

A wildcard refuses whatever could be read in two ways. A certificate's own ``*`` is matched by no
DNS rule, since it names no single peer. A presented URI with a query, fragment, percent-encoding,
``.``, ``..`` or an empty segment (all forbidden in SPIFFE IDs) matches no wildcard; it can still be
admitted by a rule that spells it out.

Names are read from subjectAltName alone, never from the subject (RFC 9525 section 2).

The pin is that of RFC 7469 section 2.4 over the key as re-encoded here. That equals the bytes in
the certificate for every key type that endpoints serve with; an RSASSA-PSS key differs.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from transport.errors import APIMisuse, TransportError

if TYPE_CHECKING:
    from transport.negotiated import NegotiatedSession

__all__ = [
    "Authorization",
    "AuthorizedPeer",
    "DNSRule",
    "IssuerRule",
    "PeerNotAuthorized",
    "Rule",
    "SPKIRule",
    "URIRule",
    "spki_pin",
]

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~!$&'()+,;=:@-]+")
_MIN_LABELS_BELOW_WILDCARD: Final = 2
_MAX_PATTERN_CHARACTERS: Final = 2048
_MAX_SHOWN_NAMES: Final = 4
_MAX_SHOWN_CHARACTERS: Final = 120


class PeerNotAuthorized(TransportError):
    """The peer's certificate is trusted, but no rule admits its bearer.

    `alert_sent` is None here: whoever holds the connection ends it, and fills in what it sent.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizedPeer:
    """Proof that a peer passed an `Authorization`, and the identity that it proved.

    `spki_pin` is the base64 SHA-256 of its SubjectPublicKeyInfo, `rules` those that it matched.
    """

    dns_names: tuple[str, ...]
    uris: tuple[str, ...]
    subject: x509.Name
    issuer: x509.Name
    spki_pin: str
    rules: tuple[Rule, ...]
    certificate: x509.Certificate = field(repr=False)


@dataclass(frozen=True, slots=True)
class DNSRule:
    """Admits a peer with a dNSName that the pattern matches. Raises `APIMisuse` for a bad one."""

    pattern: str

    def __post_init__(self) -> None:
        labels = self.pattern.split(".")
        below = labels[1:] if labels[0] == "*" else labels
        enough = labels[0] != "*" or len(below) >= _MIN_LABELS_BELOW_WILDCARD
        if not enough or not all(map(_LABEL.fullmatch, below)):
            raise _bad_pattern(self.pattern, "pass an A-label name such as *.example.com")

    def __str__(self) -> str:
        return f"DNS {self.pattern}"

    def matches_name(self, name: str) -> bool:
        """Return whether one presented dNSName matches."""
        expected, offered = self.pattern.lower().split("."), name.lower().split(".")
        if len(expected) != len(offered) or not all(map(_LABEL.fullmatch, offered)):
            return False
        return expected[1:] == offered[1:] and expected[0] in {"*", offered[0]}

    def matches(self, peer: AuthorizedPeer) -> bool:
        """Return whether any dNSName of the peer matches."""
        return any(map(self.matches_name, peer.dns_names))


@dataclass(frozen=True, slots=True)
class URIRule:
    """Admits a peer with a URI that the pattern matches. Raises `APIMisuse` for a bad one."""

    pattern: str

    def __post_init__(self) -> None:
        head, segments = _split_uri(self.pattern)
        advice = "pass a URI such as spiffe://example.org/ns/*/sa/web"
        if not self.pattern.isascii() or len(self.pattern) > _MAX_PATTERN_CHARACTERS or not head:
            raise _bad_pattern(self.pattern, advice)
        if "*" in head or any("*" in one and one != "*" for one in segments):
            raise _bad_pattern(self.pattern, advice)
        if "*" in segments and not all(one == "*" or _is_plain_segment(one) for one in segments):
            raise _bad_pattern(self.pattern, advice)

    def __str__(self) -> str:
        return f"URI {self.pattern}"

    def matches_name(self, name: str) -> bool:
        """Return whether one presented URI matches."""
        (head, expected), (offered_head, offered) = _split_uri(self.pattern), _split_uri(name)
        if head != offered_head or len(expected) != len(offered):
            return False
        if "*" not in expected:
            return expected == offered
        return all(map(_is_plain_segment, offered)) and all(
            one in {"*", other} for one, other in zip(expected, offered, strict=True)
        )

    def matches(self, peer: AuthorizedPeer) -> bool:
        """Return whether any URI of the peer matches."""
        return any(map(self.matches_name, peer.uris))


@dataclass(frozen=True, slots=True)
class IssuerRule:
    """Admits a peer whose certificate names exactly this issuer, byte for byte in DER.

    A name is only as good as the trust anchors: two authorities may bear the same one.
    """

    name: x509.Name

    def __str__(self) -> str:
        return f"issuer {self.name.rfc4514_string()}"

    def matches(self, peer: AuthorizedPeer) -> bool:
        """Return whether the peer's issuer is this one."""
        return self.name.public_bytes() == peer.issuer.public_bytes()


@dataclass(frozen=True, slots=True)
class SPKIRule:
    """Admits a peer with this key: base64 of 32 bytes of SHA-256. Raises `APIMisuse` for less."""

    pin: str

    def __post_init__(self) -> None:
        try:
            digest = base64.b64decode(self.pin, validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        # Encoding again refuses set padding bits, with which a right pin would match nothing.
        canonical = base64.b64encode(digest).decode("ascii")
        if len(digest) != sha256().digest_size or canonical != self.pin:
            raise _bad_pattern(self.pin, "pass base64 of the SHA-256 of the SubjectPublicKeyInfo")

    def __str__(self) -> str:
        return f"SPKI pin {self.pin}"

    def matches(self, peer: AuthorizedPeer) -> bool:
        """Return whether the peer's key has this pin."""
        return compare_digest(self.pin, peer.spki_pin)


Rule = DNSRule | URIRule | IssuerRule | SPKIRule


@dataclass(frozen=True, slots=True)
class Authorization:
    """Rules for peers: one of `any_of` (if there are any) and every one of `all_of` must match.

    Raises `APIMisuse` without a rule: it would admit everyone.
    """

    any_of: tuple[Rule, ...] = ()
    all_of: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if not self.any_of and not self.all_of:
            raise APIMisuse("an authorization has no rule", advice="pass any_of= or all_of=")

    def authorize(self, peer: NegotiatedSession | x509.Certificate) -> AuthorizedPeer:
        """Return the proof that the peer is wanted, or raise `PeerNotAuthorized`."""
        candidate = _read_peer(peer, self.any_of + self.all_of)
        for rule in self.all_of:
            if not rule.matches(candidate):
                raise _refusal(f"does not match {rule}", candidate)
        if self.any_of and not any(rule.matches(candidate) for rule in self.any_of):
            listed = _shown([str(rule) for rule in self.any_of])
            raise _refusal(f"matches none of {listed}", candidate)
        return candidate


def spki_pin(certificate: x509.Certificate) -> str:
    """Return base64 of the SHA-256 of the certificate's SubjectPublicKeyInfo (RFC 7469).

    Raises `ValueError` and cryptography's `UnsupportedAlgorithm` for a key it cannot read.
    """
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(sha256(key).digest()).decode("ascii")


def _read_peer(
    source: NegotiatedSession | x509.Certificate, rules: tuple[Rule, ...]
) -> AuthorizedPeer:
    try:
        if isinstance(source, x509.Certificate):
            certificate = source
        elif source.peer_certificate is None:
            raise PeerNotAuthorized(
                "the peer has no certificate, and rules say who may connect",
                advice="give the peer a certificate",
            )
        else:
            certificate = x509.load_der_x509_certificate(source.peer_certificate)
        dns_names, uris = _alternative_names(certificate)
        peer = AuthorizedPeer(
            dns_names=dns_names,
            uris=uris,
            subject=certificate.subject,
            issuer=certificate.issuer,
            spki_pin=spki_pin(certificate),
            rules=(),
            certificate=certificate,
        )
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise PeerNotAuthorized(
            "the peer's certificate cannot be read for its identity",
            advice="have it issued again within RFC 5280",
        ) from error
    return replace(peer, rules=tuple(rule for rule in rules if rule.matches(peer)))


def _alternative_names(
    certificate: x509.Certificate,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    return (
        tuple(names.get_values_for_type(x509.DNSName)),
        tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
    )


def _split_uri(uri: str) -> tuple[str, list[str]]:
    """Return scheme and authority in lower case, and the path's segments; no path is []."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri, []
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority}".lower(), path.split("/") if slash else []


def _is_plain_segment(segment: str) -> bool:
    return segment not in {".", ".."} and _SEGMENT.fullmatch(segment) is not None


def _bad_pattern(pattern: str, advice: str) -> APIMisuse:
    return APIMisuse(f"{pattern[:_MAX_SHOWN_CHARACTERS]!r} is not a usable rule", advice=advice)


def _shown(names: list[str]) -> str:
    """Return names in quotes, bounded in number and length: a peer chooses what is logged."""
    shown = ", ".join(repr(name[:_MAX_SHOWN_CHARACTERS]) for name in names[:_MAX_SHOWN_NAMES])
    more = len(names) - _MAX_SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown or "no names"


def _refusal(what: str, peer: AuthorizedPeer) -> PeerNotAuthorized:
    offered = _shown([*peer.dns_names, *peer.uris])
    issuer = repr(peer.issuer.rfc4514_string()[:_MAX_SHOWN_CHARACTERS])
    return PeerNotAuthorized(
        f"the peer {what}; it offers {offered}, issuer {issuer}, SPKI pin {peer.spki_pin}",
        advice="add a rule for it, or keep it out",
    )

"""Certificate profiles as data: what each kind of certificate says, and for how long (RFC 5280).

A profile decides everything that does not depend on whom the certificate is for. `build` joins it
with the names, keys and times of one case and returns what is to be signed. Nothing here reads a
clock or makes a choice at random: time and serial number are arguments.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.errors import IssuanceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.key_types import PublicKey

__all__ = [
    "BACKDATE",
    "ISSUING_CA",
    "MAX_SERIAL_BYTES",
    "PROFILES",
    "ROOT_CA",
    "TLS_CLIENT",
    "TLS_SERVER",
    "TLS_SERVER_KEY_TRANSPORT",
    "CertificateProfile",
    "IPAddress",
    "build",
    "common_name",
    "subject_alternative_names",
    "with_lifetime",
]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

BACKDATE = timedelta(minutes=5)  # so that a peer whose clock is a little behind accepts it already
MAX_SERIAL_BYTES = 20  # RFC 5280, 4.1.2.2
_MAX_COMMON_NAME = 64  # ub-common-name, RFC 5280 appendix A.1
_MAX_DNS_NAME = 253
_MAX_NAMES = 100
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_MAX_URI = 251  # what a principal may have (certs.keystore.access)
# No blanks, quotes or brackets, whole percent-encodings, and after // a host: RFC 3986.
_URI = re.compile(
    r"[a-z][a-z0-9+.-]*:(?!//[/?#])(?!//\Z)(?:[a-z0-9._~:/?#@!$&'()+,;=-]|%[0-9a-f]{2})+",
    re.ASCII | re.IGNORECASE,
)
_LIKE_AN_ADDRESS = re.compile(r"(?:^|\.)[0-9]+\Z|:", re.ASCII)
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """One kind of certificate. `path_length` bounds the CAs below a CA; None leaves it open."""

    name: str
    lifetime: timedelta
    key_usage: frozenset[str]
    extended_key_usage: tuple[x509.ObjectIdentifier, ...] = ()
    is_ca: bool = False
    path_length: int | None = None


# With digitalSignature, for the OCSP responses that they sign themselves (4.2.1.3).
_OF_AUTHORITIES = frozenset({"key_cert_sign", "crl_sign", "digital_signature"})

ROOT_CA = CertificateProfile(
    name="root-ca",
    lifetime=timedelta(days=3650),
    key_usage=_OF_AUTHORITIES,
    is_ca=True,
)
ISSUING_CA = CertificateProfile(
    name="issuing-ca",
    lifetime=timedelta(days=1825),
    key_usage=_OF_AUTHORITIES,
    is_ca=True,
    path_length=0,
)
TLS_SERVER = CertificateProfile(
    name="tls-server",
    lifetime=timedelta(days=90),
    key_usage=frozenset({"digital_signature"}),
    extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,),
)
# For controls only. Peers that honour keyUsage take static RSA key exchange only with this bit
# (RFC 5246, 7.4.2), and a forward-secret server has no use for it.
TLS_SERVER_KEY_TRANSPORT = CertificateProfile(
    name="tls-server-key-transport",
    lifetime=timedelta(days=90),
    key_usage=frozenset({"digital_signature", "key_encipherment"}),
    extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,),
)
TLS_CLIENT = CertificateProfile(
    name="tls-client",
    lifetime=timedelta(days=90),
    key_usage=frozenset({"digital_signature"}),
    extended_key_usage=(ExtendedKeyUsageOID.CLIENT_AUTH,),
)

PROFILES = {
    profile.name: profile
    for profile in (ROOT_CA, ISSUING_CA, TLS_SERVER, TLS_SERVER_KEY_TRANSPORT, TLS_CLIENT)
}

_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def build(
    profile: CertificateProfile,
    *,
    subject: x509.Name,
    public_key: PublicKey,
    issuer: x509.Certificate | None,
    serial: int,
    now: datetime,
    names: Sequence[x509.GeneralName] = (),
) -> x509.CertificateBuilder:
    """Return the certificate to be signed; `issuer` is None for a root, which signs itself.

    `now` is timezone-aware; the certificate is valid from `BACKDATE` before it until the end of the
    profile's lifetime, or of the issuer's own validity if that comes first. `serial` is positive
    and has at most 20 octets. Raises `IssuanceError` if the issuer may not issue this.
    """
    not_before, not_after = _validity(profile, issuer, now)
    if not 0 < serial < 1 << (8 * MAX_SERIAL_BYTES - 1):
        raise IssuanceError("a serial number is positive and has at most 20 octets")
    _require_may_issue(profile, issuer)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        # 4.2.1.9: critical in a CA; absent path length means no bound.
        .add_extension(x509.BasicConstraints(profile.is_ca, profile.path_length), critical=True)
        .add_extension(_key_usage(profile), critical=True)  # 4.2.1.3
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if issuer is not None:  # 4.2.1.1: may be left out where issuer and subject are one
        builder = builder.add_extension(_authority_key_identifier(issuer), critical=False)
    if profile.extended_key_usage:
        usages = x509.ExtendedKeyUsage(profile.extended_key_usage)
        builder = builder.add_extension(usages, critical=False)
    if names:  # 4.2.1.6: critical if the subject is empty
        alternatives = x509.SubjectAlternativeName(names)
        builder = builder.add_extension(alternatives, critical=not list(subject))
    return builder


def common_name(text: str) -> x509.Name:
    """Return a name of one CN attribute; `IssuanceError` unless 1 to 64 printable characters."""
    if not 1 <= len(text) <= _MAX_COMMON_NAME or not text.isprintable():
        raise IssuanceError(
            f"a common name has 1 to {_MAX_COMMON_NAME} printable characters; choose another"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def with_lifetime(profile: CertificateProfile, lifetime: timedelta | None) -> CertificateProfile:
    """Return the profile with a shorter lifetime; `IssuanceError` for one beyond its own."""
    if lifetime is None:
        return profile
    if not timedelta(0) < lifetime <= profile.lifetime:
        raise IssuanceError(
            f"a {profile.name} certificate lives {profile.lifetime.days} days at most; give fewer"
        )
    return replace(profile, lifetime=lifetime)


def subject_alternative_names(
    dns_names: Sequence[str],
    ip_addresses: Sequence[str | IPAddress],
    uris: Sequence[str] = (),
) -> tuple[x509.Name, tuple[x509.GeneralName, ...]]:
    """Return the subject and the alternative names of an end entity.

    The subject repeats the first name as its CN where it fits (64 characters), for people; peers
    read the alternative names. DNS names are in their A-label form, with ``*.`` at the front at
    most. URIs are absolute (RFC 5280, 4.2.1.6), of 251 characters at most. Raises `IssuanceError`
    for no name, more than 100, or a bad one.
    """
    if not 1 <= len(dns_names) + len(ip_addresses) + len(uris) <= _MAX_NAMES:
        raise IssuanceError(f"give 1 to {_MAX_NAMES} names in all")
    for uri in uris:
        if len(uri) > _MAX_URI or _URI.fullmatch(uri) is None:
            raise IssuanceError(
                f"{uri[:80]!a} is not an absolute URI of ASCII characters; write it as in "
                "spiffe://example.org/service"
            )
    for name in dns_names:
        if _LIKE_AN_ADDRESS.search(name) is not None:  # clients look for it among the addresses
            raise IssuanceError(
                f"{name[:80]!a} is no DNS name but like an IP address; give an address in "
                "ip_addresses"
            )
        if len(name) > _MAX_DNS_NAME or _DNS_NAME.fullmatch(name) is None:
            raise IssuanceError(
                f"{name[:80]!a} is not a DNS name; give ASCII labels (xn--… for others), "
                "'*.' only at the front"
            )
    addresses = [_address(address) for address in ip_addresses]
    names: list[x509.GeneralName] = [x509.DNSName(name.lower()) for name in dns_names]
    names += [x509.IPAddress(address) for address in addresses]
    names += [x509.UniformResourceIdentifier(uri) for uri in uris]
    first = str(names[0].value)
    subject = common_name(first) if len(first) <= _MAX_COMMON_NAME else x509.Name([])
    return subject, tuple(names)


def _address(text: str | IPAddress) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise IssuanceError(f"{str(text)[:80]!a} is not an IP address; give one") from None


def _validity(
    profile: CertificateProfile, issuer: x509.Certificate | None, now: datetime
) -> tuple[datetime, datetime]:
    if now.tzinfo is None:
        raise IssuanceError("the time of issuance has no time zone; give an aware datetime")
    now = now.astimezone(UTC).replace(microsecond=0)
    not_before, not_after = now - BACKDATE, now + profile.lifetime
    if issuer is not None:
        if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
            what = "make a new root" if issuer.subject == issuer.issuer else "renew it"
            raise IssuanceError(
                f"the issuer's certificate is valid from {issuer.not_valid_before_utc:%F %T} to "
                f"{issuer.not_valid_after_utc:%F %T}, not at {now:%F %T}; {what} first"
            )
        # A certificate that begins before, or outlives, its issuer fails at some peers.
        not_before = max(not_before, issuer.not_valid_before_utc)
        not_after = min(not_after, issuer.not_valid_after_utc)
    return not_before, not_after


def _require_may_issue(profile: CertificateProfile, issuer: x509.Certificate | None) -> None:
    if issuer is None:
        return
    constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not constraints.ca:
        raise IssuanceError("the issuer's certificate is not that of a CA")
    if (
        profile.is_ca
        and constraints.path_length is not None
        and (
            constraints.path_length == 0
            or profile.path_length is None
            or profile.path_length >= constraints.path_length
        )
    ):
        raise IssuanceError(
            f"the issuer's path length is {constraints.path_length}, so it may not issue a CA of "
            f"path length {profile.path_length}; issue it from the root"
        )


def _key_usage(profile: CertificateProfile) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in profile.key_usage for usage in _KEY_USAGES})


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)

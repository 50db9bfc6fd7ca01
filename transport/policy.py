"""Dated, immutable security policies, as data.

A policy's name never changes meaning: `2026-11` admits today what it will admit in ten years, and
a golden text per name (``tests/snapshots/policies``) turns any change into a visible diff. What
moves is `DEFAULT_POLICY`.

What may appear in a policy at all is a closed table (`SUITES`, `GROUPS`, `SIGNATURE_SCHEMES`).
Only ephemeral elliptic-curve and hybrid post-quantum key exchange with authenticated encryption is
in it, so a policy that would admit a session without forward secrecy cannot be constructed, not
even by mistake: there is no name for it. The tables carry IANA names and code points; what a TLS
library calls these things is `transport.context`'s affair.

`SecurityPolicy.narrowed` takes things away from a policy and can add nothing, so that a caller who
needs, say, TLS 1.3 alone never writes a policy of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from transport.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "DEFAULT_POLICY",
    "GROUPS",
    "MAX_SESSION_LIFETIME_SECONDS",
    "SIGNATURE_SCHEMES",
    "SUITES",
    "Group",
    "ProtocolVersion",
    "Resumption",
    "SecurityPolicy",
    "Suite",
    "get_policy",
    "policy_names",
]


class ProtocolVersion(StrEnum):
    """The versions that a policy can name; a plain string of the same spelling is accepted too."""

    TLS_1_2 = "TLS 1.2"
    TLS_1_3 = "TLS 1.3"


class Resumption(StrEnum):
    """How sessions resume: not at all, or on TLS 1.3 with a fresh key exchange each time."""

    OFF = "off"
    PSK_DHE_KE = "psk_dhe_ke"


class Suite(NamedTuple):
    """An admissible suite: its IANA code point and the one version that it belongs to."""

    code_point: int
    version: ProtocolVersion


class Group(NamedTuple):
    """An admissible group: its IANA code point and the versions that can negotiate it."""

    code_point: int
    versions: frozenset[ProtocolVersion]


_TLS_1_2 = ProtocolVersion.TLS_1_2
_TLS_1_3 = ProtocolVersion.TLS_1_3
_BOTH = frozenset({_TLS_1_2, _TLS_1_3})
_ONLY_1_3 = frozenset({_TLS_1_3})

# Each is ECDHE (TLS 1.3 knows no other key exchange once its groups are right) with an AEAD.
SUITES: Mapping[str, Suite] = {
    "TLS_AES_128_GCM_SHA256": Suite(0x1301, _TLS_1_3),
    "TLS_AES_256_GCM_SHA384": Suite(0x1302, _TLS_1_3),
    "TLS_CHACHA20_POLY1305_SHA256": Suite(0x1303, _TLS_1_3),
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": Suite(0xC02B, _TLS_1_2),
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": Suite(0xC02C, _TLS_1_2),
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": Suite(0xC02F, _TLS_1_2),
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": Suite(0xC030, _TLS_1_2),
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": Suite(0xCCA8, _TLS_1_2),
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": Suite(0xCCA9, _TLS_1_2),
}

# The hybrids are defined for TLS 1.3 alone (RFC 9846 key_share; draft-ietf-tls-ecdhe-mlkem).
GROUPS: Mapping[str, Group] = {
    "X25519MLKEM768": Group(0x11EC, _ONLY_1_3),
    "SecP256r1MLKEM768": Group(0x11EB, _ONLY_1_3),
    "SecP384r1MLKEM1024": Group(0x11ED, _ONLY_1_3),
    "x25519": Group(0x001D, _BOTH),
    "secp256r1": Group(0x0017, _BOTH),
    "secp384r1": Group(0x0018, _BOTH),
}

# The rsa_pkcs1 schemes sign certificates on both versions, and handshakes on TLS 1.2 alone
# (RFC 9846 section 4.3.3).
SIGNATURE_SCHEMES: Mapping[str, int] = {
    "ecdsa_secp256r1_sha256": 0x0403,
    "ecdsa_secp384r1_sha384": 0x0503,
    "ed25519": 0x0807,
    "rsa_pss_rsae_sha256": 0x0804,
    "rsa_pss_rsae_sha384": 0x0805,
    "rsa_pss_rsae_sha512": 0x0806,
    "rsa_pss_pss_sha256": 0x0809,
    "rsa_pss_pss_sha384": 0x080A,
    "rsa_pss_pss_sha512": 0x080B,
    "rsa_pkcs1_sha256": 0x0401,
    "rsa_pkcs1_sha384": 0x0501,
    "rsa_pkcs1_sha512": 0x0601,
}

MAX_SESSION_LIFETIME_SECONDS = 7 * 24 * 3600  # RFC 9846 section 4.7.1

_LEAST_RSA_KEY_BITS = 2048
_LEAST_EC_KEY_BITS = 256

# Why a name that people do use is not in a table above: the first part of it that matches.
_REFUSED_SUITES = (
    ("TLS_RSA_", "static RSA key exchange has no forward secrecy"),
    ("TLS_ECDH_", "static ECDH key exchange has no forward secrecy"),
    ("TLS_DH_", "static or anonymous DH key exchange has no forward secrecy"),
    ("TLS_PSK_", "plain PSK key exchange has no forward secrecy"),
    ("TLS_DHE_", "finite-field DHE is not admitted, only ECDHE and its hybrids"),
    ("_CBC_", "CBC is not authenticated encryption (AEAD)"),
    ("_RC4_", "RC4 is not authenticated encryption (AEAD)"),
    ("_NULL_", "NULL does not encrypt"),
)
_REFUSED_GROUPS = (("ffdhe", "finite-field DHE is not admitted, only ECDHE and its hybrids"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityPolicy:
    """What an endpoint may negotiate; most preferred first in every tuple.

    `purpose` says in a sentence whom it is for. `require_extended_main_secret` is about TLS 1.2
    (RFC 7627); TLS 1.3 always binds its keys to the transcript. `minimum_rsa_key_bits` and
    `minimum_ec_key_bits` (Ed25519 counts as 256) hold for our own key and for the peer's.
    `session_lifetime_seconds`, 1 to 604800, is how long after its full handshake a session may be
    resumed, where the policy resumes at all. Construction raises `PolicyError` for any name outside
    this module's tables and for a version left without a suite or a group.
    """

    name: str
    purpose: str = ""
    versions: tuple[ProtocolVersion, ...]
    suites: tuple[str, ...]
    groups: tuple[str, ...]
    signature_schemes: tuple[str, ...]
    resumption: Resumption = Resumption.OFF
    session_lifetime_seconds: int = 3600
    require_extended_main_secret: bool = True
    minimum_rsa_key_bits: int = _LEAST_RSA_KEY_BITS
    minimum_ec_key_bits: int = _LEAST_EC_KEY_BITS

    def __post_init__(self) -> None:
        _require_known("version", self.versions, set(ProtocolVersion), ())
        _require_known("suite", self.suites, SUITES, _REFUSED_SUITES)
        _require_known("group", self.groups, GROUPS, _REFUSED_GROUPS)
        _require_known("signature scheme", self.signature_schemes, SIGNATURE_SCHEMES, ())
        _require_known("resumption", (self.resumption,), set(Resumption), ())
        # A frozen dataclass is written once, here: plain strings become the enumeration's members.
        object.__setattr__(self, "versions", tuple(ProtocolVersion(v) for v in self.versions))
        object.__setattr__(self, "resumption", Resumption(self.resumption))
        for kind, bits, least in (
            ("RSA", self.minimum_rsa_key_bits, _LEAST_RSA_KEY_BITS),
            ("EC", self.minimum_ec_key_bits, _LEAST_EC_KEY_BITS),
        ):
            if bits < least:
                raise PolicyError(
                    f"policy {self.name!r} would admit {kind} keys of {bits} bits",
                    advice=f"ask for {least} or more",
                )
        if not 1 <= self.session_lifetime_seconds <= MAX_SESSION_LIFETIME_SECONDS:
            raise PolicyError(
                f"policy {self.name!r} would resume for {self.session_lifetime_seconds} seconds",
                advice=f"choose 1 to {MAX_SESSION_LIFETIME_SECONDS}",
            )
        if self.resumption is not Resumption.OFF and self.versions != (_TLS_1_3,):
            # The library's cache serves session ids of TLS 1.2 as well, and those resume without
            # a key exchange: no call that the binding has tells the versions apart.
            raise PolicyError(
                f"policy {self.name!r} would resume sessions, and not on TLS 1.3 alone",
                advice="narrow it to TLS 1.3, or leave resumption off",
            )
        for version in self.versions:
            if not self.suites_for(version):
                raise PolicyError(
                    f"policy {self.name!r} admits {version} but no suite of it",
                    advice=f"add a suite, or leave {version} out of its versions",
                )
            if not self.groups_for(version):
                raise PolicyError(
                    f"policy {self.name!r} admits {version} but no group that it can negotiate",
                    advice=f"add a group, or leave {version} out of its versions",
                )
        for suite in self.suites:
            if SUITES[suite].version not in self.versions:
                raise PolicyError(
                    f"policy {self.name!r} names {suite}, which none of its versions can negotiate",
                    advice="leave the suite out",
                )

    def suites_for(self, version: ProtocolVersion) -> tuple[str, ...]:
        """Return the policy's suites that `version` can negotiate, most preferred first."""
        return tuple(suite for suite in self.suites if SUITES[suite].version == version)

    def groups_for(self, version: ProtocolVersion) -> tuple[str, ...]:
        """Return the policy's groups that `version` can negotiate, most preferred first."""
        return tuple(group for group in self.groups if version in GROUPS[group].versions)

    def narrowed(
        self,
        *,
        versions: Iterable[str] | None = None,
        suites: Iterable[str] | None = None,
        groups: Iterable[str] | None = None,
    ) -> SecurityPolicy:
        """Return this policy with fewer versions, suites or groups, in this policy's order.

        Suites and groups that no remaining version can negotiate go with their version. Raises
        `PolicyError` for a name that this policy does not have, and where nothing would be left.
        A TLS 1.2 server with a certificate on P-256 needs secp256r1 to stay among the groups,
        whatever group its key exchange uses (RFC 8422 section 5.1).
        """
        kept_versions = self._keep("version", self.versions, versions)
        kept_suites = self._keep("suite", self.suites, suites)
        kept_groups = self._keep("group", self.groups, groups)
        kept = set(kept_versions)
        changes = (*(versions or ()), *(suites or ()), *(groups or ()))
        return replace(
            self,
            name=f"{self.name} narrowed to {', '.join(changes)}" if changes else self.name,
            versions=tuple(ProtocolVersion(version) for version in kept_versions),
            suites=tuple(suite for suite in kept_suites if SUITES[suite].version in kept),
            groups=tuple(group for group in kept_groups if GROUPS[group].versions & kept),
        )

    def describe(self) -> str:
        """Return the policy's golden text: one fact a line, ending in a newline."""
        lines = [f"policy {self.name}"]
        if self.purpose:
            lines.append(f"purpose {self.purpose}")
        for version in self.versions:
            lines.append(f"version {version}")
            lines += [f"  suite {suite}" for suite in self.suites_for(version)]
            lines += [f"  group {group}" for group in self.groups_for(version)]
        lines += [f"signature scheme {scheme}" for scheme in self.signature_schemes]
        lines.append(f"resumption {self.resumption}")
        if self.resumption is not Resumption.OFF:
            lines.append(f"session lifetime seconds {self.session_lifetime_seconds}")
        required = "required" if self.require_extended_main_secret else "optional"
        lines.append(f"extended main secret {required}")
        lines.append(f"minimum RSA key bits {self.minimum_rsa_key_bits}")
        lines.append(f"minimum EC key bits {self.minimum_ec_key_bits}")
        return "\n".join(lines) + "\n"

    def _keep(
        self, what: str, have: tuple[str, ...], wanted: Iterable[str] | None
    ) -> tuple[str, ...]:
        if wanted is None:
            return have
        if isinstance(wanted, str):
            raise PolicyError(
                f"{what}s were given as one string {wanted!r}", advice="pass a tuple of names"
            )
        names = set(wanted)
        if missing := sorted(names.difference(have)):
            raise PolicyError(
                f"policy {self.name!r} has no {what} {missing[0]!r} to narrow to",
                advice=f"choose from {', '.join(have)}",
            )
        return tuple(name for name in have if name in names)


def _require_known(
    what: str,
    names: tuple[str, ...],
    table: Iterable[str],
    refusals: tuple[tuple[str, str], ...],
) -> None:
    admissible = tuple(table)
    if not names:
        raise PolicyError(f"a policy needs at least one {what}", advice="name one")
    if len(set(names)) != len(names):
        raise PolicyError(f"a {what} is named twice", advice="name each one once")
    for name in names:
        if name not in admissible:
            reason = next((why for part, why in refusals if part in name), f"unknown {what}")
            raise PolicyError(
                f"{what} {name!r} cannot be part of a policy: {reason}",
                advice=f"choose from {', '.join(admissible)}",
            )


_SUITES_1_3 = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)
_GCM_SUITES_1_2 = (
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
)
_CHACHA20_SUITES_1_2 = (
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
)
_ECDSA = ("ecdsa_secp256r1_sha256", "ecdsa_secp384r1_sha384")
_RSA = tuple(scheme for scheme in SIGNATURE_SCHEMES if scheme.startswith("rsa_"))

_POLICIES: Mapping[str, SecurityPolicy] = {
    policy.name: policy
    for policy in (
        SecurityPolicy(
            name="2026-11",
            purpose="for general use: TLS 1.3 and 1.2, hybrid post-quantum first",
            versions=(_TLS_1_3, _TLS_1_2),
            suites=_SUITES_1_3 + _GCM_SUITES_1_2 + _CHACHA20_SUITES_1_2,
            groups=("X25519MLKEM768", "x25519", "secp256r1", "secp384r1"),
            signature_schemes=(*_ECDSA, "ed25519", *_RSA),
        ),
        SecurityPolicy(
            name="2026-11-tls13",
            purpose="for peers that all know TLS 1.3: nothing of TLS 1.2",
            versions=(_TLS_1_3,),
            suites=_SUITES_1_3,
            groups=("X25519MLKEM768", "x25519", "secp256r1", "secp384r1"),
            signature_schemes=(*_ECDSA, "ed25519", *_RSA),
        ),
        SecurityPolicy(
            name="2026-11-tls13-resumption",
            purpose="2026-11-tls13 with resumption: saves the certificates, not the key exchange",
            versions=(_TLS_1_3,),
            suites=_SUITES_1_3,
            groups=("X25519MLKEM768", "x25519", "secp256r1", "secp384r1"),
            signature_schemes=(*_ECDSA, "ed25519", *_RSA),
            resumption=Resumption.PSK_DHE_KE,
        ),
        SecurityPolicy(
            name="2026-11-pq",
            purpose="post-quantum key exchange required: hybrid groups and no others",
            versions=(_TLS_1_3,),
            suites=_SUITES_1_3,
            groups=("X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024"),
            signature_schemes=(*_ECDSA, "ed25519", *_RSA),
        ),
        # Sections 3.3.1 and 3.1: AES-GCM suites with ephemeral keys, curves P-256 and P-384,
        # signatures by ECDSA and RSA of 2048 bits or more, and TLS 1.3 supported. The document
        # predates ML-KEM's standard (FIPS 203), and approves neither ChaCha20 nor x25519.
        SecurityPolicy(
            name="2026-11-nist-sp800-52r2",
            purpose="satisfies NIST SP 800-52 revision 2",
            versions=(_TLS_1_3, _TLS_1_2),
            suites=("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", *_GCM_SUITES_1_2),
            groups=("secp256r1", "secp384r1"),
            signature_schemes=(*_ECDSA, *_RSA),
        ),
        # The configuration "modern": TLS 1.3, its three suites, and certificates with ECDSA on
        # P-256 or P-384.
        SecurityPolicy(
            name="2026-11-mozilla-modern",
            purpose="satisfies Mozilla's server-side TLS configuration 'modern'",
            versions=(_TLS_1_3,),
            suites=_SUITES_1_3,
            groups=("X25519MLKEM768", "x25519", "secp256r1", "secp384r1"),
            signature_schemes=_ECDSA,
        ),
        # AES-256 with SHA-384, and ML-KEM-1024 in the hybrid with P-384. The suite asks for
        # ML-DSA-87 signatures too, which certificates of this toolkit cannot have yet: ECDSA on
        # P-384, of its predecessor, stands in for them.
        SecurityPolicy(
            name="2026-11-cnsa2",
            purpose="CNSA 2.0 as far as the stack goes: its key exchange and its suite; "
            "signatures still by ECDSA P-384",
            versions=(_TLS_1_3,),
            suites=("TLS_AES_256_GCM_SHA384",),
            groups=("SecP384r1MLKEM1024",),
            signature_schemes=("ecdsa_secp384r1_sha384",),
            minimum_rsa_key_bits=3072,
            minimum_ec_key_bits=384,
        ),
    )
}

DEFAULT_POLICY = _POLICIES["2026-11"]


def policy_names() -> tuple[str, ...]:
    """Return the names of the dated policies, oldest first."""
    return tuple(_POLICIES)


def get_policy(name: str) -> SecurityPolicy:
    """Return the policy of that name; `default` is the current one. Raises `PolicyError`."""
    if name == "default":
        return DEFAULT_POLICY
    try:
        return _POLICIES[name]
    except KeyError:
        raise PolicyError(
            f"there is no policy {name!r}",
            advice=f"choose from default, {', '.join(_POLICIES)}",
        ) from None

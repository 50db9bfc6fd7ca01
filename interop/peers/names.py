"""One name for each suite and group, however a library spells it.

Everything in this project says suites and groups as IANA does. The programs here say them as their
libraries do: OpenSSL before 3.2 knows only its own suite names, and GnuTLS composes a priority
string from key exchange, bulk encryption and MAC. The tables below are the whole translation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from interop.errors import InputError, PeerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from interop.peers.programs import Program

__all__ = [
    "GROUPS",
    "STATIC_RSA_SUITE",
    "SUITES",
    "Group",
    "Suite",
    "TLSVersion",
    "gnutls_priority",
    "group_from_openssl",
    "openssl_groups",
    "openssl_suites",
    "suite_from_openssl",
    "supported_groups",
    "supports_group",
    "version_from_openssl",
]

TLSVersion = Literal["1.0", "1.1", "1.2", "1.3"]

STATIC_RSA_SUITE: Final = "TLS_RSA_WITH_AES_128_GCM_SHA256"


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: its IANA name, OpenSSL's name, and GnuTLS's three parts (no key exchange in 1.3)."""

    name: str
    openssl: str
    gnutls_key_exchange: str
    gnutls_cipher: str
    gnutls_mac: str = "AEAD"

    @property
    def is_tls13(self) -> bool:
        """Say whether the suite is one of TLS 1.3, which libraries configure apart."""
        return not self.gnutls_key_exchange


@dataclass(frozen=True, slots=True)
class Group:
    """A group: its IANA name, OpenSSL's and GnuTLS's, and the OpenSSL that first knew it."""

    name: str
    openssl: str
    gnutls: str
    first_openssl: tuple[int, ...] = (1, 1, 1)


SUITES: Final[dict[str, Suite]] = {
    suite.name: suite
    for suite in (
        Suite("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256", "", "AES-128-GCM"),
        Suite("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384", "", "AES-256-GCM"),
        Suite(
            "TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "", "CHACHA20-POLY1305"
        ),
        Suite("TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_SHA256", "", "AES-128-CCM"),
        Suite(
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA",
            "AES-128-GCM",
        ),
        Suite(
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA",
            "AES-256-GCM",
        ),
        Suite(
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            "ECDHE-ECDSA",
            "CHACHA20-POLY1305",
        ),
        Suite(
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-RSA",
            "AES-128-GCM",
        ),
        Suite(
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-RSA",
            "AES-256-GCM",
        ),
        Suite(
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            "ECDHE-RSA-CHACHA20-POLY1305",
            "ECDHE-RSA",
            "CHACHA20-POLY1305",
        ),
        Suite(
            "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
            "ECDHE-RSA-AES128-SHA",
            "ECDHE-RSA",
            "AES-128-CBC",
            "SHA1",
        ),
        Suite(
            "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
            "DHE-RSA-AES128-GCM-SHA256",
            "DHE-RSA",
            "AES-128-GCM",
        ),
        Suite(
            "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            "DHE-RSA-CHACHA20-POLY1305",
            "DHE-RSA",
            "CHACHA20-POLY1305",
        ),
        Suite(STATIC_RSA_SUITE, "AES128-GCM-SHA256", "RSA", "AES-128-GCM"),
        Suite("TLS_RSA_WITH_AES_256_GCM_SHA384", "AES256-GCM-SHA384", "RSA", "AES-256-GCM"),
        Suite("TLS_PSK_WITH_AES_128_GCM_SHA256", "PSK-AES128-GCM-SHA256", "PSK", "AES-128-GCM"),
        Suite("TLS_RSA_WITH_AES_256_CCM_8", "AES256-CCM8", "RSA", "AES-256-CCM-8"),
        Suite("TLS_RSA_WITH_AES_128_CBC_SHA", "AES128-SHA", "RSA", "AES-128-CBC", "SHA1"),
        Suite("TLS_RSA_WITH_AES_256_CBC_SHA256", "AES256-SHA256", "RSA", "AES-256-CBC", "SHA256"),
    )
}

GROUPS: Final[dict[str, Group]] = {
    group.name: group
    for group in (
        Group("x25519", "X25519", "GROUP-X25519"),
        Group("x448", "X448", "GROUP-X448"),
        Group("secp256r1", "P-256", "GROUP-SECP256R1"),
        Group("secp384r1", "P-384", "GROUP-SECP384R1"),
        Group("secp521r1", "P-521", "GROUP-SECP521R1"),
        Group("ffdhe2048", "ffdhe2048", "GROUP-FFDHE2048", (3, 0)),
        Group("ffdhe3072", "ffdhe3072", "GROUP-FFDHE3072", (3, 0)),
        Group("X25519MLKEM768", "X25519MLKEM768", "GROUP-X25519-MLKEM768", (3, 5)),
        Group("SecP256r1MLKEM768", "SecP256r1MLKEM768", "GROUP-SECP256R1-MLKEM768", (3, 5)),
        Group("SecP384r1MLKEM1024", "SecP384r1MLKEM1024", "GROUP-SECP384R1-MLKEM1024", (3, 5)),
    )
}

# What OpenSSL prints for a group is not always what it reads.
_PRINTED_BY_OPENSSL: Final = {
    "prime256v1": "secp256r1",
    "secp384r1": "secp384r1",
    "secp521r1": "secp521r1",
} | {group.openssl: group.name for group in GROUPS.values()}
_SUITE_BY_OPENSSL: Final = {suite.openssl: suite.name for suite in SUITES.values()}


def suite_from_openssl(name: str) -> str:
    """Give the IANA name of a suite that OpenSSL printed, or what it printed if unknown here."""
    return _SUITE_BY_OPENSSL.get(name, name)


def group_from_openssl(name: str) -> str:
    """Give the IANA name of a group that OpenSSL printed, or what it printed if unknown here."""
    return _PRINTED_BY_OPENSSL.get(name, name)


def version_from_openssl(name: str) -> str:
    """Give the version that OpenSSL printed as ``TLSv1.3``, where TLS 1.0 is ``TLSv1``."""
    number = name.removeprefix("TLSv")
    return "1.0" if number == "1" else number


def _suite(name: str) -> Suite:
    if name not in SUITES:
        raise InputError(f"the peers do not know the suite {name!r}; known: {', '.join(SUITES)}")
    return SUITES[name]


def _group(name: str) -> Group:
    if name not in GROUPS:
        raise InputError(f"the peers do not know the group {name!r}; known: {', '.join(GROUPS)}")
    return GROUPS[name]


def supports_group(program: Program, name: str) -> bool:
    """Say whether `program` can negotiate group `name`, judged by the OpenSSL it runs with."""
    return program.openssl_version >= _group(name).first_openssl


def supported_groups(program: Program) -> tuple[str, ...]:
    """List the groups that `program` can negotiate, judged by the OpenSSL it runs with."""
    return tuple(name for name in GROUPS if supports_group(program, name))


def openssl_groups(program: Program, names: Iterable[str]) -> str:
    """Spell a group list for a program that runs with OpenSSL.

    Raises PeerUnavailable if its OpenSSL is too old for one, InputError for an unknown name.
    """
    wanted = [_group(name) for name in names]
    for group in wanted:
        if program.openssl_version < group.first_openssl:
            first = ".".join(str(part) for part in group.first_openssl)
            has = ".".join(str(part) for part in program.openssl_version) or "another library"
            raise PeerUnavailable(
                f"{program.name} cannot negotiate {group.name}: that needs OpenSSL {first}, "
                f"it runs with {has}"
            )
    return ":".join(group.openssl for group in wanted)


def openssl_suites(
    names: Iterable[str], versions: Iterable[TLSVersion] | None = None
) -> tuple[str, str]:
    """Spell suites for OpenSSL: the list for TLS 1.2 and older, and the list for TLS 1.3.

    An empty string means that none was named of that kind. TLS 1.0 and 1.1 sign with SHA-1, which
    OpenSSL 3 allows only at security level 0; the level is lowered when one of them is asked for.
    """
    wanted = [_suite(name) for name in names]
    older = ":".join(suite.openssl for suite in wanted if not suite.is_tls13)
    if {"1.0", "1.1"} & set(versions or ()):
        older = (older or "DEFAULT") + ":@SECLEVEL=0"
    return older, ":".join(suite.openssl for suite in wanted if suite.is_tls13)


def gnutls_priority(
    versions: Sequence[TLSVersion],
    *,
    groups: Iterable[str] | None = None,
    suites: Iterable[str] | None = None,
) -> str:
    """Compose a GnuTLS priority string that allows what is named and nothing else.

    Without `suites` the choice is GnuTLS's own. It multiplies key exchanges, ciphers and MACs:
    raises InputError if that product would hold a suite of the table that was not named.
    """
    parts = [f"+VERS-TLS{version}" for version in versions]
    if groups is not None:
        parts += ["-GROUP-ALL", *(f"+{_group(name).gnutls}" for name in groups)]
    if suites is None:
        return ":".join(["NORMAL", "-VERS-ALL", *parts])
    wanted = [_suite(name) for name in suites]
    exchanges = _unique(suite.gnutls_key_exchange for suite in wanted)
    ciphers = _unique(suite.gnutls_cipher for suite in wanted)
    macs = _unique(suite.gnutls_mac for suite in wanted)
    for suite in SUITES.values():
        version_fits = ("1.3" in versions) if suite.is_tls13 else bool(set(versions) - {"1.3"})
        allowed = (
            (suite.is_tls13 or suite.gnutls_key_exchange in exchanges)
            and suite.gnutls_cipher in ciphers
            and suite.gnutls_mac in macs
        )
        if version_fits and allowed and suite not in wanted:
            asked = ", ".join(suite.name for suite in wanted)
            raise InputError(
                f"a GnuTLS priority string for these versions cannot allow {asked} "
                f"without {suite.name}"
            )
    parts += [f"+{part}" for part in (*filter(None, exchanges), *ciphers, *macs)]
    return ":".join(["NORMAL", "-VERS-ALL", "-KX-ALL", "-CIPHER-ALL", "-MAC-ALL", *parts])


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))

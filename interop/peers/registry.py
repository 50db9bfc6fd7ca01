"""Which foreign programs the tests meet, as data.

One row a program: how it is called, which package brings it, how its version is read, what it can
be used for. `python -m interop.peers` prints the rows beside what is installed, and the test
command installs the packages named here, so a peer added to `PEERS` is found, listed, installed
and reported missing without another line of code.

Programs that speak no TLS of ours but that tests need (recorders, the second opinion, the browser)
are rows too, with the role `Role.TOOL`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["PEERS", "Peer", "Role", "package_for", "peer_named"]


class Role(enum.Enum):
    """What a program is used for."""

    CLIENT = "client"
    SERVER = "server"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One foreign program: how to find it, install it, and what to expect of it.

    `version_pattern` has one group, digits with dots. `openssl_pattern`, where the program is
    linked to OpenSSL, finds that library's version in the same text: groups such as
    X25519MLKEM768 come with the library, not with the program. `key_log` says how it gives up its
    session secrets, empty where it does not.
    """

    name: str
    executables: tuple[str, ...]
    debian_package: str
    ubuntu_package: str = ""
    roles: frozenset[Role]
    version_arguments: tuple[str, ...] = ("--version",)
    version_pattern: str
    openssl_pattern: str = ""
    minimum_version: tuple[int, ...] = ()
    tls_versions: tuple[str, ...] = ()
    key_log: str = ""


_ALL_VERSIONS = ("1.0", "1.1", "1.2", "1.3")

PEERS: tuple[Peer, ...] = (
    Peer(
        name="openssl",
        executables=("openssl",),
        debian_package="openssl",
        roles=frozenset({Role.CLIENT, Role.SERVER}),
        version_arguments=("version",),
        version_pattern=r"^OpenSSL (\d+(?:\.\d+)+)",
        openssl_pattern=r"^OpenSSL (\d+(?:\.\d+)+)",
        minimum_version=(3, 0),  # the first with -nocommands
        tls_versions=_ALL_VERSIONS,
        key_log="-keylogfile",
    ),
    Peer(
        name="curl",
        executables=("curl",),
        debian_package="curl",
        roles=frozenset({Role.CLIENT}),
        version_pattern=r"^curl (\d+(?:\.\d+)+)",
        openssl_pattern=r"\bOpenSSL/(\d+(?:\.\d+)+)",
        minimum_version=(7, 73),  # the first with --curves
        tls_versions=_ALL_VERSIONS,
        key_log="SSLKEYLOGFILE",
    ),
    Peer(
        name="nginx",
        executables=("nginx",),
        debian_package="nginx",
        roles=frozenset({Role.SERVER}),
        version_arguments=("-V",),
        version_pattern=r"nginx version: nginx/(\d+(?:\.\d+)+)",
        openssl_pattern=r"(?:running|built) with OpenSSL (\d+(?:\.\d+)+)",
        minimum_version=(1, 19, 5),  # the first with -e and ssl_conf_command
        tls_versions=_ALL_VERSIONS,
    ),
    Peer(
        name="gnutls-serv",
        executables=("gnutls-serv",),
        debian_package="gnutls-bin",
        roles=frozenset({Role.SERVER}),
        version_pattern=r"^gnutls-serv (\d+(?:\.\d+)+)",
        minimum_version=(3, 7),  # the first with --httpdata
        tls_versions=_ALL_VERSIONS,
        key_log="SSLKEYLOGFILE",
    ),
    Peer(
        name="haproxy",
        executables=("haproxy",),
        debian_package="haproxy",
        roles=frozenset({Role.SERVER}),
        version_arguments=("-vv",),
        version_pattern=r"^HAProxy version (\d+(?:\.\d+)+)",
        openssl_pattern=r"Running on OpenSSL version : OpenSSL (\d+(?:\.\d+)+)",
        minimum_version=(2, 5),  # the first that says when it is ready
        tls_versions=("1.2", "1.3"),
    ),
    Peer(
        name="go",
        executables=("go",),
        debian_package="golang-go",
        roles=frozenset({Role.SERVER}),
        version_arguments=("version",),
        version_pattern=r"^go version go(\d+(?:\.\d+)+)",
        minimum_version=(1, 18),  # the first with type parameters
        tls_versions=("1.2", "1.3"),
        key_log="KeyLogWriter",
    ),
    Peer(
        name="tshark",
        executables=("tshark",),
        debian_package="tshark",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^TShark \(Wireshark\) (\d+(?:\.\d+)+)",
        minimum_version=(4, 0),
        tls_versions=_ALL_VERSIONS,
    ),
    Peer(
        name="tcpdump",
        executables=("tcpdump",),
        debian_package="tcpdump",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^tcpdump version (\d+(?:\.\d+)+)",
    ),
    Peer(
        name="chromium",
        executables=("chromium", "chromium-browser"),
        debian_package="chromium",
        ubuntu_package="chromium-browser",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^Chromium (\d+(?:\.\d+)+)",
    ),
    Peer(
        name="chromedriver",
        executables=("chromedriver",),
        debian_package="chromium-driver",
        ubuntu_package="chromium-chromedriver",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^ChromeDriver (\d+(?:\.\d+)+)",
    ),
    Peer(
        name="faketime",
        executables=("faketime",),
        debian_package="faketime",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"faketime: Version (\d+(?:\.\d+)+)",
    ),
    Peer(
        name="postgresql",
        executables=("postgres",),
        debian_package="postgresql",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^postgres \(PostgreSQL\) (\d+(?:\.\d+)+)",
        minimum_version=(13,),
    ),
    Peer(
        name="psql",
        executables=("psql",),
        debian_package="postgresql-client",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^psql \(PostgreSQL\) (\d+(?:\.\d+)+)",
    ),
    Peer(
        name="softhsm2",
        executables=("softhsm2-util",),
        debian_package="softhsm2",
        roles=frozenset({Role.TOOL}),
        version_pattern=r"^(\d+(?:\.\d+)+)",
    ),
)

_BY_NAME = {peer.name: peer for peer in PEERS}


def peer_named(name: str) -> Peer:
    """Give the row of `name`; KeyError if there is none, which is a mistake of the caller."""
    return _BY_NAME[name]


def package_for(peer: Peer, distribution: str) -> str:
    """Name the package that brings `peer` on `distribution` (the ID of os-release)."""
    if distribution == "ubuntu" and peer.ubuntu_package:
        return peer.ubuntu_package
    return peer.debian_package

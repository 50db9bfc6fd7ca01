"""Finding foreign programs, and knowing whether the one found is new enough.

`find_program` is asked before every use; what a program says of itself is read once a path.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interop.errors import PeerUnavailable
from interop.peers.processes import run_to_completion
from interop.peers.registry import PEERS, Peer, package_for, peer_named

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "PeerStatus",
    "Program",
    "distribution",
    "find_program",
    "format_version",
    "packages",
    "survey",
]

# Debian puts servers where an ordinary user's PATH does not look, PostgreSQL's by version.
_SYSTEM_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_BY_VERSION: Final = Path("/usr/lib/postgresql")
_VERSION_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An installed program: where it is, and what it says it is.

    `openssl_version` is that of the OpenSSL it runs with, empty for other libraries.
    """

    name: str
    path: Path
    version: tuple[int, ...]
    version_text: str
    openssl_version: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One row of the registry beside what is installed: exactly one of the last two is set."""

    peer: Peer
    program: Program | None
    problem: str


def format_version(version: tuple[int, ...]) -> str:
    """Write a version with dots."""
    return ".".join(str(part) for part in version)


def distribution(os_release: Path = Path("/etc/os-release")) -> str:
    """Name this system as os-release does (``debian``, ``ubuntu``); empty if it does not say."""
    try:
        text = os_release.read_text("utf-8")
    except OSError:
        return ""
    match = re.search(r"^ID=\"?([a-z0-9._-]+)", text, re.MULTILINE)
    return match[1] if match else ""


def find_program(name: str, *, search_path: str | None = None) -> Program:
    """Find the program of registry row `name` on `search_path` (default: PATH and sbin).

    Raises PeerUnavailable, naming the package to install, if it is missing, does not run, or is
    older than the registry asks.
    """
    peer = peer_named(name)
    if search_path is None:
        versions = sorted(
            _BY_VERSION.glob("*/bin"), key=lambda each: each.parent.name, reverse=True
        )
        folders = (*_SYSTEM_FOLDERS, *map(str, versions))
        search_path = os.pathsep.join((os.environ.get("PATH", os.defpath), *folders))
    install = f"apt-get install {package_for(peer, distribution())}"
    found = (shutil.which(executable, path=search_path) for executable in peer.executables)
    path = next((path for path in found if path is not None), None)
    if path is None:
        raise PeerUnavailable(f"{name} is not installed: {install}")
    program = _inspect(name, Path(path).absolute())
    if program.version < peer.minimum_version:
        raise PeerUnavailable(
            f"{name} {format_version(program.version)} is older than "
            f"{format_version(peer.minimum_version)}, the oldest that will do: {install}"
        )
    return program


@functools.lru_cache(maxsize=64)
def _inspect(name: str, path: Path) -> Program:
    peer = peer_named(name)
    done = run_to_completion(path, peer.version_arguments, timeout_seconds=_VERSION_SECONDS)
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    version = _search_version(peer.version_pattern, text)
    if not version:
        raise PeerUnavailable(f"{path} does not say its version as {name} does")
    return Program(
        name=name,
        path=path,
        version=version,
        version_text=text,
        openssl_version=_search_version(peer.openssl_pattern, text) if peer.openssl_pattern else (),
    )


def _search_version(pattern: str, text: str) -> tuple[int, ...]:
    """Read the last version that `pattern` finds: nginx says what it runs with last."""
    found = re.findall(pattern, text, re.MULTILINE)
    return tuple(int(part) for part in found[-1].split(".")) if found else ()


def survey(*, search_path: str | None = None) -> list[PeerStatus]:
    """Look for every peer of the registry."""
    return [_status(peer, search_path) for peer in PEERS]


def _status(peer: Peer, search_path: str | None) -> PeerStatus:
    try:
        program = find_program(peer.name, search_path=search_path)
    except PeerUnavailable as error:
        return PeerStatus(peer=peer, program=None, problem=str(error))
    return PeerStatus(peer=peer, program=program, problem="")


def packages(distribution_id: str | None = None, *, peers: Iterable[Peer] = PEERS) -> list[str]:
    """List the packages that bring `peers` (all of them by default), sorted, each once."""
    where = distribution() if distribution_id is None else distribution_id
    return sorted({package_for(peer, where) for peer in peers})

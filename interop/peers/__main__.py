"""``python -m interop.peers``: which foreign programs are here, what to install for the rest."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from interop.peers.names import supported_groups
from interop.peers.programs import (
    PeerStatus,
    distribution,
    format_version,
    packages,
    survey,
)
from interop.peers.registry import package_for

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a peer, or with another option one package a line; return 0."""
    parser = argparse.ArgumentParser(prog="python -m interop.peers", description=__doc__)
    parser.add_argument(
        "--debian-packages",
        action="store_true",
        help="print the packages that bring every peer, one a line",
    )
    parser.add_argument(
        "--missing-packages",
        action="store_true",
        help="print the packages that bring the peers which are not here, one a line",
    )
    parser.add_argument("--path", help="look here instead of on PATH")
    chosen = parser.parse_args(arguments)
    if chosen.debian_packages:
        lines = packages()
    elif chosen.missing_packages:
        missing = [status.peer for status in survey(search_path=chosen.path) if not status.program]
        lines = packages(peers=missing)
    else:
        lines = [_line(status) for status in survey(search_path=chosen.path)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _line(status: PeerStatus) -> str:
    peer, program = status.peer, status.program
    if program is None:
        install = f"missing: apt-get install {package_for(peer, distribution())}"
        reason = "" if "is not installed" in status.problem else f" ({status.problem})"
        return f"{peer.name:<13} {install}{reason}"
    roles = ", ".join(sorted(role.value for role in peer.roles))
    parts = [f"{peer.name:<13} {format_version(program.version):<16} {roles:<15}"]
    if peer.key_log:
        parts.append(f"key log by {peer.key_log};")
    if program.openssl_version:
        groups = " ".join(supported_groups(program))
        parts.append(f"OpenSSL {format_version(program.openssl_version)}: {groups}")
    return " ".join(parts).rstrip()


if __name__ == "__main__":
    raise SystemExit(main())

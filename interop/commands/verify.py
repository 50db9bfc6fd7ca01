"""``pfs verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from interop.commands.output import console, print_json
from interop.proof.report.terminal import print_verification
from interop.proof.verification import verify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.proof.report.files import ReportFiles

__all__ = ["run"]


def run(
    *,
    directory: Path,
    fingerprint: str | None,
    server_keys: Sequence[Path],
    ask_tshark: bool,
    files: ReportFiles,
    as_json: bool,
) -> int:
    """Check the evidence, print what came of it, and return 0 if it is intact and proves."""
    files.require_writable(directory)
    verification = verify(
        directory, fingerprint=fingerprint, ask_again=ask_tshark, target_keys=server_keys
    )
    files.write_verification(verification)
    if as_json:
        holds = {"intact": verification.intact, "holds": verification.holds}
        print_json(holds | msgspec.structs.asdict(verification))
    else:
        print_verification(console(), verification)
    return 0 if verification.holds else 1

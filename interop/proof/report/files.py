"""Reports beside the evidence, for other programs: whole or not at all, and over nothing.

All of them are looked at before the work begins, so that a run of a minute does not end in an
error that could have been seen at its start; and again when they are written, which is after the
evidence is in its place.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.keystore.files import writing_to
from interop.errors import InputError
from interop.proof.report.claims import claims_of_report, claims_of_verification
from interop.proof.report.junit import render_junit
from interop.proof.report.markdown import render_markdown, render_verification_markdown
from interop.proof.report.sarif import render_sarif
from interop.versions import own_version

if TYPE_CHECKING:
    from pathlib import Path

    from interop.proof.model import Report
    from interop.proof.report.claims import Claim
    from interop.proof.verification import Verification

__all__ = ["ReportFiles"]


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Which further reports are wanted, and where."""

    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None

    def require_writable(self, evidence: Path) -> None:
        """Raise `InputError` where one of them could not be written, or would spoil `evidence`."""
        within = os.path.realpath(evidence)
        seen: set[str] = set()
        for path in filter(None, (self.junit, self.sarif, self.markdown)):
            real = os.path.realpath(path)
            if os.path.lexists(path):
                raise InputError(f"{path}: in the way; it is never overwritten, name a new file")
            if os.path.commonpath([real, within]) == within:
                raise InputError(f"{path}: within the evidence, which it would change")
            if real in seen:
                raise InputError(f"{path}: named for two reports")
            if not os.path.isdir(os.path.dirname(real)):  # noqa: PTH112, PTH120 - of realpath's text
                raise InputError(f"{path}: its folder does not exist")
            seen.add(real)

    def write_report(self, report: Report) -> None:
        """Write what `pfs prove` found."""
        self._write(claims_of_report(report), render_markdown(report))

    def write_verification(self, verification: Verification) -> None:
        """Write what `pfs verify` found."""
        self._write(
            claims_of_verification(verification), render_verification_markdown(verification)
        )

    def _write(self, claims: tuple[Claim, ...], markdown: bytes) -> None:
        for path, content in (
            (self.junit, render_junit(claims)),
            (self.sarif, render_sarif(claims, version=own_version())),
            (self.markdown, markdown),
        ):
            if path is not None:
                with writing_to(path) as write:
                    write(content)

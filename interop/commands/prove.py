"""``pfs prove``."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from interop.commands.output import console, print_json
from interop.errors import InputError, InteropError
from interop.interruption import run_aside
from interop.progress import ConsoleProgress, SilentProgress
from interop.proof import layout
from interop.proof.application import MAX_PAYLOAD_BYTES
from interop.proof.experiment import DEFAULT_PAYLOAD_BYTES, prove
from interop.proof.report.terminal import print_report
from transport import TransportError

if TYPE_CHECKING:
    from pathlib import Path

    from interop.proof.report.files import ReportFiles

__all__ = ["run"]


def run(
    *,
    out: Path,
    payload: Path | None,
    handshakes: int,
    ask_tshark: bool,
    files: ReportFiles,
    as_json: bool,
) -> int:
    """Run the experiment, print its report, and return 0 if the claim is proved, else 1."""
    content = _read_payload(payload)
    files.require_writable(out)
    try:
        with SilentProgress() if as_json else ConsoleProgress() as progress:
            report, fingerprint = run_aside(
                lambda: prove(
                    out,
                    payload=content,
                    handshakes=handshakes,
                    progress=progress,
                    ask_tshark=ask_tshark,
                )
            )
    except TransportError as error:
        raise InteropError(f"a session of the experiment failed: {error}") from error
    files.write_report(report)
    if as_json:
        print_json(report)
    else:
        terminal = console()
        print_report(terminal, report)
        terminal.print(f"signed   {fingerprint}", soft_wrap=True, markup=False)
        terminal.print(f"report   {out / layout.REPORT_HTML}", soft_wrap=True, markup=False)
    return 0 if report.verdict == "proved" else 1


def _read_payload(path: Path | None) -> bytes:
    if path is None:
        return secrets.token_bytes(DEFAULT_PAYLOAD_BYTES)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if not content:
        raise InputError(f"{path}: empty; a payload needs at least one byte to recover")
    if len(content) > MAX_PAYLOAD_BYTES:
        raise InputError(f"{path}: larger than {MAX_PAYLOAD_BYTES} bytes, the most that is sent")
    return content

"""``pfs prove``."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from interop.commands.output import console, print_json
from interop.commands.target import HANDSHAKES, HANDSHAKES_AT_A_TARGET, read_target
from interop.errors import InputError, InteropError
from interop.interruption import run_aside
from interop.progress import ConsoleProgress, SilentProgress
from interop.proof import layout
from interop.proof.application import MAX_PAYLOAD_BYTES
from interop.proof.experiment import prove
from interop.proof.report.terminal import print_report
from interop.proof.target import OwnServer
from transport import TransportError
from transport.commands.trust import read_anchors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.proof.report.files import ReportFiles

__all__ = ["TargetOptions", "run"]


class _Defaults(NamedTuple):
    payload_bytes: int
    handshakes: int


_DEFAULTS: Final = _Defaults(payload_bytes=64 * 1024, handshakes=HANDSHAKES)
# What a server takes as 0-RTT data is seldom more than 16 KiB; and it is somebody's server.
_DEFAULTS_AT_A_TARGET: Final = _Defaults(payload_bytes=4096, handshakes=HANDSHAKES_AT_A_TARGET)


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What the command line says of a server that the run is to be about."""

    address: str | None = None
    server_keys: Sequence[Path] = ()
    server_name: str | None = None
    ca: Path | None = None

    def load(self) -> OwnServer | None:
        """Return the server, None for none; raises `InputError` for what is missing or wrong."""
        if self.address is None:
            if self.server_keys or self.server_name or self.ca:
                raise InputError("--server-key, --server-name and --ca go with --target")
            return None
        if not self.server_keys or self.ca is None:
            raise InputError(
                "a target needs --server-key FILE, its private key, and --ca FILE, its authority"
            )
        address, name = read_target(self.address, self.server_name)
        return OwnServer(
            address=address,
            server_name=name,
            trust_anchors=read_anchors(self.ca),
            private_keys=tuple(self.server_keys),
        )


def run(
    *,
    out: Path,
    payload: Path | None,
    handshakes: int | None,
    target: TargetOptions,
    ask_tshark: bool,
    files: ReportFiles,
    as_json: bool,
) -> int:
    """Run the experiment, print its report, and return 0 if the claim is proved, else 1."""
    server = target.load()
    default = _DEFAULTS if server is None else _DEFAULTS_AT_A_TARGET
    content = _read_payload(payload, default.payload_bytes)
    _require_utf8(out)
    files.require_writable(out)
    try:
        with SilentProgress() if as_json else ConsoleProgress() as progress:
            report, fingerprint = run_aside(
                lambda: prove(
                    out,
                    payload=content,
                    handshakes=default.handshakes if handshakes is None else handshakes,
                    progress=progress,
                    ask_tshark=ask_tshark,
                    target=server,
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


def _require_utf8(out: Path) -> None:
    """Raise `InputError` for a path of other bytes, which SQLite cannot write the store to."""
    try:
        os.path.realpath(out).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{out}: not UTF-8; name a folder whose path is") from error


def _read_payload(path: Path | None, default_bytes: int) -> bytes:
    if path is None:
        return secrets.token_bytes(default_bytes)
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

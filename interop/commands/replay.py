"""``pfs replay``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certs.credential import TrustAnchors
from interop.commands.output import console, print_json
from interop.errors import InputError
from interop.interruption import run_aside
from interop.progress import ConsoleProgress, SilentProgress
from interop.replay.catalogue import choose_cases
from interop.replay.foreign import ForeignServer, captured_case
from interop.replay.model import Verdict
from interop.replay.render import print_cases, print_replays
from interop.replay.runner import run_replays
from interop.replay.targets import local_targets
from transport.commands.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.replay.runner import Targets

__all__ = ["run", "run_list"]

_MAX_ANCHORS_BYTES = 16 * 1024 * 1024


def run_list() -> int:
    """Print the cases and return 0."""
    print_cases(console(), choose_cases(()))
    return 0


def run(
    *,
    cases: Sequence[str],
    target: str | None,
    ca: Path | None,
    server_name: str | None,
    method: str,
    path: str,
    count_url: str | None,
    captures: Sequence[Path],
    as_json: bool,
) -> int:
    """Replay, print what came of it, and return 0 unless a replay got through or none could.

    Without a count nothing is claimed, and the status is 0 too.
    """
    chosen = choose_cases(cases)
    if target is None and (ca or server_name or count_url or captures):
        raise InputError("--ca, --server-name, --count-url and --capture go with --target")
    targets: Targets = local_targets
    if target is not None:
        targets = ForeignServer(
            address=(address := parse_address(target)),
            server_name=server_name or address[0],
            trust_anchors=_read_anchors(ca),
            method=method.upper(),
            path=path,
            count_url=count_url,
        ).targets
        if captures:
            chosen = (*chosen, captured_case(captures))
    with SilentProgress() if as_json else ConsoleProgress() as progress:
        report = run_aside(lambda: run_replays(chosen, progress, targets=targets))
    if as_json:
        print_json(report)
    else:
        print_replays(console(), report)
    return 0 if report.verdict in {Verdict.HELD, Verdict.NOT_COUNTED} else 1


def _read_anchors(ca: Path | None) -> TrustAnchors:
    if ca is None:
        raise InputError("a target needs --ca FILE: the certificate of its authority, in PEM")
    try:
        with ca.open("rb") as file:
            return TrustAnchors.from_pem(file.read(_MAX_ANCHORS_BYTES))
    except OSError as error:
        raise InputError(f"{ca}: {error.strerror}") from error

"""``pfs replay``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interop.commands.output import console, print_json
from interop.commands.target import read_target
from interop.errors import InputError
from interop.interruption import run_aside
from interop.progress import ConsoleProgress, SilentProgress
from interop.replay.catalogue import choose_cases
from interop.replay.foreign import ForeignServer, captured_case
from interop.replay.model import Verdict
from interop.replay.render import print_cases, print_replays
from interop.replay.runner import run_replays
from interop.replay.targets import local_targets
from transport.commands.trust import read_anchors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.replay.cases import Case
    from interop.replay.runner import Targets

__all__ = ["run", "run_list"]


def run_list(*, as_json: bool) -> int:
    """Print the cases and return 0."""
    cases = choose_cases(())
    if as_json:
        print_json({"cases": [_facts(case) for case in cases]})
    else:
        print_cases(console(), cases)
    return 0


def _facts(case: Case) -> dict[str, object]:
    return {
        "case": case.name,
        "what": case.what,
        "how": case.how,
        "sentence": case.sentence,
        "basis": list(dict.fromkeys(case.basis.values())),
    }


def run(
    *,
    cases: Sequence[str],
    target: str | None,
    ca: Path | None,
    server_name: str | None,
    method: str | None,
    path: str | None,
    count_url: str | None,
    captures: Sequence[Path],
    as_json: bool,
) -> int:
    """Replay, print what came of it, and return 0 unless a replay got through or none could.

    Without a count nothing is claimed, and the status is 0 too.
    """
    chosen = choose_cases(cases)
    of_a_target = (ca, server_name, method, path, count_url)
    if target is None and (captures or any(given is not None for given in of_a_target)):
        raise InputError(
            "--ca, --server-name, --method, --path, --count-url and --capture go with --target"
        )
    targets: Targets = local_targets
    if target is not None:
        if ca is None:
            raise InputError("a target needs --ca FILE: the certificate of its authority, in PEM")
        address, name = read_target(target, server_name)
        targets = ForeignServer(
            address=address,
            server_name=name,
            trust_anchors=read_anchors(ca),
            method="GET" if method is None else method.upper(),
            path="/" if path is None else path,
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

"""``pfs attack``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from interop.commands.output import complain, console, print_json_lists
from interop.progress import ConsoleProgress, SilentProgress
from interop.proof.attack import AttackReport, attack_captures
from interop.proof.directory import shown_path, whole_directory
from interop.proof.stolen import Problem, load_stolen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interop.proof.stolen import StolenFiles

__all__ = ["run"]


def run(
    *,
    captures: Sequence[Path],
    stolen: StolenFiles,
    plaintext: Path | None,
    use_secrets_blocks: bool,
    as_json: bool,
) -> int:
    """Attack the captures, print what came of it, and return 0, whatever opened."""
    keys, problems = load_stolen(stolen)
    with ExitStack() as stack:
        progress = stack.enter_context(SilentProgress() if as_json else ConsoleProgress())
        progress.stage("attacking")
        folder = None if plaintext is None else stack.enter_context(whole_directory(plaintext))
        attacked = attack_captures(
            captures, keys, plaintext=folder, use_secrets_blocks=use_secrets_blocks
        )
    of_keys = (Problem(shown_path(problem.file), problem.message) for problem in problems)
    report = AttackReport(attacked.sessions, (*of_keys, *attacked.problems))
    for problem in report.problems:
        complain(f"{problem.file}: {problem.message}")
    if as_json:
        problems_encoded = map(msgspec.json.encode, report.problems)
        print_json_lists({"sessions": report.sessions.encoded(), "problems": problems_encoded})
    else:
        from interop.proof.report.terminal import print_attack  # noqa: PLC0415 - brings rich

        print_attack(console(), report)
    return 0

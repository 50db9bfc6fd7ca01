"""`pfs replay`: every chosen case at every target, controls first, and the report of it."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from interop.identity import issue_identity
from interop.replay.cases import CONTROLS
from interop.replay.catalogue import CASES
from interop.replay.experiment import HONEST_SESSION, Experiment
from interop.replay.model import Report, failures, verdict_of
from interop.replay.targets import control_targets, local_targets
from interop.versions import library_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from interop.identity import Identity
    from interop.progress import Progress
    from interop.replay.cases import Case
    from interop.replay.model import Outcome
    from interop.replay.targets import Target

__all__ = ["Targets", "attack", "judge_run", "run_replays"]

Targets: TypeAlias = "Callable[[ExitStack, Identity], Iterable[Target]]"
"""Starts what is needed, and yields the endpoints to attack."""


def run_replays(
    cases: Sequence[Case], progress: Progress, *, targets: Targets = local_targets
) -> Report:
    """Try `cases` at the targets, our own servers unless given; the controls are always tried.

    Raises what `targets` raises.
    """
    progress.stage("issuing certificates")
    identity = issue_identity()
    outcomes: list[Outcome] = []
    planned: list[tuple[str, str]] = []
    with ExitStack() as stack:
        for target in control_targets(stack, identity):
            opening = [case for case in CASES if target.name in case.opens_at]
            planned += [(target.name, case.name) for case in opening]
            outcomes += attack(target, opening, progress)
    with ExitStack() as stack:
        for target in targets(stack, identity):
            planned += [(target.name, case.name) for case in cases]
            planned.append((target.name, HONEST_SESSION))
            outcomes += attack(target, cases, progress)
    return judge_run(outcomes, planned)


def attack(target: Target, cases: Sequence[Case], progress: Progress) -> Iterator[Outcome]:
    """Try cases at one target, and then see that it still serves."""
    progress.stage(f"replaying: {target.title}", total=len(cases))
    experiment = Experiment(target)
    for number, case in enumerate(cases, start=1):
        yield experiment.run(case)
        progress.advance(number)
    if not target.control:
        yield experiment.run_honest_session()


def judge_run(outcomes: Sequence[Outcome], planned: Sequence[tuple[str, str]] = ()) -> Report:
    """Make the report of a run, of which `planned` says what was to be tried: endpoint and case."""
    return Report(
        verdict=verdict_of(outcomes, controls=CONTROLS, planned=planned),
        failures=failures(outcomes, controls=CONTROLS, planned=planned),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
        outcomes=tuple(outcomes),
    )

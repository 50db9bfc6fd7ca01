"""The report of a run in the terminal: controls, a matrix, and the verdict."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from interop.replay.experiment import HONEST_SESSION
from interop.replay.model import How, Verdict, What

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from interop.replay.cases import Case
    from interop.replay.model import Outcome, Report

__all__ = ["print_cases", "print_replays"]

_MAX_FAILURES = 20
_GRAVITY = (Verdict.REPLAYED, Verdict.INVALID, Verdict.NOT_COUNTED, Verdict.HELD)
_CELLS = {
    Verdict.REPLAYED: "{} REPLAYED",
    Verdict.INVALID: "{} invalid",
    Verdict.NOT_COUNTED: "{} ?",
    Verdict.HELD: "{}",
}
_STYLES = {
    Verdict.REPLAYED: "bold red",
    Verdict.INVALID: "bold red",
    Verdict.NOT_COUNTED: "yellow",
    Verdict.HELD: "green",
    Verdict.NOT_APPLICABLE: "dim",
}


def print_replays(console: Console, report: Report) -> None:
    """Print what came of a run."""
    console.print("What was replayed, how, and how often", style="bold")
    console.print(_matrix([outcome for outcome in report.outcomes if not outcome.control]))
    console.print(
        "a number alone: so many attacks, and each of them held; ?: not counted;\n"
        "n/a: does not apply to any endpoint; -: there is no such case\n",
        style="dim",
    )
    for name, outcomes in _by_target(report.outcomes).items():
        kind = "control" if outcomes[0].control else "target "
        console.print(Text(f"{kind}  {name:<26}") + _tally(outcomes))
    console.print()
    for failure in report.failures[:_MAX_FAILURES]:
        console.print(Text(f"{report.verdict:<8} {failure}", style="bold red"), soft_wrap=True)
    if more := report.failures[_MAX_FAILURES:]:
        console.print(Text(f"and {len(more)} more: --json has them all", style="bold red"))
    if report.verdict is Verdict.NOT_COUNTED:
        console.print(
            "executions were not counted, and only reactions seen: give --count-url", style="yellow"
        )
    console.print(Text(f"verdict  {report.verdict}", style=_STYLES[report.verdict]))


def print_cases(console: Console, cases: Iterable[Case]) -> None:
    """Print the table of cases, two lines each."""
    cases = tuple(cases)
    width = max(len(case.name) for case in cases)
    for case in cases:
        console.print(Text(f"{case.name:<{width}}  {case.what}, {case.how}"), soft_wrap=True)
        basis = ", ".join(dict.fromkeys(case.basis.values()))
        console.print(Text(f"    {case.sentence} ({basis})", style="dim"), soft_wrap=True)


def _matrix(outcomes: list[Outcome]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=17)
    for how in How:
        table.add_column(how.value, justify="center", no_wrap=True)
    for what in What:
        cells = [
            _cell([o.verdict for o in outcomes if o.what is what and o.how is how]) for how in How
        ]
        table.add_row(what.value, *cells)
    return table


def _cell(verdicts: list[Verdict]) -> Text:
    """Show the gravest verdict and how often it was reached."""
    for verdict in _GRAVITY:
        if count := verdicts.count(verdict):
            return Text(_CELLS[verdict].format(count), style=_STYLES[verdict])
    return Text("n/a" if verdicts else "-", style="dim")


def _by_target(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.target, []).append(outcome)
    return grouped


def _tally(outcomes: list[Outcome]) -> Text:
    honest = [outcome for outcome in outcomes if outcome.case == HONEST_SESSION]
    counts = Counter(outcome.verdict for outcome in outcomes if outcome not in honest)
    if outcomes[0].control:
        opened = counts[Verdict.REPLAYED]
        style = "yellow" if opened == len(outcomes) else "bold red"
        return Text(f"{opened} of {len(outcomes)} replays executed, as they must", style=style)
    parts = [
        Text(f"{verdict} {counts[verdict]}", style=_STYLES[verdict])
        for verdict in (*_GRAVITY, Verdict.NOT_APPLICABLE)
        if counts[verdict]
    ]
    parts += [Text(f"{HONEST_SESSION} {one.verdict}", style=_STYLES[one.verdict]) for one in honest]
    return Text(", ").join(parts)

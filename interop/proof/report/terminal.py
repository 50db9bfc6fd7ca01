"""The report in the terminal: the matrix as a table, then one line a claim."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from interop.proof.model import LONG_TERM_THEFTS, contradiction
from interop.proof.report.stories import second_opinion_line

if TYPE_CHECKING:
    from rich.console import Console

    from interop.proof.attack import AttackedSession, AttackReport
    from interop.proof.model import Cell, Report
    from interop.proof.verification import Verification

__all__ = ["print_attack", "print_report", "print_verification"]

_SHOWN: Final = {
    "closed": Text("closed", style="green"),
    "opened": Text("OPENED", style="yellow"),
}


def print_report(console: Console, report: Report) -> None:
    """Print the matrix and the verdict of `report`."""
    console.print("What a theft opens", style="bold")
    console.print(_matrix(report))
    console.print(_other_thefts(report))
    console.print(
        "closed   the recording stayed closed to what was stolen\n"
        "OPENED   a control: it was there to be opened, and was, byte for byte",
        style="dim",
    )
    for skipped in report.skipped:
        console.print(f"skipped  {skipped.name}: {skipped.reason}", style="dim", markup=False)
    console.print()
    console.print(f"census   {_census_line(report)}")
    console.print(f"replays  {_replay_line(report)}")
    console.print(f"second   {second_opinion_line(report)}", markup=False)
    if report.target:
        shown = sum(session.target for session in report.sessions)
        console.print(f"target   {report.target}: {shown} of the sessions", markup=False)
    for failure in report.failures:
        console.print(Text(f"refuted  {failure}", style="bold red"))
    style = "bold green" if report.verdict == "proved" else "bold red"
    console.print(Text(f"verdict  {report.verdict}", style=style))


def _matrix(report: Report) -> Table:
    """One row a session, one column a theft that concerns all of them.

    The one-session thefts share two columns: what a session's own secrets did, and what the
    secrets of all the other sessions did to it.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("recorded session", no_wrap=True)
    for stolen in ("server key", "key store", "own secrets", "others' secrets"):
        table.add_column(stolen.replace(" ", "\n"), justify="center", no_wrap=True)
    for session in report.sessions:
        cells = [cell for cell in report.cells if cell.session == session.name]
        own = f"session-secrets:{session.name}"
        columns: tuple[list[Cell], ...] = (
            [cell for cell in cells if cell.stolen == "server-key"],
            [cell for cell in cells if cell.stolen == "key-store"],
            [cell for cell in cells if cell.stolen == own],
            [
                cell
                for cell in cells
                if cell.stolen.startswith("session-secrets:") and cell.stolen != own
            ],
        )
        table.add_row(
            Text(session.name) + Text(f"\n{session.negotiated}", style="dim"),
            *(_summary(column) for column in columns),
        )
    return table


def _other_thefts(report: Report) -> Table:
    """One row for each theft that has no column above: what it opened, and how much it did not."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("also stolen", "opens"):
        table.add_column(title)
    for theft in report.thefts:
        if theft.name in LONG_TERM_THEFTS or theft.name.startswith("session-secrets:"):
            continue
        cells = [cell for cell in report.cells if cell.stolen == theft.name]
        closed = [cell for cell in cells if cell.observed == "closed" and not contradiction(cell)]
        told = [_opened(cell) for cell in cells if cell not in closed]
        parts = [*told, _summary(closed)] if closed else told
        table.add_row(Text(theft.title), Text("\n").join(parts))
    return table


def _opened(cell: Cell) -> Text:
    part = f" ({cell.part} alone)" if cell.part else ""
    return _summary([cell]) + f" {cell.session}{part}"


def _summary(cells: list[Cell]) -> Text:
    wrong = [cell for cell in cells if contradiction(cell)]
    if not cells:
        return Text("not tried", style="bold red")
    if wrong:
        return Text(f"{wrong[0].observed.upper()} (!)", style="bold red")
    if len(cells) == 1:
        return _SHOWN[cells[0].observed]
    counts = Counter(cell.observed for cell in cells)
    return Text("\n").join(
        _SHOWN[observed] + Text(f" x{count}", style="dim")
        for observed, count in sorted(counts.items())
    )


def _census_line(report: Report) -> str:
    repeated = sum(tally.count - tally.distinct for tally in report.tallies.values())
    values = sum(tally.count for tally in report.tallies.values())
    return (
        f"{report.handshakes:,} handshakes, {values:,} values of "
        f"{len(report.tallies)} kinds, {repeated} repeated"
    )


def _replay_line(report: Report) -> str:
    attempts = sum(replay.attempts for replay in report.replays)
    executed = sum(replay.executed for replay in report.replays)
    control = report.replay_control
    return (
        f"{attempts} recorded flights sent again, {executed} executed "
        f"(control: {control.executed} of {control.attempts} genuine)"
    )


def print_verification(console: Console, verification: Verification) -> None:
    """Print what came of verifying an evidence directory."""
    if verification.report is not None and not verification.changes:
        print_report(console, verification.report)
        console.print()
    for change in verification.changes:
        console.print(Text(f"changed  {change.path}: {change.problem}", style="bold red"))
    for disagreement in verification.disagreements:
        console.print(Text(f"wrong    {disagreement}", style="bold red"))
    for note in verification.notes:
        console.print(f"note     {note}", style="dim", markup=False)
    if verification.intact:
        console.print("intact   every file is as it was signed; every verdict was recomputed")
    if verification.fingerprint:
        console.print(Text(f"signed   {verification.fingerprint}"), soft_wrap=True)


def print_attack(console: Console, report: AttackReport) -> None:
    """Print what came of attacking captures, two lines a session."""
    capture = ""
    for session in report.sessions:
        if session.capture != capture:
            capture = session.capture
            console.print(Text(capture, style="bold"), soft_wrap=True)
        console.print(_attacked(session), soft_wrap=True)
    opened = report.sessions.opened
    closed = len(report.sessions) - opened
    plural = "" if len(report.sessions) == 1 else "s"
    console.print(f"{len(report.sessions)} TLS session{plural}: {opened} opened, {closed} closed")


def _attacked(session: AttackedSession) -> Text:
    names = (session.version or "no ServerHello", session.suite, session.group)
    secrecy = {True: "forward secret", False: "NOT forward secret", None: ""}
    facts = [name for name in (*names, secrecy[session.forward_secret]) if name]
    if session.server_name:
        facts.append(f"for {session.server_name}")
    line = Text(f"{session.stream:>4}  {session.client} > {session.server}  {', '.join(facts)}\n")
    if session.opened:
        line.append(
            f"      opened by {session.opened_by}: {session.client_bytes:,} bytes from the client, "
            f"{session.server_bytes:,} from the server",
            style="yellow",
        )
        if session.reason:
            line.append(f"\n      in part: {session.reason}", style="yellow")
    else:
        line.append(f"      closed: {session.reason}", style="green")
    return line

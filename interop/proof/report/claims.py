"""The report as a list of claims, one by one: what test runners and code scanners want of it.

Each claim has a rule, whose identifier never changes its meaning, and a name that is the same in
every run for the same thing, so that one run can be compared with the next. `claims_of_report` is
what `pfs prove` says; `claims_of_verification` adds what `pfs verify` found of the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from interop.census.report import excluded_bits
from interop.proof import layout
from interop.proof.model import contradiction
from interop.proof.opinions import standing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.proof.model import Report
    from interop.proof.verification import Verification

__all__ = ["Claim", "Outcome", "Rule", "claims_of_report", "claims_of_verification"]

Outcome: TypeAlias = Literal["holds", "fails", "not tested"]


class Rule(Enum):
    """What is claimed. The value is the identifier, a name, and a sentence."""

    STAYS_CLOSED = (
        "PFS001",
        "StaysClosed",
        "A recorded session stays closed to a theft that theory says does not open it.",
    )
    CONTROL_OPENS = (
        "PFS002",
        "ControlOpens",
        "A recorded session that theory says a theft opens is opened by it, byte for byte.",
    )
    VALUE_IS_UNIQUE = (
        "PFS003",
        "ValueIsUnique",
        "No random, key share, secret or exporter of the census came twice.",
    )
    REPLAY_IS_NOT_EXECUTED = (
        "PFS004",
        "ReplayIsNotExecuted",
        "A recorded client flight that is sent again never reaches the application.",
    )
    GENUINE_IS_EXECUTED = (
        "PFS005",
        "GenuineIsExecuted",
        "A genuine session on the server that was replayed at reaches the application.",
    )
    SECOND_OPINION_AGREES = (
        "PFS006",
        "SecondOpinionAgrees",
        "An independent program recovers nothing where our attacker recovered nothing.",
    )
    SESSION_IS_RECORDED = (
        "PFS007",
        "SessionIsRecorded",
        "A session is recorded off the wire, with encrypted application data in it.",
    )
    PROVED = ("PFS008", "Proved", "All claims of the run hold, and nothing is missing from it.")
    FILES_ARE_UNCHANGED = (
        "PFS009",
        "FilesAreUnchanged",
        "Every file of the evidence is as it was signed, none is missing and none was added.",
    )
    STATEMENTS_ARE_BORNE_OUT = (
        "PFS010",
        "StatementsAreBorneOut",
        "The evidence states what its own recordings yield.",
    )

    @property
    def identifier(self) -> str:
        """The identifier; it never changes its meaning."""
        return self.value[0]

    @property
    def title(self) -> str:
        """A name in one word."""
        return self.value[1]

    @property
    def sentence(self) -> str:
        """What is claimed."""
        return self.value[2]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing that was claimed, and what came of it. `file` is where to look."""

    rule: Rule
    name: str
    outcome: Outcome
    detail: str
    file: str = layout.REPORT_JSON


def _outcome(*, holds: bool) -> Outcome:
    return "holds" if holds else "fails"


def claims_of_report(report: Report) -> tuple[Claim, ...]:
    """Return every claim of a run."""
    return (
        *_sessions(report),
        *_cells(report),
        *_opinions(report),
        *_census(report),
        *_replays(report),
        Claim(
            rule=Rule.PROVED,
            name="verdict",
            outcome=_outcome(holds=report.verdict == "proved"),
            detail="; ".join(report.failures) or report.verdict,
        ),
    )


def claims_of_verification(verification: Verification) -> tuple[Claim, ...]:
    """Return what `pfs verify` found of the evidence, and every claim of the run that made it."""
    changes = [
        Claim(
            rule=Rule.FILES_ARE_UNCHANGED,
            name=change.path,
            outcome="fails",
            detail=change.problem,
            file=change.path,
        )
        for change in verification.changes
    ]
    disagreements = [
        Claim(rule=Rule.STATEMENTS_ARE_BORNE_OUT, name="evidence", outcome="fails", detail=text)
        for text in verification.disagreements
    ]
    notes = [
        Claim(
            rule=Rule.STATEMENTS_ARE_BORNE_OUT, name="evidence", outcome="not tested", detail=text
        )
        for text in verification.notes
    ]
    whole: list[Claim] = []
    if not changes:
        whole.append(_whole(Rule.FILES_ARE_UNCHANGED, "every file is as it was signed"))
    if not disagreements and verification.report is not None:
        whole.append(_whole(Rule.STATEMENTS_ARE_BORNE_OUT, "every verdict was recomputed"))
    report = verification.report
    return (
        *changes,
        *disagreements,
        *notes,
        *whole,
        *(claims_of_report(report) if report is not None else ()),
    )


def _whole(rule: Rule, detail: str) -> Claim:
    return Claim(rule=rule, name="evidence", outcome="holds", detail=detail)


def _sessions(report: Report) -> Iterator[Claim]:
    for session in report.sessions:
        yield Claim(
            rule=Rule.SESSION_IS_RECORDED,
            name=session.name,
            outcome=_outcome(holds=session.encrypted_bytes > 0),
            detail=f"{session.version}, {session.suite}, {session.group or 'no group'}; "
            f"{session.encrypted_bytes} bytes of encrypted application data",
            file=session.capture,
        )
    for skipped in report.skipped:
        yield Claim(
            rule=Rule.SESSION_IS_RECORDED,
            name=skipped.name,
            outcome="not tested",
            detail=skipped.reason,
        )


def _cells(report: Report) -> Iterator[Claim]:
    for cell in report.cells:
        problem = contradiction(cell)
        yield Claim(
            rule=Rule.CONTROL_OPENS if cell.expected == "opened" else Rule.STAYS_CLOSED,
            name=f"{cell.session} with {cell.stolen} stolen",
            outcome=_outcome(holds=not problem),
            detail=problem or f"{cell.observed} as expected ({cell.basis}): {cell.reason}",
            file=layout.capture_of(cell.session),
        )


def _opinions(report: Report) -> Iterator[Claim]:
    second = report.second_opinion
    outcomes: Final[dict[str, Outcome]] = {"agrees": "holds", "contradicts": "fails"}
    for cell in report.cells:
        opinion = second.on(cell.session, cell.stolen)
        stands = standing(cell, opinion)
        yield Claim(
            rule=Rule.SECOND_OPINION_AGREES,
            name=f"{cell.session} with {cell.stolen} stolen",
            outcome=outcomes.get(stands, "not tested"),
            detail=f"{second.program} {stands}"
            + (f": {opinion.reason}" if opinion.reason else f" ({cell.observed})"),
            file=layout.capture_of(cell.session),
        )


def _census(report: Report) -> Iterator[Claim]:
    for kind, tally in report.tallies.items():
        yield Claim(
            rule=Rule.VALUE_IS_UNIQUE,
            name=kind,
            outcome=_outcome(holds=tally.count == tally.distinct > 0),
            detail=f"{tally.count} seen, {tally.distinct} distinct; none twice would exclude up to "
            f"{excluded_bits(tally.count):.1f} bits",
        )


def _replays(report: Report) -> Iterator[Claim]:
    for replay in report.replays:
        yield Claim(
            rule=Rule.REPLAY_IS_NOT_EXECUTED,
            name=replay.session,
            outcome=_outcome(holds=not replay.executed),
            detail=f"{replay.executed} of {replay.attempts} executed",
            file=layout.capture_of(next(iter(replay.captures), replay.session)),
        )
    control = report.replay_control
    yield Claim(
        rule=Rule.GENUINE_IS_EXECUTED,
        name=control.session,
        outcome=_outcome(holds=control.executed == control.attempts > 0),
        detail=f"{control.executed} of {control.attempts} executed",
    )

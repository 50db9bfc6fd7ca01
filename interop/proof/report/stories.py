"""The story of each cell, in words, for every renderer that has room for it.

A story says what was tried, what theory expects and where the standard says so, what was observed,
and what the second opinion was.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from interop.proof import layout
from interop.proof.model import contradiction
from interop.proof.opinions import standing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.proof.model import Cell, Report, Session, Theft

__all__ = ["Look", "Story", "second_opinion_line", "stories_of"]

Look: TypeAlias = Literal["closed", "opened", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Story:
    """One cell: `anchor` names it within a page, and `look` is how it is shown."""

    anchor: str
    cell: Cell
    session: Session
    theft: Theft
    look: Look
    sentence: str
    capture: str
    second_opinion: str


def stories_of(report: Report) -> dict[tuple[str, str], Story]:
    """Return the story of each cell of `report`, by session and theft, in the matrix's order."""
    return {(story.cell.session, story.cell.stolen): story for story in _stories(report)}


def _stories(report: Report) -> Iterator[Story]:
    sessions = {session.name: session for session in report.sessions}
    cells = {(cell.session, cell.stolen): cell for cell in report.cells}
    for row, theft in enumerate(report.thefts, start=1):
        for column, session in enumerate(sessions.values(), start=1):
            cell = cells.get((session.name, theft.name))
            if cell is None:
                continue
            yield Story(
                anchor=f"cell-{row}-{column}",
                cell=cell,
                session=session,
                theft=theft,
                look="wrong" if contradiction(cell) else cell.observed,
                sentence=_sentence(cell, report.payload_bytes),
                capture=layout.capture_of(session.name),
                second_opinion=_opinion_line(report, cell),
            )


def _sentence(cell: Cell, payload_bytes: int) -> str:
    problem = contradiction(cell)
    if problem:
        return f"This contradicts theory: {problem}."
    if cell.observed == "closed":
        return (
            f"The session stayed closed, as it should: of {payload_bytes:,} bytes that were sent, "
            "none was recovered."
        )
    opened = (
        f"The session opened, as it should: all {payload_bytes:,} bytes that were sent were "
        "recovered, byte for byte."
    )
    if cell.part:
        opened += f" They are {cell.part}: the reply stayed closed, as it should."
    return (
        f"{opened} Such a cell is a control: it shows that this attacker, given this kind of "
        "secret, can open what theory says it opens."
    )


def _opinion_line(report: Report, cell: Cell) -> str:
    second = report.second_opinion
    opinion = second.on(cell.session, cell.stolen)
    named = f"{second.program} {second.version}" if second.version else second.program
    match standing(cell, opinion):
        case "agrees" if opinion.observed == "opened":
            return f"{named} agrees: it recovered the same {opinion.recovered_bytes:,} bytes."
        case "agrees":
            return f"{named} agrees: it recovered nothing."
        case "contradicts":
            return f"{named} contradicts: it recovered {opinion.recovered_bytes:,} bytes."
        case "could not open it":
            return f"{named} could not open it, which counts neither way."
        case _:
            return f"Not asked of {second.program}: {opinion.reason}."


def second_opinion_line(report: Report) -> str:
    """Sum the second opinion up in one line, without a full stop."""
    second = report.second_opinion
    if second.version is None:
        return f"none, {second.program} was not run: {second.reason}"
    counts = Counter(standing(cell, second.on(cell.session, cell.stolen)) for cell in report.cells)
    parts = [f"agrees in {counts['agrees']} of {len(report.cells)} cells"]
    if counts["contradicts"]:
        parts.append(f"contradicts in {counts['contradicts']}")
    if counts["could not open it"]:
        parts.append(f"could not open {counts['could not open it']} that our attacker opened")
    if counts["not asked"]:
        parts.append(f"could not be asked about {counts['not asked']}")
    return f"{second.program} {second.version} {', '.join(parts)}"

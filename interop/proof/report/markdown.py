"""The report as GitHub-flavoured Markdown: a summary for a pull request or a job's page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from interop.census.report import excluded_bits
from interop.proof.model import contradiction
from interop.proof.report.stories import second_opinion_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from interop.proof.model import Report
    from interop.proof.verification import Verification

__all__ = ["render_markdown", "render_verification_markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!@])")
_SIGNS = {"closed": "🔒 closed", "opened": "🔓 opened"}


def render_markdown(report: Report) -> bytes:
    """Return the report as Markdown in UTF-8."""
    return _encode(_lines(report))


def render_verification_markdown(verification: Verification) -> bytes:
    """Return what `pfs verify` found as Markdown in UTF-8, the report below it if it is intact."""
    return _encode(_verification_lines(verification))


def _encode(lines: Iterable[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _verification_lines(verification: Verification) -> Iterator[str]:
    state = "intact" if verification.intact else "not intact"
    yield f"## {'✅' if verification.intact else '❌'} Evidence {state}"
    yield ""
    for change in verification.changes:
        yield f"- changed: {_text(change.path)}: {_text(change.problem)}"
    for disagreement in verification.disagreements:
        yield f"- wrong: {_text(disagreement)}"
    for note in verification.notes:
        yield f"- note: {_text(note)}"
    if verification.fingerprint:
        yield f"- signed by `{verification.fingerprint}`"
    yield ""
    if verification.report is not None and not verification.changes:
        yield from _lines(verification.report)


def _lines(report: Report) -> Iterator[str]:
    proved = report.verdict == "proved"
    yield f"## {'✅' if proved else '❌'} Forward secrecy: {report.verdict}"
    yield ""
    for failure in report.failures:
        yield f"- {_text(failure)}"
    if report.failures:
        yield ""
    yield "### What a theft opens"
    yield ""
    yield from _matrix(report)
    yield ""
    yield "🔒 stayed closed · 🔓 a control: was to open, and did, byte for byte · ❌ against theory"
    yield ""
    yield f"Second opinion: {_text(second_opinion_line(report))}."
    yield ""
    where = f" with {_text(report.target)}" if report.target else ""
    yield f"### Census of {report.handshakes:,} handshakes{where}"
    yield ""
    yield from _table(
        ("value", "seen", "distinct", "excludes up to"),
        (
            (
                kind,
                f"{tally.count:,}",
                f"{tally.distinct:,}",
                f"{excluded_bits(tally.count):.1f} bits",
            )
            for kind, tally in report.tallies.items()
        ),
    )
    yield ""
    yield "### Replays"
    yield ""
    control = report.replay_control
    yield from _table(
        ("session", "sent again", "executed"),
        (
            *((one.session, str(one.attempts), str(one.executed)) for one in report.replays),
            (f"control: {control.session}", str(control.attempts), str(control.executed)),
        ),
    )
    yield ""
    if refused := [entry for entry in report.skipped if entry.refused]:
        yield f"### What {_text(report.target)} refused"
        yield ""
        for entry in refused:
            yield f"- {_text(entry.name)}: {_text(entry.reason)}"
        yield ""
    yield "### What was not tested"
    yield ""
    for limit in report.not_tested:
        yield f"- {_text(limit.what)}: {_text(limit.reason)}"
    yield ""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    for line in (report.created, machine.system, machine.processor_model, versions):
        yield f"- {_text(line)}"


def _matrix(report: Report) -> Iterator[str]:
    """One row a theft, one column a session, as on the page."""
    cells = {(cell.session, cell.stolen): cell for cell in report.cells}

    def shown(session: str, stolen: str) -> str:
        cell = cells.get((session, stolen))
        if cell is None:
            return "not tried"
        return f"❌ **{cell.observed}**" if contradiction(cell) else _SIGNS[cell.observed]

    names = [session.name for session in report.sessions]
    yield from _table(
        ("stolen", *names),
        ((theft.title, *(shown(name, theft.name) for name in names)) for theft in report.thefts),
        raw_from=1,
    )


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, raw_from: int | None = None
) -> Iterator[str]:
    """Yield a table; cells from `raw_from` on are Markdown already."""
    yield f"| {' | '.join(_text(name) for name in head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        written = (
            cell if raw_from is not None and number >= raw_from else _text(cell)
            for number, cell in enumerate(row)
        )
        yield f"| {' | '.join(written)} |"


def _text(text: str) -> str:
    """Escape what Markdown would take for its own, and keep it on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))

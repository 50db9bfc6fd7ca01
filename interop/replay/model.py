"""What came of each attack, and the judgement: data, and functions of it.

The measure is what the application executed. `judge` compares it with what honest clients asked
for: an attack is *held* if the executions are those requests in their order, or the first of them
(an attacker can always cut a wire), and *replayed* if anything else ran: a request a second time,
in another order, without the one before it, or with another body.

A control is an endpoint without the protection, at which the same attack has to succeed. A run
whose controls did not open is *invalid*: it has not shown that it would have seen a replay.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Execution",
    "How",
    "Outcome",
    "Report",
    "Verdict",
    "What",
    "failures",
    "judge",
    "judge_total",
    "verdict_of",
]


class What(StrEnum):
    """What is replayed."""

    FLIGHT = "client flight"
    HANDSHAKE = "handshake message"
    RECORD = "record"
    TICKET = "ticket"
    EARLY_DATA = "0-RTT data"
    REQUEST = "HTTP request"


class How(StrEnum):
    """How it is replayed."""

    DUPLICATED = "duplicated"
    REORDERED = "reordered"
    DELAYED = "delayed"
    DROPPED = "dropped"
    TRUNCATED = "truncated"
    SPLICED = "spliced"


class Verdict(StrEnum):
    """What came of one attack on one endpoint, or of all of them."""

    HELD = "held"
    REPLAYED = "replayed"
    NOT_APPLICABLE = "not applicable"
    NOT_COUNTED = "not counted"
    INVALID = "invalid"


class Execution(NamedTuple):
    """One request that an application executed: its identifier, and its body's SHA-256."""

    identifier: str
    sha256: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One attack on one endpoint.

    `executed_before` and `executed_after` count the application's executions before and after;
    `honest` is how many the honest client asked for meanwhile. Where nothing can be
    counted they are None. `reaction` is what the endpoint did, as far as it was seen; `basis` is
    the section that the expectation follows from.
    """

    target: str
    case: str
    what: What | None
    how: How | None
    control: bool
    expected: Literal["held", "replayed"]
    verdict: Verdict
    executed_before: int | None = None
    executed_after: int | None = None
    honest: int = 0
    reaction: str = ""
    reason: str = ""
    basis: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run found; `verdict` and `failures` follow from `outcomes`."""

    format: Literal["pfs-replay/1"] = "pfs-replay/1"
    verdict: Verdict
    failures: tuple[str, ...]
    created: str
    versions: dict[str, str]
    outcomes: tuple[Outcome, ...]


def judge(honest: Sequence[Execution], executed: Sequence[Execution]) -> tuple[Verdict, str]:
    """Judge what was executed by what honest clients asked for, in their order."""
    known = {execution.identifier: execution for execution in honest}
    for position, execution in enumerate(executed):
        if position < len(honest) and execution == honest[position]:
            continue
        name = execution.identifier
        if name not in known:
            return Verdict.REPLAYED, f"request {name} of an earlier session was executed again"
        if execution != known[name]:
            return Verdict.REPLAYED, f"request {name} was executed with another body"
        if execution in executed[:position]:
            return Verdict.REPLAYED, f"request {name} was executed a second time"
        return Verdict.REPLAYED, f"request {name} was executed out of its order"
    return Verdict.HELD, ""


def judge_total(honest: int, executed: int) -> tuple[Verdict, str]:
    """Judge a count of executions alone."""
    if executed > honest:
        return Verdict.REPLAYED, f"{executed} executions for {honest} honest requests"
    return Verdict.HELD, ""


def failures(
    outcomes: Iterable[Outcome],
    *,
    controls: Iterable[str],
    planned: Iterable[tuple[str, str]] = (),
) -> tuple[str, ...]:
    """Return a sentence for each thing that keeps a run from being held; the gravest first.

    `controls` are the endpoints of which each must have opened at least once, and `planned` what
    was to be tried: endpoint and case.
    """
    outcomes = tuple(outcomes)
    carried_out = {(outcome.target, outcome.case) for outcome in outcomes}
    replayed = [
        f"{outcome.case} at {outcome.target}: {outcome.reason}"
        for outcome in outcomes
        if not outcome.control and outcome.verdict is Verdict.REPLAYED
    ]
    closed = [
        f"control {outcome.case} at {outcome.target} did not open: "
        f"{outcome.reason or outcome.verdict}"
        for outcome in outcomes
        if outcome.control and outcome.verdict.value != outcome.expected
    ]
    opened = {
        outcome.target
        for outcome in outcomes
        if outcome.control and outcome.verdict.value == outcome.expected == "replayed"
    }
    missing = [f"control {name} was not tried" for name in controls if name not in opened]
    invalid = [
        f"{outcome.case} at {outcome.target}: {outcome.reason}"
        for outcome in outcomes
        if not outcome.control and outcome.verdict is Verdict.INVALID
    ]
    tried = {Verdict.HELD, Verdict.REPLAYED, Verdict.NOT_COUNTED}
    nothing = [] if any(o.verdict in tried and not o.control for o in outcomes) else ["nothing"]
    return (
        *replayed,
        *closed,
        *missing,
        *(f"{case} at {at} was not tried" for at, case in planned if (at, case) not in carried_out),
        *invalid,
        *(f"{word} was replayed at a protected endpoint" for word in nothing),
    )


def verdict_of(
    outcomes: Iterable[Outcome],
    *,
    controls: Iterable[str],
    planned: Iterable[tuple[str, str]] = (),
) -> Verdict:
    """Return the verdict of a whole run: one replay that got through is enough."""
    outcomes = tuple(outcomes)
    protected = {outcome.verdict for outcome in outcomes if not outcome.control}
    if Verdict.REPLAYED in protected:
        return Verdict.REPLAYED
    if failures(outcomes, controls=controls, planned=planned):
        return Verdict.INVALID
    return Verdict.NOT_COUNTED if Verdict.NOT_COUNTED in protected else Verdict.HELD

"""Under what circumstances a run was made, and what it does not show, as data.

A proof is worth what its limits are honest about. Some limits belong to the method and are the same
in every run; others are this run's: a program that was not installed, an opinion that nobody could
be asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from interop.proof.opinions import SecondOpinion

__all__ = ["LIMITS", "Machine", "NotTested", "not_asked", "not_tested"]


class Machine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The machine of a run, and nothing that tells whose it is: no host, user or path.

    `processors` are the logical ones that the run might use.
    """

    system: str
    kernel: str
    architecture: str
    processor_model: str
    processors: int


class NotTested(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the run says nothing about, and why."""

    what: str
    reason: str


LIMITS = (
    NotTested(
        what="An active attacker who holds the server key",
        reason="he can be the server in future sessions; forward secrecy protects past ones",
    ),
    NotTested(
        what="Endpoints that keep session keys, or whose memory is read while a session lives",
        reason="recorded traffic and stolen files are attacked, not running processes",
    ),
    NotTested(
        what="Metadata: who spoke to whom, when, and how much",
        reason="TLS does not hide it",
    ),
    NotTested(
        what="Whether random values are unpredictable",
        reason="a census can only show that none of them came twice",
    ),
    NotTested(
        what="The strength of the primitives themselves",
        reason="the attacker computes what the standards define; he breaks no cipher and no curve",
    ),
)


def not_tested(
    skipped: Iterable[tuple[str, str]], second: SecondOpinion, target: str = ""
) -> tuple[NotTested, ...]:
    """Return the limits of a run: the method's, then sessions not recorded, with their reasons."""
    return (
        *LIMITS,
        *(NotTested(what=f"The session {name}", reason=reason) for name, reason in skipped),
        *(_of_target(target) if target else ()),
        *not_asked(second),
    )


def _of_target(target: str) -> Iterator[NotTested]:
    yield NotTested(
        what=f"Whether {target} executes what is replayed to it",
        reason="only it can count that: pfs replay --target with --count-url asks it",
    )
    yield NotTested(
        what=f"Keys that {target} holds beside the one that was given",
        reason="its ticket keys, its other certificates' keys and its sessions are its own",
    )


def not_asked(second: SecondOpinion) -> Iterator[NotTested]:
    """Yield where the second opinion could not be had, the thefts of one reason together."""
    if second.version is None:
        yield NotTested(what=f"A second opinion by {second.program}", reason=second.reason)
    thefts: dict[str, list[str]] = {}
    for opinion in second.opinions:
        if opinion.observed is None:
            named = thefts.setdefault(opinion.reason, [])
            if opinion.stolen not in named:
                named.append(opinion.stolen)
    for reason, named in thefts.items():
        yield NotTested(what=f"{second.program}'s opinion on {_listed(named)}", reason=reason)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

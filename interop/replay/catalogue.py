"""All attacks, and how to choose among them by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interop.errors import InputError
from interop.replay.data_cases import EARLY_DATA_CASES, REQUESTS, TICKET_CASES
from interop.replay.session_cases import FLIGHTS, HANDSHAKES, RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interop.replay.cases import Case

__all__ = ["CASES", "case_named", "choose_cases"]

CASES: Final = (
    *FLIGHTS,
    *HANDSHAKES,
    *RECORDS,
    *REQUESTS,
    *TICKET_CASES,
    *EARLY_DATA_CASES,
)


def case_named(name: str) -> Case:
    """Return the case of that name; raises `InputError`."""
    for case in CASES:
        if case.name == name:
            return case
    raise InputError(f"there is no case {name!r}: pfs replay --list shows them")


def choose_cases(names: Iterable[str]) -> tuple[Case, ...]:
    """Return the cases of these names in the table's order, all if there are none."""
    chosen = {case_named(name).name for name in names}
    return tuple(case for case in CASES if not chosen or case.name in chosen)

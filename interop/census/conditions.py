"""Under which circumstances handshakes are made, and how many of each.

A generator that is sound in one long-lived context may still repeat itself where its state is made,
copied or shared: in a new context, in a thread, in a child of `fork`, in a process that has just
started. And a resumed session takes its keys from an earlier one. So a census is made under each of
these conditions, most of it under the first, and every value is compared with those of all.

`plan` is a function of the number of handshakes alone, so that two runs differ in nothing but what
they draw.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from interop.errors import InputError

__all__ = [
    "IN_MEMORY",
    "LEAST_HANDSHAKES",
    "LEAST_HANDSHAKES_AT_A_TARGET",
    "Batch",
    "Condition",
    "plan",
    "require_handshakes",
]

# A kind of value that came once cannot come twice: so many handshakes in memory bring two of each,
# and so many at a target go through what is offered to it (`OBSERVER_OFFERS`) twice.
LEAST_HANDSHAKES: Final = 60
LEAST_HANDSHAKES_AT_A_TARGET: Final = 8

_BATCH_HANDSHAKES, _MOST_BATCH_HANDSHAKES = 250, 2000
_BATCHES: Final = 40_000
# Of a thousand handshakes. What is left is made in one context.
_PER_MILLE: Final = {"MANY_CONTEXTS": 40, "THREADS": 60, "FORKED": 100, "RESUMPTION": 100}
_LEAST_OF_EACH: Final = 24  # where there are enough
_LEAST_SHARE: Final = 8  # one eighth
# A process takes as long to start as a thousand handshakes do.
_HANDSHAKES_A_RESTART: Final = 50_000
_RESTART_HANDSHAKES: Final = 25


class Condition(StrEnum):
    """How the endpoints of some handshakes came about."""

    ONE_CONTEXT = "one context"
    MANY_CONTEXTS = "many contexts"
    THREADS = "threads"
    FORKED = "forked workers"
    RESTARTS = "restarts"
    RESUMPTION = "resumption"
    LIVE_TARGET = "live target"


IN_MEMORY: Final = tuple(condition for condition in Condition if condition != Condition.LIVE_TARGET)


class Batch(NamedTuple):
    """Handshakes to be made together; `first` is the number of the first, for what is offered."""

    condition: Condition
    first: int
    size: int


def require_handshakes(handshakes: int, *, most: int, at_a_target: bool) -> None:
    """Raise `InputError` for fewer handshakes than show anything, and for more than `most`."""
    least = LEAST_HANDSHAKES_AT_A_TARGET if at_a_target else LEAST_HANDSHAKES
    if not least <= handshakes <= most:
        raise InputError(f"a census takes {least} to {most:,} handshakes, not {handshakes:,}")


def plan(handshakes: int) -> list[Batch]:
    """Return the batches of a census of `handshakes` handshakes, restarts first."""
    sizes: dict[Condition, int] = dict.fromkeys(IN_MEMORY, 0)
    for name, per_mille in _PER_MILLE.items():
        least = min(_LEAST_OF_EACH, handshakes // _LEAST_SHARE)
        sizes[Condition[name]] = max(handshakes * per_mille // 1000, least)
    restarts = 2 + handshakes // _HANDSHAKES_A_RESTART
    restarted = min(restarts * _RESTART_HANDSHAKES, handshakes // _LEAST_SHARE)
    sizes[Condition.RESTARTS] = restarted
    sizes[Condition.ONE_CONTEXT] = handshakes - sum(sizes.values())
    batch_size = min(max(_BATCH_HANDSHAKES, handshakes // _BATCHES), _MOST_BATCH_HANDSHAKES)
    batches: list[tuple[float, Condition, int]] = []
    for condition, total in sizes.items():
        if condition is Condition.RESTARTS:
            count, order = min(restarts, total), -1.0
        else:
            count, order = -(-total // batch_size), 0.0
        for number, size in enumerate(_split(total, count)):
            # Each condition is spread over the whole run, so that its pace is an even one.
            batches.append((order or (number + 0.5) / count, condition, size))
    batches.sort(key=lambda batch: batch[0])
    planned, first = [], 0
    for _, condition, size in batches:
        planned.append(Batch(condition, first, size))
        first += size
    return planned


def _split(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]

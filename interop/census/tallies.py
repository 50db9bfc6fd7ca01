"""Counting in memory: what a census found, by kind of value.

A set of one kind's fingerprints is made at a time: a million handshakes take some 300 MB in all.
More than that is counted on disk (`interop.census.stored`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from interop.census.values import FINGERPRINT_BYTES, Tally, count_distinct

if TYPE_CHECKING:
    from interop.census.values import Gathered

__all__ = ["MOST_HANDSHAKES_IN_MEMORY", "Counts", "KindCount", "MemoryTallies"]

MOST_HANDSHAKES_IN_MEMORY = 1_000_000


class KindCount(msgspec.Struct, frozen=True):
    """How often one kind of value was seen.

    `most` is how often the most frequent value came; `repeated_in` names the conditions under which
    a value came that came elsewhere, or there, too.
    """

    kind: str
    count: int
    distinct: int
    most: int
    repeated_in: tuple[str, ...] = ()

    @property
    def repeated(self) -> int:
        """How many values had been seen before."""
        return self.count - self.distinct


class Counts(msgspec.Struct, frozen=True):
    """All that was counted, and over which handshakes."""

    conditions: dict[str, int]
    negotiated: dict[str, int]
    kinds: tuple[KindCount, ...]

    @property
    def handshakes(self) -> int:
        """How many handshakes there were."""
        return sum(self.conditions.values())


class MemoryTallies:
    """Keeps fingerprints by kind and condition, and counts them."""

    def __init__(self) -> None:
        self._fingerprints: defaultdict[str, defaultdict[str, bytearray]] = defaultdict(
            lambda: defaultdict(bytearray)
        )
        self._conditions: Counter[str] = Counter()
        self._negotiated: Counter[str] = Counter()

    def add(self, gathered: Gathered) -> None:
        """Take what some handshakes brought."""
        self._conditions[gathered.condition] += gathered.handshakes
        self._negotiated.update(gathered.negotiated)
        for kind, data in gathered.fingerprints.items():
            self._fingerprints[kind][gathered.condition] += data

    @property
    def handshakes(self) -> int:
        """How many handshakes it was given."""
        return sum(self._conditions.values())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of value that were seen."""
        return tuple(sorted(self._fingerprints))

    def fingerprints(self, kind: str) -> bytes:
        """Return all fingerprints of a kind."""
        return b"".join(self._fingerprints[kind].values())

    def tallies(self) -> dict[str, Tally]:
        """Return the tally of each kind."""
        return {kind: count_distinct(self.fingerprints(kind)) for kind in self.kinds}

    def count(self) -> Counts:
        """Count all of it."""
        return Counts(
            dict(self._conditions),
            dict(self._negotiated),
            tuple(self._count(kind) for kind in self.kinds),
        )

    def _count(self, kind: str) -> KindCount:
        tally = count_distinct(self.fingerprints(kind))
        if tally.count == tally.distinct:
            return KindCount(kind, tally.count, tally.distinct, min(tally.count, 1))
        times = Counter(_values(self.fingerprints(kind)))
        repeated = {value for value, count in times.items() if count > 1}
        conditions = self._fingerprints[kind].items()
        return KindCount(
            kind,
            tally.count,
            tally.distinct,
            max(times.values()),
            tuple(name for name, data in conditions if not repeated.isdisjoint(_values(data))),
        )


def _values(fingerprints: bytes | bytearray) -> list[bytes]:
    size = FINGERPRINT_BYTES
    return [bytes(fingerprints[at : at + size]) for at in range(0, len(fingerprints), size)]

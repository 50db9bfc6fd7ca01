"""Census of session keys: over N handshakes, no random, key share or secret comes twice.

Each handshake runs in memory between our own client and server context and is watched from
outside: randoms and key shares are read off the wire bytes by `interop.wire`, secrets come from
the server's key log, and the exporter from the connection. A hybrid key share is split into its
classical and its ML-KEM component, for a repeated component would be a repetition too.

What is kept of a value is its fingerprint, the first 16 octets of its SHA-256: secrets do not
leave the worker that saw them, the evidence stays small, and two different values meet by chance
with a probability below 2^-80 even among 2^24 of them.

Zero repetitions among n values excludes a generator whose output has fewer than about
2*log2(n) - 1 bits of entropy (birthday bound, at even odds); it does not show that values are
unpredictable. `excluded_bits` states that bound for the report.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interop.errors import InputError
from interop.proof.model import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "FINGERPRINT_BYTES",
    "MAX_HANDSHAKES",
    "Census",
    "count_distinct",
    "excluded_bits",
    "fingerprint",
    "take_census",
]

FINGERPRINT_BYTES = 16
MAX_HANDSHAKES = 1_000_000
_BATCH_HANDSHAKES = 250


@dataclass(frozen=True)
class Census:
    """The fingerprints of N handshakes, by kind of value, each 16 octets, concatenated."""

    handshakes: int
    fingerprints: Mapping[str, bytes]

    def tallies(self) -> dict[str, Tally]:
        """Return the tally of each kind of value."""
        return {kind: count_distinct(data) for kind, data in sorted(self.fingerprints.items())}


def fingerprint(value: bytes) -> bytes:
    """Return the 16 octets that stand for `value` in the census."""
    return hashlib.sha256(value).digest()[:FINGERPRINT_BYTES]


def count_distinct(fingerprints: bytes) -> Tally:
    """Tally concatenated fingerprints."""
    size = FINGERPRINT_BYTES
    values = {fingerprints[at : at + size] for at in range(0, len(fingerprints), size)}
    return Tally(count=math.ceil(len(fingerprints) / size), distinct=len(values))


def excluded_bits(count: int) -> float:
    """Return the entropy in bits below which `count` values would have met at even odds."""
    if count < 2:  # noqa: PLR2004 - a single value cannot meet another
        return 0.0
    # P(no repetition) = exp(-n(n-1) / 2^(b+1)) = 1/2
    return math.log2(count * (count - 1) / (2 * math.log(2)))


def take_census(
    handshakes: int,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> Census:
    """Run `handshakes` handshakes on `workers` processes (default: one a processor).

    `progress` is called with the number done so far. Raises `InputError` for a number outside
    1 to 1,000,000.
    """
    if not 1 <= handshakes <= MAX_HANDSHAKES:
        raise InputError(f"--handshakes takes 1 to {MAX_HANDSHAKES}, not {handshakes}")
    batches = list(_batches(handshakes))
    workers = min(workers or len(os.sched_getaffinity(0)), len(batches))
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    done = 0
    # spawn: a forked worker would share the state of the parent's random generator.
    with multiprocessing.get_context("spawn").Pool(workers, _ignore_interrupt) as pool:
        for size, batch in pool.imap_unordered(_run_batch, batches):
            for kind, data in batch.items():
                found[kind].append(data)
            done += size
            progress(done)
    return Census(handshakes, {kind: b"".join(parts) for kind, parts in found.items()})


def _batches(handshakes: int) -> Iterator[tuple[int, int]]:
    for first in range(0, handshakes, _BATCH_HANDSHAKES):
        yield first, min(_BATCH_HANDSHAKES, handshakes - first)

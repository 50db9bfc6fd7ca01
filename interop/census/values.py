"""What a census keeps of a value, and how it is counted.

What is kept of a value is its fingerprint, the first 16 octets of its SHA-256, under the name of
its kind. Fingerprints may lie on disks and be pooled from many machines, so two questions matter.

*Do they reveal a secret?* What is counted are randoms, public values, and secrets of 256 bits or
more that a key schedule put out. To find such a secret from its hash is to guess it, and a kind of
value that could be guessed (a password, a PSK that somebody typed) is not counted. What a
fingerprint does allow is to confirm: whoever already holds a secret can see that the census met it.
A key to the hash would prevent that, and with it pooling, for which every machine must use the same
function.

*Are they told apart?* Two different values share a fingerprint by chance with a probability of
2^-128: among 10^9 of a kind, below 2^-68 in all.
"""

from __future__ import annotations

import math
from binascii import unhexlify
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FINGERPRINT_BYTES", "Findings", "Gathered", "Tally", "count_distinct", "fingerprint"]

FINGERPRINT_BYTES = 16

# Labels of a key log (RFC 9850) whose lines are not secrets of one session's own schedule: OpenSSL
# logs the premaster secret of static RSA under "RSA", beside the main secret that follows from it.
_PASSED_OVER = frozenset({b"RSA"})


class Tally(msgspec.Struct, frozen=True):
    """How many values of one kind were seen, and how many different ones."""

    count: int
    distinct: int


def fingerprint(value: bytes) -> bytes:
    """Return the 16 octets that stand for `value` in the census."""
    return sha256(value).digest()[:FINGERPRINT_BYTES]


def count_distinct(fingerprints: bytes | bytearray) -> Tally:
    """Tally concatenated fingerprints."""
    size = FINGERPRINT_BYTES
    whole = bytes(fingerprints)
    values = {whole[at : at + size] for at in range(0, len(whole), size)}
    return Tally(count=math.ceil(len(whole) / size), distinct=len(values))


class Findings:
    """The fingerprints of what handshakes brought, and what they negotiated."""

    __slots__ = ("_fingerprints", "handshakes", "negotiated")

    def __init__(self) -> None:
        self._fingerprints: defaultdict[str, bytearray] = defaultdict(bytearray)
        self.handshakes = 0
        self.negotiated: Counter[str] = Counter()

    def handshake(self, negotiated: str, values: Iterable[tuple[str, bytes]]) -> None:
        """Add one handshake: what it negotiated, and each of its values after its kind."""
        self.handshakes += 1
        self.negotiated[negotiated] += 1
        self.add(values)

    def add(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Add values of a handshake, each after its kind."""
        fingerprints = self._fingerprints
        for kind, value in values:
            fingerprints[kind] += sha256(value).digest()[:FINGERPRINT_BYTES]

    def add_secrets(self, lines: Iterable[bytes]) -> None:
        """Add the secrets in the lines of a key log (RFC 9850)."""
        fingerprints = self._fingerprints
        for line in lines:
            label, _, secret = line.split()
            if label not in _PASSED_OVER:
                kind = _kind_of(label)
                fingerprints[kind] += sha256(unhexlify(secret)).digest()[:FINGERPRINT_BYTES]

    def merge(self, other: Gathered) -> None:
        """Add what was gathered elsewhere."""
        self.handshakes += other.handshakes
        self.negotiated.update(other.negotiated)
        for kind, data in other.fingerprints.items():
            self._fingerprints[kind] += data

    def gathered(self, condition: str) -> Gathered:
        """Return all of it, to be sent elsewhere."""
        return Gathered(
            condition,
            self.handshakes,
            {kind: bytes(data) for kind, data in self._fingerprints.items()},
            dict(self.negotiated),
        )


@dataclass(frozen=True, slots=True)
class Gathered:
    """What some handshakes under one condition brought: per kind, concatenated fingerprints."""

    condition: str
    handshakes: int
    fingerprints: Mapping[str, bytes]
    negotiated: Mapping[str, int] = field(default_factory=dict)


def _kind_of(label: bytes) -> str:
    return "main_secret" if label == b"CLIENT_RANDOM" else label.decode("ascii").lower()

"""What the counts of a census say: the verdict, what is excluded, and what was not tested.

**What zero repetitions exclude.** Among n independent draws from at most M values, none comes twice
with a probability of at most exp(-n(n-1)/2M), whatever the chances of the values are: evenly likely
ones collide least. So if none did, M is, at 95 percent confidence, above n(n-1)/(2 ln 20): the
birthday bound, given here in bits. And a fault that makes a handshake use an earlier one's value,
by chance and independently of the others, is rarer than one in (n-1)/ln 20: the rule of three.

**What they do not.** That values cannot be predicted: a counter never repeats. So the list of what
was not tested belongs to the verdict, and is printed with it.

**Whether anything was looked at.** A census that misses a kind of value would find no repetition in
it. So the number of values is held against the number of handshakes, and where that does not add up
the verdict is *invalid*.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from interop.census.conditions import IN_MEMORY, LEAST_HANDSHAKES, LEAST_HANDSHAKES_AT_A_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from interop.census.tallies import Counts, KindCount

__all__ = [
    "CensusReport",
    "Origin",
    "ValueReport",
    "excluded_bits",
    "excluded_one_in",
    "judge",
    "too_few",
    "unseen",
]

Verdict = Literal["unique", "repeated", "invalid"]
Source = Literal["memory", "target", "stored"]

_LN_20: Final = math.log(20)  # 95 percent
_TRAFFIC_SECRETS: Final = (
    "client_handshake_traffic_secret",
    "server_handshake_traffic_secret",
    "client_traffic_secret_0",
    "server_traffic_secret_0",
    "exporter_secret",
)
_KEY_SHARES: Final = ("client_key_share", "server_key_share")
_PARTS: Final = ("x25519", "secp256r1", "secp384r1", "mlkem768", "mlkem1024")
# What our own endpoints bring in memory, whatever they draw.
_KINDS_IN_MEMORY: Final = (
    "client_random",
    "server_random",
    *(f"{side}.{part}" for side in _KEY_SHARES for part in _PARTS),
    "main_secret",
    *_TRAFFIC_SECRETS,
    "exporter",
    "ticket_identity",
    "psk",
)

_NEVER_TESTED: Final = (
    "whether values can be predicted: a counter never repeats, nor does what others compute",
    "reuse over longer times than this took",
)
_NOT_TESTED_IN_MEMORY: Final = (
    "other machines, and virtual machines cloned from one snapshot: for those there is --pool",
    "client certificates, HelloRetryRequest, and Python's own TLS under our policies",
)
_NOT_TESTED_AT_A_TARGET: Final = (
    "what a client cannot see: the server's private keys, and what else its generator is used for",
    "processes and machines behind the address that these connections did not meet",
    "resumption on TLS 1.2, which uses the first session's main secret again by design",
)
_KEPT_FOR_HOURS: Final = (
    "a repeated key share is a key that outlived its session: some stacks keep one for hours, or "
    "until they are restarted, and forward secrecy begins only when it is dropped"
)
_NOT_SEEN_QUICKLY: Final = (
    "no repetition in so short a time is no proof: some stacks use a key again for hours, but only "
    "under load, or for some clients, groups or processes"
)


class Origin(msgspec.Struct, frozen=True):
    """Where the handshakes of a census came from."""

    source: Source
    target: str | None = None
    certificate_checked: bool | None = None
    not_tested: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ValueReport(msgspec.Struct, frozen=True):
    """What was seen of one kind of value.

    `excluded_bits` and `excluded_one_in` are what the absence of repetitions excludes at 95 percent
    confidence, null where there were some: fewer possible values than 2 to that power, and reuse
    more often than in one of so many handshakes.
    """

    kind: str
    count: int
    distinct: int
    repeated: int
    most_often: int
    repeated_in: tuple[str, ...]
    excluded_bits: float | None
    excluded_one_in: float | None


class CensusReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that a census found. `verdict` and `failures` follow from the rest."""

    format: Literal["pfs-census/1"] = "pfs-census/1"
    verdict: Verdict
    failures: tuple[str, ...]
    created: str
    seconds: float
    versions: dict[str, str]
    origin: Origin
    handshakes: int
    conditions: dict[str, int]
    negotiated: dict[str, int]
    values: tuple[ValueReport, ...]
    excluded: str | None
    not_tested: tuple[str, ...]
    notes: tuple[str, ...]


def excluded_bits(count: int) -> float:
    """Return b: `count` values without repetition exclude 2^b possible ones or fewer, at 95%."""
    return max(math.log2(count * (count - 1) / (2 * _LN_20)), 0.0) if count > 1 else 0.0


def excluded_one_in(count: int) -> float:
    """Return r: `count` values without repetition exclude reuse in one of r handshakes, at 95%."""
    return max((count - 1) / _LN_20, 1.0)


def judge(
    counts: Counts, origin: Origin, *, created: str, seconds: float, versions: Mapping[str, str]
) -> CensusReport:
    """Return the report on what was counted."""
    repetitions = tuple(_repetitions(counts))
    missing = tuple(_missing(counts, origin))
    verdict: Verdict = "repeated" if repetitions else "invalid" if missing else "unique"
    return CensusReport(
        verdict=verdict,
        failures=(*repetitions, *missing),
        created=created,
        seconds=round(seconds, 3),
        versions=dict(versions),
        origin=origin,
        handshakes=counts.handshakes,
        conditions=counts.conditions,
        negotiated=dict(sorted(counts.negotiated.items(), key=lambda item: -item[1])),
        values=tuple(_value(kind) for kind in counts.kinds),
        excluded=_excluded(counts) if verdict == "unique" else None,
        not_tested=tuple(_not_tested(counts, origin)),
        notes=(*origin.notes, *_notes(counts, origin)),
    )


def _value(kind: KindCount) -> ValueReport:
    unique = not kind.repeated
    return ValueReport(
        kind.kind,
        kind.count,
        kind.distinct,
        kind.repeated,
        kind.most,
        kind.repeated_in,
        round(excluded_bits(kind.count), 2) if unique else None,
        round(excluded_one_in(kind.count), 1) if unique else None,
    )


def _repetitions(counts: Counts) -> Iterator[str]:
    for kind in counts.kinds:
        if kind.repeated:
            where = f" ({', '.join(kind.repeated_in)})" if kind.repeated_in else ""
            yield (
                f"{kind.kind}: {kind.repeated:,} of {kind.count:,} had been seen before, "
                f"one of them {kind.most:,} times{where}"
            )


def _missing(counts: Counts, origin: Origin) -> Iterator[str]:
    """Say what should have been seen for each handshake and was not."""
    by_version = {"TLS 1.2": 0, "TLS 1.3": 0}
    for description, number in counts.negotiated.items():
        version = description[:7]
        by_version[version] = by_version.get(version, 0) + number
    if not counts.handshakes or sum(counts.negotiated.values()) != counts.handshakes:
        yield f"{sum(counts.negotiated.values()):,} of {counts.handshakes:,} handshakes are known"
    yield from unseen(
        {kind.kind: kind.count for kind in counts.kinds},
        handshakes=counts.handshakes,
        tls12=by_version["TLS 1.2"],
        tls13=by_version["TLS 1.3"],
        # A target may have key exchanges without a share: static RSA.
        with_shares=origin.target is None,
    )


def unseen(
    seen: Mapping[str, int],
    *,
    handshakes: int,
    tls12: int,
    tls13: int,
    with_shares: bool = True,
) -> Iterator[str]:
    """Say of which kinds fewer values were `seen` than so many handshakes bring.

    `tls12` and `tls13` of the `handshakes` were of that version. Without `with_shares`, key shares
    may be missing.
    """
    least = {
        "client_random": handshakes,
        "server_random": handshakes,
        "exporter": handshakes,
        "main_secret": tls12,
        **dict.fromkeys(_TRAFFIC_SECRETS, tls13),
    }
    for kind, number in least.items():
        if seen.get(kind, 0) < number:
            yield f"{kind}: {seen.get(kind, 0):,} seen in {number:,} handshakes"
    for side in _KEY_SHARES if with_shares else ():
        shares = sum(count for kind, count in seen.items() if kind.startswith(side))
        if shares < handshakes:
            yield f"{side}: {shares:,} seen in {handshakes:,} handshakes"


def too_few(seen: Mapping[str, int], *, handshakes: int, at_a_target: bool) -> Iterator[str]:
    """Say where too little was `seen` for anything to come twice.

    In memory that is of each kind; what kinds a target brings is its own affair.
    """
    least = LEAST_HANDSHAKES_AT_A_TARGET if at_a_target else LEAST_HANDSHAKES
    if handshakes < least:
        yield f"fewer handshakes ({handshakes:,}) than the {least} that can show a repetition"
    for kind in () if at_a_target else _KINDS_IN_MEMORY:
        if seen.get(kind, 0) < 2:  # noqa: PLR2004 - twice
            yield f"{kind}: {seen.get(kind, 0)} seen, of which none can have come twice"


def _excluded(counts: Counts) -> str:
    fewest = min(kind.count for kind in counts.kinds)
    return (
        "at 95% confidence, even for the kind seen least: that it is drawn, independently, from "
        f"2^{excluded_bits(fewest):.1f} possible values or fewer, evenly or not; and that one "
        f"handshake in {excluded_one_in(fewest):,.0f} or more uses a value of an earlier one again"
    )


def _not_tested(counts: Counts, origin: Origin) -> Iterator[str]:
    yield from _NEVER_TESTED
    if origin.source == "target":
        yield from _NOT_TESTED_AT_A_TARGET
        if not origin.certificate_checked:
            yield "who answered: the server's certificate was not checked"
    elif origin.source == "memory":
        yield from _NOT_TESTED_IN_MEMORY
        if left_out := [str(name) for name in IN_MEMORY if not counts.conditions.get(name)]:
            yield f"for too few handshakes: {', '.join(left_out)}"
    yield from origin.not_tested


def _notes(counts: Counts, origin: Origin) -> Iterator[str]:
    if origin.source != "target":
        return
    repeated = any(
        kind.repeated and kind.kind.startswith("server_key_share") for kind in counts.kinds
    )
    yield _KEPT_FOR_HOURS if repeated else _NOT_SEEN_QUICKLY

"""The plan of a census, what is counted in memory, and what the counts are said to exclude."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from interop.census import ends
from interop.census.conditions import (
    IN_MEMORY,
    LEAST_HANDSHAKES,
    LEAST_HANDSHAKES_AT_A_TARGET,
    Condition,
    plan,
)
from interop.census.report import (
    CensusReport,
    Origin,
    excluded_bits,
    excluded_one_in,
    judge,
    too_few,
)
from interop.census.tallies import Counts, KindCount, MemoryTallies
from interop.census.values import Findings, Gathered, Tally, count_distinct, fingerprint
from interop.census.workers import take_census
from interop.identity import SERVER_NAME, issue_identity
from interop.peers.observer import OBSERVER_OFFERS

SECRETS = (
    "client_handshake_traffic_secret",
    "server_handshake_traffic_secret",
    "client_traffic_secret_0",
    "server_traffic_secret_0",
    "exporter_secret",
)
SEEN = ("client_random", "server_random", "client_key_share.x25519", "server_key_share.x25519")


@pytest.mark.parametrize("handshakes", [1, 2, 7, 8, 60, 120, 999, 10_000, 123_457, 1_000_000])
def test_a_plan_has_each_handshake_once(handshakes: int) -> None:
    batches = plan(handshakes)
    assert sum(batch.size for batch in batches) == handshakes
    assert all(0 < batch.size <= 250 for batch in batches)
    first = 0
    for batch in batches:
        assert batch.first == first
        first += batch.size


@pytest.mark.parametrize("handshakes", [60, 120, 10_000, 1_000_000])
def test_a_plan_covers_every_condition_and_most_of_it_is_one_context(handshakes: int) -> None:
    sizes: Counter[Condition] = Counter()
    for batch in plan(handshakes):
        sizes[batch.condition] += batch.size
    assert set(sizes) == set(IN_MEMORY)
    assert max(sizes, key=lambda condition: sizes[condition]) is Condition.ONE_CONTEXT
    restarts = [batch for batch in plan(handshakes) if batch.condition is Condition.RESTARTS]
    assert len(restarts) >= 2  # one process alone repeats nothing


def test_a_plan_is_always_the_same() -> None:
    assert plan(5000) == plan(5000)


def test_the_least_census_in_memory_brings_two_of_every_kind_and_one_at_a_target_each_offer() -> (
    None
):
    tallies = MemoryTallies()
    recipe = ends.TransportRecipe.of(issue_identity().credential, SERVER_NAME)
    take_census(LEAST_HANDSHAKES, recipe, tallies, workers=1)
    seen = {kind: tally.count for kind, tally in tallies.tallies().items()}
    assert [*too_few(seen, handshakes=LEAST_HANDSHAKES, at_a_target=False)] == []
    assert min(seen.values()) >= 2
    for kind in seen:
        fewer = seen | {kind: 1}
        (said,) = too_few(fewer, handshakes=LEAST_HANDSHAKES, at_a_target=False)
        assert said == f"{kind}: 1 seen, of which none can have come twice"
    assert 2 * len(OBSERVER_OFFERS) <= LEAST_HANDSHAKES_AT_A_TARGET
    (said,) = too_few({}, handshakes=LEAST_HANDSHAKES_AT_A_TARGET - 1, at_a_target=True)
    assert said == "fewer handshakes (7) than the 8 that can show a repetition"


@pytest.mark.parametrize("handshakes", range(LEAST_HANDSHAKES, 1200, 7))
def test_a_larger_census_goes_through_what_is_offered_twice_too(handshakes: int) -> None:
    offered = Counter(
        ends._ROUND[number % len(ends._ROUND)]
        for batch in plan(handshakes)
        if batch.condition is not Condition.RESUMPTION
        for number in range(batch.first, batch.first + batch.size)
    )
    assert len(offered) == len(ends.OFFERS)
    assert min(offered.values()) >= 2


def chance_of_no_repetition(draws: int, values: int) -> float:
    return math.exp(sum(math.log1p(-drawn / values) for drawn in range(draws)))


@pytest.mark.parametrize("count", [100, 1000, 20_000])
def test_the_birthday_bound_is_the_one_of_an_exact_count(count: int) -> None:
    bound = excluded_bits(count)
    # As many values as the bound says: seen without repetition in a twentieth of all cases.
    assert chance_of_no_repetition(count, round(2**bound)) == pytest.approx(0.05, rel=0.1)
    assert chance_of_no_repetition(count, round(2 ** (bound - 1))) < 0.01


def test_the_rule_of_three() -> None:
    one_in = excluded_one_in(1001)
    assert (1 - 1 / one_in) ** 1000 == pytest.approx(0.05, rel=0.01)
    assert excluded_bits(1) == excluded_bits(0) == 0.0
    assert excluded_one_in(1) == 1.0


def gathered(condition: Condition, handshakes: int, **values: list[bytes]) -> Gathered:
    prints = {kind: b"".join(map(fingerprint, some)) for kind, some in values.items()}
    return Gathered(condition, handshakes, prints, {"TLS 1.3 x25519": handshakes})


def test_tallies_say_where_a_value_came_again() -> None:
    tallies = MemoryTallies()
    tallies.add(gathered(Condition.ONE_CONTEXT, 3, random=[b"a", b"b", b"c"]))
    tallies.add(gathered(Condition.THREADS, 2, random=[b"d", b"e"]))
    assert tallies.count().kinds == (KindCount("random", 5, 5, 1),)
    tallies.add(gathered(Condition.FORKED, 3, random=[b"f", b"b", b"b"]))
    (kind,) = tallies.count().kinds
    assert kind == KindCount("random", 8, 6, 3, ("one context", "forked workers"))
    assert kind.repeated == 2
    assert tallies.tallies() == {"random": Tally(8, 6)}
    assert tallies.count().conditions == {"one context": 3, "threads": 2, "forked workers": 3}


def test_findings_take_secrets_from_a_key_log_and_keep_fingerprints_alone() -> None:
    findings = Findings()
    findings.handshake("TLS 1.2 x25519", [("client_random", b"r" * 32)])
    findings.add_secrets([b"CLIENT_RANDOM 00 " + b"ab" * 48, b"RSA 00 " + b"cd" * 48])
    found = findings.gathered("one context")
    assert found.fingerprints == {
        "client_random": fingerprint(b"r" * 32),
        "main_secret": fingerprint(b"\xab" * 48),
    }
    assert b"\xab" * 8 not in b"".join(found.fingerprints.values())


def test_counting_concatenated_fingerprints() -> None:
    data = b"".join(fingerprint(value) for value in (b"a", b"b", b"a"))
    assert count_distinct(data) == Tally(3, 2)
    assert count_distinct(b"") == Tally(0, 0)


def complete(handshakes: int = 100) -> dict[str, KindCount]:
    kinds = (*SEEN, *SECRETS, "exporter")
    return {kind: KindCount(kind, handshakes, handshakes, 1) for kind in kinds}


def report_on(
    kinds: dict[str, KindCount], origin: Origin | None = None, handshakes: int = 100
) -> CensusReport:
    counts = Counts(
        {"one context": handshakes}, {"TLS 1.3 x25519": handshakes}, tuple(kinds.values())
    )
    return judge(counts, origin or Origin("memory"), created="", seconds=1.0, versions={})


def test_a_census_that_saw_everything_once_is_unique_and_says_what_it_left_out() -> None:
    report = report_on(complete())
    assert (report.verdict, report.failures) == ("unique", ())
    assert report.excluded is not None
    assert "2^10.7 possible values" in report.excluded
    untested = " ".join(report.not_tested)
    for words in ("predicted", "longer times", "snapshot", "forked workers, restarts, resumption"):
        assert words in untested


@pytest.mark.parametrize("kind", [*SEEN, *SECRETS, "exporter"])
def test_a_census_that_missed_a_kind_of_value_is_invalid(kind: str) -> None:
    kinds = complete()
    del kinds[kind]
    report = report_on(kinds)
    assert report.verdict == "invalid"
    assert kind.partition(".")[0] in report.failures[0]
    assert report.excluded is None
    kinds[kind] = KindCount(kind, 99, 99, 1)  # and one that missed a single handshake
    assert report_on(kinds).verdict == "invalid"


def test_a_census_of_nothing_is_invalid() -> None:
    assert report_on({}, handshakes=0).verdict == "invalid"


def test_a_repetition_is_named_and_excludes_nothing() -> None:
    kinds = complete()
    kinds["server_random"] = KindCount("server_random", 100, 98, 3, ("forked workers",))
    report = report_on(kinds)
    assert report.verdict == "repeated"
    assert report.failures == (
        "server_random: 2 of 100 had been seen before, one of them 3 times (forked workers)",
    )
    assert report.excluded is None
    (value,) = [value for value in report.values if value.repeated]
    assert value.excluded_bits is value.excluded_one_in is None


def test_a_quick_look_at_a_foreign_server_says_that_it_was_quick() -> None:
    report = report_on(complete(), Origin("target", "example:443", certificate_checked=False))
    assert report.verdict == "unique"
    assert "no repetition in so short a time is no proof" in report.notes[0]
    assert any("certificate was not checked" in text for text in report.not_tested)
    kinds = complete()
    kinds["server_key_share.x25519"] = KindCount("server_key_share.x25519", 100, 1, 100)
    report = report_on(kinds, Origin("target", "example:443", certificate_checked=True))
    assert "some stacks keep one for hours" in report.notes[0]
    assert not any("certificate was not checked" in text for text in report.not_tested)

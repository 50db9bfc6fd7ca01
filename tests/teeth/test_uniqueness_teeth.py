"""`pfs uniqueness` that does not look says *invalid*, never *unique*.

`tests/loopback/test_census_faults.py` has the servers whose values repeat. Here the census itself
is broken: it misses a kind of value, or a handshake. It is taken in this process, for workers of
their own would not meet the mutant.
"""

from __future__ import annotations

from typing import Any

import pytest
from mutation import Mutant, in_force, sentences_of

from interop.census import report as census_report
from interop.census.conditions import Batch, Condition
from interop.census.ends import TransportRecipe
from interop.census.report import CensusReport, Origin, judge
from interop.census.sampling import Sampler
from interop.census.tallies import MemoryTallies
from interop.identity import SERVER_NAME, issue_identity

HANDSHAKES = 20


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(TransportRecipe.of(issue_identity().credential, SERVER_NAME).open())


def census(sampler: Sampler) -> CensusReport:
    tallies = MemoryTallies()
    tallies.add(sampler.batch(Batch(Condition.ONE_CONTEXT, 0, HANDSHAKES)))
    return judge(tallies.count(), Origin("memory"), created="", seconds=1.0, versions={})


def without(kind: str) -> Any:
    """Take down everything but values of one kind."""
    return lambda original: (
        lambda self, values: original(
            self, [(name, value) for name, value in values if not name.startswith(kind)]
        )
    )


def without_secrets(*labels: bytes) -> Any:
    return lambda original: (
        lambda self, lines: original(self, [line for line in lines if not line.startswith(labels)])
    )


ADD = "interop.census.values:Findings.add"
SECRETS = "interop.census.values:Findings.add_secrets"
MUTANTS = (
    *(
        Mutant(f"no {kind}", ADD, without(kind), f"{kind}: 0 seen in {HANDSHAKES} handshakes")
        for kind in (
            "client_random", "server_random", "exporter", "client_key_share", "server_key_share"
        )
    ),
    *(
        Mutant(f"no {label.decode()}", SECRETS, without_secrets(label), f"{kind}: 0 seen in")
        for label, kind in (
            (b"CLIENT_RANDOM", "main_secret"),
            (b"CLIENT_HANDSHAKE", "client_handshake_traffic_secret"),
            (b"SERVER_HANDSHAKE", "server_handshake_traffic_secret"),
            (b"CLIENT_TRAFFIC", "client_traffic_secret_0"),
            (b"SERVER_TRAFFIC", "server_traffic_secret_0"),
            (b"EXPORTER", "exporter_secret"),
        )
    ),
    Mutant("handshakes that are not looked at", "interop.census.sampling:_Notes.look",
        lambda _: lambda self: self._noted.clear(), "0 of 0 handshakes are known"),
    Mutant("one random for all", "interop.census.values:Findings.handshake",
        lambda original: lambda self, negotiated, values: original(self, negotiated, [
            (kind, b"same" if kind == "client_random" else value) for kind, value in values]),
        "client_random: 19 of 20 had been seen before, one of them 20 times"),
)  # fmt: skip


def test_without_a_mutant_it_is_unique(sampler: Sampler) -> None:
    report = census(sampler)
    assert (report.verdict, report.failures) == ("unique", ())


@pytest.mark.parametrize("mutant", MUTANTS, ids=repr)
def test_a_broken_census_is_never_unique(sampler: Sampler, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        report = census(sampler)
    assert report.verdict == ("repeated" if "random for all" in mutant.name else "invalid")
    assert any(mutant.said in text for text in report.failures), report.failures


def test_every_sentence_has_a_mutant() -> None:
    said = {mutant.said for mutant in MUTANTS}
    claims = sentences_of(census_report, "_repetitions", "_missing", "unseen")
    claims -= {"TLS 1.2", "TLS 1.3"}
    assert {claim for claim in claims if not any(claim in each for each in said)} == set()

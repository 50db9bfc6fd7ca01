"""Each seeded fault of a real server is found, and the same server without one is not accused."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from interop.census.conditions import Batch, Condition
from interop.census.report import CensusReport, Origin, judge
from interop.census.tallies import MemoryTallies
from interop.census.workers import take_census
from interop.peers.faulty import Fault, FaultyRecipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Identities

HANDSHAKES = 20  # more than four bits of random can tell apart


def census_of(fault: Fault, identities: Identities, *batches: Batch) -> CensusReport:
    recipe = FaultyRecipe(
        identities.ec.certificates_pem(), identities.ec.private_key_pem(), "localhost", fault
    )
    tallies = MemoryTallies()
    take_census(sum(batch.size for batch in batches), recipe, tallies, workers=1, batches=batches)
    return judge(tallies.count(), Origin("memory"), created="", seconds=1.0, versions={})


def repeated(report: CensusReport) -> dict[str, tuple[str, ...]]:
    return {value.kind: value.repeated_in for value in report.values if value.repeated}


ONE_CONTEXT = Batch(Condition.ONE_CONTEXT, 0, HANDSHAKES)
FORKED = Batch(Condition.FORKED, HANDSHAKES, 7)


def test_a_server_without_fault_is_unique_under_every_condition(identities: Identities) -> None:
    batches = [Batch(condition, 0, 6) for condition in Condition][:5]
    report = census_of(Fault.NONE, identities, *batches)
    assert report.verdict == "unique", report.failures
    assert report.handshakes == 30


def test_a_reused_ephemeral_key_is_found(identities: Identities) -> None:
    report = census_of(Fault.REUSED_KEY, identities, ONE_CONTEXT)
    assert report.verdict == "repeated"
    assert repeated(report) == {"server_key_share.x25519": ("one context",)}
    (share,) = [value for value in report.values if value.repeated]
    assert (share.count, share.distinct, share.most_often) == (HANDSHAKES, 1, HANDSHAKES)
    assert share.excluded_bits is None


def test_a_generator_cloned_by_fork_is_found_in_forked_workers_alone(
    identities: Identities,
) -> None:
    report = census_of(Fault.CLONED_GENERATOR, identities, ONE_CONTEXT)
    assert report.verdict == "unique", report.failures
    report = census_of(Fault.CLONED_GENERATOR, identities, ONE_CONTEXT, FORKED)
    assert report.verdict == "repeated"
    assert repeated(report) == {
        "server_random": ("forked workers",),
        "server_key_share.x25519": ("forked workers",),
    }


def test_a_random_of_few_bits_is_found(identities: Identities) -> None:
    report = census_of(Fault.REPEATED_RANDOM, identities, ONE_CONTEXT)
    assert report.verdict == "repeated"
    assert repeated(report) == {"server_random": ("one context",)}


def test_a_fixed_exporter_is_found(identities: Identities) -> None:
    report = census_of(Fault.FIXED_EXPORTER, identities, ONE_CONTEXT)
    assert report.verdict == "repeated"
    assert repeated(report) == {"exporter": ("one context",)}


@contextmanager
def faulty_server(fault: Fault, identities: Identities, folder: Path) -> Iterator[str]:
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(identities.ec.certificates_pem())
    key.touch(0o600)
    key.write_bytes(identities.ec.private_key_pem())
    command = [sys.executable, "-m", "interop.peers.faulty", fault, str(chain), str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.NONE, set()),
        (Fault.REUSED_KEY, {"server_key_share.x25519"}),
        (Fault.CLONED_GENERATOR, {"server_random", "server_key_share.x25519"}),
        (Fault.REPEATED_RANDOM, {"server_random"}),
        # What the server exports is not seen by a client, which exports for itself.
        (Fault.FIXED_EXPORTER, set()),
    ],
)
def test_faults_of_a_live_server(
    fault: Fault,
    expected: set[str],
    identities: Identities,
    tmp_path: Path,
    pfs: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    (tmp_path / "ca.pem").write_bytes(identities.anchors.pem())
    with faulty_server(fault, identities, tmp_path) as address:
        done = pfs(
            *("uniqueness", "--target", address, "--server-name", "localhost", "--json"),
            *("--ca", tmp_path / "ca.pem", "--handshakes", str(HANDSHAKES), "--workers", "2"),
        )
    assert done.returncode == (1 if expected else 0), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert {value["kind"] for value in report["values"] if value["repeated"]} == expected
    assert report["handshakes"] == HANDSHAKES
    assert report["origin"]["certificate_checked"] is True
    notes = " ".join(report["notes"])
    assert "for hours" in notes
    assert any("TLS 1.2, which the server refused" in text for text in report["not_tested"])

"""`pfs prove` with something broken in it never says *proved*.

Each row of the tables breaks one thing: the attacker, an endpoint, a control that is left out. The
real harness runs with it, on real recordings, and must refute, or refuse to judge, for the reason
that the row names. Each sentence that the harness can say has a row.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from broken_attackers import ASK, ATTACKERS, CONTROL, EVALUATE, JUDGE, LEFT_OUT, judging
from broken_endpoints import CENSUS, ENDPOINTS, FAULTS, with_fault
from mutation import Mutant, in_force, sentences_of

from interop.errors import InteropError
from interop.identity import issue_identity
from interop.peers.faulty import Fault
from interop.progress import SilentProgress
from interop.proof import experiment, layout, model, opinions
from interop.proof.servers import Identity
from interop.proof.target import OwnServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Evidence


def refutes(found: tuple[str, tuple[str, ...]], said: str) -> None:
    """Check that a run was not proved, and for the reason that was foreseen."""
    verdict, sentences = found
    assert verdict in {"refuted", "invalid"}
    assert any(said in sentence for sentence in sentences), sentences


def tells_otherwise(mutant: Mutant) -> bool:
    """Say whether a mutant attacks as ever, and then tells of it otherwise."""
    return mutant.place in {EVALUATE, ASK}


def test_without_a_mutant_it_is_proved(evidence: Evidence) -> None:
    assert (evidence.report.verdict, evidence.report.failures) == ("proved", ())
    assert evidence.judge() == ("proved", ())


@pytest.mark.parametrize("mutant", [m for m in ATTACKERS if not tells_otherwise(m)], ids=repr)
def test_a_broken_attacker_never_proves(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge()
    refutes(found, mutant.said)


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("mutant", [m for m in ATTACKERS if tells_otherwise(m)], ids=repr)
def test_an_attacker_that_tells_otherwise_never_proves(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge(ask_tshark=mutant.place == ASK)
    refutes(found, mutant.said)


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("mutant", LEFT_OUT, ids=repr)
def test_what_is_left_out_never_proves(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge()
    refutes(found, mutant.said)


def run(evidence: Evidence, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Run the whole proof, all but its census, of which the one before is taken."""

    def taken_before(_original: Any) -> Any:
        def take(directory: Path, *_rest: Any) -> Any:
            shutil.copytree(evidence.directory / "census", directory / "census", dirs_exist_ok=True)
            return evidence.report.census

        return take

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_take_census", taken_before(experiment._take_census))
        try:
            report, _ = experiment.prove(
                folder / "evidence",
                payload=evidence.payload,
                handshakes=evidence.report.handshakes,
                progress=SilentProgress(),
                ask_tshark=False,
            )
        except InteropError as error:
            return "invalid", (str(error),)
    return report.verdict, report.failures


@pytest.mark.parametrize("mutant", ENDPOINTS, ids=repr)
def test_a_broken_endpoint_never_proves(evidence: Evidence, tmp_path: Path, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = run(evidence, tmp_path)
    refutes(found, mutant.said)


def with_census(evidence: Evidence, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Take a census, and judge the recordings with it.

    What a faulty server does not do (TLS 1.2, tickets, other groups) is of the run's own census.
    """
    (folder / "census").mkdir()
    issued = issue_identity()
    identity = Identity(*[issued.credential] * 3, trust_anchors=issued.trust_anchors)
    handshakes = evidence.report.handshakes
    census = experiment._take_census(folder, handshakes, identity, SilentProgress())
    with in_force(JUDGE, judging(census=lambda whole: whole | census)):
        return evidence.judge()


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("mutant", FAULTS, ids=repr)
def test_a_faulty_server_is_found_by_its_census(
    evidence: Evidence, tmp_path: Path, mutant: Mutant
) -> None:
    with in_force(mutant.place, mutant.change):
        found = with_census(evidence, tmp_path)
    refutes(found, mutant.said)


@pytest.mark.usefixtures("matrix_once")
def test_a_server_with_no_fault_is_not_accused_by_its_census(
    evidence: Evidence, tmp_path: Path
) -> None:
    with in_force(CENSUS, with_fault(Fault.NONE)):
        assert with_census(evidence, tmp_path) == ("proved", ())


# A run about somebody's own server: some of our sessions pass for the target's.


def about_a_target(*names: str, key: str = "server") -> Callable[[Any], Any]:
    """Let the run be about a server with a key of ours, and these be its sessions."""

    def change(original: Any) -> Any:
        def judge(directory: Path, *rest: Any, sessions: Any, **options: Any) -> Any:
            target = OwnServer(
                address=("127.0.0.1", 443),
                server_name="localhost",
                trust_anchors=issue_identity().trust_anchors,
                private_keys=(directory / layout.server_key_of(key),),
            )
            sessions = tuple(
                msgspec.structs.replace(each, target=each.name in names) for each in sessions
            )
            return original(directory, *rest, sessions=sessions, target=target, **options)

        return judge

    return change


TARGETS = (
    Mutant("a target that nobody saw", JUDGE, about_a_target(),
        "no forward-secret session with 127.0.0.1:443 was recorded"),
    Mutant("a target that takes static RSA", JUDGE, about_a_target("tls13-x25519", CONTROL),
        "127.0.0.1:443 does TLS 1.2 without forward secrecy: static RSA"),
    Mutant("a target that gives out tickets", JUDGE, about_a_target("tls13-x25519", "ticket-tls12"),
        "gives out a ticket that holds the main secret"),
    Mutant("another key than the target's", JUDGE, about_a_target("tls13-x25519", key="control"),
        "nothing shows that target-key is what it says"),
)  # fmt: skip


@pytest.mark.parametrize("mutant", TARGETS, ids=repr)
def test_what_a_target_should_not_do_refutes(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge()
    refutes(found, mutant.said)


def test_a_target_that_does_as_it_should_is_proved(evidence: Evidence) -> None:
    with in_force(JUDGE, about_a_target("tls12-ecdhe", "tls13-x25519")):
        assert evidence.judge() == ("proved", ())


def test_every_claim_has_a_mutant() -> None:
    claims = sentences_of(model, "_failures", "contradiction")
    claims |= sentences_of(opinions, "contradictions")
    said = {mutant.said for mutant in (*ATTACKERS, *LEFT_OUT, *ENDPOINTS, *FAULTS, *TARGETS)}
    assert len(claims) > 15
    assert {claim for claim in claims if not any(claim in each for each in said)} == set()

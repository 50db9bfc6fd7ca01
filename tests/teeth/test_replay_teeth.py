"""`pfs replay` with something broken in it never says *held*.

`tests/loopback/test_replay.py` exchanges endpoints; here the attacker, the count and the judgement
are broken, and things left out. Each sentence that the judgement can say has a row.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from mutation import Mutant, in_force, sentences_of

import transport
from interop.progress import SilentProgress
from interop.replay import model
from interop.replay.catalogue import choose_cases
from interop.replay.model import Verdict
from interop.replay.runner import run_replays
from interop.replay.servers import blocking_server
from interop.replay.targets import own_target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from interop.identity import Identity
    from interop.replay.model import Report
    from interop.replay.targets import Target


def ours(stack: ExitStack, identity: Identity) -> Iterator[Target]:
    """Start one server of ours."""
    policy = transport.DEFAULT_POLICY
    server = stack.enter_context(blocking_server(identity.credential, policy))
    yield own_target(server, identity, policy, "TLS 1.3", engine="blocking")


def run() -> Report:
    cases = choose_cases(["flight-duplicated", "request-duplicated"])
    return run_replays(cases, SilentProgress(), targets=ours)


def times(count: int) -> Any:
    """Execute each request so many times."""

    def change(original: Any) -> Any:
        def complete(self: Any, *given: Any) -> Any:
            if not count:
                return HTTPStatus.OK, b""
            for _ in range(count):
                answer = original(self, *given)
            return answer

        return complete

    return change


def only_where(tried: Any) -> Any:
    """Attack with those cases alone that `tried` says."""
    return lambda original: (
        lambda target, cases, progress: original(
            target, [case for case in cases if tried(target, case)], progress
        )
    )


def not_at_ours(original: Any) -> Any:
    return lambda target, cases, progress: (
        original(target, cases, progress) if target.control else iter(())
    )


def without_the_last(original: Any) -> Any:
    return lambda *given: list(original(*given))[:-1]


def less(name: str) -> Any:
    return lambda original: lambda *given: (t for t in original(*given) if t.name != name)


MUTANTS = (
    Mutant("nothing is delivered", "interop.replay.experiment:deliver",
        lambda original: lambda dial, _parts, **named: original(dial, (), **named),
        "control flight-duplicated at plain-http did not open: "),
    Mutant("an interference that changes nothing",
        "interop.replay.interference:Interferer._apply",
        lambda original: lambda self, interference, unit: (
            original(self, interference, unit), [unit.raw])[1],
        "control request-duplicated at plain-http did not open"),
    Mutant("a judge who always says held", "interop.replay.experiment:judge",
        lambda _: lambda *_given: (Verdict.HELD, ""),
        "control flight-duplicated at plain-http did not open"),
    Mutant("an application that does not count", "interop.replay.application:_Exchange.complete",
        times(0), "an honest session was not executed as asked"),
    Mutant("an application that executes twice", "interop.replay.application:_Exchange.complete",
        times(2), "flight-duplicated at blocking-tls13: an honest session was not executed"),
    Mutant("an application that runs before the check", "interop.replay.servers:_serve_tls",
        lambda _: lambda application, connection: application.serve(connection),
        "flight-duplicated at blocking-tls13: a replayed handshake reached the application"),
    Mutant("no plain control", "interop.replay.runner:control_targets", less("plain-http"),
        "control plain-http was not tried"),
    Mutant("no early-data control", "interop.replay.runner:control_targets", less("early-data"),
        "control early-data was not tried"),
    Mutant("no endpoint of ours", "interop.replay.runner:attack", not_at_ours,
        "was replayed at a protected endpoint"),
    Mutant("a case that is skipped", "interop.replay.runner:attack",
        only_where(lambda target, case: target.control or case.name != "request-duplicated"),
        "request-duplicated at blocking-tls13 was not tried"),
    Mutant("a case that is skipped at a control", "interop.replay.runner:attack",
        only_where(lambda target, case: not target.control or case.name != "flight-spliced"),
        "flight-spliced at unprotected-records was not tried"),
    Mutant("no honest session afterwards", "interop.replay.runner:attack", without_the_last,
        "honest-session at blocking-tls13 was not tried"),
)  # fmt: skip


def test_without_a_mutant_it_is_held() -> None:
    report = run()
    assert (report.verdict, report.failures) == (Verdict.HELD, ())


@pytest.mark.parametrize("mutant", MUTANTS, ids=repr)
def test_a_broken_experiment_is_never_held(mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        report = run()
    assert report.verdict in {Verdict.INVALID, Verdict.REPLAYED}
    assert any(mutant.said in text for text in report.failures), report.failures


def test_every_sentence_has_a_mutant() -> None:
    said = {mutant.said for mutant in MUTANTS}
    claims = sentences_of(model, "failures")
    assert {claim for claim in claims if not any(claim in each for each in said)} == set()

"""Every replay at every endpoint of ours, and what turns the verdict: endpoints that are broken."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import transport
from interop.identity import Identity, issue_identity
from interop.live_servers import PlainListener
from interop.peers.early_data import EarlyDataClient, early_data_context, serve_early_data
from interop.peers.hostile import reset
from interop.progress import SilentProgress
from interop.replay import experiment, runner
from interop.replay.application import CountingApplication
from interop.replay.cases import CONTROLS, EARLY_DATA, PLAIN
from interop.replay.catalogue import CASES, case_named, choose_cases
from interop.replay.controls import plain_server
from interop.replay.experiment import HONEST_SESSION, Experiment
from interop.replay.flights import Role, Unit
from interop.replay.interference import Action, Interference, Interferer, Step
from interop.replay.middle import Middle, deliver
from interop.replay.model import Outcome, Verdict
from interop.replay.runner import attack, judge_run, run_replays
from interop.replay.servers import CountingServer, blocking_server, threaded_server
from interop.replay.targets import (
    Target,
    control_targets,
    local_targets,
    own_target,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from interop.direction import Direction
    from transport import TLSSocket

TARGETS = (
    "blocking-tls13",
    "blocking-tls12",
    "blocking-tls13-resumption",
    "asyncio-tls13",
    "asyncio-tls12",
    "asyncio-tls13-resumption",
)

# What executes in a live session that is interfered with, of three requests or one upload: all that
# came before the first record that could not be opened. Whatever is not here executes nothing.
EXECUTED = {
    "hello-delayed": 3,
    "finished-delayed": 3,
    "alert-duplicated": 3,
    "alert-delayed": 3,
    "alert-dropped": 3,
    "alert-truncated": 3,
    "alert-spliced": 3,
    "answer-duplicated": 3,
    "answer-dropped": 3,
    "answer-truncated": 3,
    "request-duplicated": 1,
    "request-duplicated-later": 2,
    "request-delayed": 3,
    "request-dropped": 1,
    "request-truncated": 1,
    "request-spliced": 1,
    "ticket-duplicated-by-its-owner": 2,
}
# A change_cipher_spec means something in TLS 1.2 alone (RFC 9846 section 5).
EXECUTED_1_3 = EXECUTED | {"change-duplicated": 3, "change-dropped": 3}

# On the wire, or in the server's own words: what shows that the attack did arrive.
SEEN = {
    "request-duplicated": "the server sent bad_record_mac",
    "request-duplicated-later": "the server sent bad_record_mac",
    "request-reordered": "the server sent bad_record_mac",
    "request-dropped": "the server sent bad_record_mac",
    "request-truncated": "the server saw it cut off",
    "request-spliced": "the server sent bad_record_mac",
    "request-spliced-in": "the server sent bad_record_mac",
    "request-alone": "the server sent unexpected_message",
    "upload-dropped": "the server sent bad_record_mac",
    "upload-truncated": "the server saw it cut off",
    "alert-dropped": "the server saw it cut off",
    "alert-truncated": "the server saw it cut off",
    "alert-spliced": "the server sent bad_record_mac",
    "answer-truncated": "the client saw it cut off",
    "flight-duplicated": "the server sent bad_record_mac",
    "flight-duplicated-paced": "the server sent bad_record_mac",
    "flight-spliced": "the server sent bad_record_mac",
    "ticket-duplicated": "the server sent bad_record_mac",
    "ticket-duplicated-by-its-owner": "the ticket was accepted 2 times of 2",
    "finished-spliced": "the server sent bad_record_mac",
    "key-exchange-dropped": "the server sent unexpected_message",
}


def is_not_applicable(target: str, case: str) -> bool:
    if "tls12" in target:
        return case.startswith(("ticket-", "early-data-")) or case in {
            "finished-reordered",
            "finished-dropped",
        }
    if case.startswith("ticket-"):
        return not target.endswith("-resumption")
    return case.startswith("key-exchange-")


@pytest.fixture(scope="module")
def identity() -> Identity:
    return issue_identity()


@pytest.fixture(scope="module")
def experiments(identity: Identity) -> Iterator[dict[str, Experiment]]:
    """Start every server once; recordings are made when a case first needs them."""
    with ExitStack() as stack:
        targets = [*control_targets(stack, identity), *local_targets(stack, identity)]
        yield {target.name: Experiment(target) for target in targets}


@pytest.mark.parametrize("name", [case.name for case in CASES])
@pytest.mark.parametrize("target", TARGETS)
def test_each_case_at_each_endpoint(
    experiments: dict[str, Experiment], target: str, name: str
) -> None:
    outcome = experiments[target].run(case_named(name))
    if is_not_applicable(target, name):
        assert outcome.verdict is Verdict.NOT_APPLICABLE
        assert outcome.reason
        return
    assert (outcome.verdict, outcome.reason) == (Verdict.HELD, "")
    assert outcome.executed_before is not None
    assert outcome.executed_after is not None
    expected = (EXECUTED if "tls12" in target else EXECUTED_1_3).get(name, 0)
    assert outcome.executed_after - outcome.executed_before == expected
    assert SEEN.get(name, "") in outcome.reaction
    assert "section" in outcome.basis


@pytest.mark.parametrize(
    ("control", "name"),
    [(control, case.name) for control in CONTROLS for case in CASES if control in case.opens_at],
)
def test_each_control_opens(experiments: dict[str, Experiment], control: str, name: str) -> None:
    outcome = experiments[control].run(case_named(name))
    assert outcome.verdict is Verdict.REPLAYED, outcome
    assert outcome.control
    assert outcome.executed_before is not None
    assert outcome.executed_after is not None
    # Those that only change the order or the body execute no more often than was asked for.
    if name.endswith(("-duplicated", "-duplicated-later", "-spliced-in", "-alone")):
        rise = outcome.executed_after - outcome.executed_before
        assert rise > outcome.honest or name == "upload-duplicated"


@pytest.mark.parametrize("target", TARGETS)
def test_each_endpoint_still_serves(experiments: dict[str, Experiment], target: str) -> None:
    outcome = experiments[target].run_honest_session()
    assert (outcome.case, outcome.verdict) == (HONEST_SESSION, Verdict.HELD)
    assert outcome.executed_before is not None
    assert outcome.executed_after == outcome.executed_before + 3


def test_targets_are_the_ones_tested(experiments: dict[str, Experiment]) -> None:
    assert set(experiments) == {*TARGETS, *CONTROLS}


# Endpoints that are broken turn the verdict


def verdict_at(target: Target, *names: str) -> tuple[Verdict, list[Outcome]]:
    """Attack one endpoint as if it were protected, beside controls that are known to open."""
    outcomes = list(attack(target, choose_cases(names), SilentProgress()))
    opened = [
        Outcome(
            target=name,
            case="",
            what=None,
            how=None,
            control=True,
            expected="replayed",
            verdict=Verdict.REPLAYED,
            basis="",
        )
        for name in CONTROLS
    ]
    return judge_run([*opened, *outcomes]).verdict, outcomes


def control_named(stack: ExitStack, identity: Identity, name: str) -> Target:
    (target,) = (t for t in control_targets(stack, identity) if t.name == name)
    return target


def test_an_endpoint_that_takes_early_data_is_replayed_at(identity: Identity) -> None:
    with ExitStack() as stack:
        target = replace(control_named(stack, identity, EARLY_DATA), control=False)
        verdict, outcomes = verdict_at(target, "early-data-duplicated", "request-duplicated")
    assert verdict is Verdict.REPLAYED
    found = {outcome.case: outcome for outcome in outcomes}
    early = found["early-data-duplicated"]
    assert early.verdict is Verdict.REPLAYED
    assert "of an earlier session was executed again" in early.reason
    assert early.executed_before is not None
    assert early.executed_after == early.executed_before + 4  # two requests, twice
    assert found["request-duplicated"].verdict is Verdict.HELD  # behind the handshake it is TLS


def test_an_endpoint_without_tls_is_replayed_at(identity: Identity) -> None:
    with ExitStack() as stack:
        target = replace(control_named(stack, identity, PLAIN), control=False)
        verdict, _ = verdict_at(target, "request-duplicated")
    assert verdict is Verdict.REPLAYED


def test_an_endpoint_that_runs_the_application_before_its_check_is_replayed_at(
    identity: Identity,
) -> None:
    def serve_unchecked(application: CountingApplication, connection: TLSSocket) -> None:
        application.serve(connection)  # the handshake comes with the first read, inside of it

    policy = transport.get_policy("2026-11-tls13")
    listener = transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identity.credential, policy=policy
    )
    with threaded_server(listener, serve_unchecked) as server:
        target = own_target(server, identity, policy, "TLS 1.3", engine="broken")
        verdict, outcomes = verdict_at(target, "flight-duplicated")
    assert verdict is Verdict.REPLAYED
    assert outcomes[0].reason == "a replayed handshake reached the application"


class Twice(CountingApplication):
    """An application that executes each request twice."""

    def _step(self, exchange: Any, data: bytes) -> bytes:
        known = len(exchange.results)
        answer = super()._step(exchange, data)
        with self._lock:
            self._results += exchange.results[known:]
        return answer


class Deaf(CountingApplication):
    """An application that executes, and does not count."""

    @property
    def results(self) -> tuple[Any, ...]:
        return ()


@pytest.mark.parametrize("application", [Twice, Deaf])
def test_a_counter_that_does_not_count_is_noticed(
    identity: Identity, application: type[CountingApplication]
) -> None:
    policy = transport.get_policy("2026-11-tls13")
    server = blocking_server(identity.credential, policy)
    server.application = application()
    with server:
        target = own_target(server, identity, policy, "TLS 1.3", engine="broken")
        verdict, outcomes = verdict_at(target, "flight-duplicated", "request-duplicated")
    assert verdict is Verdict.INVALID
    assert all("not executed as asked" in outcome.reason for outcome in outcomes)


def test_an_endpoint_that_does_not_resume_though_it_should_is_invalid(identity: Identity) -> None:
    policy = transport.get_policy("2026-11-tls13")
    with blocking_server(identity.credential, policy) as server:
        target = own_target(server, identity, policy, "TLS 1.3", engine="broken")
        verdict, outcomes = verdict_at(replace(target, resumes=True), "ticket-duplicated")
    assert verdict is Verdict.INVALID
    assert "did not resume" in outcomes[0].reason


def test_a_server_that_is_gone_is_invalid(identity: Identity) -> None:
    policy = transport.get_policy("2026-11-tls13")
    with blocking_server(identity.credential, policy) as server:
        target = own_target(server, identity, policy, "TLS 1.3", engine="gone")
    verdict, outcomes = verdict_at(target, "flight-duplicated", "request-duplicated")
    assert verdict is Verdict.INVALID
    assert {outcome.verdict for outcome in outcomes} == {Verdict.INVALID}


def test_what_executes_between_two_cases_is_somebodys_doing(identity: Identity) -> None:
    """An endpoint that is slow to be replayed at is found out at the next look."""
    policy = transport.get_policy("2026-11-tls13")
    with blocking_server(identity.credential, policy) as server:
        target = own_target(server, identity, policy, "TLS 1.3", engine="slow")
        cases = choose_cases(["request-dropped", "request-duplicated"])
        experiment = Experiment(target)
        assert experiment.run(cases[0]).verdict is Verdict.HELD
        with (
            Middle(target.dial, target.framing) as middle,
            target.connect(middle.address) as nobody_known,
        ):
            for _ in range(3):  # two are what the dropped session still had to come
                nobody_known.sendall(target.request().encoded)
                nobody_known.recv(1000)
        target.settle()
        late = experiment.run(cases[1])
        assert (late.verdict, late.reason) == (
            Verdict.REPLAYED,
            "1 executions came late, after an earlier case",
        )
        assert experiment.run(cases[1]).verdict is Verdict.HELD
        assert experiment.run_honest_session().verdict is Verdict.HELD


# Controls that do not open make the run invalid


class Once(CountingApplication):
    """An application that executes no request twice, which the controls are not to be."""

    def _step(self, exchange: Any, data: bytes) -> bytes:
        answer = super()._step(exchange, data)
        with self._lock:
            self._results = list(dict.fromkeys(self._results))
        return answer


@contextmanager
def early_data_with_anti_replay(identity: Identity) -> Iterator[CountingServer]:
    """The early-data control as OpenSSL makes it by default: with its tickets used once."""
    context = early_data_context(
        identity.credential.certificates_pem(),
        identity.credential.private_key_pem(),
        anti_replay=True,
    )

    def serve(application: CountingApplication, connection: socket.socket) -> None:
        serve_early_data(context, connection, application.serve)

    with threaded_server(PlainListener(), serve) as server:
        yield server


def run_with(
    monkeypatch: pytest.MonkeyPatch, name: str, server: Any, *cases: str
) -> tuple[Verdict, tuple[str, ...]]:
    """Run, with the server behind one of the controls exchanged."""

    def exchanged(stack: ExitStack, identity: Identity) -> Iterable[Target]:
        for target in control_targets(stack, identity):
            if target.name == name:
                yield server(stack, identity, target)
            else:
                yield target

    monkeypatch.setattr(runner, "control_targets", exchanged)
    report = run_replays(choose_cases(cases), SilentProgress())
    return report.verdict, report.failures


def counted_by(target: Target, server: Any) -> Target:
    def count() -> Any:
        executed = server.application.results
        return type(target.count())(len(executed), executed, server.application.connections)

    return replace(target, dial=server.dial, settle=server.settle, count=count)


def test_a_plain_control_that_does_not_open_invalidates_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_repetition(stack: ExitStack, _identity: Identity, target: Target) -> Target:
        server = plain_server()
        server.application = Once()
        return counted_by(target, stack.enter_context(server))

    verdict, failures = run_with(monkeypatch, PLAIN, without_repetition, "request-duplicated")
    assert verdict is Verdict.INVALID
    assert any("control flight-duplicated at plain-http did not open" in text for text in failures)


def test_an_early_data_control_with_anti_replay_invalidates_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def protected(stack: ExitStack, identity: Identity, target: Target) -> Target:
        server = stack.enter_context(early_data_with_anti_replay(identity))
        client = EarlyDataClient(identity.trust_anchors.pem(), "localhost")
        return replace(counted_by(target, server), tickets=client)

    verdict, failures = run_with(monkeypatch, EARLY_DATA, protected, "request-duplicated")
    assert verdict is Verdict.INVALID
    assert any("control early-data-duplicated at early-data" in text for text in failures)


def test_a_run_without_a_control_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    def others(stack: ExitStack, identity: Identity) -> Iterable[Target]:
        return (t for t in control_targets(stack, identity) if t.name != EARLY_DATA)

    monkeypatch.setattr(runner, "control_targets", others)
    report = run_replays(choose_cases(["request-duplicated"]), SilentProgress())
    assert report.verdict is Verdict.INVALID
    assert report.failures == ("control early-data was not tried",)


# Attackers that are broken make the run invalid


def passes_everything_on(self: Interferer, _direction: Direction, unit: Unit) -> list[Step]:
    self.applied = True  # and it is not
    return [unit.raw]


def sends_nothing(dial: Callable[[], socket.socket], _parts: object, **_options: object) -> str:
    dial().close()
    return "closed"


def judges_everything_held(*_arguments: object) -> tuple[Verdict, str]:
    return Verdict.HELD, ""


@pytest.mark.parametrize(
    ("where", "name", "broken", "control"),
    [
        (Interferer, "take", passes_everything_on, "request-duplicated at plain-http"),
        (experiment, "deliver", sends_nothing, "early-data-duplicated at early-data"),
        (experiment, "judge", judges_everything_held, "upload-spliced at unprotected-records"),
    ],
)
def test_an_attacker_or_a_judge_who_does_nothing_invalidates_the_run(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, broken: object, control: str
) -> None:
    monkeypatch.setattr(where, name, broken)
    report = run_replays(choose_cases(["request-duplicated"]), SilentProgress())
    assert report.verdict is Verdict.INVALID
    assert any(f"control {control} did not open" in text for text in report.failures)


def test_a_record_that_never_came_by_is_no_attack(identity: Identity) -> None:
    """A case that found nothing to alter has shown nothing, and says so."""
    policy = transport.get_policy("2026-11-tls13")
    with blocking_server(identity.credential, policy) as server:
        target = own_target(server, identity, policy, "TLS 1.3", engine="any")
        case = replace(case_named("key-exchange-duplicated"), excluded={})
        outcome = Experiment(target).run(case)
    assert outcome.verdict is Verdict.INVALID
    assert "no ClientKeyExchange came by" in outcome.reason


# The man in the middle


def test_the_middle_passes_on_what_it_does_not_touch(identity: Identity) -> None:
    """Byte for byte, in both directions, also where much is on its way at once."""
    with (
        blocking_server(identity.credential, transport.DEFAULT_POLICY) as server,
        Middle(server.dial, "TLS 1.3") as middle,
        transport.connect(
            middle.address, trust_anchors=identity.trust_anchors, server_hostname="localhost"
        ) as connection,
    ):
        body = bytes(700_000)
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nRequest-Id: 0123456789abcdef\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert middle.flight.of(Role.CLIENT_HELLO)
    assert len(middle.flight.of(Role.REQUEST)) == 43


def test_the_middle_ends_when_either_side_does(identity: Identity) -> None:
    with blocking_server(identity.credential, transport.DEFAULT_POLICY) as server:
        with (
            Middle(server.dial, "TLS 1.3") as middle,
            socket.create_connection(middle.address) as client,
        ):
            client.shutdown(socket.SHUT_WR)
            while client.recv(100):
                pass
        with Middle(server.dial, "TLS 1.3") as middle:
            pass  # nobody comes
        cut = Interferer(Interference(Role.CLIENT_HELLO, Action.DROP_AND_CUT))
        with Middle(server.dial, "TLS 1.3", cut) as middle:
            with pytest.raises(transport.TransportError):
                transport.connect(
                    middle.address,
                    trust_anchors=identity.trust_anchors,
                    server_hostname="localhost",
                )
            assert cut.applied
        assert server.settle() == ("saw it cut off", "saw it cut off")


def test_the_middle_tells_when_the_server_cannot_be_reached() -> None:
    def dial() -> socket.socket:
        raise ConnectionRefusedError("nobody there")

    with (
        pytest.raises(ConnectionRefusedError),
        Middle(dial, "TLS 1.3") as middle,
        socket.create_connection(middle.address) as client,
    ):
        assert client.recv(1) == b""


@contextmanager
def scripted(serve: Callable[[socket.socket], object]) -> Iterator[Callable[[], socket.socket]]:
    """Serve one connection with a function, and give what connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield lambda: socket.create_connection(listener.getsockname())
        thread.join(20)
        assert not thread.is_alive()


def test_a_delivery_sees_an_alert_in_clear() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"\x15\x03\x03\x00\x02\x02\x14")
        connection.recv(100)

    with scripted(refuse) as dial:
        assert str(deliver(dial, (b"first", b"second"))) == "alert bad_record_mac, closed"


def test_a_delivery_sees_a_reset() -> None:
    with scripted(reset) as dial:
        assert deliver(dial, (b"first", b"second")).ending == "reset"


def test_a_delivery_does_not_wait_for_ever() -> None:
    def say_nothing(connection: socket.socket) -> None:
        while connection.recv(100):
            pass
        over.wait(20)

    over = threading.Event()
    with scripted(say_nothing) as dial:
        assert deliver(dial, (b"all",), deadline_seconds=0.2).ending == "still open"
        over.set()


def test_a_delivery_is_not_impressed_by_what_is_not_tls() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with scripted(answer) as dial:
        reaction = deliver(dial, (b"all",))
    assert (reaction.alert, reaction.answered_bytes) == ("", 28)


def test_nothing_of_the_early_data_client_is_trusting(identity: Identity) -> None:
    """It verifies the chain and the name, as the honest client that it plays."""
    with ExitStack() as stack:
        target = control_named(stack, identity, EARLY_DATA)
        stranger = EarlyDataClient(issue_identity().trust_anchors.pem(), "localhost")
        other_name = EarlyDataClient(identity.trust_anchors.pem(), "other.example")
        for client in (stranger, other_name):
            with (
                pytest.raises(Exception, match="certificate verify failed"),
                Middle(target.dial, "TLS 1.3") as middle,
            ):
                client.connect(middle.address)

"""The parts of the replay harness that need no socket: cutting, altering, delivering, judging."""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interop.direction import Direction
from interop.errors import InputError
from interop.replay import deliveries
from interop.replay.cases import CONTROLS, Live, Recorded
from interop.replay.catalogue import CASES, case_named, choose_cases
from interop.replay.flights import ClientUnits, Flight, Role, ServerUnits, Unit
from interop.replay.interference import CUT, Action, Interference, Interferer, Pause
from interop.replay.model import (
    Execution,
    How,
    Outcome,
    Verdict,
    What,
    failures,
    judge,
    judge_total,
    verdict_of,
)

if TYPE_CHECKING:
    from interop.replay.flights import Framing

CLIENT, SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT


def record(content_type: int, fragment: bytes) -> bytes:
    return struct.pack("!BHH", content_type, 0x0303, len(fragment)) + fragment


HELLO = record(22, b"\x01" + bytes(100))
CHANGE = record(20, b"\x01")
KEY_EXCHANGE = record(22, b"\x10" + bytes(33))
FINISHED_1_2 = record(22, bytes(40))
ALERT_1_2 = record(21, bytes(26))


def protected(length_bytes: int, fill: int = 0) -> bytes:
    return record(23, bytes([fill]) * length_bytes)


def roles(units: list[Unit]) -> list[Role]:
    return [unit.role for unit in units]


# Cutting


def test_units_of_tls_1_3_are_told_by_their_lengths() -> None:
    stream = HELLO + CHANGE + protected(53) + protected(90) + protected(53) + protected(19)
    units = ClientUnits("TLS 1.3").feed(stream)
    assert roles(units) == [
        Role.CLIENT_HELLO,
        Role.CHANGE_CIPHER_SPEC,
        Role.FINISHED,
        Role.REQUEST,
        Role.REQUEST,  # as long as a Finished, and there is only one
        Role.ALERT,
    ]
    assert b"".join(unit.raw for unit in units) == stream


def test_early_data_come_before_the_finished() -> None:
    stream = HELLO + CHANGE + protected(120) + protected(130) + protected(21) + protected(69)
    assert roles(ClientUnits("TLS 1.3").feed(stream + protected(21)))[2:] == [
        Role.EARLY_DATA,
        Role.EARLY_DATA,
        Role.END_OF_EARLY_DATA,
        Role.FINISHED,
        Role.REQUEST,
    ]


def test_units_of_tls_1_2_are_told_by_their_types() -> None:
    stream = HELLO + KEY_EXCHANGE + CHANGE + FINISHED_1_2 + protected(19) + ALERT_1_2
    assert roles(ClientUnits("TLS 1.2").feed(stream)) == [
        Role.CLIENT_HELLO,
        Role.CLIENT_KEY_EXCHANGE,
        Role.CHANGE_CIPHER_SPEC,
        Role.FINISHED,
        Role.REQUEST,
        Role.ALERT,
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_cutting_does_not_depend_on_how_the_bytes_came(size: int) -> None:
    stream = HELLO + CHANGE + protected(53) + protected(90)
    units = ClientUnits("TLS 1.3")
    found = [
        unit
        for start in range(0, len(stream), size)
        for unit in units.feed(stream[start : start + size])
    ]
    assert found == ClientUnits("TLS 1.3").feed(stream)
    assert units.finish() == []


def test_plain_requests_are_cut_where_their_heads_end() -> None:
    one, other = b"GET / HTTP/1.1\r\nA: b\r\n\r\n", b"GET /x HTTP/1.1\r\n\r\n"
    units = ClientUnits("plain")
    assert units.feed(one + other[:5]) == [Unit(Role.REQUEST, one)]
    assert units.feed(other[5:]) == [Unit(Role.REQUEST, other)]


def test_what_cannot_be_cut_is_passed_on_as_it_came() -> None:
    client = ClientUnits("TLS 1.3")
    for piece in (b"HTTP/1.1 400", b" Bad Request"):
        assert client.feed(piece) == [Unit(Role.OTHER, piece)]
    server = ServerUnits("TLS 1.2")
    passed = [*server.feed(b"HTTP/1.1 400"), *server.feed(b" Bad"), *server.finish()]
    assert b"".join(unit.raw for unit in passed) == b"HTTP/1.1 400 Bad"
    cut_short = ClientUnits("TLS 1.3")
    assert cut_short.feed(HELLO[:50]) == []
    assert cut_short.finish() == [Unit(Role.OTHER, HELLO[:50])]


@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([HELLO, CHANGE, FINISHED_1_2, ALERT_1_2, protected(53), b"\r\n\r\n"]),
        ),
        max_size=12,
    ),
    framing=st.sampled_from(["TLS 1.3", "TLS 1.2", "unprotected records", "plain"]),
)
def test_no_byte_is_lost_or_made_up_whatever_comes(pieces: list[bytes], framing: Framing) -> None:
    for units in (ClientUnits(framing), ServerUnits(framing)):
        passed = [unit for piece in pieces for unit in units.feed(piece)] + units.finish()
        assert b"".join(unit.raw for unit in passed) == b"".join(pieces)


def test_a_server_answers_once_it_was_asked() -> None:
    units = ServerUnits("TLS 1.3")
    assert roles(units.feed(protected(60))) == [Role.SERVER_HANDSHAKE]
    units.asked = True
    assert roles(units.feed(protected(60) + ALERT_1_2)) == [Role.ANSWER, Role.ALERT]
    assert roles(ServerUnits("plain").feed(b"x")) == [Role.ANSWER]


# Interfering

ONE, TWO, THREE = (Unit(Role.REQUEST, bytes([n]) * 10) for n in (1, 2, 3))
EARLIER = Flight((Unit(Role.REQUEST, b"a" * 10), Unit(Role.REQUEST, b"b" * 10)))


def altered(action: Action, ordinal: int = 1) -> list[object]:
    interferer = Interferer(Interference(Role.REQUEST, action, ordinal), EARLIER)
    steps = [
        step
        for unit in (Unit(Role.FINISHED, b"f"), ONE, TWO, THREE)
        for step in interferer.take(CLIENT, unit)
    ]
    assert interferer.applied
    return [*steps, *interferer.finish(CLIENT)][1:]


@pytest.mark.parametrize(
    ("action", "ordinal", "expected"),
    [
        (Action.DUPLICATE, 1, [ONE.raw, ONE.raw, TWO.raw, THREE.raw]),
        (Action.DUPLICATE_LATER, 1, [ONE.raw, TWO.raw, ONE.raw, THREE.raw]),
        (Action.SWAP, 1, [TWO.raw, ONE.raw, THREE.raw]),
        (Action.SWAP, 2, [ONE.raw, THREE.raw, TWO.raw]),
        (Action.DELAY, 2, [ONE.raw, Pause(0.1), TWO.raw, THREE.raw]),
        (Action.DROP, 2, [ONE.raw, THREE.raw]),
        (Action.DROP_AND_CUT, 3, [ONE.raw, TWO.raw, CUT]),
        (Action.TRUNCATE, 3, [ONE.raw, TWO.raw, THREE.raw[:5], CUT]),
        (Action.SUBSTITUTE, 2, [ONE.raw, b"b" * 10, THREE.raw]),
        (Action.INSERT, 1, [b"a" * 10, ONE.raw, TWO.raw, THREE.raw]),
    ],
)
def test_each_action(action: Action, ordinal: int, expected: list[object]) -> None:
    assert altered(action, ordinal) == expected


def test_every_action_is_tested() -> None:
    (mark,) = test_each_action.pytestmark  # type: ignore[attr-defined]
    assert {action for action, _, _ in mark.args[1]} == set(Action)


def test_nothing_else_is_touched() -> None:
    interferer = Interferer(Interference(Role.REQUEST, Action.DROP))
    assert interferer.take(SERVER, ONE) == [ONE.raw]
    assert interferer.take(CLIENT, Unit(Role.FINISHED, b"f")) == [b"f"]
    assert not interferer.applied
    assert Interferer(None).take(CLIENT, ONE) == [ONE.raw]


def test_what_had_nothing_to_be_swapped_with_was_not_interfered_with() -> None:
    interferer = Interferer(Interference(Role.REQUEST, Action.SWAP))
    assert interferer.take(CLIENT, ONE) == []
    assert interferer.finish(CLIENT) == [ONE.raw]
    assert not interferer.applied


def test_a_splice_without_an_earlier_unit_was_no_interference() -> None:
    interferer = Interferer(Interference(Role.REQUEST, Action.SUBSTITUTE, 3), EARLIER)
    assert [interferer.take(CLIENT, unit) for unit in (ONE, TWO, THREE)] == [
        [ONE.raw],
        [TWO.raw],
        [THREE.raw],
    ]
    assert not interferer.applied


# Delivering


def flight(fill: int) -> Flight:
    stream = HELLO + CHANGE + protected(53, fill) + protected(90, fill) + protected(91, fill)
    return Flight(tuple(ClientUnits("TLS 1.3").feed(stream)))


def test_deliveries_are_made_of_what_was_recorded() -> None:
    first, second = flight(1), flight(2)
    rest = first.raw[len(HELLO) :]
    assert deliveries.at_once(first, second) == ((first.raw,), (first.raw,))
    assert deliveries.paced(first, second) == ((HELLO, rest),)
    assert deliveries.spliced(first, second) == (
        (HELLO, second.raw[len(HELLO) :]),
        (HELLO, rest),
    )
    assert deliveries.bare_request(first, second) == ((protected(90, 1) + protected(91, 1),),)
    assert deliveries.without_finished(first, second) == (
        (HELLO, CHANGE + protected(90, 1) + protected(91, 1)),
    )
    half, whole, hello = deliveries.truncated(first, second)
    assert b"".join(whole) == HELLO + CHANGE + protected(53, 1) + protected(90, 1)
    assert b"".join(whole).startswith(b"".join(half))
    assert HELLO.startswith(hello[0])


def test_early_data_are_delivered_without_what_comes_after_them() -> None:
    stream = HELLO + CHANGE + protected(120, 1) + protected(130, 2)
    early = Flight(
        tuple(ClientUnits("TLS 1.3").feed(stream + protected(21) + protected(53) + protected(90)))
    )
    assert deliveries.early_data_alone(early, early) == ((stream,), (stream,))
    assert deliveries.early_data_without_hello(early, early) == (
        (protected(120, 1) + protected(130, 2),),
    )
    assert deliveries.early_data_reordered(early, early) == (
        (HELLO + CHANGE + protected(130, 2) + protected(120, 1),),
    )
    ((cut,),) = deliveries.early_data_truncated(early, early)
    assert stream.startswith(cut)
    assert len(HELLO + CHANGE + protected(120)) < len(cut) < len(stream)


def test_every_delivery_takes_a_flight_of_nothing() -> None:
    nothing = Flight(())
    for case in CASES:
        if isinstance(case.experiment, Recorded):
            sent = case.experiment.deliver(nothing, nothing)
            assert not any(any(parts) for parts in sent), case.name


# The table


def test_the_table_covers_every_kind_and_every_manner() -> None:
    pairs = Counter((case.what, case.how) for case in CASES)
    assert set(pairs) == {(what, how) for what in What for how in How}


def test_names_are_unique_and_each_expectation_has_its_section() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        applies = {"TLS 1.3", "TLS 1.2"} - set(case.excluded)
        assert applies <= set(case.basis), case.name
        assert all(" section " in basis for basis in case.basis.values())
        assert set(case.opens_at) <= set(CONTROLS)


def test_each_control_has_cases_that_must_open_it() -> None:
    for control in CONTROLS:
        assert sum(control in case.opens_at for case in CASES) >= 4
    for how in (How.DUPLICATED, How.REORDERED, How.DROPPED, How.SPLICED):
        assert any(
            case.opens_at and case.how is how and isinstance(case.experiment, Live)
            for case in CASES
        )


def test_cases_are_chosen_by_name() -> None:
    assert choose_cases(()) == CASES
    chosen = choose_cases(["request-duplicated", "flight-spliced", "flight-spliced"])
    assert [case.name for case in chosen] == ["flight-spliced", "request-duplicated"]
    with pytest.raises(InputError, match="--list"):
        case_named("no-such-case")


# Judging

A, B, C = (Execution(name * 16, "0" * 64) for name in "abc")


@pytest.mark.parametrize(
    ("honest", "executed", "verdict", "words"),
    [
        ((A, B, C), (A, B, C), Verdict.HELD, ""),
        ((A, B, C), (A, B), Verdict.HELD, ""),
        ((A, B, C), (), Verdict.HELD, ""),
        ((), (), Verdict.HELD, ""),
        ((A, B), (A, A), Verdict.REPLAYED, "a second time"),
        ((A, B), (A, B, A), Verdict.REPLAYED, "a second time"),
        ((A, B), (B, A), Verdict.REPLAYED, "out of its order"),
        ((A, B), (B,), Verdict.REPLAYED, "out of its order"),
        ((A,), (B,), Verdict.REPLAYED, "of an earlier session"),
        ((), (A,), Verdict.REPLAYED, "of an earlier session"),
        ((A,), (A._replace(sha256="1" * 64),), Verdict.REPLAYED, "another body"),
    ],
)
def test_executions_are_judged_by_what_was_asked_for(
    honest: tuple[Execution, ...],
    executed: tuple[Execution, ...],
    verdict: Verdict,
    words: str,
) -> None:
    found, reason = judge(honest, executed)
    assert found is verdict
    assert words in reason


def test_a_count_alone_is_judged_too() -> None:
    assert judge_total(3, 3) == (Verdict.HELD, "")
    assert judge_total(3, 0)[0] is Verdict.HELD
    assert judge_total(3, 4)[0] is Verdict.REPLAYED


def outcome(target: str, verdict: Verdict, *, control: bool = False) -> Outcome:
    return Outcome(
        target=target,
        case="request-duplicated",
        what=What.REQUEST,
        how=How.DUPLICATED,
        control=control,
        expected="replayed" if control else "held",
        verdict=verdict,
        basis="RFC 9846 section 5.3",
    )


OPENED = [outcome(name, Verdict.REPLAYED, control=True) for name in CONTROLS]


def verdict_with(*outcomes: Outcome, controls: list[Outcome] = OPENED) -> Verdict:
    found = (*controls, *outcomes)
    verdict = verdict_of(found, controls=CONTROLS)
    problems = failures(found, controls=CONTROLS)
    assert bool(problems) is (verdict in {Verdict.REPLAYED, Verdict.INVALID})
    return verdict


def test_a_run_is_held_when_all_is_and_the_controls_opened() -> None:
    assert verdict_with(outcome("ours", Verdict.HELD)) is Verdict.HELD


def test_one_replay_is_enough() -> None:
    held, replayed = outcome("ours", Verdict.HELD), outcome("ours", Verdict.REPLAYED)
    assert verdict_with(held, replayed, held) is Verdict.REPLAYED
    # Whatever else went wrong, a replay that got through did.
    assert verdict_with(replayed, controls=[]) is Verdict.REPLAYED


@pytest.mark.parametrize("missing", CONTROLS)
def test_a_run_without_a_control_is_invalid(missing: str) -> None:
    controls = [control for control in OPENED if control.target != missing]
    assert verdict_with(outcome("ours", Verdict.HELD), controls=controls) is Verdict.INVALID


@pytest.mark.parametrize("verdict", [Verdict.HELD, Verdict.INVALID, Verdict.NOT_APPLICABLE])
def test_a_control_that_did_not_open_invalidates(verdict: Verdict) -> None:
    closed = outcome(CONTROLS[0], verdict, control=True)
    assert verdict_with(outcome("ours", Verdict.HELD), closed) is Verdict.INVALID


def test_an_invalid_case_and_a_run_of_nothing_invalidate() -> None:
    assert verdict_with() is Verdict.INVALID
    assert verdict_with(outcome("ours", Verdict.NOT_APPLICABLE)) is Verdict.INVALID
    held, invalid = outcome("ours", Verdict.HELD), outcome("ours", Verdict.INVALID)
    assert verdict_with(held, invalid) is Verdict.INVALID


def test_what_was_not_counted_is_not_held() -> None:
    held, uncounted = outcome("ours", Verdict.HELD), outcome("theirs", Verdict.NOT_COUNTED)
    assert verdict_with(uncounted) is Verdict.NOT_COUNTED
    assert verdict_with(held, uncounted) is Verdict.NOT_COUNTED

"""Attacks on sessions as such: whole flights, handshake messages, and records without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interop.direction import Direction
from interop.replay import deliveries
from interop.replay.cases import (
    CHANGE,
    CLOSURE,
    FRESH,
    NO_KEY_EXCHANGE,
    NOTHING_FOLLOWS,
    PLAIN,
    SEQUENCE,
    UNPROTECTED,
    Case,
    Recorded,
    live,
)
from interop.replay.flights import Role
from interop.replay.interference import Action, Interference
from interop.replay.model import How, What

if TYPE_CHECKING:
    from interop.replay.deliveries import Deliver

__all__ = ["FLIGHTS", "HANDSHAKES", "RECORDS"]


def _flight(
    suffix: str,
    how: How,
    sentence: str,
    deliver: Deliver,
    opens_at: tuple[str, ...] = (),
) -> Case:
    return Case(
        name=f"flight-{suffix}",
        what=What.FLIGHT,
        how=how,
        sentence=sentence,
        experiment=Recorded(deliver),
        basis=FRESH,
        opens_at=opens_at,
    )


FLIGHTS: Final = (
    _flight(
        "duplicated",
        How.DUPLICATED,
        "a finished session's client bytes, sent again at once, on two connections",
        deliveries.at_once,
        (PLAIN, UNPROTECTED),
    ),
    _flight(
        "duplicated-paced",
        How.DUPLICATED,
        "the same, waiting for the server's answer to the ClientHello",
        deliveries.paced,
    ),
    _flight(
        "duplicated-on-one-connection",
        How.DUPLICATED,
        "the same, twice on one connection",
        deliveries.twice_on_one_connection,
        (PLAIN, UNPROTECTED),
    ),
    _flight(
        "reordered",
        How.REORDERED,
        "the ClientHello, then all other records backwards",
        deliveries.reordered,
        (UNPROTECTED,),
    ),
    _flight(
        "delayed",
        How.DELAYED,
        "record by record, after another session's flight",
        deliveries.record_by_record,
        (PLAIN, UNPROTECTED),
    ),
    _flight(
        "dropped",
        How.DROPPED,
        "everything but the Finished",
        deliveries.without_finished,
    ),
    _flight(
        "truncated",
        How.TRUNCATED,
        "up to the middle of a request, up to its end, up to the middle of the ClientHello",
        deliveries.truncated,
        (UNPROTECTED,),
    ),
    _flight(
        "spliced",
        How.SPLICED,
        "the ClientHello of one session and the rest of another",
        deliveries.spliced,
        (UNPROTECTED,),
    ),
)

HANDSHAKES: Final = (
    live(
        "hello-duplicated",
        What.HANDSHAKE,
        How.DUPLICATED,
        "the ClientHello twice",
        interference=Interference(Role.CLIENT_HELLO, Action.DUPLICATE),
        basis=FRESH,
    ),
    live(
        "hello-delayed",
        What.HANDSHAKE,
        How.DELAYED,
        "the ClientHello held back",
        interference=Interference(Role.CLIENT_HELLO, Action.DELAY),
        basis=FRESH,
    ),
    live(
        "hello-dropped",
        What.HANDSHAKE,
        How.DROPPED,
        "the ClientHello left out",
        interference=Interference(Role.CLIENT_HELLO, Action.DROP_AND_CUT),
        basis=FRESH,
    ),
    live(
        "hello-truncated",
        What.HANDSHAKE,
        How.TRUNCATED,
        "half of the ClientHello",
        interference=Interference(Role.CLIENT_HELLO, Action.TRUNCATE),
        basis=FRESH,
    ),
    live(
        "hello-spliced",
        What.HANDSHAKE,
        How.SPLICED,
        "the ClientHello of an earlier session instead of this one's",
        interference=Interference(Role.CLIENT_HELLO, Action.SUBSTITUTE),
        basis=FRESH,
    ),
    live(
        "key-exchange-duplicated",
        What.HANDSHAKE,
        How.DUPLICATED,
        "the ClientKeyExchange twice",
        interference=Interference(Role.CLIENT_KEY_EXCHANGE, Action.DUPLICATE),
        basis=FRESH,
        excluded=NO_KEY_EXCHANGE,
    ),
    live(
        "key-exchange-reordered",
        What.HANDSHAKE,
        How.REORDERED,
        "the ClientKeyExchange after the change_cipher_spec",
        interference=Interference(Role.CLIENT_KEY_EXCHANGE, Action.SWAP),
        basis=FRESH,
        excluded=NO_KEY_EXCHANGE,
    ),
    live(
        "key-exchange-dropped",
        What.HANDSHAKE,
        How.DROPPED,
        "no ClientKeyExchange",
        interference=Interference(Role.CLIENT_KEY_EXCHANGE, Action.DROP),
        basis=FRESH,
        excluded=NO_KEY_EXCHANGE,
    ),
    live(
        "key-exchange-spliced",
        What.HANDSHAKE,
        How.SPLICED,
        "the ClientKeyExchange of an earlier session",
        interference=Interference(Role.CLIENT_KEY_EXCHANGE, Action.SUBSTITUTE),
        basis=FRESH,
        excluded=NO_KEY_EXCHANGE,
    ),
    live(
        "finished-duplicated",
        What.HANDSHAKE,
        How.DUPLICATED,
        "the Finished twice",
        interference=Interference(Role.FINISHED, Action.DUPLICATE),
        basis=SEQUENCE,
    ),
    live(
        "finished-reordered",
        What.HANDSHAKE,
        How.REORDERED,
        "the Finished after the first request",
        interference=Interference(Role.FINISHED, Action.SWAP),
        basis=SEQUENCE,
        excluded=NOTHING_FOLLOWS,
    ),
    live(
        "finished-delayed",
        What.HANDSHAKE,
        How.DELAYED,
        "the Finished held back",
        interference=Interference(Role.FINISHED, Action.DELAY),
        basis=FRESH,
    ),
    live(
        "finished-dropped",
        What.HANDSHAKE,
        How.DROPPED,
        "no Finished, and the requests all the same",
        interference=Interference(Role.FINISHED, Action.DROP),
        basis=FRESH,
        excluded=NOTHING_FOLLOWS,
    ),
    live(
        "finished-truncated",
        What.HANDSHAKE,
        How.TRUNCATED,
        "half of the Finished",
        interference=Interference(Role.FINISHED, Action.TRUNCATE),
        basis=FRESH,
    ),
    live(
        "finished-spliced",
        What.HANDSHAKE,
        How.SPLICED,
        "the Finished of an earlier session",
        interference=Interference(Role.FINISHED, Action.SUBSTITUTE),
        basis=FRESH,
    ),
)

_FROM_SERVER: Final = Direction.SERVER_TO_CLIENT
RECORDS: Final = (
    live(
        "change-duplicated",
        What.RECORD,
        How.DUPLICATED,
        "the change_cipher_spec twice",
        interference=Interference(Role.CHANGE_CIPHER_SPEC, Action.DUPLICATE),
        basis=CHANGE,
    ),
    live(
        "change-reordered",
        What.RECORD,
        How.REORDERED,
        "the change_cipher_spec after the Finished",
        interference=Interference(Role.CHANGE_CIPHER_SPEC, Action.SWAP),
        basis=CHANGE,
    ),
    live(
        "change-dropped",
        What.RECORD,
        How.DROPPED,
        "no change_cipher_spec",
        interference=Interference(Role.CHANGE_CIPHER_SPEC, Action.DROP),
        basis=CHANGE,
    ),
    live(
        "alert-duplicated",
        What.RECORD,
        How.DUPLICATED,
        "the close_notify twice",
        interference=Interference(Role.ALERT, Action.DUPLICATE),
        basis=CLOSURE,
    ),
    live(
        "alert-delayed",
        What.RECORD,
        How.DELAYED,
        "the close_notify held back",
        interference=Interference(Role.ALERT, Action.DELAY),
        basis=CLOSURE,
    ),
    live(
        "alert-dropped",
        What.RECORD,
        How.DROPPED,
        "no close_notify",
        interference=Interference(Role.ALERT, Action.DROP),
        basis=CLOSURE,
    ),
    live(
        "alert-truncated",
        What.RECORD,
        How.TRUNCATED,
        "half of the close_notify",
        interference=Interference(Role.ALERT, Action.TRUNCATE),
        basis=CLOSURE,
    ),
    live(
        "alert-spliced",
        What.RECORD,
        How.SPLICED,
        "the close_notify of an earlier session",
        interference=Interference(Role.ALERT, Action.SUBSTITUTE),
        basis=SEQUENCE,
    ),
    live(
        "answer-duplicated",
        What.RECORD,
        How.DUPLICATED,
        "what the server sends after the request, twice",
        interference=Interference(Role.ANSWER, Action.DUPLICATE, direction=_FROM_SERVER),
        basis=SEQUENCE,
    ),
    live(
        "answer-dropped",
        What.RECORD,
        How.DROPPED,
        "no answer, and the connection cut: the client does not ask again",
        interference=Interference(Role.ANSWER, Action.DROP_AND_CUT, direction=_FROM_SERVER),
        basis=CLOSURE,
    ),
    live(
        "answer-truncated",
        What.RECORD,
        How.TRUNCATED,
        "half of an answer: the client does not ask again",
        interference=Interference(Role.ANSWER, Action.TRUNCATE, direction=_FROM_SERVER),
        basis=CLOSURE,
    ),
)

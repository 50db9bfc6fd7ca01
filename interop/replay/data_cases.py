"""Attacks on what an application is asked to do: HTTP requests, tickets and 0-RTT data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interop.replay import deliveries
from interop.replay.cases import (
    ANTI_REPLAY,
    EARLY_DATA,
    FRESH,
    NO_EARLY_DATA,
    NO_TICKETS,
    PLAIN,
    SEQUENCE,
    TICKETS,
    UNPROTECTED,
    Case,
    Experiment,
    Recorded,
    TicketTwice,
    live,
)
from interop.replay.flights import Role
from interop.replay.interference import Action, Interference
from interop.replay.model import How, What

if TYPE_CHECKING:
    from interop.replay.deliveries import Deliver

__all__ = ["EARLY_DATA_CASES", "REQUESTS", "TICKET_CASES"]


def _request(
    suffix: str,
    how: How,
    sentence: str,
    action: Action,
    *,
    ordinal: int = 1,
    opens_at: tuple[str, ...] = (PLAIN, UNPROTECTED),
) -> Case:
    return live(
        f"request-{suffix}",
        What.REQUEST,
        how,
        sentence,
        interference=Interference(Role.REQUEST, action, ordinal),
        basis=SEQUENCE,
        opens_at=opens_at,
    )


def _upload(
    suffix: str, how: How, sentence: str, action: Action, opens_at: tuple[str, ...] = ()
) -> Case:
    return live(
        f"upload-{suffix}",
        What.REQUEST,
        how,
        sentence,
        interference=Interference(Role.REQUEST, action, 2),
        basis=SEQUENCE,
        opens_at=opens_at,
        upload=True,
    )


REQUESTS: Final = (
    _request("duplicated", How.DUPLICATED, "the first request twice", Action.DUPLICATE),
    _request(
        "duplicated-later",
        How.DUPLICATED,
        "the first request again after the second",
        Action.DUPLICATE_LATER,
    ),
    _request("reordered", How.REORDERED, "the second request before the first", Action.SWAP),
    _request("delayed", How.DELAYED, "the first request held back", Action.DELAY, opens_at=()),
    _request("dropped", How.DROPPED, "the second request left out", Action.DROP, ordinal=2),
    _request(
        "truncated",
        How.TRUNCATED,
        "half of the second request",
        Action.TRUNCATE,
        ordinal=2,
        opens_at=(),
    ),
    _request(
        "spliced",
        How.SPLICED,
        "a request of an earlier session in place of this one's second",
        Action.SUBSTITUTE,
        ordinal=2,
    ),
    _request(
        "spliced-in",
        How.SPLICED,
        "a request of an earlier session before this one's first",
        Action.INSERT,
    ),
    Case(
        name="request-alone",
        what=What.REQUEST,
        how=How.DUPLICATED,
        sentence="recorded requests alone, on a connection of their own",
        experiment=Recorded(deliveries.bare_request),
        basis=FRESH,
        opens_at=(PLAIN, UNPROTECTED),
    ),
    _upload(
        "duplicated",
        How.DUPLICATED,
        "one record of an upload twice",
        Action.DUPLICATE,
        (UNPROTECTED,),
    ),
    _upload(
        "reordered",
        How.REORDERED,
        "two records of an upload in the opposite order",
        Action.SWAP,
        (UNPROTECTED,),
    ),
    _upload("dropped", How.DROPPED, "one record of an upload left out", Action.DROP),
    _upload("truncated", How.TRUNCATED, "half of an upload, cut in a record", Action.TRUNCATE),
    _upload(
        "spliced",
        How.SPLICED,
        "one record of an earlier upload in this one",
        Action.SUBSTITUTE,
        (UNPROTECTED,),
    ),
)


def _ticket(suffix: str, how: How, sentence: str, experiment: Experiment) -> Case:
    return Case(
        name=f"ticket-{suffix}",
        what=What.TICKET,
        how=how,
        sentence=sentence,
        experiment=experiment,
        basis=TICKETS,
        excluded=NO_TICKETS,
    )


TICKET_CASES: Final = (
    _ticket(
        "duplicated",
        How.DUPLICATED,
        "a resumed session's client bytes sent again: its ticket is used again",
        Recorded(deliveries.at_once, "resumed"),
    ),
    _ticket(
        "duplicated-paced",
        How.DUPLICATED,
        "the same, waiting for the server's answer to the ClientHello",
        Recorded(deliveries.paced, "resumed"),
    ),
    _ticket(
        "duplicated-by-its-owner",
        How.DUPLICATED,
        "two sessions of one client from one ticket: each executes what it asks, once",
        TicketTwice(),
    ),
    _ticket(
        "reordered",
        How.REORDERED,
        "a resumed session's ClientHello, then its other records backwards",
        Recorded(deliveries.reordered, "resumed"),
    ),
    _ticket(
        "delayed",
        How.DELAYED,
        "a resumed session's records one by one, after another one's",
        Recorded(deliveries.record_by_record, "resumed"),
    ),
    _ticket(
        "dropped",
        How.DROPPED,
        "a resumed session's client bytes without the Finished",
        Recorded(deliveries.without_finished, "resumed"),
    ),
    _ticket(
        "truncated",
        How.TRUNCATED,
        "a resumed session's client bytes in part",
        Recorded(deliveries.truncated, "resumed"),
    ),
    _ticket(
        "spliced",
        How.SPLICED,
        "the ticket of one session with the records of another",
        Recorded(deliveries.spliced, "resumed"),
    ),
)


def _early(
    suffix: str, how: How, sentence: str, deliver: Deliver, opens_at: tuple[str, ...] = ()
) -> Case:
    return Case(
        name=f"early-data-{suffix}",
        what=What.EARLY_DATA,
        how=how,
        sentence=sentence,
        experiment=Recorded(deliver, "early data"),
        basis=ANTI_REPLAY,
        excluded=NO_EARLY_DATA,
        opens_at=opens_at,
    )


EARLY_DATA_CASES: Final = (
    _early(
        "duplicated",
        How.DUPLICATED,
        "the ClientHello and 0-RTT data of a session sent again, on two connections",
        deliveries.early_data_alone,
        (EARLY_DATA,),
    ),
    _early(
        "duplicated-flight",
        How.DUPLICATED,
        "all client bytes of a session with 0-RTT data sent again",
        deliveries.at_once,
        (EARLY_DATA,),
    ),
    _early(
        "reordered",
        How.REORDERED,
        "the 0-RTT records in the opposite order",
        deliveries.early_data_reordered,
    ),
    _early(
        "delayed",
        How.DELAYED,
        "the 0-RTT data sent again after those of a later session",
        deliveries.early_data_late,
        (EARLY_DATA,),
    ),
    _early(
        "dropped",
        How.DROPPED,
        "the 0-RTT data without their ClientHello",
        deliveries.early_data_without_hello,
    ),
    _early(
        "truncated",
        How.TRUNCATED,
        "the 0-RTT data without the end of their last record",
        deliveries.early_data_truncated,
        (EARLY_DATA,),
    ),
    _early(
        "spliced",
        How.SPLICED,
        "the ClientHello of one session with the 0-RTT data of another",
        deliveries.early_data_spliced,
    ),
)

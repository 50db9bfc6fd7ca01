"""What an attack is, as data: what is replayed, how, and the section that says why it must fail.

The tables are `session_cases` and `data_cases`, together the `catalogue`. Every row is tried at
every endpoint that it applies to. `opens_at` names the controls, endpoints without the protection,
at which the same attack has to succeed in the same run. Attacks on the handshake itself have no
such control: what stands beside them is that the same kind of flight, sent to a server that takes
0-RTT data without anti-replay, does execute.

The expectations follow from four properties. *Fresh handshakes*: the server's random and key share
are part of the transcript that Finished and all traffic keys are made of, so that nothing of an
earlier session authenticates in a later one. *Sequence numbers*: each record is sealed under its
position, so that it opens nowhere else. *Closure*: only close_notify ends a stream, so that a cut
is not taken for an end. And *no 0-RTT*: the one kind of data that has neither of the first two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interop.replay.deliveries import Deliver
    from interop.replay.flights import Framing
    from interop.replay.interference import Interference
    from interop.replay.model import How, What

__all__ = [
    "ANTI_REPLAY",
    "CHANGE",
    "CLOSURE",
    "CONTROLS",
    "EARLY_DATA",
    "FRESH",
    "NOTHING_FOLLOWS",
    "NO_EARLY_DATA",
    "NO_KEY_EXCHANGE",
    "NO_TICKETS",
    "PLAIN",
    "SEQUENCE",
    "TICKETS",
    "UNPROTECTED",
    "Case",
    "Experiment",
    "Live",
    "Recorded",
    "TicketTwice",
    "live",
]

PLAIN: Final = "plain-http"
UNPROTECTED: Final = "unprotected-records"
EARLY_DATA: Final = "early-data"
CONTROLS: Final = (PLAIN, UNPROTECTED, EARLY_DATA)
"""The controls, each of which has to open: see `interop.replay.controls`."""


@dataclass(frozen=True)
class Recorded:
    """Send recorded flights again, after their sessions have ended."""

    deliver: Deliver
    source: Literal["session", "resumed", "early data"] = "session"


@dataclass(frozen=True)
class Live:
    """Interfere with a session under way: one of three requests, or of one large upload."""

    interference: Interference
    upload: bool = False


@dataclass(frozen=True)
class TicketTwice:
    """Let a client use one ticket for two sessions, each with a request of its own."""


Experiment: TypeAlias = Recorded | Live | TicketTwice


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack. `basis` gives a section, `excluded` a reason, by version; else it applies."""

    name: str
    what: What
    how: How
    sentence: str
    experiment: Experiment
    basis: Mapping[Framing, str]
    excluded: Mapping[Framing, str] = field(default_factory=dict)
    opens_at: tuple[str, ...] = ()


FRESH: Final[Mapping[Framing, str]] = {
    "TLS 1.3": "RFC 9846 section 4.5.3",
    "TLS 1.2": "RFC 5246 section 7.4.9",
}
SEQUENCE: Final[Mapping[Framing, str]] = {
    "TLS 1.3": "RFC 9846 section 5.3",
    "TLS 1.2": "RFC 5246 section 6.2.3.3",
}
CLOSURE: Final[Mapping[Framing, str]] = {
    "TLS 1.3": "RFC 9846 section 6.1",
    "TLS 1.2": "RFC 5246 section 7.2.1",
}
CHANGE: Final[Mapping[Framing, str]] = {
    "TLS 1.3": "RFC 9846 section 5",
    "TLS 1.2": "RFC 5246 section 7.1",
}
TICKETS: Final[Mapping[Framing, str]] = {"TLS 1.3": "RFC 9846 section 4.7.1"}
ANTI_REPLAY: Final[Mapping[Framing, str]] = {"TLS 1.3": "RFC 9846 section 8"}

NO_TICKETS: Final[Mapping[Framing, str]] = {
    "TLS 1.2": "our TLS 1.2 never resumes, and its client asks for no ticket"
}
NO_EARLY_DATA: Final[Mapping[Framing, str]] = {
    "TLS 1.2": "0-RTT data came with TLS 1.3 (RFC 9846 section 2.3)"
}
NO_KEY_EXCHANGE: Final[Mapping[Framing, str]] = {
    "TLS 1.3": "there is no ClientKeyExchange: the key share is in the ClientHello "
    "(RFC 9846 section 4.3.8)"
}
NOTHING_FOLLOWS: Final[Mapping[Framing, str]] = {
    "TLS 1.2": "a client sends nothing more until the server has answered its Finished "
    "(RFC 5246 section 7.3)"
}


def live(
    name: str,
    what: What,
    how: How,
    sentence: str,
    *,
    interference: Interference,
    basis: Mapping[Framing, str],
    excluded: Mapping[Framing, str] | None = None,
    opens_at: tuple[str, ...] = (),
    upload: bool = False,
) -> Case:
    """Return a case of a live session."""
    return Case(
        name=name,
        what=what,
        how=how,
        sentence=sentence,
        experiment=Live(interference, upload),
        basis=basis,
        excluded=excluded or {},
        opens_at=opens_at,
    )

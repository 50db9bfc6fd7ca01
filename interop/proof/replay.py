"""Replays: a recorded client flight, sent again, whole or altered, to the live server.

The attacker has the recording and nothing else. Each flight is sent in several ways, `MANNERS`:
all at once; paced as a client would, its first record and then, once the server has answered, the
rest; the rest backwards; the rest without the Finished. What counts is how often the application
ran because of it, and how much application data the server's own secrets decrypt in the recording
of the replay: both must be none. A genuine session on the same server afterwards shows that the
server was alive and that the counter counts.

These are the replays that leave captures, which `pfs verify` recounts. `pfs replay` has many more.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from interop.capture.files import read_streams
from interop.capture.recorder import RecordingRelay
from interop.capture.streams import Direction, StreamData
from interop.replay import deliveries
from interop.replay.flights import ClientUnits, Flight, Role
from interop.replay.middle import DEADLINE_SECONDS, deliver

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from interop.replay.deliveries import Deliver, Delivery

__all__ = ["MANNERS", "client_flight", "replay_flight", "was_sent"]

# Of what each makes, the first delivery is sent: one connection and one capture an attempt.
_DELIVERIES: Final[Mapping[str, Deliver]] = {
    "at once": deliveries.at_once,
    "paced": deliveries.paced,
    "reordered": deliveries.reordered,
    "without Finished": deliveries.without_finished,
}
MANNERS: Final = tuple(_DELIVERIES)


def client_flight(capture: Path) -> bytes:
    """Return all bytes that the client of a recorded session sent."""
    return b"".join(
        bytes(event.data)
        for event in read_streams(capture)
        if isinstance(event, StreamData) and event.direction is Direction.CLIENT_TO_SERVER
    )


def replay_flight(
    flight: bytes, *, manner: str, server_address: tuple[str, int], capture: Path
) -> None:
    """Send `flight` to a live server, wait for its end of the connection, and record it all."""
    parts = _parts(flight, manner)
    with RecordingRelay(server_address, capture) as relay:
        deliver(lambda: socket.create_connection(relay.address, DEADLINE_SECONDS), parts)


def was_sent(flight: bytes, *, manner: str, capture: Path) -> bool:
    """Say whether `capture` shows `flight` sent in that manner, as far as the server let it.

    That is at least to the end of its ClientHello. A replay that sent nothing executes nothing.
    """
    sent = client_flight(capture)
    hello, _ = _cut(flight).split_after_hello()
    return (
        bool(hello) and sent.startswith(hello) and b"".join(_parts(flight, manner)).startswith(sent)
    )


def _parts(flight: bytes, manner: str) -> Delivery:
    recorded = _cut(flight)
    return _DELIVERIES[manner](recorded, recorded)[0]


def _cut(flight: bytes) -> Flight:
    """Cut a flight into its records; only TLS 1.2 has a ClientKeyExchange, and in clear."""
    units = ClientUnits("TLS 1.2").feed(flight)
    if all(unit.role is not Role.CLIENT_KEY_EXCHANGE for unit in units):
        units = ClientUnits("TLS 1.3").feed(flight)
    return Flight(tuple(units))

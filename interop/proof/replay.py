"""Replays: a recorded client flight, sent again byte for byte to the live server.

The attacker has the recording and nothing else. Each flight is sent twice: all at once, and paced
as a client would, its first record and then, once the server has answered, the rest. What counts
is how often the application ran because of it, and how much application data the server's own
secrets decrypt in the recording of the replay: both must be none. A genuine session on the same
server afterwards shows that the server was alive and that the counter counts.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from interop.capture.files import read_streams
from interop.capture.recorder import RecordingRelay
from interop.capture.streams import Direction, StreamData

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PACES", "client_flight", "replay_flight"]

PACES = ("at once", "paced")
_RECORD_HEADER_BYTES = 5
_DEADLINE_SECONDS = 20.0
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN})


def client_flight(capture: Path) -> bytes:
    """Return all bytes that the client of a recorded session sent."""
    return b"".join(
        bytes(event.data)
        for event in read_streams(capture)
        if isinstance(event, StreamData) and event.direction is Direction.CLIENT_TO_SERVER
    )


def replay_flight(
    flight: bytes, *, pace: str, server_address: tuple[str, int], capture: Path
) -> None:
    """Send `flight` to a live server, wait for its end of the connection, and record it all."""
    first = _RECORD_HEADER_BYTES + int.from_bytes(flight[3:_RECORD_HEADER_BYTES])
    parts = (flight,) if pace == "at once" else (flight[:first], flight[first:])
    with (
        RecordingRelay(server_address, capture) as relay,
        socket.create_connection(relay.address, _DEADLINE_SECONDS) as connection,
    ):
        try:
            for number, part in enumerate(parts):
                if number:
                    connection.recv(1)
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError as error:
            # A server that aborts, as it should, may reset while the flight is still being sent.
            if error.errno not in _RESET:
                raise

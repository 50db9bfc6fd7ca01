"""One connection that a server looks after, whichever engine drives it: how long it may stay.

**Idle and lifetime.** How long a connection was idle is asked of the kernel (``TCP_INFO``), which
notes every segment of data in either direction. No read or write of the application pays for the
deadline, and a handler cannot forget to. A peer that stops reading while a response is sent counts
as idle too once nothing gets through. So an engine looks at a connection only when it could be due,
and then asks when to look again.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from transport.server_limits import client_key
from transport.server_settings import Client

if TYPE_CHECKING:
    from transport.server_limits import Limits
    from transport.server_settings import WorkerState

__all__ = ["Visit"]

_Stream = TypeVar("_Stream")
_NEVER: Final = float("inf")

# struct tcp_info of linux/tcp.h: milliseconds since data was last sent, and last received.
_LAST_DATA_SENT_OFFSET: Final = 44
_LAST_DATA_RECEIVED_OFFSET: Final = 52
_TCP_INFO_BYTES: Final = 56


class Visit(Generic[_Stream]):
    """A connection since it was accepted, at `now`; times are of the engine's monotonic clock.

    `key` is what counts as one client in the ledger. `stream` is the engine's, None before there is
    one and after the end.
    """

    __slots__ = (
        "_limits",
        "_lives_until",
        "client",
        "ended",
        "key",
        "started",
        "stream",
        "transport",
    )

    def __init__(
        self,
        transport: socket.socket,
        address: tuple[str, int],
        state: WorkerState,
        limits: Limits,
        now: float,
    ) -> None:
        self._limits = limits
        lifetime = limits.lifetime_seconds
        self._lives_until = _NEVER if lifetime is None else now + lifetime
        self.transport = transport
        self.client = Client(address, state)
        self.key = client_key(str(address[0]))
        self.started = now
        self.stream: _Stream | None = None
        self.ended = False

    def due(self, moved: float) -> float:
        """Return when to look at it next, if data last moved at `moved`; infinity for never."""
        idle = self._limits.idle_timeout_seconds
        return min(_NEVER if idle is None else moved + idle, self._lives_until)

    def look(self, now: float) -> tuple[str, float]:
        """Return why it is to be cut, empty if it is not, and when to look at it next."""
        if now >= self._lives_until:
            return "lifetime is over", _NEVER
        idle = _idle_seconds(self.transport)
        limit = self._limits.idle_timeout_seconds
        if limit is not None and idle is not None and idle >= limit:
            return "idle for too long", _NEVER
        return "", self.due(now - (idle or 0.0))


def _idle_seconds(transport: socket.socket) -> float | None:
    """Return for how long no data moved in either direction; None if the kernel cannot say."""
    try:
        info = transport.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (sent,) = struct.unpack_from("=I", info, _LAST_DATA_SENT_OFFSET)
        (received,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED_OFFSET)
    except (OSError, struct.error):  # closed meanwhile, or not TCP
        return None
    return float(min(sent, received)) / 1000.0

"""Accepting in the event loop: what `TLSServer` and `ServerEngine` have in common.

A callback of the loop accepts whoever waits, 64 at most before others get their turn. Running out
of descriptors pauses it, and stopping takes the queue along: see `transport.accepting` for both.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from transport.accepting import ACCEPT_PAUSE_SECONDS, MOST_QUEUED, NoRoom, accept_next
from transport.readiness import is_readable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

__all__ = ["Acceptor"]

_MAX_ACCEPTS_PER_TURN: Final = 64


class Acceptor:
    """Hands out the connections of listening sockets, which it owns, from `start` to `stop`.

    `take` is called with each connection and its address, `paused` with the error when there is no
    room for more.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        *,
        take: Callable[[socket.socket, tuple[str, int]], None],
        paused: Callable[[OSError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._paused = paused
        self._pause: asyncio.TimerHandle | None = None
        self.sockets = tuple(listeners)
        """The listening sockets; none once stopped."""

    def start(self) -> None:
        """Begin to accept."""
        for listener in self.sockets:
            listener.settimeout(0)
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def end_pause(self) -> None:
        """Accept again if there is a pause."""
        if self._pause is not None:
            self._forget_pause()
            self.start()

    def stop(self) -> None:
        """Close the listening sockets; connections live on.

        Who is in the kernel's queue already is accepted first, or closing would reset them.
        """
        for listener in self.sockets:
            for _ in range(MOST_QUEUED // _MAX_ACCEPTS_PER_TURN):
                if self._pause is not None or not _has_queue(listener):
                    break
                self._accept(listener)
        self._forget_pause()
        for listener in self.sockets:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self.sockets = ()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_MAX_ACCEPTS_PER_TURN):
            try:
                accepted = accept_next(listener)
            except NoRoom as error:
                self._begin_pause(error)
                return
            if accepted is None:
                return
            self._take(*accepted)
            if not _has_queue(listener):  # cheaper than the exception of an `accept` in vain
                return

    def _begin_pause(self, error: OSError) -> None:
        for listener in self.sockets:
            self._loop.remove_reader(listener.fileno())
        self._pause = self._loop.call_later(ACCEPT_PAUSE_SECONDS, self.end_pause)
        self._paused(error)

    def _forget_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None


def _has_queue(listener: socket.socket) -> bool:
    """Return whether somebody waits; `take` may have closed the listener."""
    return listener.fileno() >= 0 and is_readable(listener)

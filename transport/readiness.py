"""Which TLS connections of an event loop can go on: one edge-triggered epoll for all of them.

`loop.add_reader` is made for transports that stay registered and read whenever something is there.
A connection here reads on demand, so it would be registered and taken off again around most waits,
each time through a selector key, a handle and a system call: a third of what asyncio cost in a full
handshake. So a loop has one epoll descriptor of ours, which it watches like any other, and each
connection is registered there once, until it is closed. Whether it takes data is asked from the
first time on that it does not: most connections never send that much, and a socket that takes data
at once would make an event, and a turn of the loop, for nothing.

**Edge-triggered** means that readiness is told once: after an event the socket has to be used until
it says "not now", or nothing more is told. That is what the TLS library does by itself: it wants to
read, or to write, only after the socket refused (`transport.connection`). A connection that waits
has therefore seen the refusal, and whatever happens after it makes an event; one that does not wait
may ignore events, since it will see the refusal before it does. An event is no more than a hint:
who gets one in vain waits again.

A descriptor that another process still holds after `forget`, a child of `fork`, can go on making
events; they find nobody, or in vain a connection that has the same number now.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Readiness", "is_readable"]

_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_MAX_EVENTS_PER_TURN: Final = 256  # the rest comes in the loop's next turn


class Readiness:
    """Calls back when sockets become ready; one for each event loop, as `of_running_loop` says."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    @staticmethod
    def of_running_loop() -> Readiness:
        """Return the running loop's own; it lives as long as the loop."""
        loop = asyncio.get_running_loop()
        found = _BY_LOOP.get(loop)
        if found is None:
            found = _BY_LOOP[loop] = Readiness(loop)
        return found

    def register(self, descriptor: int, callback: Callable[[int], None]) -> None:
        """Call `callback` with the events of a socket whenever it has something to read."""
        self._epoll.register(descriptor, _EVENTS)
        self._callbacks[descriptor] = callback

    def watch_writing(self, descriptor: int) -> None:
        """Call back whenever a registered socket takes data again as well, and now if it does."""
        self._epoll.modify(descriptor, _EVENTS | select.EPOLLOUT)

    def forget(self, descriptor: int) -> None:
        """Call no more; closing the descriptor, which must follow, takes it out of the kernel."""
        self._callbacks.pop(descriptor, None)

    def _dispatch(self) -> None:
        callbacks = self._callbacks
        for descriptor, events in self._epoll.poll(0, _MAX_EVENTS_PER_TURN):
            callback = callbacks.get(descriptor)
            if callback is None:
                continue
            try:
                callback(events)
            except Exception as error:  # noqa: BLE001 - the events behind it are told only once
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a callback of a ready socket raised", "exception": error}
                )


_BY_LOOP: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Readiness]] = WeakKeyDictionary()


def is_readable(transport: socket.socket) -> bool:
    """Return whether a socket has something to read, or somebody to accept, at this moment."""
    poll = select.poll()
    poll.register(transport, select.POLLIN)
    return bool(poll.poll(0))

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

**Who keeps what alive.** The loop keeps its `Readiness`, as what it calls back, and nothing else
here keeps either, so both end together. A connection registers with a callback that does not keep
it: one that is dropped without being closed is then noticed at once. But while somebody waits for
it (`Waiters`) the loop keeps who waits: a task that nobody else refers to would vanish otherwise.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["Readiness", "Waiters", "is_readable"]

_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_MAX_EVENTS_PER_TURN: Final = 256  # the rest comes in the loop's next turn


class Readiness:
    """Calls back when sockets become ready; one for each event loop, as `of_running_loop` says."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self.waiting: set[asyncio.Future[None]] = set()
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    @staticmethod
    def of_running_loop() -> Readiness:
        """Return the running loop's own; it lives as long as the loop."""
        loop = asyncio.get_running_loop()
        reference = _BY_LOOP.get(loop)
        found = None if reference is None else reference()
        if found is None:
            found = Readiness(loop)
            _BY_LOOP[loop] = ref(found)
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


_BY_LOOP: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Readiness]]] = WeakKeyDictionary()


class Waiters:
    """Who waits for the same thing of one connection; kept by the loop meanwhile."""

    __slots__ = ("_here", "_kept")

    def __init__(self, readiness: Readiness) -> None:
        self._kept = readiness.waiting
        self._here: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait until `wake` is called."""
        waiter = asyncio.get_running_loop().create_future()
        self._here.append(waiter)
        self._kept.add(waiter)
        try:
            await waiter
        finally:
            self._here.remove(waiter)
            self._kept.discard(waiter)

    def wake(self) -> None:
        """Let all go on who wait now."""
        for waiter in self._here:
            if not waiter.done():
                waiter.set_result(None)


def is_readable(transport: socket.socket) -> bool:
    """Return whether a socket has something to read, or somebody to accept, at this moment."""
    poll = select.poll()
    poll.register(transport, select.POLLIN)
    return bool(poll.poll(0))

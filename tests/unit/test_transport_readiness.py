"""Edge-triggered readiness: each event reaches its socket, whatever another one's callback does."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import weakref
from contextlib import ExitStack

from transport.readiness import Readiness


async def test_a_callback_that_raises_takes_no_event_from_others() -> None:
    told: list[str] = []
    complaints: list[object] = []
    both = asyncio.Event()

    def note(name: str) -> None:
        told.append(name)
        if len(told) == 2:
            both.set()
        raise ValueError(name)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    readiness = Readiness.of_running_loop()
    with ExitStack() as stack:
        for name in ("one", "other"):
            ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
            readiness.register(ours.fileno(), lambda _, name=name: note(name))
            stack.callback(readiness.forget, ours.fileno())
            theirs.send(b"x")  # both are ready before the loop looks
        await asyncio.wait_for(both.wait(), 5)
    assert sorted(told) == ["one", "other"]
    assert [type(error) for error in complaints] == [ValueError, ValueError]


def test_a_loop_that_has_ended_is_not_kept_by_what_was_watched_in_it() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

        def look(self, _events: int) -> None: ...

    async def watch(sock: socket.socket) -> weakref.ref[asyncio.AbstractEventLoop]:
        Readiness.of_running_loop().register(sock.fileno(), Watcher().look)
        return weakref.ref(asyncio.get_running_loop())

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = asyncio.run(watch(ours))
        gc.collect()
        assert loop() is None


async def test_a_socket_is_watched_for_writing_only_from_when_that_is_asked() -> None:
    events: list[int] = []
    readiness = Readiness.of_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        readiness.register(ours.fileno(), events.append)
        await asyncio.sleep(0.02)
        assert events == []
        readiness.watch_writing(ours.fileno())
        await asyncio.sleep(0.02)
        assert events == [select.EPOLLOUT]
        theirs.send(b"x")
        await asyncio.sleep(0.02)
        assert events[1:] == [select.EPOLLIN | select.EPOLLOUT]
        readiness.forget(ours.fileno())

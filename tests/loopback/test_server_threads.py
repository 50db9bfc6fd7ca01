"""The threads of the blocking engine: taken again, few kept, and where none is to be had."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from running_engines import DEADLINE_SECONDS, Recorded, dialer, round_trip, run_engine

from transport.applications import echo_blocking
from transport.server import Engine, Limits, ServedCredential, ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    import transport


@pytest.fixture
def dial(identities: Any) -> Callable[..., transport.TLSSocket]:
    return dialer(identities.anchors)


def test_threads_are_taken_again_and_only_a_few_are_kept(dial: Any, identities: Any) -> None:
    threads: list[int] = []

    def note(stream: transport.TLSSocket, client: Any) -> None:
        threads.append(threading.get_ident())
        echo_blocking(stream, client)

    settings = ServerSettings(
        handler=note,
        engine=Engine.BLOCKING,
        log=Recorded(),
        credentials=(ServedCredential(identities.ec),),
        limits=Limits(drain_seconds=0.5),
    )
    with run_engine(Engine.BLOCKING, settings, Recorded()) as server:
        engine = server.engine
        for _ in range(20):  # one after the other
            with dial(server.address) as connection:
                round_trip(connection)
            server.until_open(0)
        assert len(set(threads)) < 5
        del threads[:]
        with ExitStack() as stack:
            for connection in [stack.enter_context(dial(server.address)) for _ in range(30)]:
                round_trip(connection)
            assert len(set(threads)) == 30
        server.until_open(0)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(engine._threads) > 5:  # four that wait, and the one that looks after all
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with dial(server.address) as connection:
            round_trip(connection)
    assert not engine._threads


def test_where_no_thread_can_be_started_who_waits_is_served_later(
    dial: Any, identities: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Recorded()
    settings = ServerSettings(
        handler=echo_blocking,
        engine=Engine.BLOCKING,
        log=log,
        credentials=(ServedCredential(identities.ec),),
        limits=Limits(drain_seconds=0.5),
    )

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with run_engine(Engine.BLOCKING, settings, log) as server:
        with monkeypatch.context() as patched, dial(server.address) as first:
            round_trip(first)
            patched.setattr(threading.Thread, "start", refuse)
            with dial(server.address) as second:  # by the one thread that waits
                round_trip(second)
                log.wait_for("accepting_paused")
                third = socket.create_connection(server.address, DEADLINE_SECONDS)
        with third, dial(server.address) as fourth:
            round_trip(fourth)

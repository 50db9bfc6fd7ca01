"""Either engine of a worker, running in this process, and clients of it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import transport
from transport.server import Engine, NoMeter, ServerEngine, ServerEvents, ThreadedEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from certs.credential import TrustAnchors
    from transport.server import ServerSettings

DEADLINE_SECONDS = 20.0


class Recorded:
    """A log in memory that can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: list[tuple[str, dict[str, object]]] = []

    def write(self, event: str, /, **fields: object) -> None:
        with self._changed:
            self._lines.append((event, fields))
            self._changed.notify_all()

    def of(self, event: str) -> list[dict[str, object]]:
        with self._changed:
            return [fields for name, fields in self._lines if name == event]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, object]]:
        with self._changed:
            assert self._changed.wait_for(
                lambda: [name for name, _ in self._lines].count(event) >= count, DEADLINE_SECONDS
            ), f"no {event} among {self._lines}"
        return self.of(event)


class Running:
    """A live engine, and how to talk to it from the test's thread."""

    def __init__(self, log: Recorded, address: tuple[str, int]) -> None:
        self.log = log
        self.address = address
        self.engine: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def call(self, name: str, *arguments: object) -> object:
        """Call a method that is a coroutine of the one engine, a function of the other."""
        method = getattr(self.engine, name)
        if self.loop is None:
            return method(*arguments)
        return asyncio.run_coroutine_threadsafe(method(*arguments), self.loop).result(
            DEADLINE_SECONDS
        )

    def until_open(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.engine.open_connections != count:
            assert time.monotonic() < deadline, self.engine
            time.sleep(0.005)  # a poll of a condition in another thread, not synchronisation


@contextmanager
def run_engine(engine: Engine, settings: ServerSettings, log: Recorded) -> Iterator[Running]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    running = Running(log, listener.getsockname())
    identity = settings.make_identity()
    identity.load()
    events = ServerEvents(log, NoMeter())
    if engine is Engine.BLOCKING:
        threaded = running.engine = ThreadedEngine([listener], settings, identity, events)
        threaded.start()
        try:
            yield running
        finally:
            threaded.drain()
        return
    started = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        running.engine = ServerEngine([listener], settings, identity, events)
        running.loop = asyncio.get_running_loop()
        running.engine.start()
        started.set()
        await stop.wait()
        await running.engine.drain()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(DEADLINE_SECONDS)
    assert running.loop is not None
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def dialer(anchors: TrustAnchors) -> Callable[..., transport.TLSSocket]:
    """Return what makes a connection and its handshake with a server of these anchors."""

    def connect(
        address: tuple[str, int], source: str = "127.0.0.1", **options: Any
    ) -> transport.TLSSocket:
        raw = socket.create_connection(address, DEADLINE_SECONDS, source_address=(source, 0))
        options = {"trust_anchors": anchors, "server_hostname": "localhost"} | options
        connection = transport.wrap_socket(raw, **options)
        connection.settimeout(DEADLINE_SECONDS)
        try:
            connection.do_handshake()
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def round_trip(connection: transport.TLSSocket, text: bytes = b"hello") -> None:
    connection.sendall(text)
    received = b""
    while len(received) < len(text) and (data := connection.recv(1000)):
        received += data
    assert received == text

"""A client that only sends and closes: its data arrives whole, tickets or not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import transport
from transport.connection import TLSCore, Want
from transport.context import server_context

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_SECONDS = 20.0


def send_blocking(address: tuple[str, int], data: bytes, **options: Any) -> None:
    with transport.connect(address, **options) as connection:
        connection.sendall(data)


def send_asyncio(address: tuple[str, int], data: bytes, **options: Any) -> None:
    async def send() -> None:
        async with await transport.open_connection(*address, **options) as stream:
            stream.write(data)
            await stream.drain()

    asyncio.run(send())


ENGINES = pytest.mark.parametrize("send", [send_blocking, send_asyncio])


class SlowServer:
    """A server whose core is fed by hand, so that its tickets go out when the test says so."""

    def __init__(self, connection: socket.socket, identities: Any) -> None:
        self._connection = connection
        self._core = TLSCore(server_context(identities.ec, transport.DEFAULT_POLICY), None)
        connection.settimeout(DEADLINE_SECONDS)

    def answer_client_hello(self) -> None:
        assert self._step(self._core.handshake) is Want.READ
        assert not self._core.is_established

    def finish_and_receive(self) -> int:
        while self._step(self._core.handshake) is not None:
            pass
        total = 0
        while True:
            data = self._core.read(1 << 16)
            if data is Want.READ:
                data = self._step(lambda: self._core.read(1 << 16))
            if isinstance(data, bytes):
                if not data:
                    return total
                total += len(data)

    def _step(self, operation: Callable[[], Any]) -> Any:
        if received := self._connection.recv(1 << 16):
            self._core.receive_data(received)
        else:
            self._core.receive_end()
        result = operation()
        self._connection.sendall(self._core.data_to_send())
        return result


@ENGINES
@pytest.mark.parametrize("size", [300_000, 2_000_000])
def test_tickets_that_come_late_do_not_cut_an_upload(
    send: Callable[..., None], size: int, identities: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(
            target=send,
            args=(listener.getsockname(), bytes(size)),
            kwargs={"trust_anchors": identities.anchors, "server_hostname": "localhost"},
        )
        sender.start()
        connection, _ = listener.accept()
        with connection:
            server = SlowServer(connection, identities)
            server.answer_client_hello()
            sender.join(0.3)  # a client that does not wait is gone by then
            assert server.finish_and_receive() == size
        sender.join(DEADLINE_SECONDS)
        assert not sender.is_alive()


@ENGINES
def test_a_server_that_never_ends_holds_the_client_up_for_a_second_only(
    send: Callable[..., None], identities: Any
) -> None:
    raw = socket.create_server(("127.0.0.1", 0))
    with transport.wrap_listener(raw, credential=identities.ec) as listener:
        accepted: list[transport.TLSSocket] = []

        def serve() -> None:
            accepted.append(listener.accept()[0])
            accepted[0].do_handshake()

        server = threading.Thread(target=serve)
        server.start()
        began = time.monotonic()
        send(listener.getsockname(), b"x", trust_anchors=identities.anchors)
        assert time.monotonic() - began < DEADLINE_SECONDS / 4
        server.join(DEADLINE_SECONDS)
        accepted[0].close()

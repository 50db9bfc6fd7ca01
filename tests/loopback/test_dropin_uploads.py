"""A client that only sends and closes: its data arrives whole, tickets or not."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import transport

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


@ENGINES
@pytest.mark.parametrize("size", [300_000, 2_000_000])
def test_tickets_that_come_late_do_not_cut_an_upload(
    send: Callable[..., None], size: int, identities: Any
) -> None:
    raw = socket.create_server(("127.0.0.1", 0))
    with transport.wrap_listener(raw, credential=identities.ec) as listener:
        sender = threading.Thread(
            target=send,
            args=(listener.getsockname(), bytes(size)),
            kwargs={"trust_anchors": identities.anchors},
        )
        sender.start()
        connection, _ = listener.accept()
        connection.settimeout(0)
        select.select([connection], [], [], DEADLINE_SECONDS)
        with pytest.raises(ssl.SSLWantReadError):
            connection.do_handshake()  # takes the ClientHello, and answers
        select.select([connection], [], [], DEADLINE_SECONDS)  # the client's Finished is here
        sender.join(0.3)  # a client that does not wait is gone by then, one that does is not
        connection.settimeout(DEADLINE_SECONDS)
        connection.do_handshake()  # which sends the tickets
        with connection, connection.makefile("rb") as file:
            assert len(file.read()) == size
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

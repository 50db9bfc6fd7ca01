"""`transport.start_server`: who gets a handler, what becomes of a failure, how a server ends."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from typing import Any

import pytest

import transport
from transport import (
    AlertReceived,
    APIMisuse,
    CertificateRejected,
    PolicyError,
    TLSStream,
    TruncatedStream,
)

DEADLINE_SECONDS = 20.0


async def test_the_handler_is_not_called_without_a_checked_handshake(identities: Any) -> None:
    calls: list[TLSStream] = []
    failures: asyncio.Queue[OSError] = asyncio.Queue()

    async def handle(stream: TLSStream) -> None:
        calls.append(stream)

    async with await transport.start_server(
        handle,
        "127.0.0.1",
        0,
        credential=identities.ec,
        client_anchors=identities.anchors,
        on_handshake_failure=lambda _address, error: failures.put_nowait(error),
    ) as server:
        address = server.sockets[0].getsockname()
        stranger = await transport.open_connection(
            *address, trust_anchors=identities.anchors, credential=identities.foreign
        )
        with pytest.raises(AlertReceived):
            await stranger.read(1)
        stranger.close()
        assert isinstance(await failures.get(), CertificateRejected)
        assert not calls
        async with await transport.open_connection(
            *address, trust_anchors=identities.anchors, credential=identities.rsa
        ) as friend:
            assert await friend.read() == b""
        assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        FileNotFoundError(2, "No such file or directory", "page.html"),
        PermissionError(13, "Permission denied"),
        ConnectionRefusedError(111, "Connection refused"),  # a database's
        APIMisuse("a wrong call", advice="make another"),
        PolicyError("a wrong policy", advice="use another"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_handler_that_raises_aborts_and_is_reported(
    identities: Any, error: Exception
) -> None:
    reported: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: reported.put_nowait(context)
    )

    async def handle(stream: TLSStream) -> None:
        await stream.send_all(b"half")
        raise error

    async with await transport.start_server(
        handle, "127.0.0.1", 0, credential=identities.ec
    ) as server:
        client = await transport.open_connection(
            *server.sockets[0].getsockname(), trust_anchors=identities.anchors
        )
        with pytest.raises(TruncatedStream):
            await client.read()
        client.close()
    assert reported.get_nowait()["exception"] is error


@pytest.mark.parametrize(
    "error",
    [
        None,  # what reading from a peer that is gone raises
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_peer_that_broke_off_is_no_fault_of_the_handler(
    identities: Any, error: Exception | None
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: reported.append(context)
    )

    async def handle(stream: TLSStream) -> None:
        try:
            await stream.read()
        except TruncatedStream:
            if error is not None:
                raise error from None
            raise

    async with await transport.start_server(
        handle, "127.0.0.1", 0, credential=identities.ec
    ) as server:
        client = await transport.open_connection(
            *server.sockets[0].getsockname(), trust_anchors=identities.anchors
        )
        client.abort()
        await asyncio.wait_for(server.wait_closed(), DEADLINE_SECONDS)
    assert not reported


async def test_a_handler_cancelled_before_its_first_step_leaves_no_connection(
    identities: Any,
) -> None:
    async def handle(_stream: TLSStream) -> None: ...

    def make(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        if coroutine.__qualname__ == "TLSServer._serve":
            task.cancel()
        return task

    asyncio.get_running_loop().set_task_factory(make)
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        await transport.start_server(handle, "127.0.0.1", 0, credential=identities.ec) as server,
        await transport.open_connection(
            *server.sockets[0].getsockname(), trust_anchors=identities.anchors
        ) as client,
    ):
        with pytest.raises(TruncatedStream):
            await client.read()


async def test_leaving_a_server_cancels_handlers_that_do_not_end(identities: Any) -> None:
    cancelled = asyncio.Event()

    async def handle(_stream: TLSStream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with await transport.start_server(
        handle, "127.0.0.1", 0, credential=identities.ec, shutdown_timeout_seconds=0.1
    ) as server:
        assert server.is_serving()
        client = await transport.open_connection(
            *server.sockets[0].getsockname(), trust_anchors=identities.anchors
        )
        address = server.sockets[0].getsockname()
    assert cancelled.is_set()
    assert not server.is_serving()
    assert server.sockets == ()
    with pytest.raises(TruncatedStream):
        await client.read()
    client.close()
    with pytest.raises(ConnectionRefusedError):
        await transport.open_connection(*address, trust_anchors=identities.anchors)


async def test_closing_a_server_resets_nobody_who_has_connected(identities: Any) -> None:
    async def handle(stream: TLSStream) -> None:
        await stream.send_all(b"served")

    def fetch(raw: socket.socket) -> bytes:
        with transport.wrap_socket(
            raw, trust_anchors=identities.anchors, server_hostname="localhost"
        ) as client:
            client.settimeout(DEADLINE_SECONDS)
            return client.recv(100)

    server = await transport.start_server(handle, "127.0.0.1", 0, credential=identities.ec)
    address = server.sockets[0].getsockname()
    queued = [socket.create_connection(address) for _ in range(100)]  # in this loop's own thread
    server.close()
    assert not server.is_serving()
    for raw in queued:
        assert await asyncio.to_thread(fetch, raw) == b"served"
    await asyncio.wait_for(server.wait_closed(), DEADLINE_SECONDS)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_a_server_may_be_closed_by_what_it_calls_while_it_accepts(identities: Any) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: reported.append(context)
    )
    failures: asyncio.Queue[OSError] = asyncio.Queue()

    async def handle(_: TLSStream) -> None: ...

    def close(_address: object, error: OSError) -> None:
        failures.put_nowait(error)
        server.close()

    server = await transport.start_server(
        handle, "127.0.0.1", 0, credential=identities.ec, on_handshake_failure=close
    )
    strangers = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(3)]
    for stranger in strangers:  # before the loop accepts any: each fails as it is accepted
        stranger.sendall(b"this is no TLS\n")
    async with asyncio.timeout(DEADLINE_SECONDS):
        for stranger in strangers:
            await failures.get()
            stranger.close()
        await server.wait_closed()
    assert not reported


async def test_both_families_of_a_name_are_served(identities: Any) -> None:
    async def handle(stream: TLSStream) -> None:
        await stream.send_all(b"hello")

    async with await transport.start_server(
        handle, "localhost", 0, credential=identities.ec
    ) as server:
        for listener in server.sockets:
            host, port = listener.getsockname()[:2]
            async with await transport.open_connection(
                host, port, trust_anchors=identities.anchors, server_hostname="localhost"
            ) as client:
                assert await client.read() == b"hello"


async def test_a_name_without_address_is_an_error(identities: Any) -> None:
    with pytest.raises(OSError, match=r"(?i)name|address"):
        await transport.open_connection(
            "no-such-host.invalid", 443, trust_anchors=identities.anchors
        )


async def rejected_by(server: transport.TLSServer) -> None:
    """Connect, say what is no TLS, and wait for the server to end it."""
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"this is no TLS\n")
    await reader.read()
    writer.close()


async def test_a_server_that_ends_ends_the_handshakes_under_way(identities: Any) -> None:
    async def handle(_: TLSStream) -> None: ...

    async with asyncio.timeout(DEADLINE_SECONDS):
        async with await transport.start_server(
            handle, "127.0.0.1", 0, credential=identities.ec, shutdown_timeout_seconds=0.2
        ) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            # When one that came later was answered, this one has been accepted.
            await rejected_by(server)
            assert "with 1 connections" in repr(server)
        assert "with 0 connections" in repr(server)
        assert await reader.read() == b""
        writer.close()


async def test_a_cancelled_handshake_closes_the_connection(identities: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connecting = asyncio.create_task(
            transport.open_connection(*silent.getsockname(), trust_anchors=identities.anchors)
        )
        far, _ = await asyncio.to_thread(silent.accept)
        await asyncio.to_thread(far.recv, 1)
        connecting.cancel()
        await asyncio.wait([connecting])
        assert connecting.cancelled()
        far.settimeout(DEADLINE_SECONDS)
        with far:
            while far.recv(1 << 16):
                pass


class Noticing(logging.Handler):
    """Sets an event for the first record."""

    def __init__(self) -> None:
        super().__init__()
        self.noticed = asyncio.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.noticed.set()


async def test_running_out_of_descriptors_pauses_accepting(identities: Any) -> None:
    async def handle(stream: TLSStream) -> None:
        await stream.send_all(b"served")

    noticing = Noticing()
    logger = logging.getLogger("transport.stream")
    logger.addHandler(noticing)
    try:
        async with await transport.start_server(
            handle, "127.0.0.1", 0, credential=identities.ec
        ) as server:
            address = server.sockets[0].getsockname()
            client = socket.create_connection(address)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            # As many as are open now: the accept that is due finds none left.
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
            try:
                await asyncio.wait_for(noticing.noticed.wait(), DEADLINE_SECONDS)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(noticing.messages) == 1
            assert "accepting pauses" in noticing.messages[0]
            client.close()
            async with await transport.open_connection(
                *address, trust_anchors=identities.anchors
            ) as later:
                assert await later.read() == b"served"
    finally:
        logger.removeHandler(noticing)

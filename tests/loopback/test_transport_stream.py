"""The asyncio engine: the shape of asyncio's streams, cancellation, back-pressure and endings."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

import transport
from transport import (
    APIMisuse,
    TLSStream,
    TruncatedStream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE_SECONDS = 20.0


@asynccontextmanager
async def two_ends(identities: Any, **options: Any) -> AsyncIterator[tuple[TLSStream, TLSStream]]:
    """Yield a client's and a server's stream; the server's handler lasts as long as the block."""
    streams: asyncio.Queue[TLSStream] = asyncio.Queue()
    over = asyncio.Event()

    async def handle(stream: TLSStream) -> None:
        await streams.put(stream)
        await over.wait()

    async with asyncio.timeout(DEADLINE_SECONDS):
        async with await transport.start_server(
            handle, "127.0.0.1", 0, credential=identities.ec, **options
        ) as server:
            client = await transport.open_connection(
                *server.sockets[0].getsockname(), trust_anchors=identities.anchors, **options
            )
            async with client:
                try:
                    yield client, await streams.get()
                finally:
                    over.set()


async def test_the_reading_calls(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        await server.send_all(b"one\ntwo\nthree--four")
        assert await client.readline() == b"one\n"
        assert await client.readuntil(b"\n") == b"two\n"
        assert await client.readuntil(b"--") == b"three--"
        assert await client.readexactly(2) == b"fo"
        assert await client.read(0) == b""
        assert await client.readexactly(0) == b""
        assert await client.read(100) == b"ur"
        assert not client.at_eof()
        server.write(b"last")
        server.write_eof()
        assert await client.readline() == b"last"
        assert await client.read() == b""
        assert client.at_eof()
        with pytest.raises(asyncio.IncompleteReadError):
            await client.readexactly(1)
        with pytest.raises(asyncio.IncompleteReadError):
            await client.readuntil()
        with pytest.raises(ValueError, match="less than zero"):
            await client.readexactly(-1)
        with pytest.raises(ValueError, match="at least one-byte"):
            await client.readuntil(b"")


async def test_a_separator_across_two_records_is_found(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        await server.send_all(b"first\r")
        await server.send_all(b"\nsecond")
        assert await client.readuntil(b"\r\n") == b"first\r\n"
        assert await client.readexactly(6) == b"second"


async def test_a_line_without_end_is_bounded(identities: Any) -> None:
    async with two_ends(identities, limit_bytes=1000) as (client, server):
        await server.send_all(bytes(3000))
        with pytest.raises(asyncio.LimitOverrunError):
            await client.readuntil()
        assert await client.readexactly(3000) == bytes(3000)


async def test_a_line_beyond_the_limit_is_refused_though_its_end_is_there(identities: Any) -> None:
    async with two_ends(identities, limit_bytes=100) as (client, server):
        await server.send_all(b"x" * 101 + b"--" + b"y" * 100 + b"--")
        with pytest.raises(asyncio.LimitOverrunError) as overrun:
            await client.readuntil(b"--")
        assert overrun.value.consumed == 101
        assert await client.readexactly(103) == b"x" * 101 + b"--"
        assert await client.readuntil(b"--") == b"y" * 100 + b"--"  # the limit itself is within


async def test_half_a_separator_is_not_consumed_with_what_is_too_long(identities: Any) -> None:
    async with two_ends(identities, limit_bytes=100) as (client, server):
        await server.send_all(b"x" * 150 + b"\r")
        with pytest.raises(asyncio.LimitOverrunError) as overrun:
            await client.readuntil(b"\r\n")
        assert await client.readexactly(overrun.value.consumed) == b"x" * 150
        await server.send_all(b"\nnext\r\n")
        assert await client.readuntil(b"\r\n") == b"\r\n"
        assert await client.readuntil(b"\r\n") == b"next\r\n"


async def test_readline_gets_past_a_line_that_is_too_long(identities: Any) -> None:
    async with two_ends(identities, limit_bytes=100) as (client, server):
        await server.send_all(b"x" * 200 + b"\nnext\n" + b"y" * 200)
        with pytest.raises(ValueError, match="limit"):
            await client.readline()
        assert await client.readline() == b"next\n"
        with pytest.raises(ValueError, match="limit"):  # no end of it is there: all is dropped
            await client.readline()
        await server.send_all(b"end\n")
        assert await client.readline() == b"end\n"


async def test_small_writes_of_one_turn_make_one_record(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        for number in range(100):
            client.write(bytes([number]))
        await client.drain()
        assert await server.read(1 << 16) == bytes(range(100))
        client.writelines([b"a", b"b"])  # sent without drain, too
        assert await server.readexactly(2) == b"ab"


async def test_writing_keeps_what_a_caller_then_changes(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        data = bytearray(b"x" * (8 << 20))
        client.write(data)
        data[:] = bytes(len(data))
        assert await server.readexactly(8 << 20) == b"x" * (8 << 20)


async def test_both_directions_at_once(identities: Any) -> None:
    payload = os.urandom(4 << 20)
    async with two_ends(identities) as (client, server):
        _, _, left, right = await asyncio.gather(
            client.send_all(payload),
            server.send_all(payload),
            client.readexactly(len(payload)),
            server.readexactly(len(payload)),
        )
        assert left == right == payload


async def test_drain_waits_for_a_peer_that_does_not_read(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        client.write(bytes(32 << 20))
        drain = asyncio.create_task(client.drain())
        done, _ = await asyncio.wait([drain], timeout=0.2)
        assert not done
        assert await server.readexactly(32 << 20) == bytes(32 << 20)
        await drain


async def test_a_cancelled_read_loses_nothing(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        for call in (client.readexactly(8), client.readuntil(b"!"), client.read(), client.read(8)):
            await server.send_all(b"half")
            reading = asyncio.create_task(call)
            await asyncio.wait([reading], timeout=0.05)
            reading.cancel()
            await asyncio.wait([reading])
            if reading.cancelled():
                await server.send_all(b"-more")
                assert await client.readexactly(9) == b"half-more"
            else:
                assert reading.result() == b"half"


async def test_a_cancelled_drain_loses_nothing(identities: Any) -> None:
    payload = os.urandom(16 << 20)
    async with two_ends(identities) as (client, server):
        sending = asyncio.create_task(client.send_all(payload))
        await asyncio.wait([sending], timeout=0.05)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        client.write(b"after")
        assert await server.readexactly(len(payload)) == payload
        assert await server.readexactly(5) == b"after"


async def test_two_readers_are_refused(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        first = asyncio.create_task(client.read(1))
        await asyncio.sleep(0)
        with pytest.raises(APIMisuse, match="two tasks"):
            await client.read(1)
        await server.send_all(b"x")
        assert await first == b"x"


async def test_half_close(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        assert client.can_write_eof()
        client.write(b"question")
        client.write_eof()
        client.write_eof()
        assert await server.read() == b"question"
        await server.send_all(b"answer")
        assert await client.readexactly(6) == b"answer"
        with pytest.raises(APIMisuse, match="ended its data"):
            client.write(b"more")


async def test_close_sends_what_is_queued(identities: Any) -> None:
    payload = os.urandom(8 << 20)
    async with two_ends(identities) as (client, server):
        client.write(payload)
        client.close()
        client.close()
        assert client.is_closing()
        assert await server.read() == payload
        await client.wait_closed()
        with pytest.raises(APIMisuse):
            client.write(b"x")
        with pytest.raises(APIMisuse, match="closed"):
            await client.read(1)


async def test_close_is_bounded_with_a_peer_that_takes_nothing(identities: Any) -> None:
    async with two_ends(identities, shutdown_timeout_seconds=0.1) as (client, server):
        client.write(bytes(64 << 20))
        started = time.monotonic()
        client.close()
        await client.wait_closed()
        assert time.monotonic() - started < DEADLINE_SECONDS / 2
        with pytest.raises(TruncatedStream):
            await server.read()


async def test_abort_is_a_truncation(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        await client.send_all(b"half")
        client.abort()
        client.abort()
        await client.wait_closed()
        assert await server.readexactly(4) == b"half"
        with pytest.raises(TruncatedStream):
            await server.read(1)
        with pytest.raises(TruncatedStream):  # it stays one
            await server.read(1)


async def test_closing_wakes_a_reader(identities: Any) -> None:
    async with two_ends(identities) as (client, _server):
        reading = asyncio.create_task(client.read(1))
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(APIMisuse, match="closed"):
            await reading


async def test_a_peer_that_vanished_fails_the_writer(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        server.abort()
        await server.wait_closed()
        with pytest.raises(OSError, match=r"close|reset|pipe"):
            await client.send_all(bytes(64 << 20))
        with pytest.raises(OSError, match=r"close|reset|pipe"):
            client.write(b"x")
        with pytest.raises(OSError, match=r"close|reset|pipe"):
            await client.drain()


@asynccontextmanager
async def server_that_reads(identities: Any) -> AsyncIterator[tuple[Any, asyncio.Queue[object]]]:
    """Yield an address, and what became of each connection: what was read, or the error."""
    outcomes: asyncio.Queue[object] = asyncio.Queue()

    async def handle(stream: TLSStream) -> None:
        try:
            outcomes.put_nowait(await stream.read())
        except OSError as error:
            outcomes.put_nowait(error)

    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        await transport.start_server(handle, "127.0.0.1", 0, credential=identities.ec) as server,
    ):
        yield server.sockets[0].getsockname(), outcomes


async def test_a_stream_that_is_dropped_is_aborted_with_a_warning(identities: Any) -> None:
    async with server_that_reads(identities) as (address, outcomes):
        client = await transport.open_connection(*address, trust_anchors=identities.anchors)
        await client.send_all(b"half")
        await asyncio.sleep(0)  # in which the loop looks whether more was written
        with pytest.warns(ResourceWarning, match="unclosed <TLSStream open"):
            del client
        assert isinstance(await outcomes.get(), TruncatedStream)


async def test_a_stream_that_is_dropped_after_its_close_sends_all(identities: Any) -> None:
    payload = os.urandom(8 << 20)
    async with server_that_reads(identities) as (address, outcomes):
        client = await transport.open_connection(*address, trust_anchors=identities.anchors)
        client.write(payload)
        client.close()
        del client
        gc.collect()
        assert await outcomes.get() == payload


async def test_who_waits_for_a_stream_keeps_it_alive(identities: Any) -> None:
    waits, answer, over = (asyncio.Event() for _ in range(3))

    async def handle(stream: TLSStream) -> None:
        await answer.wait()
        await stream.send_all(b"hello")

    async def read_alone(address: Any) -> None:
        async with await transport.open_connection(
            *address, trust_anchors=identities.anchors
        ) as stream:
            waits.set()
            assert await stream.readexactly(5) == b"hello"
        over.set()

    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        await transport.start_server(handle, "127.0.0.1", 0, credential=identities.ec) as server,
    ):
        address = server.sockets[0].getsockname()
        asyncio.create_task(read_alone(address))  # noqa: RUF006 - nobody keeps it, on purpose
        await waits.wait()
        await asyncio.sleep(0)
        gc.collect()
        answer.set()
        await over.wait()


async def test_what_a_peer_said_before_it_went_can_be_read_after_a_write_failed(
    identities: Any,
) -> None:
    async with two_ends(identities) as (client, server):
        await server.send_all(b"413")
        server.close()
        await server.wait_closed()
        await client.send_all(b"upload")  # which draws the reset
        await asyncio.to_thread(wait_for_reset, client)
        with pytest.raises(ConnectionError, match="can still be read"):
            await client.send_all(b"upload")
        assert await client.read() == b"413"


def wait_for_reset(stream: TLSStream) -> None:
    poll = select.poll()
    poll.register(cast("socket.socket", stream.get_extra_info("socket")), 0)
    assert poll.poll(DEADLINE_SECONDS * 1000)


async def test_what_is_known_of_a_stream(identities: Any) -> None:
    async with two_ends(identities) as (client, server):
        assert client.get_extra_info("peername") == server.get_extra_info("sockname")
        assert client.get_extra_info("negotiated") is client.negotiated
        assert isinstance(client.get_extra_info("socket"), socket.socket)
        assert client.get_extra_info("no such thing", "default") == "default"
        assert client.export_keying_material(
            "EXPERIMENTAL test", 32
        ) == server.export_keying_material("EXPERIMENTAL test", 32)
        assert "open" in repr(client)
        client.abort()
        assert client.get_extra_info("peername") is None

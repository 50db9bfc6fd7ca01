"""A peer that never lets a read or a write wait does not keep an event loop for itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import transport
from interop.peers.hostile import HostileClient

if TYPE_CHECKING:
    from conftest import Identities

RECORDS = 2000


@pytest.mark.parametrize("send", ["drain", "send_all"])
async def test_others_run_while_one_task_sends_without_a_pause(
    identities: Identities, send: str
) -> None:
    turns_during_sends: list[int] = []
    turns = 0

    async def handle(stream: transport.TLSStream) -> None:
        before = turns
        for _ in range(RECORDS):  # the kernel takes all of it at once: nothing waits
            if send == "drain":
                stream.write(b"x")
                await stream.drain()
            else:
                await stream.send_all(b"x")
        turns_during_sends.append(turns - before)

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    server = await transport.start_server(handle, "127.0.0.1", 0, credential=identities.ec)
    async with server:
        other = asyncio.create_task(take_turns())
        async with await transport.open_connection(
            *server.sockets[0].getsockname(), trust_anchors=identities.anchors
        ) as client:
            assert await client.read() == b"x" * RECORDS
        other.cancel()
    (others,) = turns_during_sends
    assert others >= RECORDS // 64 - 1


async def test_others_run_while_one_peer_sends_without_a_pause(identities: Identities) -> None:
    turns_during_reads: list[int] = []
    turns = 0

    async def handle(stream: transport.TLSStream) -> None:
        await stream.readexactly(1)
        before = turns
        await stream.readexactly(RECORDS)  # all of it is in the kernel already: no read waits
        turns_during_reads.append(turns - before)
        await stream.send_all(b"done")

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    server = await transport.start_server(handle, "127.0.0.1", 0, credential=identities.ec)
    async with server:
        address: Any = server.sockets[0].getsockname()
        client = await asyncio.to_thread(HostileClient, address, identities.anchors)
        with client:
            other = asyncio.create_task(take_turns())
            sealed = [client.seal.record(b"x") for _ in range(RECORDS + 1)]
            client.send(*sealed)  # from this loop's own thread, so before the handler reads
            assert await asyncio.to_thread(client.receive) == b"done"
            client.say_close_notify()
            other.cancel()
    (others,) = turns_during_reads
    assert others >= RECORDS // 64 - 1

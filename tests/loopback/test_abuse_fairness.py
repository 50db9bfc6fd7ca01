"""A peer that never lets a read wait does not keep an event loop for itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import transport
from interop.peers.hostile import HostileClient

if TYPE_CHECKING:
    from conftest import Identities

RECORDS = 2000


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
